"""Rules as SQL, out of core: bare values are ranked to find a cut, ids only where a value is equal to it."""

# ruff: noqa: S608, the only words of others in the SQL are numbers, quoted texts and quoted column names

from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from itertools import count
from pathlib import Path

import duckdb

from src.curation.rules import BOUNDS, OWN_COLUMNS, OWN_GROUPS, Rule
from src.curation.score_table import one_row
from src.errors import JobError

# ids are unique in a sound table; row and text_index make the order total in any
TIES = "id, row, text_index"
COLUMNS = f"{TIES}, score, source"
# 52 bits of a digest of seed and id as a number above 0 and below 1: the same for any order of rows, on any machine
CHANCE = "((md5_number_lower(concat({seed}, '#', id)) >> 12)::DOUBLE + 0.5) / 4503599627370496"


def create_kept(db: duckdb.DuckDBPyConnection, rule: Rule) -> None:
    """Create the view ``kept`` (id, row, text_index, score, source): what ``rule`` keeps of the view ``scores``.

    Raises:
        JobError: ``scores_from`` cannot be read, lacks a column, names an id twice or (for ``unique`` and ``language``)
            lacks one; a value that is not a finite number unless the rule says ``nan: drop``.
    """
    db.execute(f"CREATE VIEW kept AS {_kept(db, rule, rule.nan == 'drop', count())}")


def _kept(db: duckdb.DuckDBPyConnection, rule: Rule, drop_nan: bool, numbers: Iterator[int]) -> str:
    """The query of what ``rule`` keeps; what it reads is created under names that end in fresh ``numbers``."""
    for inner, join in ((rule.all, " INTERSECT "), (rule.any, " UNION ")):
        if inner:
            parts = []
            for part in inner:
                query, name = _kept(db, part, drop_nan, numbers), f"part_{next(numbers)}"
                db.execute(f"CREATE TABLE {name} AS SELECT row, text_index FROM ({query})")
                parts.append(f"SELECT * FROM {name}")
            name = f"part_{next(numbers)}"
            db.execute(f"CREATE TABLE {name} AS {join.join(parts)}")
            return f"SELECT {COLUMNS} FROM scores SEMI JOIN {name} USING (row, text_index)"
    candidates = f"candidates_{next(numbers)}"
    _create_candidates(db, rule, candidates, drop_nan)
    if rule.threshold is not None:
        return f"SELECT {COLUMNS} FROM {candidates} WHERE value >= {_double(rule.threshold)}"
    if rule.group_by is not None:
        return _best_of_groups(db, rule, candidates)
    if rule.fraction is not None:
        return _best(db, rule.fraction, candidates)
    return f"SELECT {COLUMNS} FROM {candidates}"


def _best(db: duckdb.DuckDBPyConnection, fraction: float, candidates: str) -> str:
    (pairs,) = one_row(db, f"SELECT count(*) FROM {candidates}")
    if not pairs:
        return f"SELECT {COLUMNS} FROM {candidates}"
    # Decimal: 0.29 of 100 pairs are 29, though 0.29 * 100 is 28.999999999999996 in floating point
    quota = max(1, int(Decimal(str(fraction)) * pairs))
    (cut,) = one_row(db, f"SELECT value FROM {candidates} ORDER BY value DESC LIMIT 1 OFFSET ?", [quota - 1])
    (above,) = one_row(db, f"SELECT count(*) FROM {candidates} WHERE value > {_double(cut)}")
    return f"""SELECT {COLUMNS} FROM {candidates} WHERE value > {_double(cut)}
        UNION ALL (SELECT {COLUMNS} FROM {candidates} WHERE value = {_double(cut)}
                   ORDER BY {TIES} LIMIT {quota - above})"""


