"""Rules: each keeps what a slow twin in plain Python keeps, on tables full of ties; nonsense is refused by key."""

import hashlib
import math
import random
from fractions import Fraction

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from python_script.select_subset import DEFAULT_CONFIG, SelectConfig, main
from src.config import load_config
from src.curation.rules import Rule
from src.curation.select import read_facts, rule_of, select_subset
from src.errors import JobError
from tests.curation.score_tables import failed, kept, pair, write_pictures, write_scores

NAN = float("nan")


def chance(name: str, seed: int) -> float:
    low = int.from_bytes(hashlib.md5(f"{seed}#{name}".encode()).digest()[8:], "little")
    return ((low >> 12) + 0.5) / 2**52


def twin(rows: list[dict], keys: dict, extra: dict[str, dict]) -> set[str]:
    """What a rule keeps, sort by sort."""
    if "all" in keys:
        return set.intersection(*(twin(rows, part, extra) for part in keys["all"]))
    if "any" in keys:
        return set.union(*(twin(rows, part, extra) for part in keys["any"]))

    def passes(row: dict) -> bool:
        sizes = {"width": row["width"], "height": row["height"], "chars": row["text_chars"]}
        return all(
            sizes[what] is not None
            and keys.get(f"min_{what}", 0) <= sizes[what]
            and sizes[what] <= keys.get(f"max_{what}", math.inf)
            for what in sizes
            if f"min_{what}" in keys or f"max_{what}" in keys
        ) and ("language" not in keys or extra[row["id"]]["language"] in [keys["language"], *keys["language"]])

    def bare_value(row: dict) -> float:
        by, draw = keys.get("by", "score"), chance(row["id"], keys.get("seed", 0))
        found = {"score": row["score"], "text_chars": float(row["text_chars"]), "random": draw}
        return found[by] if by in found else extra[row["id"]][by]

    def value(row: dict) -> float:
        if "temperature" not in keys:
            return bare_value(row)
        draw = chance(row["id"], keys.get("seed", 0))
        return bare_value(row) / keys["temperature"] - math.log(-math.log(draw))

    def group(row: dict) -> object:
        by = keys.get("group_by")
        return row[by] if by in ("source", "row") else extra[row["id"]][by] if by else None

    passing = [row for row in rows if row["status"] == "ok" and passes(row)]
    if "unique" in keys:
        first: dict[object, int] = {}  # by value of the column, the record that holds the best pair
        for row in sorted(passing, key=lambda row: (-bare_value(row), row["id"])):
            first.setdefault(extra[row["id"]][keys["unique"]], row["row"])
        passing = [row for row in passing if first[extra[row["id"]][keys["unique"]]] == row["row"]
                   or extra[row["id"]][keys["unique"]] is None]  # fmt: skip
    groups: dict[object, list[dict]] = {}
    for row in passing:
        groups.setdefault(group(row), []).append(row)
    found = set()
    for members in groups.values():
        ranked = sorted(members, key=lambda row: (-value(row), row["id"]))
        if "threshold" in keys:
            ranked = [row for row in ranked if value(row) >= keys["threshold"]]
        elif "fraction" in keys:
            ranked = ranked[: max(1, math.floor(Fraction(str(keys["fraction"])) * len(ranked)))]
        elif "per_group" in keys:
            ranked = ranked[: keys["per_group"]]
        found |= {row["id"] for row in ranked}
    return found


fractions = st.sampled_from([0.01, 0.1, 0.29, 0.5, 0.77, 1.0])
groupings = st.sampled_from(["source", "row", "kind"])
seeds = st.integers(0, 3)
filters = st.fixed_dictionaries(
    {},
    optional={
        "min_width": st.sampled_from([0, 32, 64]),
        "max_height": st.sampled_from([32, 64]),
        "min_chars": st.sampled_from([0, 20]),
        "max_chars": st.sampled_from([20, 40]),
        "language": st.sampled_from(["en", ["en", "zh"]]),
        "unique": st.sampled_from(["look", "kind"]),
    },
)
cuts = st.one_of(
    st.fixed_dictionaries({"fraction": fractions}),
    st.fixed_dictionaries({"threshold": st.sampled_from([-1.0, 0.0, 0.25])}),
    st.fixed_dictionaries({"fraction": fractions, "group_by": groupings}),
    st.fixed_dictionaries({"per_group": st.integers(1, 4), "group_by": groupings}),
    st.fixed_dictionaries({"fraction": fractions, "temperature": st.sampled_from([0.1, 1.0, 50.0]), "seed": seeds}),
    st.fixed_dictionaries({"fraction": fractions, "by": st.just("random"), "seed": seeds}),
    st.fixed_dictionaries({"fraction": fractions, "by": st.sampled_from(["text_chars", "clip"])}),
    st.fixed_dictionaries({"threshold": st.sampled_from([0.2, 20.0]), "by": st.sampled_from(["text_chars", "clip"])}),
    st.fixed_dictionaries({"per_group": st.just(2), "group_by": st.just("kind"), "by": st.just("clip")}),
)
leaves = st.one_of(st.builds(lambda cut, more: cut | more, cuts, filters), filters.filter(bool))
trees = st.recursive(
    leaves,
    lambda inner: st.builds(
        lambda name, parts: {name: parts}, st.sampled_from(["all", "any"]), st.lists(inner, min_size=1, max_size=3)
    ),
    max_leaves=4,
)
tables = st.lists(
    st.tuples(
        st.sampled_from([-1.5, 0.0, 0.25, 3.0]),
        st.sampled_from(["port", "city", ""]),
        st.integers(0, 4),
        st.sampled_from([10, 20, 40]),
        st.sampled_from([None, 16, 32, 64]),
    ),
    min_size=1,
    max_size=24,
)


