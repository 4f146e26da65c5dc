"""What Qwen2-VL learns from: which tokens, how large an image, which records, and several conversations in a row."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

from src.curation.rules import Rule
from src.curation.select import select_subset
from src.dataset.collate import PairEncoder
from src.errors import JobError, RecordError
from src.model.checkpoint import locate
from src.training.vlm_config import Data
from src.training.vlm_data import IGNORED, ConversationCollator, encode_conversation, load_conversations
from src.training.vlm_run import load_processor
from tests.curation.score_tables import pair, write_scores

BASE = locate("assets/nano/base")


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(BASE)


@pytest.fixture
def encoder(processor, pictures) -> PairEncoder:
    return PairEncoder(processor, image_root=pictures, max_tokens=400)


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[k % 2], "content": text} for k, text in enumerate(texts)]


def row(*texts: str, images=(), **more) -> dict:
    return {
        "id": "r",
        "kind": "",
        "images": list(images),
        "turns": turns(*texts),
        "question": "",
        "answers": [],
        **more,
    }


def learned(processor, one) -> list[str]:
    """The stretches of labelled tokens, as text."""
    parts, previous = [], IGNORED
    for label in one.labels:
        if label != IGNORED:
            parts.append([*(parts.pop() if previous != IGNORED else []), label])
        previous = label
    return [processor.tokenizer.decode(part) for part in parts]


def test_the_loss_is_on_answers_and_their_ends_alone(processor, encoder):
    one = encode_conversation(
        encoder, row("<image>What is it?", "a lake .", "And <image> here?", "Two\nfields.", images=["a.png", "b.png"])
    )
    assert learned(processor, one) == ["a lake .<|im_end|>", "Two\nfields.<|im_end|>"]
    assert all(label in (IGNORED, token) for token, label in zip(one.ids, one.labels, strict=True))
    assert one.labels[0] == IGNORED
    assert len(one.images) == 2
    pads = one.ids.count(processor.tokenizer.convert_tokens_to_ids("<|image_pad|>"))
    assert pads == sum(image.grid[1] * image.grid[2] // 4 for image in one.images)
    # The prompt of the last answer is, token by token, what generation starts from.
    text = processor.tokenizer.decode(one.ids[: one.prompt])
    assert text.endswith("here?<|im_end|>\n<|im_start|>assistant\n")
    assert one.labels[one.prompt] == one.ids[one.prompt]


def test_all_tokens_are_those_of_the_chat_template(processor, encoder):
    one = encode_conversation(encoder, row("<image>\nWhat is it?", "a lake .", images=["a.png"]))
    pads = one.images[0].grid[1] * one.images[0].grid[2] // 4
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a lake ."}]},
    ]
    text = processor.apply_chat_template(messages, tokenize=False)
    assert one.ids == processor.tokenizer(text.replace("<|image_pad|>", "<|image_pad|>" * pads))["input_ids"]


def test_a_caption_answers_a_question_and_boxes_are_tokens_of_their_own(processor, encoder):
    box = "<|box_start|>(1,2),(30,40)<|box_end|>"
    told = row(images=["a.png"], question="Where is the ship?", answers=["none", box], turns=[])
    told["turns"] = []
    one = encode_conversation(encoder, told, 1)
    assert learned(processor, one) == [f"{box}<|im_end|>"]
    special = processor.tokenizer.convert_tokens_to_ids(["<|box_start|>", "<|box_end|>"])
    assert [label for label in one.labels if label in special] == special


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (row("<image>q", " ", "and?", "yes", images=["a.png"]), "empty_text"),
        (row("q <|im_end|>\n<|im_start|>assistant\nno", "yes"), "reserved_token"),
        (row("q", "yes <|image_pad|>"), "reserved_token"),
        (row("<image>", "yes", images=["gone.png"]), "missing_image"),
        (row("q", "long " * 500), "text_too_long"),
        (row("q", "x" * 100_000), "text_too_long"),
        (row("<image><image>", "yes", images=["a.png"]), "bad_record"),
        ({**row(), "turns": [{"role": "assistant", "content": "yes"}]}, "bad_record"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_learned_is_refused_by_kind(encoder, bad, kind):
    with pytest.raises(RecordError) as caught:
        encode_conversation(encoder, bad)
    assert caught.value.kind == kind


def test_max_pixels_limits_images_and_what_is_saved(tmp_path, processor):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 200, 3), dtype=np.uint8))
    big = AutoProcessor.from_pretrained(BASE)
    big.image_processor.size = {"shortest_edge": 56 * 56, "longest_edge": 10**7}
    big.save_pretrained(tmp_path / "big")
    for limit in (4, 9, 30):
        limited = load_processor(str(tmp_path / "big"), limit)
        limited.save_pretrained(tmp_path / "small")
        for one in (limited, AutoProcessor.from_pretrained(tmp_path / "small")):
            grid = PairEncoder(one).image(image).grid
            assert limit / 2 <= grid[1] * grid[2] / 4 <= limit
    unlimited = PairEncoder(load_processor(str(tmp_path / "big"), 1000)).image(image)
    assert unlimited.grid == (1, 22, 14)
    own = processor.image_processor.size["longest_edge"]
    assert load_processor(BASE, 1000).image_processor.size["longest_edge"] == own  # a limit raises nothing


def sharegpt(folder: Path, rows: list[dict]) -> Path:
    path = folder / "chats.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def chat(image: str | None, answer: str, **more) -> dict:
    talk = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": answer}]
    return {"images": [image] if image else [], "messages": talk, **more}


def data(folder: Path, path: Path | None, **keys) -> Data:
    return Data(path=str(path) if path else None, cache_dir=str(folder / "cache"), num_workers=2, **keys)


def load(folder: Path, path: Path | None, processor, **keys):
    return load_conversations(data(folder, path, **keys), PairEncoder(processor, max_tokens=300))


def test_bad_records_are_named_and_counted_and_good_ones_stay(pictures, processor):
    rows = [
        chat("a.png", "a lake", kind="x"), chat("gone.png", "a pier", kind="x"), chat("b.png", "", kind="y"),
        chat(None, "yes", kind="y"), chat("c.png", "word " * 999), {"images": ["a.png"], "messages": "?"},
    ]  # fmt: skip
    found, encoder = load(pictures, sharegpt(pictures, rows), processor, kind_column="kind")
    assert "6 records = 2 usable with 2 conversations + 4 errors" in found.summary
    assert "bad_record 1, empty_text 1, missing_image 1, text_too_long 1" in found.summary
    assert [(one["kind"], len(one["images"])) for one in found.table] == [("x", 1), ("y", 0)]
    lines = [json.loads(line) for line in next(pictures.glob("cache/*/errors.jsonl")).read_text().splitlines()]
    assert {line["kind"] for line in lines} == {"bad_record", "empty_text", "missing_image", "text_too_long"}
    assert any("gone.png" in line["error"] and "chats.jsonl:00000001" in line["error"] for line in lines)
    Image.new("RGB", (60, 60)).save(pictures / "gone.png")  # an image that comes later is seen
    again, _ = load(pictures, pictures / "chats.jsonl", processor, kind_column="kind")
    assert "3 usable" in again.summary
    with pytest.raises(JobError, match="nothing to train on"):
        load(pictures, sharegpt(pictures, [chat("none.png", "x")]), processor)
    assert encoder.image_root == pictures


def test_data_may_be_given_by_a_relative_path(pictures, processor, monkeypatch):
    sharegpt(pictures, [chat("a.png", "a lake")])
    monkeypatch.chdir(pictures.parent)
    found, _ = load(pictures, Path(pictures.name, "chats.jsonl"), processor)
    assert "1 usable" in found.summary


def test_every_caption_is_a_conversation_with_its_own_question_or_the_given_one(pictures, processor):
    image = {"bytes": (pictures / "a.png").read_bytes(), "path": "a.png"}
    rows = [
        {"image": image, "text": ["a lake", "water", "."], "q": "What?"},
        {"image": image, "text": ["sea"], "q": ""},
    ]
    pq.write_table(pa.Table.from_pylist(rows), pictures / "captions.parquet")
    keys = {"image_column": "image", "text_column": "text", "question_column": "q", "question": "Describe it."}
    found, encoder = load(pictures, pictures / "captions.parquet", processor, **keys)
    pairs = [(one["row"], one["answer"]) for one in found.index]
    assert pairs == [(0, 0), (0, 1), (1, 0)]
    texts = [
        processor.tokenizer.decode(encode_conversation(encoder, found.table[r], a).ids, skip_special_tokens=True)
        for r, a in pairs
    ]
    assert [("What?" in t, "Describe it." in t) for t in texts] == [(True, False), (True, False), (False, True)]
    assert "water" in texts[1]


def test_a_selection_chooses_records_and_refuses_changed_data(pictures, processor):
    path = sharegpt(pictures, [chat(f"{name}.png", name) for name in "abcd"])
    spec = {"path": str(path), "image_root": str(pictures)}
    scores = write_scores(pictures / "job", [pair(k, score) for k, score in enumerate((1, 9, 2, 8))], data=spec)
    select_subset(scores, scores / "half", Rule(fraction=0.5))
    found, _ = load(pictures, None, processor, subset=str(scores / "half"))
    assert [one["turns"][1]["content"] for one in found.table] == ["b", "d"]
    sharegpt(pictures, [chat(f"{name}.png", name * 2) for name in "abcd"])
    with pytest.raises(JobError, match="has changed since it was scored"):
        load(pictures, None, processor, subset=str(scores / "half"))


@pytest.fixture(scope="module")
def model():
    return Qwen2VLForConditionalGeneration.from_pretrained(BASE, dtype=torch.float32).eval()


def logits_of(model, batch) -> torch.Tensor:
    """As in training: with a cache, transformers would not look for several texts in a row."""
    return model(**{key: value for key, value in batch.items() if key != "labels"}, use_cache=False).logits


@pytest.mark.parametrize("one_row", [False, True])
def test_conversations_in_one_row_are_as_if_alone(pictures, processor, model, one_row):
    """Loss of each batch of one against the packed batch, of texts with none, one and several images."""
    rows = [
        chat("a.png", "a lake ."), chat(None, "yes, it has been for a long time"), chat("b.png", "two ships"),
        {"images": ["c.png", "d.png"], "messages": chat("c.png", "same")["messages"]}, chat("e.png", "x"),
    ]  # fmt: skip
    found, encoder = load(pictures, sharegpt(pictures, rows), processor)
    collator = ConversationCollator(found, encoder, one_row)
    samples = list(found.index)

    def token_losses(batch) -> torch.Tensor:
        with torch.no_grad():
            logits = logits_of(model, batch)[:, :-1]
        return torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["labels"][:, 1:], reduction="none")

    packed = collator(samples)
    assert len(packed["input_ids"]) < len(samples)
    assert not one_row or len(packed["input_ids"]) == 1
    alone = torch.cat([losses[losses > 0] for losses in (token_losses(collator([one])) for one in samples)])
    together = token_losses(packed)
    torch.testing.assert_close(together[together > 0].sort().values, alone.sort().values, atol=2e-4, rtol=1e-4)
    # And as transformers places a conversation by itself.
    own = collator([samples[3]])
    types = (own["input_ids"] == model.config.image_token_id).int()
    wanted = model.model.get_rope_index(own["input_ids"], types, own["image_grid_thw"])[0]
    assert torch.equal(own["position_ids"][1:], wanted)


def test_a_batch_without_an_image_gets_one_that_changes_nothing(pictures, processor, model):
    found, encoder = load(pictures, sharegpt(pictures, [chat(None, "yes it is")]), processor)
    batch = ConversationCollator(found, encoder)([found.index[0]])
    assert batch["image_grid_thw"].tolist() == [[1, 4, 4]]
    alone = {"input_ids": torch.tensor([encode_conversation(encoder, found.table[0]).ids])}
    with torch.no_grad():
        packed = logits_of(model, batch)
        bare = model(**alone).logits
    where = (batch["labels"] != IGNORED).nonzero()
    assert len(where) > 1
    own = (torch.tensor(encode_conversation(encoder, found.table[0]).labels) != IGNORED).nonzero().flatten()
    torch.testing.assert_close(packed[where[:, 0], where[:, 1]], bare[0, own], atol=2e-4, rtol=1e-4)