def _best_of_groups(db: duckdb.DuckDBPyConnection, rule: Rule, candidates: str) -> str:
    if rule.fraction is None:
        quota = f"least(count(*), {rule.per_group})"
    else:
        part = Fraction(Decimal(str(rule.fraction)))
        above, below = part.as_integer_ratio() if part > Fraction(1, 10**15) else (0, 1)  # what HUGEINT can hold
        quota = f"greatest(1, count(*)::HUGEINT * {above} // {below}::HUGEINT)::BIGINT"
    cuts = candidates.replace("candidates", "cuts")
    db.execute(
        f"""CREATE TABLE {cuts} AS
        WITH sizes AS (SELECT grp, {quota} AS quota FROM {candidates} GROUP BY grp),
        ranked AS (SELECT grp, value, row_number() OVER best AS place, rank() OVER best AS first FROM {candidates}
                   WINDOW best AS (PARTITION BY grp ORDER BY value DESC))
        SELECT grp, value AS cut, quota - first + 1 AS ties FROM ranked JOIN sizes USING (grp) WHERE place = quota"""
    )
    return f"""SELECT {COLUMNS} FROM {candidates} JOIN {cuts} USING (grp) WHERE value > cut
        UNION ALL SELECT {COLUMNS} FROM (
            SELECT *, row_number() OVER (PARTITION BY grp ORDER BY {TIES}) AS place
            FROM {candidates} JOIN {cuts} USING (grp) WHERE value = cut) WHERE place <= ties"""


def _create_candidates(db: duckdb.DuckDBPyConnection, rule: Rule, name: str, drop_nan: bool) -> None:
    """Create ``name`` (COLUMNS, value, grp): the pairs that pass the filters of a rule that is not composed."""
    table = "scores"
    if rule.scores_from:
        table = name.replace("candidates", "joined")
        _join_file(db, rule, rule.scores_from, table)
    chance = CHANCE.format(seed=int(rule.seed))
    value = {"score": "score", "random": chance, "text_chars": "text_chars::DOUBLE"}.get(rule.by, "outside_value")
    group = {"source": "coalesce(source, '')", "row": "row", None: "NULL"}.get(rule.group_by, "outside_group")
    tests = ["status = 'ok'", *(_filter(key, bound) for key in BOUNDS if (bound := getattr(rule, key)) is not None)]
    if rule.language is not None:
        codes = (rule.language,) if isinstance(rule.language, str) else rule.language
        tests.append(f"outside_language IN ({', '.join(map(_text, codes))})")
    if rule.by not in ("score", "random"):
        passing = f"FROM {table} WHERE {' AND '.join(tests)}"
        finite = f"coalesce(isfinite({value}), false)"
        (bad,) = one_row(db, f"SELECT min(id) FILTER (NOT {finite}) {passing}")
        if bad is not None and not drop_nan:
            where = f" in {rule.scores_from}" if rule.by not in OWN_COLUMNS else ""
            raise JobError(f"the {rule.by} of {bad}{where} is missing or not a finite number; nan=drop leaves it out")
        tests.append(finite)
    columns = f"{COLUMNS}, {value} AS value, {group} AS grp"
    where = f"FROM {table} WHERE {' AND '.join(tests)}"
    passing = f"SELECT {columns} {where}"
    if rule.unique is not None:
        passing = _one_of_each(db, f"SELECT {columns}, outside_unique {where}", name)
    drawn = "value"
    if rule.temperature is not None:
        # Gumbel-top-k: the highest of these are a weighted draw without replacement
        drawn = f"value / {_double(rule.temperature)} - ln(-ln({chance}))"
    # a digest is dear: made once for all passes, where a bare column is read anew from the table
    kind = "TABLE" if rule.by == "random" or rule.temperature is not None else "VIEW"
    db.execute(f"CREATE {kind} {name} AS SELECT {COLUMNS}, {drawn} AS value, grp FROM ({passing})")


