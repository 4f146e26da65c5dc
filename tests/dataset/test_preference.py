"""Every published form of preference data, Hugging Face's, and the defects of the published reader (by number)."""

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from src.dataset.preference import Preference, PreferenceSet, find_sets, read_preferences
from src.dataset.preference_cache import counts_table, load_preferences, split_by_image
from src.errors import JobError, RecordError

PAIR = {"question": "Describe the scene.", "chosen": "Two piers.", "rejected": "A desert."}


@pytest.fixture
def images(tmp_path) -> Path:
    """An image root with the folders of two sets."""
    for name in ("harbour", "rural"):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (32, 32), (60 * i, 80, 120)).save(folder / f"{i}.jpg")
    return tmp_path / "images"


def jpeg() -> bytes:
    file = BytesIO()
    Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(file, "JPEG")
    return file.getvalue()


def write(folder: Path, name: str, rows: list[dict]) -> PreferenceSet:
    folder.mkdir(exist_ok=True)
    path = folder / name
    match path.suffix:
        case ".json":
            path.write_text(json.dumps(rows))
        case ".jsonl":
            path.write_text("\n".join(map(json.dumps, rows)))
        case _:
            pq.write_table(pa.Table.from_pylist(rows), path)
    return PreferenceSet(path)


def read(data: PreferenceSet) -> list[Preference]:
    items = list(read_preferences(data))
    assert all(isinstance(item, Preference) for item in items), items
    return items  # type: ignore[return-value]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_a_list_of_rejected_answers_is_several_answers(tmp_path, suffix):  # no. 5
    [item] = read(write(tmp_path, f"a{suffix}", [{**PAIR, "rejected": ["A desert.", "A lake."]}]))
    assert item.rejected == ("A desert.", "A lake.")
    assert (item.question, item.chosen, item.source) == (PAIR["question"], "Two piers.", "a")


def test_the_text_column_is_json_and_its_question_counts(tmp_path):  # no. 4
    rows = [{"image": {"bytes": jpeg(), "path": "x.jpg"}, "text": json.dumps({**PAIR, "rejected": ["A lake."]})}]
    [item] = read(write(tmp_path, "a.parquet", rows))
    assert (item.question, item.rejected) == (PAIR["question"], ("A lake.",))


def test_image_bytes_belong_to_chosen_and_rejected_alike(tmp_path):  # no. 3: one prompt, one set of images
    [item] = read(write(tmp_path, "a.parquet", [{**PAIR, "image": jpeg()}]))
    assert item.images == (jpeg(),)


def test_a_folder_of_images_per_set_and_image_name_wins(tmp_path, images):
    write(tmp_path / "sets", "harbour.json", [{**PAIR, "image_name": "0.jpg", "image_path": "nowhere.jpg"}])
    write(tmp_path / "sets", "rural.json", [{**PAIR, "image_path": "1.jpg"}, PAIR])
    sets = find_sets(str(tmp_path / "sets"), str(images))
    assert [one.name for one in sets] == ["harbour", "rural"]
    assert read(sets[0])[0].images == (str((images / "harbour" / "0.jpg").resolve()),)
    assert [len(item.images) for item in read(sets[1])] == [1, 0]


@pytest.mark.parametrize("root", [None, "images"])
def test_a_missing_image_folder_is_no_text_only_set(tmp_path, images, root):  # no. 28
    write(tmp_path / "sets", "harbor.json", [{**PAIR, "image_name": "0.jpg"}])
    [one] = find_sets(str(tmp_path / "sets"), str(images) if root else None)
    with pytest.raises(JobError, match=r"harbor\.json names images"):
        list(read_preferences(one))


def test_a_missing_image_is_recorded_and_one_outside_the_folder_too(tmp_path, images):  # no. 30
    rows = [{**PAIR, "image_name": name} for name in ("0.jpg", "9.jpg", "../rural/0.jpg")]
    write(tmp_path / "sets", "harbour.json", rows)
    good, missing, outside = read_preferences(find_sets(str(tmp_path / "sets"), str(images))[0])
    assert isinstance(good, Preference)
    assert (missing.kind, outside.kind) == ("missing_image", "unsafe_path")
    assert "harbour.json:00000001" in str(missing)


def test_hugging_face_columns_as_text_and_as_messages(tmp_path):
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many ships?"}]}
    parts = [[{"type": "text", "text": text}] for text in ("Two.", "Nine.")]
    answers = [[{"role": "assistant", "content": part}] for part in parts]
    image = {"images": [{"bytes": jpeg(), "path": None}]}
    rows = [{"prompt": [user], "chosen": answers[0], "rejected": answers[1], **image}]
    [explicit] = read(write(tmp_path, "a.parquet", rows))
    assert (explicit.question, explicit.chosen, explicit.rejected) == ("<image>How many ships?", "Two.", ("Nine.",))
    rows = [{"chosen": [user, *answers[0]], "rejected": [user, *answers[1]], **image}]
    assert read(write(tmp_path, "b.parquet", rows))[0].question == "<image>How many ships?"
    said = [[{"role": "assistant", "content": text}] for text in ("So.", "No.")]
    [plain] = read(write(tmp_path, "c.jsonl", [{"prompt": "Why?", "chosen": said[0], "rejected": said[1]}]))
    assert (plain.question, plain.images) == ("Why?", ())


