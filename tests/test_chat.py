"""One message builder: where images go, what is refused, and the chat text of the published class."""

import pytest
from transformers import AutoTokenizer

from src.chat import RESERVED, pair_messages, render, turn_messages
from src.errors import RecordError

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