def _one_of_each(db: duckdb.DuckDBPyConnection, passing: str, name: str) -> str:
    """The query of those of ``passing`` whose record has the best value of all that share its ``outside_unique``."""
    sharing, first = name.replace("candidates", "sharing"), name.replace("candidates", "first")
    db.execute(f"CREATE TABLE {sharing} AS {passing}")
    db.execute(
        f"""CREATE TABLE {first} AS
        WITH best AS (SELECT outside_unique, max(value) AS value FROM {sharing} GROUP BY outside_unique)
        SELECT outside_unique, arg_min(row, ROW({TIES})) AS first_row
        FROM {sharing} JOIN best USING (outside_unique, value) GROUP BY outside_unique"""
    )
    # null equals nothing, itself included: what has no value finds no row here and stays
    return f"""SELECT * FROM {sharing} LEFT JOIN {first} USING (outside_unique)
        WHERE coalesce(row = first_row, true)"""


def _filter(key: str, bound: int) -> str:
    kind, _, what = key.partition("_")
    column = {"width": "width", "height": "height", "chars": "text_chars"}[what]
    return f"{column} {'>=' if kind == 'min' else '<='} {int(bound)}"


def _join_file(db: duckdb.DuckDBPyConnection, rule: Rule, path: str, name: str) -> None:
    """Create the table ``name``: the scored pairs with what the file says of them, once for all passes over it."""
    if not Path(path).is_file():
        raise JobError(f"scores_from: no such file: {path}")
    file = name.replace("joined", "file")
    try:
        db.read_parquet(path).create_view(file)
    except duckdb.Error as error:
        raise JobError(f"scores_from: cannot read {path}: {str(error).splitlines()[0]}") from error
    types = {column: kind for column, kind, *_ in db.execute(f"DESCRIBE {file}").fetchall()}
    value, group, unique, language = "NULL", "NULL", "NULL", "NULL"
    if rule.by not in OWN_COLUMNS:
        value = f"file.{_column(types, rule.by, path)}::DOUBLE"
        if not types[rule.by].startswith(("DOUBLE", "FLOAT", "DECIMAL")) and "INT" not in types[rule.by]:
            raise JobError(f"scores_from: column {rule.by} of {path} is {types[rule.by]}, not a number")
    if rule.group_by is not None and rule.group_by not in OWN_GROUPS:
        group = f"coalesce(file.{_column(types, rule.group_by, path)}::VARCHAR, '')"
    if rule.unique is not None:
        unique = f"file.{_column(types, rule.unique, path)}"
    if rule.language is not None:
        language = f"file.{_column(types, 'language', path)}::VARCHAR"
    _column(types, "id", path)
    db.execute(
        f"""CREATE TABLE {name} AS SELECT {COLUMNS}, status, width, height, text_chars, {value} AS outside_value,
        {group} AS outside_group, {unique} AS outside_unique, {language} AS outside_language,
        file.id IS NULL AS absent
        FROM (SELECT * FROM scores WHERE status = 'ok') AS own LEFT JOIN {file} AS file USING (id)"""
    )
    (more,) = one_row(db, f"SELECT count(*) - (SELECT count(*) FROM scores WHERE status = 'ok') FROM {name}")
    if more:
        twice = (
            f"SELECT min(id) FROM (SELECT id FROM {file} SEMI JOIN {name} USING (id) GROUP BY id HAVING count(*) > 1)"
        )
        raise JobError(f"scores_from: {path} holds the id {one_row(db, twice)[0]} more than once")
    if rule.unique is not None or rule.language is not None:
        # no value is an answer, no row is not: the pair would be dropped, or kept, unseen
        count, first = one_row(db, f"SELECT count(*) FILTER (absent), min(id) FILTER (absent) FROM {name}")
        if count:
            raise JobError(f"scores_from: {path} has no row for {count:,} scored pairs, {first} the first of them")


def _column(types: dict[str, str], name: str, path: str) -> str:
    if name not in types:
        raise JobError(f"scores_from: {path} has no column {name}; it has {', '.join(types)}")
    return '"' + name.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _double(value: float) -> str:
    return f"'{float(value)!r}'::DOUBLE"
