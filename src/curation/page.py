"""Pages that open anywhere: one HTML file, with everything inline, that asks the network for nothing."""

from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined

CAPTION_CHARS = 180


def write_page(
    template: str, output: Path, facts: dict[str, Any], with_charts: bool, folder: Path | None = None
) -> Path:
    """Write the template beside this module, or in ``folder``, filled with ``facts``, to ``output``; return its path.

    The file appears under its name only when it is complete; ``with_charts`` adds the script that draws charts.
    """
    vega = vl_convert.javascript_bundle() if with_charts else ""  # type: ignore[call-arg]
    page = _environment(folder).get_template(template).render(**facts, vega=vega)
    partial = output.with_name(f".{output.name}.partial")
    partial.write_text(page, encoding="utf-8", errors="replace")
    return partial.replace(output)


def shorten(text: str, limit: int) -> str:
    """At most ``limit`` characters of a text, with its full length where it was cut."""
    return text if len(text) <= limit else f"{text[:limit].rstrip()} … ({len(text):,} characters)"


def _environment(folder: Path | None) -> Environment:
    environment = Environment(
        loader=FileSystemLoader([*([folder] if folder else []), Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = lambda number: f"{number:,}"
    environment.filters["share"] = lambda part: "< 0.1 %" if 0 < part < 0.0005 else f"{100 * part:.1f} %"
    environment.filters["short"] = lambda text: shorten(text, CAPTION_CHARS)
    environment.filters["score"] = lambda score: f"{score:.3f}" if abs(score) < 100 else f"{score:.4g}"
    return environment