def test_two_images_keep_their_places(tmp_path):  # no. 31
    rows = [{**PAIR, "question": "Before <image> after <image>?", "images": [{"bytes": jpeg()}, {"bytes": jpeg()}]}]
    [item] = read(write(tmp_path, "a.parquet", rows))
    assert len(item.images) == 2
    [bad] = read_preferences(write(tmp_path, "b.parquet", [{**rows[0], "question": "<image><image><image>"}]))
    assert isinstance(bad, RecordError)


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({**PAIR, "chosen": " "}, "empty_text"),
        ({**PAIR, "rejected": []}, "empty_text"),
        ({**PAIR, "rejected": [None]}, "empty_text"),
        ({**PAIR, "rejected": ["Two piers."]}, "bad_record"),
        ({**PAIR, "chosen": {"text": "x"}}, "bad_record"),
        ({"text": "{broken"}, "bad_record"),
        ({"text": "[1]"}, "bad_record"),
        ({"question": "Why?"}, "empty_text"),
        ("no object", "bad_record"),
        ({**PAIR, "chosen": [{"role": "user", "content": "x"}]}, "bad_record"),
    ],
)
def test_a_bad_row_is_named_and_costs_no_other(tmp_path, row, kind):
    first, bad, last = read_preferences(write(tmp_path, "a.json", [PAIR, row, PAIR]))
    assert isinstance(first, Preference)
    assert isinstance(last, Preference)
    assert (bad.kind, "a.json:00000001" in str(bad)) == (kind, True)


def test_sets_are_refused_before_work_starts(tmp_path):
    with pytest.raises(JobError, match="no such preference data"):
        find_sets(str(tmp_path / "none"))
    with pytest.raises(JobError, match="no preference sets"):
        find_sets(str(tmp_path))
    write(tmp_path, "a.json", [PAIR])
    with pytest.raises(JobError, match="no such image root"):
        find_sets(str(tmp_path), str(tmp_path / "none"))
    write(tmp_path, "a.parquet", [PAIR])
    with pytest.raises(JobError, match="two sets"):
        find_sets(str(tmp_path))


def test_the_table_counts_checks_and_is_opened_again(tmp_path):
    pair = {**PAIR, "rejected": ["A desert."], "image": None}
    rows = [{**pair, "rejected": ["A lake.", "A hill."]}, {**pair, "image": jpeg()}, {**pair, "chosen": ""}, pair]
    one = write(tmp_path, "a.parquet", rows)
    seen: list[str] = []

    def check(item: Preference) -> None:
        seen.append(item.id)
        if item.id.endswith("3"):
            raise RecordError("text_too_long", "99 tokens")

    table, counts = load_preferences([one], tmp_path / "cache", check, "v1")
    assert table["chosen"][:] == ["Two piers.", "Two piers."]
    assert table["rejected"][:] == [["A lake.", "A hill."], ["A desert."]]
    assert [len(images) for images in table["images"]] == [0, 1]
    assert (counts["a"].groups, counts["a"].pairs, counts["a"].text_only) == (2, 3, 1)
    assert counts["a"].errors == {"empty_text": 1, "text_too_long": 1}
    assert counts_table(counts).endswith("4 rows = 2 groups + 2 errors")
    errors = [json.loads(line) for line in next(tmp_path.glob("cache/*/errors.jsonl")).read_text().splitlines()]
    assert {error["kind"] for error in errors} == {"empty_text", "text_too_long"}
    again, same = load_preferences([one], tmp_path / "cache", check, "v1")
    assert (again.to_list(), same) == (table.to_list(), counts)
    assert len(seen) == 3  # not looked at a second time
    load_preferences([one], tmp_path / "cache", check, "v2")
    assert len(seen) == 6


def test_nothing_usable_is_refused(tmp_path):
    with pytest.raises(JobError, match=r"no usable preference.*errors\.jsonl"):
        load_preferences([write(tmp_path, "a.json", [{"chosen": "x"}])], tmp_path / "cache", lambda _: None, "")


def test_groups_of_one_image_stay_on_one_side(tmp_path):
    rng = np.random.default_rng(0)
    rows = [{**PAIR, "image": rng.bytes(20)} for _ in range(200)]
    table, _ = load_preferences([write(tmp_path, "a.parquet", rows * 2)], tmp_path / "cache", lambda _: None, "")
    train, held_out = split_by_image(table, 0.25)
    assert len(train) + len(held_out) == 400
    assert 60 < len(held_out) < 140
    assert not {r["images"][0]["bytes"] for r in train} & {r["images"][0]["bytes"] for r in held_out}
