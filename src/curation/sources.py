"""Sources of the data under a rule: how much of each was kept, and which the rule wiped out or nearly so."""

from dataclasses import dataclass
from typing import Any

import duckdb

from src.curation.score_table import one_row

SOURCES = 30  # shown by name
THIN = 0.1  # of the share that all sources together keep


@dataclass(frozen=True)
class SourceLosses:
    """Sources that a rule cut far below their share.

    Attributes:
        wiped: number of named sources with a scored pair and no kept one.
        thinned: number of those that keep something, but less than a tenth of the share that all pairs keep.
        shown: (source, scored pairs, kept pairs) of the largest of both, at most ``SOURCES`` of each.
    """

    wiped: int = 0
    thinned: int = 0
    shown: tuple[tuple[str, int, int], ...] = ()

    def names(self, wiped: bool) -> list[str]:
        """Those of one kind, the largest first: ``desert``, or ``port (3 of 120)`` where some is kept."""
        return [
            name if wiped else f"{name} ({kept:,} of {ok:,})" for name, ok, kept in self.shown if (kept == 0) == wiped
        ]

    def lines(self) -> list[str]:
        """A warning for each kind that there is."""
        kinds = ((self.wiped, "wiped out", True), (self.thinned, "cut to under a tenth of the common share", False))
        return [
            f"warning: {many:,} source{'s' if many != 1 else ''} {words}: {', '.join(names)}"
            f"{' ...' if many > len(names) else ''}"
            for many, words, wiped in kinds
            if (names := self.names(wiped))
        ]


def source_losses(db: duckdb.DuckDBPyConnection, overall: float) -> SourceLosses:
    """The losses in the table ``by_source`` (source, ok, kept), where all pairs together keep the part ``overall``."""
    lost = f"FROM by_source WHERE source <> '' AND ok > 0 AND kept < {THIN} * {overall!r} * ok"
    thinned, wiped = one_row(db, f"SELECT count(*) FILTER (kept > 0), count(*) FILTER (kept = 0) {lost}")
    shown = db.execute(
        f"""SELECT source, ok, kept {lost}
        QUALIFY row_number() OVER (PARTITION BY kept = 0 ORDER BY ok DESC, source) <= {SOURCES}
        ORDER BY kept = 0 DESC, ok DESC, source"""
    ).fetchall()
    return SourceLosses(wiped, thinned, tuple(shown))


def kept_by_source(db: duckdb.DuckDBPyConnection, lowest: float) -> dict[str, Any]:
    """The ``SOURCES`` largest sources of the table ``pairs`` by falling kept share, and the losses among all.

    Score quantiles (5, 25, 50, 75, 95 %) are positions in 0..100 on one axis common to all sources, from the lowest
    of them and of ``lowest`` up.
    """
    rows = db.execute(
        """SELECT source AS name, count(*) AS pairs, count(*) FILTER (status = 'ok'),
        count(*) FILTER (kept), approx_quantile(score, [0.05, 0.25, 0.5, 0.75, 0.95]) FILTER (status = 'ok')
        FROM pairs GROUP BY 1 ORDER BY pairs DESC, name LIMIT ?""",
        [SOURCES],
    ).fetchall()
    spreads = [spread for *_, spread in rows if spread]
    low, high = min([lowest, *(s[0] for s in spreads)]), max([lowest, *(s[-1] for s in spreads)])
    shown = [
        {
            "name": name,
            "pairs": pairs,
            "ok": ok,
            "kept": kept,
            "share": kept / ok if ok else 0.0,
            "box": [100 * (q - low) / ((high - low) or 1) for q in spread or []],
            "median": spread[2] if spread else None,
        }
        for name, pairs, ok, kept, spread in rows
    ]
    db.execute(
        """CREATE TABLE by_source AS SELECT source, count(*) FILTER (status = 'ok') AS ok,
        count(*) FILTER (kept) AS kept FROM pairs GROUP BY source"""
    )
    total, overall = one_row(
        db, "SELECT count(*) FILTER (source <> ''), sum(kept) / greatest(sum(ok), 1) FROM by_source"
    )
    return {
        "total": total,
        "shown": sorted(shown, key=lambda entry: (-entry["share"], -entry["pairs"], entry["name"])),
        "low": low,
        "high": high,
        "thin_share": THIN * overall,
        "losses": source_losses(db, overall),
    }
