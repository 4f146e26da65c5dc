"""The README does what it says: its Python blocks run, its commands parse, its files exist, its quick start holds."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import uvicorn
from ray.scripts.scripts import cli as ray_commands

from python_script import (
    benchmark,
    compare_subsets,
    convert_checkpoint,
    convert_clip,
    export_subset,
    make_evaluation_data,
    make_nano_clip,
    make_scenes,
    make_vlm_data,
    tally_subset,
    web_demo,
)
from python_script.build_preference import BuildConfig
from python_script.evaluation import (
    clip_classification,
    eval_retrieval,
    lhrs_bench_bon,
    result_table,
    reward_curves,
    rs_evaluation,
    vg_bon,
)
from python_script.evaluation.reward_accuracy import AccuracyConfig
from python_script.measure_pairs import MeasureConfig
from python_script.score_dataset import ScoreConfig
from python_script.select_subset import SelectConfig
from src.benchmark.serving import Server
from src.config import load_config
from src.evaluation.backends import Sampling, backend_options
from src.experiment.clip_curation import ClipCurationConfig
from src.experiment.vlm_curation import VlmCurationConfig
from src.serving.config import ServerConfig, config_from_environment
from src.serving.reward_server import create_app
from src.training.clip_config import ClipConfig
from src.training.grpo_config import GrpoConfig
from src.training.nano_parts import NanoConfig
from src.training.reward_config import RewardConfig
from src.training.vlm_config import VlmConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", README, re.S) for line in block.strip().splitlines()]
DEFAULT_CONFIGS = {  # what a command without a file is read with here
    "train_reward.py": ["config/reward_training_stage2.yaml"],
    "train_clip.py": ["config/clip_training_remoteclip.yaml"],
    "train_grpo.py": ["config/grpo.yaml"],
    "train_vlm.py": ["config/sft_finetuning.yaml"],
    "vlm_curation_experiment.py": ["config/nano/vlm_curation_experiment.yaml"],
    "curation_experiment.py": ["config/nano/curation_experiment.yaml"],
}
SCHEMAS = {
    "build_preference.py": BuildConfig,
    "curation_experiment.py": ClipCurationConfig,
    "vlm_curation_experiment.py": VlmCurationConfig,
    "measure_pairs.py": MeasureConfig,
    "reward_accuracy.py": AccuracyConfig,
    "score_dataset.py": ScoreConfig,
    "select_subset.py": SelectConfig,
    "serve_reward.py": ServerConfig,
    "train_clip.py": ClipConfig,
    "train_grpo.py": GrpoConfig,
    "train_nano_base.py": NanoConfig,
    "train_reward.py": RewardConfig,
    "train_vlm.py": VlmConfig,
}
PARSERS = {
    "benchmark.py": benchmark, "clip_classification.py": clip_classification, "compare_subsets.py": compare_subsets,
    "convert_checkpoint.py": convert_checkpoint,
    "convert_clip.py": convert_clip, "eval_retrieval.py": eval_retrieval, "export_subset.py": export_subset,
    "lhrs_bench_bon.py": lhrs_bench_bon, "vg_bon.py": vg_bon,
    "make_evaluation_data.py": make_evaluation_data, "make_nano_clip.py": make_nano_clip,
    "make_scenes.py": make_scenes, "make_vlm_data.py": make_vlm_data, "result_table.py": result_table,
    "reward_curves.py": reward_curves, "rs_evaluation.py": rs_evaluation, "tally_subset.py": tally_subset,
    "web_demo.py": web_demo,
}  # fmt: skip
# Scripts whose arguments are keys of the program they call.
SCRIPTS = {
    "script/curation_experiment.sh": "python_script/curation_experiment.py",
    "script/vlm_curation_experiment.sh": "python_script/vlm_curation_experiment.py",
    "script/score_dataset.sh": "python_script/score_dataset.py",
    "script/train_clip_remoteclip.sh": "python_script/train_clip.py",
    "script/train_grpo_small.sh": "python_script/train_grpo.py",
    "script/train_pretrain.sh": "python_script/train_vlm.py",
    "script/train_reward_first_stage.sh": "python_script/train_reward.py",
    "script/train_reward_second_stage.sh": "python_script/train_reward.py",
    "script/train_reward_third_stage.sh": "python_script/train_reward.py",
    "script/train_sft.sh": "python_script/train_vlm.py",
}


def words_of(command: str) -> list[str]:
    """The words without variables before them; a server's variables must be keys of it."""
    words = shlex.split(command)
    config_from_environment(dict(word.split("=", 1) for word in words if word.startswith("REWARD_SERVER_")))
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    return words


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_name_real_programs_and_keys(command, monkeypatch):
    if command.startswith("cd "):
        folder, command, *further = command.removeprefix("cd ").split(" && ")
        assert (ROOT / folder).is_dir()
        if command.startswith("pip install "):
            assert (ROOT / folder / "pyproject.toml").is_file()
            assert all(one.startswith("pip install ") for one in further)
            return
        assert not further
        module, _ = words_of(command)[1].split(":")
        assert (ROOT / folder / f"{module}.py").is_file()
        uvicorn.main.make_context("uvicorn", words_of(command)[1:])  # refuses an unknown option
        return
    words = words_of(command)
    if words[:2] == ["curl", "-s"]:
        assert re.search(r":8000(/[a-z]+)$", words[-1])[1] in create_app().openapi()["paths"]
        return
    if words[:2] == ["accelerate", "launch"]:
        assert words[2] == "--num_processes" or (ROOT / words[3]).is_file()
        words = ["python", *words[4:]]
    if words[0] == "ray":  # refuses an unknown option; customVeRL/tests composes the job's settings
        group = ray_commands.commands[words[1]]
        name, *options = words[1:] if words[1] == "start" else words[2:]
        context = (group if words[1] == "start" else group.commands[name]).make_context(name, options)
        environment = context.params.get("runtime_env")
        assert environment is None or (ROOT / environment).is_file()
        return
    runner, program, *arguments = words
    assert runner == ("bash" if program.endswith(".sh") else "python")
    assert (ROOT / program).is_file()
    program = SCRIPTS.get(program, program)
    name = Path(program).name
    if name == "build_preference.py":
        arguments[0] = f"way={arguments[0]}"
    if name in SCHEMAS:
        paths = [argument for argument in arguments if "=" not in argument]
        paths = paths or DEFAULT_CONFIGS.get(name, [])
        if name == "curation_experiment.py":
            arguments += ["data.captioned=train.parquet", "data.test=test.parquet"]  # of the script's environment
        assert len(paths) <= 1
        load_config(SCHEMAS[name], ROOT / paths[0] if paths else None, [a for a in arguments if "=" in a])
    elif name in PARSERS:

        class ParsedError(Exception):
            pass

        def stop(self, args=None, namespace=None):
            known, unknown = self.parse_known_args(args, namespace)
            assert not unknown
            raise ParsedError(known)

        monkeypatch.setattr("argparse.ArgumentParser.parse_args", stop)
        with pytest.raises(ParsedError):
            PARSERS[name].main(arguments)
    else:
        assert not arguments


