"""The README does what it says: its Python blocks run, its commands parse, its files exist, its quick start holds."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from python_script import (
    benchmark,
    compare_subsets,
    convert_clip,
    export_subset,
    make_nano_clip,
    make_scenes,
    make_vlm_data,
    tally_subset,
)
from python_script.build_preference import BuildConfig
from python_script.evaluation import clip_classification, eval_retrieval, result_table, reward_curves
from python_script.evaluation.reward_accuracy import AccuracyConfig
from python_script.measure_pairs import MeasureConfig
from python_script.score_dataset import ScoreConfig
from python_script.select_subset import SelectConfig
from src.config import load_config
from src.experiment.clip_curation import ExperimentConfig
from src.training.clip_config import ClipConfig
from src.training.nano_parts import NanoConfig
from src.training.reward_config import RewardConfig
from src.training.vlm_config import VlmConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", README, re.S) for line in block.strip().splitlines()]
SCHEMAS = {
    "build_preference.py": BuildConfig,
    "curation_experiment.py": ExperimentConfig,
    "measure_pairs.py": MeasureConfig,
    "reward_accuracy.py": AccuracyConfig,
    "score_dataset.py": ScoreConfig,
    "select_subset.py": SelectConfig,
    "train_clip.py": ClipConfig,
    "train_nano_base.py": NanoConfig,
    "train_reward.py": RewardConfig,
    "train_vlm.py": VlmConfig,
}
PARSERS = {
    "benchmark.py": benchmark, "clip_classification.py": clip_classification, "compare_subsets.py": compare_subsets,
    "convert_clip.py": convert_clip, "eval_retrieval.py": eval_retrieval, "export_subset.py": export_subset,
    "make_nano_clip.py": make_nano_clip, "make_scenes.py": make_scenes, "make_vlm_data.py": make_vlm_data,
    "result_table.py": result_table,
    "reward_curves.py": reward_curves,
    "tally_subset.py": tally_subset,
}  # fmt: skip
# Scripts whose arguments are keys of the program they call.
SCRIPTS = {
    "script/curation_experiment.sh": "python_script/curation_experiment.py",
    "script/score_dataset.sh": "python_script/score_dataset.py",
    "script/train_clip_remoteclip.sh": "python_script/train_clip.py",
    "script/train_pretrain.sh": "python_script/train_vlm.py",
    "script/train_reward_first_stage.sh": "python_script/train_reward.py",
    "script/train_reward_second_stage.sh": "python_script/train_reward.py",
    "script/train_reward_third_stage.sh": "python_script/train_reward.py",
    "script/train_sft.sh": "python_script/train_vlm.py",
}


def words_of(command: str) -> list[str]:
    words = shlex.split(command)
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    return words


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_name_real_programs_and_keys(command, monkeypatch):
    words = words_of(command)
    if words[:2] == ["accelerate", "launch"]:
        assert (ROOT / words[3]).is_file()
        words = ["python", *words[4:]]
    runner, program, *arguments = words
    assert runner == ("bash" if program.endswith(".sh") else "python")
    assert (ROOT / program).is_file()
    program = SCRIPTS.get(program, program)
    name = Path(program).name
    if name == "build_preference.py":
        arguments[0] = f"way={arguments[0]}"
    if name in SCHEMAS:
        paths = [argument for argument in arguments if "=" not in argument]
        if name == "train_reward.py":
            paths = paths or ["config/reward_training_stage2.yaml"]
        elif name == "train_clip.py":
            paths = paths or ["config/clip_training_remoteclip.yaml"]
        elif name == "train_vlm.py":
            paths = paths or ["config/sft_finetuning.yaml"]
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
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(blocks) >= 2
    for block in blocks:
        run([sys.executable, "-c", block])


@pytest.mark.slow
def test_packed_groups_train_many_times_as_fast_as_the_published_form():
    """The program itself refuses gradients that differ."""
    printed = run([sys.executable, "python_script/benchmark.py", "train_reward", "--repeats", "1"])
    assert float(re.fullmatch(r"ratio ([\d.]+)", printed.splitlines()[-1])[1]) >= 5


@pytest.mark.slow
def test_shared_prefixes_are_many_times_as_fast_as_the_published_loop():
    printed = run([sys.executable, "python_script/benchmark.py", "score", "--repeats", "3"])
    assert float(re.fullmatch(r"ratio ([\d.]+)", printed.splitlines()[-1])[1]) >= 6
