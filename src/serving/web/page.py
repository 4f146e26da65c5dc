"""The page: its tabs, its looks, and the limits under which it is served."""

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before the import that reads it

import gradio as gr
from fastapi.middleware import Middleware
from markupsafe import escape

from src.serving.web.chat import ChatTab, Stops
from src.serving.web.explore import ExploreTab
from src.serving.web.models import Models
from src.serving.web.pictures import MAX_UPLOAD_BYTES
from src.serving.web.score import ScoreTab
from src.serving.web.scored_data import ScoredData

QUEUE_SIZE = 32  # events that wait, of all visitors; who comes later is told to try again
HOURS_KEPT = 6  # of an upload
STYLE = Path(__file__).parent / "page.css"
# Nothing but this server is asked for anything, whatever a model or a data set says.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; object-src 'none'; base-uri 'self'"
)


class Policy:
    """ASGI middleware that sends ``POLICY`` with every answer."""

    def __init__(self, app: Callable[..., Awaitable[None]]):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                added = [(b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"same-origin")]
                message = message | {"headers": [*message.get("headers", ()), *added]}
            await send(message)

        await self.app(scope, receive, sending)


def build_page(models: Models, names: dict[str, str], data: ScoredData | None, reasoning: bool = False) -> gr.Blocks:
    """The page, ready for :func:`serve`.

    Args:
        names: what the models are called, by what they do.
        data: what there is to explore.
        reasoning: ask the model to think before it answers.
    """
    stops = [Stops(), Stops()]

    def leave(request: gr.Request) -> None:
        for each in stops:
            each.end_of(request)

    with gr.Blocks(
        title="ScoreRS", analytics_enabled=False, delete_cache=(600, HOURS_KEPT * 3600), fill_width=True
    ) as page:
        told = " · ".join(f"{escape(what)} <b>{escape(name)}</b>" for what, name in names.items())
        gr.HTML(f"<h1>ScoreRS</h1><p>{told}</p>", elem_classes="top", apply_default_css=False)
        with gr.Tabs(elem_classes="pages"):
            with gr.Tab("Chat", id="chat"):
                ChatTab(models, reasoning, stops[0]).build()
            with gr.Tab("Score", id="score"):
                ScoreTab(models, reasoning, stops[1]).build()
            with gr.Tab("Explore", id="explore"):
                ExploreTab(data).build(page)
        page.unload(leave)
    return page.queue(max_size=QUEUE_SIZE, api_open=False)


def serve(page: gr.Blocks, **options: Any) -> None:
    """Serve the page until it is ended.

    Args:
        options: of Gradio's ``launch``: ``server_name``, ``server_port``, ``share``, ``inbrowser``.
    """
    page.launch(
        theme=theme(),
        css_paths=STYLE,
        footer_links=[],
        max_file_size=MAX_UPLOAD_BYTES,
        state_session_capacity=256,
        app_kwargs={"middleware": [Middleware(Policy)]},
        ssr_mode=False,
        **options,
    )


def theme() -> gr.themes.Base:
    """Paper, ink and one colour, like the reports; fonts of the reader's own system."""
    paper, ink, line, teal = "#f7f6f2", "#1d2527", "#e2e0d8", "#1f7a6d"
    light, dark = ("#eef6f4", "#e0efeb", "#bcddd5", "#8fc4b9", "#58a396", "#2f8b7d"), ("#19645a", "#14594f", "#0f463e")
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Liberation Sans", "sans-serif"]
    made = gr.themes.Base(
        primary_hue=gr.themes.Color(*light, teal, *dark, "#0a322c"),
        neutral_hue=gr.themes.colors.stone,
        radius_size=gr.themes.sizes.radius_md,
        font=fonts,
        font_mono=["ui-monospace", "Liberation Mono", "monospace"],
    )
    return made.set(
        body_background_fill=paper,
        body_background_fill_dark="#12171a",
        body_text_color=ink,
        body_text_color_dark="#e4e8e6",
        background_fill_primary="#ffffff",
        background_fill_primary_dark="#1a2125",
        background_fill_secondary=paper,
        background_fill_secondary_dark="#161c20",
        border_color_primary=line,
        border_color_primary_dark="#2b3439",
        block_border_color=line,
        block_border_color_dark="#2b3439",
        block_background_fill="#ffffff",
        block_background_fill_dark="#1a2125",
        block_shadow="none",
        link_text_color=teal,
        link_text_color_hover="#14594f",
        link_text_color_visited=teal,
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_border_width="0px",
        input_background_fill="#ffffff",
        input_background_fill_dark="#12171a",
        input_border_color=line,
        input_border_color_dark="#2b3439",
        button_primary_background_fill=teal,
        button_primary_background_fill_hover="#19645a",
        button_primary_background_fill_dark="#2f8b7d",
        button_primary_text_color="#ffffff",
        button_secondary_background_fill="#ffffff",
        button_secondary_background_fill_hover="#f0efe9",
        button_secondary_background_fill_dark="#232c31",
        button_border_width="1px",
        button_secondary_border_color=line,
        button_secondary_border_color_dark="#2b3439",
    )