def test_links_and_pictures_exist():
    assert not re.search(r"^[A-Z]+_[A-Z]+$", README, re.M), "a placeholder was left"
    for target in re.findall(r"\]\(([^)]+)\)", README):
        heading = target.removeprefix("#").replace("-", "[ -]")
        here = target.startswith("#") and re.search(rf"^## {heading}", README, re.M | re.I)
        assert here or (ROOT / target).is_file(), target


def run(command: list[str], **options) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


# Blocks that need a GPU or a server are not run but checked, call by call.
ELSEWHERE = re.compile(r'^(?:from|import) (vllm|lmdeploy)|get_backend\("(vllm|lmdeploy|openai)"', re.M)
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


def known_keywords(block: str) -> dict[str, set[str]]:
    """Callables of the engines that a block uses, by the name they have there, and what their releases take."""
    found = {}
    for path in (ROOT / "tests" / "fixtures" / "engines").glob("*.json"):
        if re.search(rf"^(?:from|import) {path.stem}\b", block, re.M):
            found |= json.loads(path.read_text())["callables"]
    return {name.rpartition(".")[2]: set(keywords) for name, keywords in found.items()}


@pytest.mark.parametrize("block", [block for block in BLOCKS if ELSEWHERE.search(block)])
def test_python_blocks_for_other_machines_use_what_is_there(block):
    taken, checked = known_keywords(block), 0
    for call in (node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func).rpartition(".")[2]
        keywords = {keyword.arg for keyword in call.keywords}
        if name == "get_backend":
            backend_options(ast.literal_eval(call.args[0]), **dict.fromkeys(keywords))
        elif name == "Sampling":
            Sampling(**{keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords})
        elif name in taken:
            assert keywords <= taken[name], f"{name} takes no {keywords - taken[name]}"
        else:
            continue
        checked += 1
    assert checked


@pytest.mark.slow
def test_quick_start_keeps_its_word_and_the_python_blocks_run():
    """Well more clean pairs are kept than the base rate; then the notebook part, on the files of the quick start."""
    printed = run(["bash", "script/quickstart.sh"])
    assert "1,000 ok + 0 errors = 1,000 pairs" in printed
    share = re.search(r"([\d.]+)% of the kept pairs are clean; ([\d.]+)% of all", printed)
    assert share is not None
    assert float(share[2]) == 50.0
    assert float(share[1]) >= 93.0
    for useless in ("vague", "off_topic", "garbled", "other_scene"):
        assert re.search(rf"^{useless} +\d+ +[0-2] ", printed, re.M), useless
    page = (ROOT / "output" / "quickstart" / "report.html").read_text(encoding="utf-8")
    assert len(page) > 100_000
    assert not re.search(r"""(src|href)=["']https?:""", page)
    blocks = [block for block in BLOCKS if not ELSEWHERE.search(block)]
    assert len(blocks) >= 4
    with Server().wait() as server:
        for block in blocks:
            run([sys.executable, "-c", block.replace("http://127.0.0.1:8000", server.url)])


@pytest.mark.slow
def test_packed_groups_train_many_times_as_fast_as_the_published_form():
    """The program itself refuses gradients that differ."""
    printed = run([sys.executable, "python_script/benchmark.py", "train_reward", "--repeats", "1"])
    assert float(re.fullmatch(r"ratio ([\d.]+)", printed.splitlines()[-1])[1]) >= 5


@pytest.mark.slow
def test_shared_prefixes_are_many_times_as_fast_as_the_published_loop():
    printed = run([sys.executable, "python_script/benchmark.py", "score", "--repeats", "3"])
    assert float(re.fullmatch(r"ratio ([\d.]+)", printed.splitlines()[-1])[1]) >= 6
