"""One message builder: where images go, what is refused, and the chat text of the published class."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from src.chat import RESERVED, THINKING, pair_messages, prompt_messages, render, thinking_prompt, turn_messages
from src.errors import JobError, RecordError

ROOT = Path(__file__).parents[1]

IMAGE = object()


def kinds(messages):
    return [(m["role"], [p.get("text", "IMAGE") for p in m["content"]]) for m in messages]


def test_answer_template_is_the_training_form():
    assert kinds(pair_messages([IMAGE], "A harbour.")) == [("user", ["IMAGE", ""]), ("assistant", ["A harbour."])]
    assert kinds(pair_messages([IMAGE], "Two.", "How many?")) == [
        ("user", ["IMAGE", "How many?"]),
        ("assistant", ["Two."]),
    ]


def test_published_readme_template_puts_the_caption_in_the_user_turn():
    messages = pair_messages([IMAGE], "A harbour.", template="published_readme")
    assert kinds(messages) == [("user", ["IMAGE", "A harbour."])]


def test_placeholders_say_where_images_go():
    question = "<image>\nis before <image>\nand this?"
    assert kinds(pair_messages([1, 2], "Yes.", question))[0] == ("user", ["IMAGE", "is before ", "IMAGE", "and this?"])
    assert kinds(pair_messages([1, 2], "Yes.", "Same?"))[0] == ("user", ["IMAGE", "IMAGE", "Same?"])
    assert kinds(pair_messages([1], "Yes.", "Look:<image>"))[0] == ("user", ["Look:", "IMAGE", ""])


def test_conversation_keeps_turns_and_their_images():
    turns = [
        {"role": "system", "content": "Be strict."},
        {"role": "user", "content": "<image>\nWhat?"},
        {"role": "assistant", "content": "A port."},
        {"role": "user", "content": "And <image>?"},
        {"role": "assistant", "content": "A farm."},
    ]
    messages = turn_messages(turns, [1, 2])
    assert [role for role, _ in kinds(messages)] == ["system", "user", "assistant", "user", "assistant"]
    assert messages[3]["content"][1]["image"] == 2
    bare = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A port."}]
    assert kinds(turn_messages(bare, [1, 2]))[0] == ("user", ["IMAGE", "IMAGE", "What?"])


@pytest.mark.parametrize("text", ["", "  \n"])
def test_empty_text_is_refused(text):
    with pytest.raises(RecordError) as caught:
        pair_messages([IMAGE], text)
    assert caught.value.kind == "empty_text"


@pytest.mark.parametrize("token", RESERVED)
@pytest.mark.parametrize("where", ["text", "question"])
def test_tokens_that_claim_image_features_are_refused(token, where):
    with pytest.raises(RecordError) as caught:
        pair_messages([IMAGE], **{"text": "a", where: f"a {token} b"})
    assert caught.value.kind == "reserved_token"


def test_wrong_number_of_placeholders_is_refused():
    for build in (
        lambda: pair_messages([1], "a", "<image><image>"),
        lambda: turn_messages([{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "a"}], []),
    ):
        with pytest.raises(RecordError) as caught:
            build()
        assert caught.value.kind == "bad_record"


def test_a_conversation_must_end_with_an_answer():
    for turns in ([], [{"role": "user", "content": "?"}], [{"role": "assistant", "content": " "}]):
        with pytest.raises(RecordError) as caught:
            turn_messages(turns, [])
        assert caught.value.kind == "empty_text"


def test_unknown_template_is_refused():
    with pytest.raises(ValueError, match="known: answer, published_readme"):
        pair_messages([IMAGE], "a", template="other")  # type: ignore[arg-type]


def test_rendered_prompts_are_those_of_the_published_class(legacy, legacy_cases):
    """Every fixture row of the form image(s), question, answer renders to the stored prompt, by our own builder."""
    tokenizer = AutoTokenizer.from_pretrained(legacy / "checkpoint")
    checked = 0
    for case in legacy_cases["cases"]:
        for row in case["rows"]:
            turns = row["messages"]
            if case["add_generation_prompt"] or len(turns) != 2 or isinstance(turns[1]["content"], str):
                continue
            *images, question = turns[0]["content"]
            if any(part["type"] != "image" for part in images):
                continue
            ours = pair_messages([p["image"] for p in images], turns[1]["content"][0]["text"], question["text"])
            assert render(tokenizer, ours) == row["prompt"]
            checked += 1
    assert checked >= 6


def test_a_prompt_ends_with_what_is_to_be_answered():
    assert kinds(prompt_messages("How many?", [1, 2])) == [("user", ["IMAGE", "IMAGE", "How many?"])]
    assert kinds(prompt_messages("", [1])) == [("user", ["IMAGE", ""])]
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "From <image>\nto <image>?"}]
    assert kinds(prompt_messages(turns, [1, 2])) == [
        ("system", ["Be brief."]),
        ("user", ["From ", "IMAGE", "to ", "IMAGE", "?"]),
    ]
    answered = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for nothing in ("", " ", [], answered):
        with pytest.raises(RecordError) as caught:
            prompt_messages(nothing, [])
        assert caught.value.kind == "empty_text"
    for wrong in ({"role": "human", "content": "a"}, {"content": "a"}, {"role": "user", "content": None}):
        with pytest.raises(RecordError, match="a turn needs a role"):
            prompt_messages([wrong], [])
    with pytest.raises(RecordError, match="2 <image> placeholders for 1 images"):
        prompt_messages("<image> <image>", [1])


def test_an_open_turn_ends_with_the_head_of_the_answer():
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "assets" / "nano" / "base")
    opened = render(tokenizer, prompt_messages("How many?", [1]), open_turn=True)
    closed = render(tokenizer, pair_messages([1], "Two.", "How many?"))
    assert opened.endswith("How many?<|im_end|>\n<|im_start|>assistant\n")
    assert closed.startswith(opened), "what is scored begins as what is generated"


def test_the_thinking_template_writes_what_the_chat_template_writes():
    """The published file holds the marks of the chat too, for LMDeploy; the project itself needs the prompt alone."""
    marks = json.loads((ROOT / THINKING).read_text())
    assert set(marks) == {
        "system", "meta_instruction", "eosys", "user", "eoh", "assistant", "eoa", "separator", "stop_words"
    }  # fmt: skip
    said = marks["system"] + thinking_prompt() + marks["eosys"] + marks["user"] + "What?" + marks["eoh"]
    answered = said + marks["assistant"] + "Yes." + marks["eoa"] + marks["separator"]
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "assets" / "nano" / "base")
    turns = [{"role": "system", "content": thinking_prompt()}, {"role": "user", "content": "What?"}]
    assert render(tokenizer, prompt_messages(turns, []), open_turn=True) == said + marks["assistant"]
    assert render(tokenizer, turn_messages([*turns, {"role": "assistant", "content": "Yes."}], [])) == answered
    assert marks["stop_words"] == [marks["eoa"]]
    for tag in ("<think>", "</think>", "<answer>", "</answer>"):
        assert tag in thinking_prompt()


def test_a_missing_thinking_template_is_an_error(tmp_path):
    with pytest.raises(JobError, match=r"nowhere\.json"):
        thinking_prompt(tmp_path / "nowhere.json")
    (tmp_path / "empty.json").write_text('{"meta_instruction": " "}')
    with pytest.raises(JobError, match="is empty"):
        thinking_prompt(tmp_path / "empty.json")
    (tmp_path / "other.json").write_text('{"chat_template": "x"}')
    with pytest.raises(JobError, match="holds no meta_instruction"):
        thinking_prompt(tmp_path / "other.json")
