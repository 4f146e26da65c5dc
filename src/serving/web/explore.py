"""The tab in which one looks through a scored data set and moves the cut."""

import math
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from src.curation.rules import Rule
from src.errors import JobError
from src.serving.web.chat import QUIET
from src.serving.web.scored_data import PAGE, SORTS, Filters, ScoredData
from src.serving.web.view import event_data, view

HOW = """No scored data set is open. Score one, then start the page with it:

    python python_script/score_dataset.py config/score_dataset.yaml data.path=captions.csv output_dir=output/mine
    python python_script/web_demo.py --scores output/mine

`bash script/quickstart.sh` makes one at `output/quickstart`, which is opened by default.
"""
START = 0.3
Shown = dict[str, Any]
Numbers = tuple[bool, bool]  # whether to write into the fields of the fraction and of the threshold
BOTH: Numbers = (True, True)  # a field that is being typed into is left alone


@dataclass
class Look:
    """What one visitor looks at.

    Attributes:
        rule: ``fraction`` or ``threshold``, whichever was moved last.
        pages: of the kept and of the dropped.
    """

    rule: Rule = field(default_factory=lambda: Rule(fraction=START))
    filters: Filters = field(default_factory=lambda: Filters(status="ok"))
    sort: str = next(iter(SORTS))
    pages: dict[bool, int] = field(default_factory=lambda: {True: 0, False: 0})


