"""What holds for every back end: sampling, seeds, order, errors of single requests, and how images are read."""

import gc
import itertools
import threading
import weakref

import pytest
from PIL import Image

from src.chat import prompt_messages
from src.errors import JobError, RecordError
from src.evaluation.backends import BACKENDS, Request, Sampling, backend_options, get_backend
from src.evaluation.backends.base import Backend, Options, Prompt, Text
from src.evaluation.backends.refusals import in_halves, refusal


class Echo(Backend):
    """Answers with what it was asked, and notes what it saw."""

    def __init__(self, model="", options=None):
        self.options = options or Options(progress=False, window=3)
        self.windows, self.opened, self.lock = [], [], threading.Lock()

    def open(self, source):
        with self.lock:
            self.opened.append(source)
        return super().open(source)

    def answer(self, prompts, done):
        self.windows.append(len(prompts))
        done(len(prompts))
        said = [prompt.messages[-1]["content"][-1]["text"] for prompt in prompts]
        return [
            RecordError("refused", "no")
            if text == "refuse"
            else [Text(f"{text}{k}", "length") for k in range(prompt.sampling.draws)]
            for text, prompt in zip(said, prompts, strict=True)
        ]


def test_texts_come_in_order_n_for_each_request():
    backend = Echo()
    requests = [Request(letter) for letter in "abcdefg"]
    assert backend.generate(requests, Sampling(n=2, temperature=1)) == [[f"{x}0", f"{x}1"] for x in "abcdefg"]
    assert backend.windows == [3, 3, 1]
    assert backend.generate(requests[:1], Sampling(n=3)) == [["a0"] * 3]
    own = Request("x", sampling=Sampling(n=1, temperature=1))
    assert backend.generate([own, Request("y")], Sampling(n=2)) == [["x0"], ["y0", "y0"]]
    assert backend.generate([]) == []


def test_what_cannot_be_answered_is_an_error_of_its_own(pictures):
    backend = Echo()
    (pictures / "broken.jpg").write_bytes(b"\xff\xd8 no")
    requests = [
        Request("a", [pictures / "a.png"]),
        Request("b", [pictures / "a.png", pictures / "broken.jpg"], name="record 7"),
        Request("c", [pictures / "none.png"]),
        Request("refuse", name="record 9"),
        Request(""),
        Request("<|image_pad|>"),
        Request([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]),
        Request("g"),
    ]
    made = list(backend.stream(requests))
    kinds = [each.error.kind if each.error else each.texts for each in made]
    assert kinds == [
        ["a0"], "unreadable_image", "missing_image", "refused", "empty_text", "reserved_token", "empty_text", ["g0"]
    ]  # fmt: skip
    assert str(made[1].error).startswith("record 7: ")
    assert str(made[3].error) == "record 9: no"
    assert made[1].texts == []
    with pytest.raises(RecordError, match=r"request 1: record 7: .*broken.jpg") as caught:
        backend.generate(requests)
    assert caught.value.kind == "unreadable_image"


def test_an_image_is_opened_once_a_window_and_windows_are_read_one_ahead(pictures):
    backend = Echo()
    taken = []

    def requests(count):
        for number in itertools.islice(itertools.count(), count):
            taken.append(number)
            yield Request("q", [str(pictures / "a.png"), pictures / "b.png"])

    backend.generate(requests(6))
    assert len(backend.opened) == 2 * 2
    taken.clear()
    stream = backend.stream(requests(10**9))
    assert next(stream).texts == ["q0"]
    stream.close()
    assert len(taken) <= 9


def test_turns_are_told_to_engines_as_text_where_they_show_nothing():
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "From <image>to <image>"}]
    prompt = Prompt(prompt_messages(turns, [1, 2]), [1, 2], (), Sampling(), "")
    assert prompt.engine_messages(lambda image: {"shown": image}) == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "From "}, {"shown": 1}, {"type": "text", "text": "to "}, {"shown": 2}],
        },
    ]


def test_one_image_may_be_given_as_it_is(pictures):
    backend = Echo()
    backend.generate([Request("q", str(pictures / "a.png")), Request("q", Image.open(pictures / "b.png"))])
    assert len(backend.opened) == 2


def test_images_stay_inside_the_root(pictures, tmp_path_factory):
    backend = Echo(options=Options(image_root=str(pictures), progress=False))
    made = list(backend.stream([Request("q", ["a.png"]), Request("q", ["../x.png"]), Request("q", ["http://h/x.png"])]))
    assert [each.error.kind if each.error else None for each in made] == [None, "unsafe_path", "unsafe_path"]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"n": 0}, "n=0"), ({"temperature": -1}, "temperature=-1"), ({"top_p": 0.0}, "top_p=0"), ({"stop": "x"}, "stop"),
     ({"stop": ("",)}, "stop"), ({"top_k": -1}, "top_k=-1"), ({"max_new_tokens": 0}, "max_new_tokens=0")],
)  # fmt: skip
def test_impossible_sampling_is_refused_by_name(wrong, named):
    with pytest.raises(JobError, match=named):
        Sampling(**wrong)