def with_path(keys: dict, path: str) -> dict:
    """The keys with the file named where it is needed."""
    joined = {n: [with_path(part, path) for part in keys[n]] for n in ("all", "any") if n in keys}
    outside = keys.get("by") == "clip" or keys.get("group_by") == "kind" or {"language", "unique"} & set(keys)
    return keys | joined | ({"scores_from": path} if outside else {})


@settings(max_examples=60, deadline=None)
@given(table=tables, keys=trees, shuffle=st.integers(0, 9))
def test_any_rule_keeps_what_its_twin_keeps(tmp_path_factory, table, keys, shuffle):
    rng = random.Random(shuffle)
    names = [f"{rng.choice('aBé')}{n:02d}" for n in range(len(table))]
    rows = [
        pair(row, score, text_index=n, id=name, source=source, text_chars=chars, width=side, height=side)
        for n, (name, (score, source, row, chars, side)) in enumerate(zip(names, table, strict=True))
    ]
    extra = {
        name: {
            "clip": rng.choice([0.1, 0.2, 0.5]),
            "kind": rng.choice(["x", "y"]),
            "look": rng.choice([None, 0, 1, 2]),
            "language": rng.choice([None, "en", "en", "zh", "fr"]),
        }
        for name in names
    }
    expected = twin(rows, keys, extra)
    rows.append(failed(99, source="port"))
    rng.shuffle(rows)
    folder = tmp_path_factory.mktemp("rule")
    columns = [{"id": name, **values} for name, values in extra.items()]
    pq.write_table(pa.Table.from_pylist([*columns, {"id": "else", "clip": 9.0, "kind": "z"}]), folder / "file.parquet")
    keys = with_path(keys, str(folder / "file.parquet"))
    if not expected:
        with pytest.raises(JobError, match="keeps nothing"):
            kept(folder, rows, **keys)
        return
    assert kept(folder, rows, **keys) == sorted(expected)
    facts = read_facts(folder / "out" / "subset_ids.parquet")
    assert rule_of(facts) == Rule.from_keys(keys)
    assert yaml.safe_load((folder / "out" / "rule.yaml").read_text()) == facts


