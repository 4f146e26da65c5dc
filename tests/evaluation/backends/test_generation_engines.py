"""vLLM and LMDeploy: what we call is what their releases have, and what comes back is read right.

``tests/fixtures/engines`` has the names of parameters in the released wheels. A stand-in made from it refuses any other
keyword, so that a wrong one fails here, on machines without the engines too.
"""

import dataclasses
import importlib
import inspect
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest

from src.errors import JobError
from src.evaluation.backends import Request, Sampling, get_backend
from src.evaluation.backends.base import Prompt
from src.evaluation.backends.lmdeploy_engine import LmdeployBackend, LmdeployOptions
from src.evaluation.backends.vllm_engine import VllmBackend, VllmOptions

FIXTURES = Path(__file__).parents[2] / "fixtures" / "engines"
RULE = Sampling(
    n=3, temperature=0.8, top_p=0.9, top_k=20, max_new_tokens=7, seed=1, stop=("STOP",), special_tokens=True
)
SETUP = {"vllm": "vllm_env_setup.sh", "lmdeploy": "lmdeploy_env_setup.sh"}


def known(package: str) -> dict[str, list[str]]:
    return json.loads((FIXTURES / f"{package}.json").read_text())["callables"]


class Strict:
    """Takes the keywords of a fixture, and no others."""

    names: ClassVar[list[str]] = []

    def __init__(self, **given):
        assert set(given) <= set(self.names), set(given) - set(self.names)
        self.given = given


def strict(names: list[str], **methods) -> type[Strict]:
    return type("Strict", (Strict,), {"names": names, **methods})


