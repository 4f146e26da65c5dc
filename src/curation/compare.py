"""Two selections from one score table side by side: what both keep, and what each keeps that the other drops."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import duckdb

from src.curation.gallery import Group, galleries
from src.curation.page import write_page
from src.curation.report import rule_text
from src.curation.score_table import data_spec, one_row, open_scores, read_manifest
from src.curation.select import read_facts, rule_of, scores_of, subset_file
from src.curation.sources import SOURCES
from src.errors import JobError

GALLERY_SOURCES = 8  # those on which the two differ most


@dataclass(frozen=True)
class Overlap:
    """Scored pairs of one source (or of all) by which of the selections A and B keeps them."""

    source: str
    ok: int
    both: int
    only_a: int
    only_b: int

    @property
    def jaccard(self) -> float:
        """Pairs kept by both over pairs kept by any, 0 to 1; 1 where neither keeps anything."""
        union = self.both + self.only_a + self.only_b
        return self.both / union if union else 1.0


@dataclass(frozen=True)
class Comparison:
    """The page, the overlap of all pairs, and of the ``SOURCES`` sources that differ most, of ``source_count``."""

    path: Path
    total: Overlap
    sources: tuple[Overlap, ...]
    source_count: int

    def lines(self) -> list[str]:
        """The overlaps as a text table, the total last."""
        rows = [*self.sources, self.total]
        width = max(len("source"), *(len(row.source or "(none)") for row in rows))
        head = f"{'source':<{width}}  {'scored':>10}  {'both':>10}  {'only A':>10}  {'only B':>10}  {'Jaccard':>7}"
        body = [
            f"{row.source or '(none)':<{width}}  {row.ok:>10,}  {row.both:>10,}  {row.only_a:>10,}"
            f"  {row.only_b:>10,}  {row.jaccard:>7.3f}"
            for row in rows
        ]
        more = self.source_count - len(self.sources)
        return [head, *body[:-1], *([f"... {more:,} more sources"] if more else []), body[-1]]


def compare_subsets(
    first: str | Path,
    second: str | Path,
    output: str | Path | None = None,
    scores_dir: str | Path | None = None,
    gallery: int = 6,
) -> Comparison:
    """Compare two selections, A and B, and write the page.

    Args:
        first: A, a ``subset_ids.parquet`` or the folder that holds it.
        second: B, likewise.
        output: HTML file; ``compare.html`` beside B unless given.
        scores_dir: the score table of both; unless given, the one that the selections name.
        gallery: images in each group, two groups a source; 0 leaves the galleries out.

    Raises:
        JobError: no such selection, selections from different score tables, or a pair that the table does not hold.
    """
    subsets = [subset_file(path) for path in (first, second)]
    rules = [rule_text(rule_of(read_facts(subset))) for subset in subsets]
    folder = Path(scores_dir) if scores_dir is not None else _common_scores(subsets)
    spec = data_spec(read_manifest(folder))
    target = Path(output) if output is not None else subsets[1].with_name("compare.html")
    target.parent.mkdir(parents=True, exist_ok=True)
    with open_scores(folder, spill_dir=target.parent) as db:
        _create_pairs(db, subsets, folder)
        total = Overlap("all", *one_row(db, f"SELECT {_COUNTS} FROM pairs"))  # noqa: S608, ours
        rows = db.execute(
            f"""SELECT source, {_COUNTS} FROM pairs GROUP BY source
            ORDER BY count(*) FILTER (in_a <> in_b) DESC, count(*) DESC, source LIMIT ?""",  # noqa: S608, ours
            [SOURCES],
        ).fetchall()
        sources = tuple(Overlap(*row) for row in rows)
        (source_count,) = one_row(db, "SELECT count(DISTINCT source) FROM pairs")
        content = {
            "name": Path(spec.path).name,
            "made": datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
            "selections": list(zip("AB", subsets, rules, strict=True)),
            "total": total,
            "sources": sources,
            "source_count": source_count,
            "groups": galleries(db, spec, _groups(sources), gallery) if gallery else [],
        }
    path = write_page("compare.html.j2", target, content, with_charts=False)
    return Comparison(path, total, sources, source_count)


_COUNTS = """count(*), count(*) FILTER (in_a AND in_b), count(*) FILTER (in_a AND NOT in_b),
    count(*) FILTER (in_b AND NOT in_a)"""


def _common_scores(subsets: Sequence[Path]) -> Path:
    found = [scores_of(subset) for subset in subsets]
    for subset, folder in zip(subsets, found, strict=True):
        if folder is None:
            raise JobError(f"{subset} does not say which score table it is from; give scores_dir")
    first, second = (Path(folder or "") for folder in found)
    if first.resolve() != second.resolve():
        raise JobError(f"the selections are from different score tables, {first} and {second}")
    return first


def _create_pairs(db: duckdb.DuckDBPyConnection, subsets: Sequence[Path], folder: Path) -> None:
    """The table ``pairs`` of the scored pairs with ``in_a`` and ``in_b``."""
    for name, subset in zip(("a", "b"), subsets, strict=True):
        db.read_parquet(str(subset)).create_view(name)
        stray = f"SELECT min(id) FROM {name} ANTI JOIN scores USING (row, text_index, id)"  # noqa: S608, ours
        (lost,) = one_row(db, stray)
        if lost is not None:
            raise JobError(f"{subset} keeps {lost}, which the score table in {folder} does not hold")
    db.execute(
        """CREATE TABLE pairs AS SELECT scores.id, row, text_index, scores.score, coalesce(source, '') AS source,
        a.id IS NOT NULL AS in_a, b.id IS NOT NULL AS in_b
        FROM (SELECT * FROM scores WHERE status = 'ok') AS scores
        LEFT JOIN a USING (row, text_index) LEFT JOIN b USING (row, text_index)"""
    )


def _groups(sources: Sequence[Overlap]) -> list[Group]:
    """For each source on which the two differ a random handful of what only A keeps, and of what only B keeps."""
    made: list[Group] = []
    sides: list[tuple[str, str]] = [("A", "in_a AND NOT in_b"), ("B", "in_b AND NOT in_a")]
    for row in sources[:GALLERY_SOURCES]:
        for (state, where), many in zip(sides, (row.only_a, row.only_b), strict=True):
            place = f"{row.source}: " if row.source else ""
            heading = f"{place}{many:,} kept by {state} alone"
            made.append(Group(state, heading, f"{where} AND source = ?", "hash(id), id", (row.source,)))
    return made