def test_rules_inside_are_judged_on_all_pairs(tmp_path):
    rows = [pair(n // 2, float(n), text_index=n % 2, id=f"{n}") for n in range(8)]
    half, best = {"fraction": 0.5}, {"group_by": "row", "per_group": 1}
    assert kept(tmp_path / "a", rows, all=[half, half]) == ["4", "5", "6", "7"]
    assert kept(tmp_path / "b", rows, all=[half, best]) == ["5", "7"]
    assert kept(tmp_path / "c", rows, any=[half, best]) == ["1", "3", "4", "5", "6", "7"]
    assert kept(tmp_path / "d", rows, fraction=0.5, min_chars=10) == ["4", "5", "6", "7"]


def test_filters_come_before_the_cut(tmp_path):
    rows = [pair(n, float(n), id=f"{n}", width=64 if n < 4 else 32) for n in range(8)]
    assert kept(tmp_path, rows, fraction=0.5, min_width=64) == ["2", "3"]


def test_draws_follow_their_seed_and_temperature(tmp_path):
    rows = [pair(n, n / 1000) for n in range(1000)]
    draws = {
        (temperature, seed): kept(
            tmp_path / f"{temperature}-{seed}", rows, fraction=0.2, temperature=temperature, seed=seed
        )
        for temperature in (0.001, 0.2, 1000.0)
        for seed in (1, 2)
    }
    assert kept(tmp_path / "again", rows[::-1], fraction=0.2, temperature=0.2, seed=1) == draws[0.2, 1]
    assert draws[0.2, 1] != draws[0.2, 2]
    best = {f"pair-{n:05d}" for n in range(800, 1000)}
    shares = {temperature: len(best & set(draws[temperature, 1])) for temperature in (0.001, 0.2, 1000.0)}
    assert shares[0.001] > 190 > 120 > shares[0.2] > 60 > shares[1000.0] > 20


def test_draw_takes_pairs_by_their_softmax_weights(tmp_path):
    """One of two pairs, 300 times: the better one with the probability 1 / (1 + exp(-gap / temperature))."""
    rows = [pair(n // 2, float(n % 2), text_index=n % 2, id=f"{n}") for n in range(600)]
    chosen = kept(tmp_path, rows, group_by="row", per_group=1, temperature=1.0)
    assert len(chosen) == 300
    assert sum(int(name) % 2 for name in chosen) / 300 == pytest.approx(1 / (1 + math.exp(-1)), abs=0.08)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "exactly one of fraction and threshold, not neither; or, in their place, one of per_group"),
        ({"fraction": 30}, "fraction must be above 0 and at most 1, not 30; did you mean 0.3"),
        ({"fraction": "0.3"}, "fraction must be a number, not '0.3'"),
        ({"fraction": True}, "fraction must be a number"),
        ({"fractoin": 0.3}, "unknown key fractoin of a rule; known keys: fraction"),
        ({"fraction": 0.3, "per_group": 2, "group_by": "row"}, "not fraction=0.3 and per_group=2"),
        ({"fraction": 0.3, "any": [{"fraction": 0.5}]}, "not fraction=0.3 and any=1 rules"),
        ({"per_group": 2}, "per_group needs group_by"),
        ({"per_group": 0, "group_by": "row"}, "per_group must be at least 1, not 0"),
        ({"per_group": 1.5, "group_by": "row"}, "per_group must be a whole number, not 1.5"),
        ({"threshold": 1, "group_by": "row"}, "group_by needs fraction"),
        ({"threshold": 1, "temperature": 1.0}, "temperature needs fraction or per_group"),
        ({"fraction": 0.3, "temperature": 0.0}, "temperature must be above 0, not 0"),
        ({"fraction": 0.3, "temperature": 1.0, "by": "random"}, "temperature has no meaning with by=random"),
        (
            {"fraction": 0.3, "by": "clip"},
            "by must be score, random, text_chars or a column of scores_from, not 'clip'",
        ),
        ({"fraction": 0.3, "group_by": "kind"}, "group_by must be source, row or a column of scores_from, not 'kind'"),
        ({"fraction": 0.3, "scores_from": "x.parquet"}, "scores_from is not used: by=score is the table's own"),
        ({"min_width": 9, "max_width": 8}, "min_width=9 is above max_width=8"),
        ({"min_chars": -1}, "min_chars must not be negative, not -1"),
        ({"fraction": 0.3, "nan": "keep"}, "nan must be refuse or drop, not 'keep'"),
        ({"all": []}, "all must hold at least one rule"),
        ({"all": {"fraction": 0.5}}, "all must be a list of rules"),
        ({"all": [0.5]}, r"all\[0\]: must be a rule such as \{fraction: 0.3\}, not 0.5"),
        (
            {"all": [{"fraction": 0.5}, {"any": [{"fraction": 3}]}]},
            r"all\[1\]: any\[0\]: fraction must be .* not 3; did",
        ),
        (
            {"all": [{"fraction": 0.5}], "min_width": 3},
            "min_width has no meaning beside all; give it to the rules inside",
        ),
        ({"any": [{"fraction": 0.5, "nan": "drop"}]}, "nan belongs to the outermost rule"),
        (
            {"unique": "phash_group"},
            "unique needs scores_from: a file with such a column, which measure_pairs.py writes",
        ),
        ({"language": "en"}, "language needs scores_from"),
        ({"language": 3}, "language must be a code or a list of codes, not 3"),
        ({"language": [], "scores_from": "x"}, r"language must be a code such as en or a list of codes, not \[\]"),
        ({"language": ["en", 3], "scores_from": "x"}, "language must be a code such as en or a list of codes"),
        ({"unique": "", "scores_from": "x"}, "unique must be a column of scores_from"),
        ({"all": [{"fraction": 0.5}], "unique": "kind", "scores_from": "x"}, "has no meaning beside all"),
    ],
)
def test_rules_that_make_no_sense_are_refused_by_key(keys, message):
    with pytest.raises(JobError, match=message):
        Rule.from_keys(keys)


def test_value_that_is_no_number_is_refused_or_dropped(tmp_path):
    rows = [pair(0, 1.0), pair(1, NAN), pair(2, 3.0), pair(3, None), failed(4)]
    with pytest.raises(JobError, match=r"score of pair-00001 is not a finite number.*nan=drop"):
        kept(tmp_path / "a", rows, fraction=1.0)
    job = write_scores(tmp_path / "b" / "job", rows)
    selection = select_subset(job, tmp_path / "b", Rule(fraction=0.5, nan="drop"))
    assert (selection.pairs, selection.ok, selection.errors, selection.kept) == (5, 2, 3, 1)
    assert pq.read_table(selection.path)["id"].to_pylist() == ["pair-00002"]


def test_values_made_elsewhere_are_joined_by_id(tmp_path):
    rows = [pair(n, float(n), id=f"{n}") for n in range(4)]
    file = tmp_path / "clip scores.parquet"
    keys = {"fraction": 0.5, "by": 'a "clip"', "scores_from": str(file)}
    with pytest.raises(JobError, match="scores_from: no such file"):
        kept(tmp_path / "a", rows, **keys)
    pq.write_table(pa.table({"id": ["0", "1", "2"], 'a "clip"': [5.0, NAN, 4.0]}), file)
    with pytest.raises(JobError, match=r'the a "clip" of 1 in .*clip scores.parquet is missing or not a finite number'):
        kept(tmp_path / "b", rows, **keys)
    assert kept(tmp_path / "c", rows, **keys, nan="drop") == ["0"]
    pq.write_table(pa.table({"id": ["0", "1", "2", "3"], 'a "clip"': [5, 1, 4, 0]}), file)
    assert kept(tmp_path / "d", rows, **keys) == ["0", "2"]
    pq.write_table(pa.table({"id": ["0", "1", "2", "3", "2", "x", "x"], 'a "clip"': [5, 1, 4, 0, 1, 2, 3]}), file)
    with pytest.raises(JobError, match="holds the id 2 more than once"):
        kept(tmp_path / "e", rows, **keys)
    pq.write_table(pa.table({"id": ["0"], 'a "clip"': ["high"]}), file)
    with pytest.raises(JobError, match=r'column a "clip" of .* is VARCHAR, not a number'):
        kept(tmp_path / "f", rows, **keys)
    pq.write_table(pa.table({"name": ["0"]}), file)
    with pytest.raises(JobError, match='has no column a "clip"; it has name'):
        kept(tmp_path / "g", rows, **keys)
    file.write_bytes(b"no Parquet")
    with pytest.raises(JobError, match=r"scores_from: cannot read .*clip scores.parquet"):
        kept(tmp_path / "h", rows, **keys)


def test_sources_cut_far_below_their_share_are_named(tmp_path):
    rows = [pair(n, float(n), source="good") for n in range(100, 200)]
    rows += [pair(n, float(n == 0) * 150, source="thin") for n in range(40)]
    rows += [pair(n, 1.0, source="wiped") for n in range(50, 53)] + [failed(60, source="broken")]
    selection = select_subset(write_scores(tmp_path / "job", rows), tmp_path, Rule(threshold=100))
    assert (selection.losses.wiped, selection.losses.thinned) == (1, 1)
    assert selection.losses.lines() == [
        "warning: 1 source wiped out: wiped",
        "warning: 1 source cut to under a tenth of the common share: thin (1 of 40)",
    ]


def test_program_takes_rules_inside_rules_and_warns(tmp_path, capsys):
    data = write_pictures(tmp_path / "data", [f"caption {n}" for n in range(10)])
    rows = [pair(n, float(n), source="low" if n < 3 else "high") for n in range(10)]
    job = write_scores(tmp_path / "job", rows, data)
    words = [f"scores_dir={job}", "fraction=null", "all=[{fraction: 0.5}, {any: [{min_chars: 20}, {threshold: 9}]}]"]
    main(load_config(SelectConfig, DEFAULT_CONFIG, words))
    printed = capsys.readouterr().out
    assert "kept 5 (50.0% of ok)" in printed
    assert "warning: 1 source wiped out: low" in printed
    page = (job / "report.html").read_text(encoding="utf-8")
    assert "what every one of these rules keeps: (1) the best 50 %" in page
    assert "1 source was wiped out by the rule" in page
    assert "Just above the cut" not in page
    assert '"style": "cut"' not in page