class ExploreTab:
    """What the controls of the tab do; visitors share it, and each brings a look.

    Args:
        data: None without a data set.
    """

    def __init__(self, data: ScoredData | None):
        self.data = data

    def build(self, page: gr.Blocks) -> None:
        """Lay the tab out inside the page."""
        if self.data is None:
            gr.Markdown(HOW, elem_classes="how")
            return
        data, look = self.data, gr.State(Look())
        with gr.Column(elem_classes="explore"):
            histogram = view("histogram", elem_id="histogram")
            with gr.Row(elem_classes="tools rule"):
                fraction = gr.Number(100 * START, label="keep best %", minimum=0, maximum=100, min_width=120)
                threshold = gr.Number(None, label="or scores from", min_width=120)
                export = gr.Button("Export this subset", variant="primary", min_width=150)
            with gr.Row(elem_classes="tools filters"):
                source = _choice("source", data.sources)
                label = _choice(data.class_column or "class", data.classes, visible=bool(data.class_column))
                status = gr.Dropdown([("any", ""), *data.statuses], value="ok", label="status", min_width=120)
                text = gr.Textbox(label="text contains", placeholder="plane", min_width=150, elem_id="filter-text")
                sort = gr.Dropdown(list(SORTS), value=next(iter(SORTS)), label="sort", min_width=130)
            packed = gr.File(label="subset", visible=False, interactive=False, elem_id="subset")
            note = view("note", elem_id="explore-note")
            record = view("record", elem_id="record")
            with gr.Row(elem_classes="galleries"):
                with gr.Column(min_width=300):
                    kept = view("cards", elem_id="kept")
                with gr.Column(min_width=300):
                    dropped = view("cards", elem_id="dropped")
        shown = [histogram, fraction, threshold, kept, dropped, note]
        quiet: dict[str, Any] = {**QUIET, "concurrency_id": "explore", "concurrency_limit": 4}
        latest: dict[str, Any] = {**quiet, "trigger_mode": "always_last"}
        histogram.input(self.drag, look, shown, trigger_mode="multiple", **quiet)
        fraction.input(self.by_fraction, [look, fraction], shown, **latest)
        threshold.input(self.by_threshold, [look, threshold], shown, **latest)
        for control in (source, label, status, sort):
            control.input(self.filter, [look, source, label, status, text, sort], shown, **latest)
        text.change(self.filter, [look, source, label, status, text, sort], shown, **latest)
        kept.input(self.turn_kept, look, kept, **quiet)
        dropped.input(self.turn_dropped, look, dropped, **quiet)
        for cards in (kept, dropped, record):
            cards.select(self.open, None, record, trigger_mode="multiple", **quiet)
        record.clear(lambda: {}, None, record, queue=False, **QUIET)
        export.click(self.export, look, [packed, note], **quiet)
        page.load(self.begin, look, [*shown, label], **quiet)

    def begin(self, look: Look) -> tuple[Any, ...]:
        """What is shown at first; class values are known once the texts have been read."""
        return *self._all(look, numbers=BOTH), gr.Dropdown(choices=[("any", ""), *self._data.classes])

    def drag(self, look: Look, event: gr.EventData) -> tuple[Any, ...]:
        """Move the cut to where the histogram's handle was dragged."""
        return self.by_threshold(look, event_data(event).get("threshold"), BOTH)

    def by_threshold(self, look: Look, threshold: Any, numbers: Numbers = (True, False)) -> tuple[Any, ...]:
        """Keep scores from ``threshold`` on."""
        if isinstance(threshold, int | float) and math.isfinite(threshold):
            look.rule = Rule(threshold=float(threshold))
            look.pages = {True: 0, False: 0}
        return self._all(look, numbers)

    def by_fraction(self, look: Look, percent: Any) -> tuple[Any, ...]:
        """Keep the best ``percent``."""
        if isinstance(percent, int | float) and 0 < percent <= 100:
            look.rule = Rule(fraction=round(percent / 100, 8))
            look.pages = {True: 0, False: 0}
        return self._all(look, (False, True))

    def filter(self, look: Look, source: Any, label: Any, status: Any, text: Any, sort: Any) -> tuple[Any, ...]:
        """Show what passes these filters only, in this order."""
        look.filters = Filters(*(str(value or "")[:200] for value in (source, label, status, text)))
        look.sort = sort if sort in SORTS else look.sort
        look.pages = {True: 0, False: 0}
        return self._all(look)

    def turn_kept(self, look: Look, event: gr.EventData) -> Shown:
        """Show another page of what is kept."""
        return self._turn(look, True, event)

    def turn_dropped(self, look: Look, event: gr.EventData) -> Shown:
        """Show another page of what is dropped."""
        return self._turn(look, False, event)

    def open(self, event: gr.EventData) -> Shown:
        """The record that was clicked."""
        asked = event_data(event)
        row, text_index = asked.get("row"), asked.get("text_index")
        found = self._data.record(row, text_index) if isinstance(row, int) and isinstance(text_index, int) else None
        if found is None:
            return {}
        size = f"{found['width']} × {found['height']}" if found["width"] else None
        place = f"{found['place']:,} of {self._data.ok:,}" if found["place"] else None
        score = f"{found['score']:.4f}" if found["score"] is not None else None
        facts = {"score": score, "place": place, "id": found["id"], "status": found["status"], "error": found["error"]}
        facts |= {"source": found["source"], self._data.class_column or "class": found["class"], "size": size}
        shown = {key: found[key] for key in ("id", "text", "image", "missing", "neighbours") if key in found}
        return shown | {"facts": list(facts.items())}

    def export(self, look: Look) -> tuple[Any, Shown]:
        """The ids that the rule keeps, and the rule, as a file to download."""
        try:
            packed = self._data.export(look.rule)
        except JobError as error:
            return gr.File(visible=False), {"text": f"{error}."}
        command = f"python python_script/export_subset.py subset --scores-dir {self._data.folder} --to csv"
        told = {
            "text": "subset.zip holds subset_ids.parquet and rule.yaml. Unpacked, it goes on to:",
            "command": command,
        }
        return gr.File(str(packed), visible=True), told

    @property
    def _data(self) -> ScoredData:
        assert self.data is not None
        return self.data

    def _cut(self, look: Look) -> int:
        rule = look.rule
        return self._data.quota(rule.fraction) if rule.fraction is not None else self._data.above(rule.threshold or 0.0)

    def _all(self, look: Look, numbers: Numbers = (False, False)) -> tuple[Any, ...]:
        data, cut = self._data, self._cut(look)
        kept, dropped = data.counts(look.filters, cut)
        threshold = look.rule.threshold if look.rule.threshold is not None else data.score_at(cut)
        counts = [("kept by the rule", cut, "kept"), ("dropped", data.ok - cut, "dropped")]
        if data.pairs > data.ok:
            counts.append(("without a score", data.pairs - data.ok, "error"))
        drawn = {
            "bins": data.histogram(look.filters),
            "low": data.low,
            "high": data.high,
            "threshold": threshold,
            "counts": counts,
        }
        told = round(100 * cut / data.ok, 4), round(threshold, 4)
        percent, least = (value if wanted else gr.skip() for value, wanted in zip(told, numbers, strict=True))
        galleries = self._gallery(look, True, cut, kept), self._gallery(look, False, cut, dropped)
        return drawn, percent, least, *galleries, {"text": self._about(look)}

    def _about(self, look: Look) -> str:
        narrowed = look.filters != Filters(status="ok")
        told = (
            "Filters narrow what is shown. The rule is over all scored pairs, and so is the export." if narrowed else ""
        )
        waits = look.filters.text or look.filters.label
        return f"{told} {self._data.reading.capitalize()}" if self._data.reading and waits else told

    def _turn(self, look: Look, kept: bool, event: gr.EventData) -> Shown:
        cut = self._cut(look)
        total = self._data.counts(look.filters, cut)[0 if kept else 1]
        page = event_data(event).get("page")
        look.pages[kept] = min(max(0, page), max(0, (total - 1) // PAGE)) if isinstance(page, int) else 0
        return self._gallery(look, kept, cut, total)

    def _gallery(self, look: Look, kept: bool, cut: int, total: int) -> Shown:
        cards = self._data.page(look.filters, cut, kept, look.sort, look.pages[kept])
        for card in cards:
            del card["whole"]
        name = "kept" if kept else "dropped"
        pages = math.ceil(total / PAGE)
        return {"kind": name, "title": name, "cards": cards, "total": total, "page": look.pages[kept], "pages": pages}


def _choice(label: str, values: list[str], **options: Any) -> gr.Dropdown:
    return gr.Dropdown([("any", ""), *values], value="", label=label, min_width=130, **options)