def question(turns) -> str:
    content = turns[-1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


@pytest.fixture
def vllm(monkeypatch):
    """A stand-in whose model says the question again, and refuses long ones."""
    names = known("vllm")

    def chat(self, **given):
        assert set(given) <= set(names["LLM.chat"])
        self.calls.append(given)
        assert len(given["messages"]) == len(given["sampling_params"])
        said = [question(turns) for turns in given["messages"]]
        if any(len(text) > 50 for text in said):
            raise ValueError("The decoder prompt (length 99) is longer than the maximum model length of 50")
        return [
            SimpleNamespace(
                outputs=[
                    SimpleNamespace(text=f"{text} {k} STOP it", finish_reason=("length", "stop")[k % 2])
                    for k in range(rule.given["n"])
                ]
            )
            for text, rule in zip(said, given["sampling_params"], strict=True)
        ]

    module = ModuleType("vllm")
    module.LLM = strict(names["LLM"], chat=chat, calls=[])
    module.SamplingParams = strict(names["SamplingParams"])
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


@pytest.fixture
def lmdeploy(monkeypatch):
    names = known("lmdeploy")

    def infer(prompts, **given):
        assert {"prompts", *given} <= set(names["Pipeline.infer"])
        calls.append((prompts, given))
        said = [question(turns) for turns in prompts]
        return [
            SimpleNamespace(
                text=f"{text} {rule.given['random_seed']} STOP it",
                finish_reason=why,
                error_message="full",
                generate_token_len=5 * (text != "full up"),
            )
            for text, rule in zip(said, given["gen_config"], strict=True)
            for why in ["error" if len(text) > 50 else "length"]
        ]

    def pipeline(model_path, **given):
        assert set(given) <= set(names["pipeline"])
        module.given = given
        return SimpleNamespace(infer=infer)

    calls = []
    module = ModuleType("lmdeploy")
    module.calls, module.pipeline = calls, pipeline
    for name in ("TurbomindEngineConfig", "GenerationConfig"):
        setattr(module, name, strict(names[name]))
    module.VisionConfig = strict(names["messages.VisionConfig"])
    monkeypatch.setitem(sys.modules, "lmdeploy", module)
    return module


def test_vllm_is_called_as_its_release_wants_it(vllm, images):
    backend = get_backend("vllm", "assets/nano/base", tensor_parallel_size=2, progress=False)
    assert backend.engine.given["tensor_parallel_size"] == 2
    assert not {"device", "disable_mm_preprocessor_cache"} & set(backend.engine.given)
    requests = [Request("one", images[:2], name="a"), Request("x" * 60), Request("two")]
    made = list(backend.stream(requests, RULE))
    assert made[0].texts == ["one 0 ", "one 1 ", "one 2 "]
    assert made[2].texts == ["two 0 ", "two 1 ", "two 2 "]
    assert made[1].error.kind == "text_too_long"
    (greedy,) = backend.stream([Request("q")], Sampling(n=2))
    assert (greedy.texts, greedy.finish) == (["q 0 STOP it"] * 2, ["length"] * 2)
    call = vllm.LLM.calls[0]
    assert [part["type"] for part in call["messages"][0][0]["content"]] == ["image_pil", "image_pil", "text"]
    assert call["messages"][0][0]["content"][0]["image_pil"].size == images[0].size
    rule = call["sampling_params"][0].given
    assert rule.pop("seed") != call["sampling_params"][1].given["seed"]
    assert rule == {
        "n": 3, "temperature": 0.8, "top_p": 0.9, "top_k": 20, "max_tokens": 7, "stop": ["STOP"],
        "skip_special_tokens": False,
    }  # fmt: skip
    assert vllm.LLM.calls[-1]["sampling_params"][0].given["n"] == 1


def test_lmdeploy_is_called_as_its_release_wants_it(lmdeploy, images):
    backend = get_backend("lmdeploy", "assets/nano/base", session_len=4096, progress=False)
    assert lmdeploy.given["backend_config"].given["session_len"] == 4096
    requests = [Request("one", images[:1]), Request("x" * 60, name="row 5"), Request("two"), Request("full up")]
    made = list(backend.stream(requests, RULE))
    assert [made[k].error is not None for k in range(4)] == [False, True, False, True]
    assert len(set(made[0].texts)) == 3
    assert all(text.startswith("one ") and text.endswith(" ") for text in made[0].texts)
    assert not {text[4:] for text in made[2].texts} & {text[4:] for text in made[0].texts}  # seeds of their own
    assert str(made[1].error) == "row 5: the model refuses it: full"
    assert [made[k].error.kind for k in (1, 3)] == ["refused", "text_too_long"]
    ((prompts, given),) = lmdeploy.calls
    assert len(prompts) == len(given["gen_config"]) == 12
    part = prompts[0][0]["content"][0]
    assert part == {"type": "image_data", "image_data": {"data": part["image_data"]["data"]}}
    rule = {key: value for key, value in given["gen_config"][0].given.items() if key != "random_seed"}
    assert rule == {
        "do_sample": True, "temperature": 0.8, "top_p": 0.9, "top_k": 20, "max_new_tokens": 7,
        "skip_special_tokens": False,
    }  # fmt: skip
    (greedy,) = backend.stream([Request("q")], Sampling(n=2))
    assert greedy.finish == ["length"] * 2
    assert [rule.given["do_sample"] for rule in lmdeploy.calls[-1][1]["gen_config"]] == [False]


@pytest.mark.parametrize("package", ["vllm", "lmdeploy"])
def test_a_missing_package_is_told_with_its_set_up(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(JobError, match=f"needs the package {package}: bash {SETUP[package]}"):
        get_backend(package, "assets/nano/base")
    assert (Path(__file__).parents[3] / SETUP[package]).is_file()


def parameters(callable_: object) -> set[str]:
    """Names that a callable of a real package takes; fields, for a dataclass or msgspec structure."""
    if dataclasses.is_dataclass(callable_):
        return {field.name for field in dataclasses.fields(callable_)}
    return set(getattr(callable_, "__struct_fields__", ())) or set(inspect.signature(callable_).parameters)  # type: ignore[arg-type]


def test_the_installed_vllm_has_what_we_use():
    package = pytest.importorskip("vllm", reason="vLLM is not installed here: bash vllm_env_setup.sh")
    prompt = Prompt([], [], (), RULE, "")
    engine = importlib.import_module("vllm.engine.arg_utils").EngineArgs
    ours = VllmBackend.engine_arguments(SimpleNamespace(options=VllmOptions()), "m")  # type: ignore[arg-type]
    assert set(ours) <= parameters(package.LLM.__init__) | parameters(engine)
    assert set(VllmBackend.sampling_arguments(prompt)) <= parameters(package.SamplingParams)
    assert {"messages", "sampling_params", "use_tqdm"} <= parameters(package.LLM.chat)


def test_the_installed_lmdeploy_has_what_we_use():
    package = pytest.importorskip("lmdeploy", reason="LMDeploy is not installed here: bash lmdeploy_env_setup.sh")
    prompt = Prompt([], [], (), RULE, "")
    ours = LmdeployBackend.engine_arguments(SimpleNamespace(options=LmdeployOptions()))  # type: ignore[arg-type]
    assert set(ours) <= parameters(package.TurbomindEngineConfig)
    assert set(LmdeployBackend.sampling_arguments(prompt, 0)) <= parameters(package.GenerationConfig)
    assert {"prompts", "gen_config"} <= parameters(package.Pipeline.infer)
    assert "backend_config" in parameters(package.pipeline)
