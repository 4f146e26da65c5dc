"""Parts of the page that are drawn in the browser from plain values, by the scripts of the folder ``views``."""

from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr

VIEWS = Path(__file__).parent / "views"


def view(name: str, value: dict[str, Any] | None = None, **options: Any) -> gr.HTML:
    """A part of the page that ``views/<name>.js`` draws; its value is a JSON object.

    The script makes nodes of the document and puts every text in as text, so that no word of a model or a data set is
    ever read as HTML.
    """
    script = _script("dom") + _script(name)
    classes = ["view", f"view-{name}"]
    return gr.HTML(
        value or {}, html_template="", js_on_load=script, apply_default_css=False, elem_classes=classes, **options
    )


def event_data(event: gr.EventData) -> dict[str, Any]:
    """What the script of a view sent along with an event; from a browser, so not to be trusted."""
    return event._data if isinstance(event._data, dict) else {}


@cache
def _script(name: str) -> str:
    return (VIEWS / f"{name}.js").read_text(encoding="utf-8")