def test_texts_end_before_the_first_stop_string():
    sampling = Sampling(stop=("end", "\n", "and"))
    texts = [sampling.cut(Text(text, "length")) for text in ("one and end", "a\nb", "none", "end")]
    assert texts == [("one ", "stop"), ("a", "stop"), ("none", "length"), ("", "stop")]


def test_every_text_says_how_it_ended():
    (made,) = Echo().stream([Request("ab")], Sampling(n=3, stop=("b0",)))
    assert (made.texts, made.finish) == (["a"] * 3, ["stop"] * 3)
    (made,) = Echo().stream([Request("ab")], Sampling(n=2, temperature=1, stop=("b1",)))
    assert (made.texts, made.finish) == (["ab0", "a"], ["length", "stop"])


def test_a_window_holds_so_many_pixels_and_each_image_once(tmp_path):
    for name, side in (("a", 10), ("b", 20), ("c", 30)):
        Image.new("RGB", (side, side)).save(tmp_path / f"{name}.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    a, b, c, bad = (tmp_path / f"{name}.png" for name in ("a", "b", "c", "bad"))
    backend = Echo(options=Options(progress=False, window=6, window_pixels=500))
    asked = [[a], [b], [a, b], [a], [c], [a], [bad, a], [], [b, b], [Image.new("RGB", (5, 5))]]
    made = list(backend.stream([Request("q", images) for images in asked]))
    assert backend.windows == [4, 1, 3, 1]  # of what can be asked
    assert [bool(each.error) for each in made] == [images[:1] == [bad] for images in asked]
    assert backend.opened.count(b) == 2


def test_seeds_differ_by_seed_name_and_draw_and_are_the_same_everywhere():
    def prompt(seed, name=""):
        return Prompt([], [], (), Sampling(seed=seed, temperature=1), name)

    seeds = [prompt(seed, name).seed(draw) for seed, name, draw in itertools.product((0, 1), ("", "a"), (0, 1))]
    assert len(set(seeds)) == 8
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert prompt(0, "scene 7").seed(0) == 264496087
    said = [[{"role": "user", "content": [{"type": "text", "text": text}]}] for text in ("ships?", "planes?", "ships?")]
    first, other, again = (Prompt(turns, [], (), Sampling(seed=1, temperature=1), "").seed(0) for turns in said)
    assert first == again != other, "requests without a name go by what they say"
    assert prompt(None).seed(0) is None


@pytest.mark.parametrize("bad", [set(), {0}, {37}, {3, 60}])
def test_only_the_prompts_at_fault_are_refused_in_few_calls(bad):
    calls = []

    def call(some):
        calls.append(len(some))
        if bad & {int(each.name) for each in some}:
            raise ValueError("no such thing")
        return [[Text(each.name, "stop")] for each in some]

    prompts = [Prompt([], [], (), Sampling(), str(number)) for number in range(64)]
    answers = in_halves(prompts, call, ValueError)
    for number, answer in enumerate(answers):
        if number in bad:
            assert (answer.kind, str(answer)) == ("refused", "the model refuses it: no such thing")
        else:
            assert answer == [(str(number), "stop")]
    assert len(calls) <= 1 + 2 * 6 * len(bad)


def test_what_failed_is_out_of_memory_before_the_halves_run():
    """The traceback of a failure holds its tensors."""
    kept = []

    class Tensor:
        pass

    def call(some):
        assert [each() for each in kept] == [None] * len(kept)
        tensor = Tensor()
        kept.append(weakref.ref(tensor))
        raise RecordError("refused", "no") if len(some) == 1 else ValueError("no")

    gc.disable()
    try:
        assert len(in_halves([Prompt([], [], (), Sampling(), "")] * 4, call, ValueError)) == 4
    finally:
        gc.enable()
    assert len(kept) == 7


@pytest.mark.parametrize(
    "said",
    [
        "The decoder prompt (length 5000) is longer than the maximum model length of 4096. Make sure that ...",
        "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens",
        "The input (5000 tokens) is longer than the model's context length (4096 tokens).",
        "Requested token count exceeds the model's maximum context length of 4096 tokens.",
        "Input length 5000 exceeds the maximum allowed input length of 4096 tokens.",
        "the input is too long", "context_length_exceeded",
    ],
)  # fmt: skip
def test_a_prompt_that_is_too_long_is_told_alike_whoever_says_so(said):
    assert refusal(said).kind == "text_too_long"
    assert refusal("Unknown role: teacher").kind == "refused"
    assert refusal("At most 1 image(s) may be provided in one prompt").kind == "refused"


def test_unknown_names_and_options_are_refused():
    with pytest.raises(JobError, match="unknown back end 'sglang'; known: transformers, vllm, lmdeploy, openai"):
        get_backend("sglang", "x")
    with pytest.raises(
        JobError, match="back end vllm has no option gpu_memory_utilisation; did you mean gpu_memory_ut"
    ):
        backend_options("vllm", gpu_memory_utilisation=0.5)
    with pytest.raises(JobError, match="back end openai has no option batch_size"):
        get_backend("openai", "x", batch_size=2)
    assert [backend_options(name).window for name in BACKENDS] == [64, 512, 512, 256]


def test_a_missing_model_is_told():
    with pytest.raises(JobError, match="cannot load 'nowhere/at_all'"):
        get_backend("transformers", "nowhere/at_all")
