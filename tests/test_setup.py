"""The shell entry points: syntax, strictness, and what the set-up scripts do in good and bad circumstances.

An interpreter that only writes down how it was called stands in for pip and the network.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(
    path
    for pattern in ("*.sh", "script/**/*.sh", "customVeRL/*.sh", "customVeRL/examples/**/*.sh", ".ci/run")
    for path in ROOT.glob(pattern)
)
SET_UPS = ["basic_env_setup.sh", "vllm_env_setup.sh", "lmdeploy_env_setup.sh", "customVeRL/env_setup.sh"]


def run(command: list[str], cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    hidden = {"VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV", "PYTHON", "WANDB_MODE", "HF_HUB_OFFLINE"}
    environment = {key: value for key, value in os.environ.items() if key not in hidden} | variables
    return subprocess.run(command, check=False, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The set-up scripts in a folder of their own, where they may install."""
    folder = tmp_path / "a project"
    for name in [*SET_UPS, "pyproject.toml", "requirements.lock", "script/setup_lib.sh", "script/env.sh"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def make_environment(folder: Path, pip: str = "exit 0") -> Path:
    """An environment whose python is real, except that pip calls go to ``calls.txt`` and then run ``pip``."""
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        "#!/usr/bin/env bash\n"
        f'if [[ "${{1:-}} ${{2:-}}" == "-m pip" ]]; then echo "$*" >>"{folder}/calls.txt"; {pip}; fi\n'
        f'if [[ "${{1:-}}" == *show_versions.py ]]; then exit 0; fi\n'
        f'exec "{sys.executable}" "$@"\n'
    )
    python.chmod(0o755)
    return folder


def pip_calls(environment: Path) -> list[str]:
    calls = environment / "calls.txt"
    return calls.read_text().splitlines() if calls.exists() else []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_script_is_valid_and_strict(script: Path) -> None:
    checked = run(["bash", "-n", str(script)])
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "\nset -euo pipefail\n" in script.read_text()


@pytest.mark.parametrize("script", SET_UPS)
def test_help_and_unknown_argument(script: str, tmp_path: Path) -> None:
    shown = run(["bash", str(ROOT / script), "--help"], cwd=tmp_path)
    assert shown.returncode == 0
    assert shown.stdout.startswith(f"usage: bash {script}")
    refused = run(["bash", str(ROOT / script), "--hepl"], cwd=tmp_path)
    assert refused.returncode == 1
    assert "unknown argument '--hepl'" in refused.stderr


def test_second_set_up_installs_nothing_until_the_lock_changes(project: Path, tmp_path: Path) -> None:
    environment = make_environment(tmp_path / "active env")
    set_up = ["bash", str(project / "basic_env_setup.sh"), "--path"]
    for expected_calls in (2, 2):
        result = run(set_up, cwd=tmp_path, VIRTUAL_ENV=str(environment))
        assert (result.returncode, result.stdout) == (0, f"{environment}\n"), result.stderr
        assert len(pip_calls(environment)) == expected_calls
    with (project / "requirements.lock").open("a") as lock:
        lock.write("# changed\n")
    run(set_up, cwd=tmp_path, VIRTUAL_ENV=str(environment))
    assert len(pip_calls(environment)) == 4
    assert "-r" in pip_calls(environment)[2]
    assert "-e" in pip_calls(environment)[3]


def test_conda_environment_is_used_but_base_is_not(project: Path, tmp_path: Path) -> None:
    conda, default = make_environment(tmp_path / "conda"), make_environment(project / ".venv")
    set_up = ["bash", str(project / "basic_env_setup.sh"), "--path"]
    named = run(set_up, CONDA_PREFIX=str(conda), CONDA_DEFAULT_ENV="mine")
    assert (named.stdout, len(pip_calls(conda)), len(pip_calls(default))) == (f"{conda}\n", 2, 0)
    base = run(set_up, CONDA_PREFIX=str(conda), CONDA_DEFAULT_ENV="base")
    assert (base.stdout, len(pip_calls(conda)), len(pip_calls(default))) == (f"{default}\n", 2, 2)


def test_failed_install_is_told_and_tried_again(project: Path, tmp_path: Path) -> None:
    environment = make_environment(tmp_path / "env", pip="echo 'ERROR: No space left on device'; exit 1")
    for attempt in (1, 2):
        result = run(["bash", str(project / "basic_env_setup.sh"), "--path"], VIRTUAL_ENV=str(environment))
        assert (result.returncode, result.stdout) == (1, "")
        assert "No space left on device" in result.stderr
        assert len(pip_calls(environment)) == attempt


def test_unsupported_interpreters_are_refused_by_name(project: Path, tmp_path: Path) -> None:
    old = tmp_path / "old" / "bin" / "python"
    old.parent.mkdir(parents=True)
    old.write_text("#!/usr/bin/env bash\nexit 1\n")
    old.chmod(0o755)
    active = run(["bash", str(project / "basic_env_setup.sh")], VIRTUAL_ENV=str(tmp_path / "old"))
    assert active.returncode == 1
    assert f"the active environment {tmp_path / 'old'} has no Python 3.11 or 3.12" in active.stderr
    none = run(["bash", str(project / "basic_env_setup.sh")], PYTHON=str(old))
    assert none.returncode == 1
    assert f"found no Python 3.11 or 3.12 (tried: {old})" in none.stderr
    assert not (project / ".venv").exists()


CERTIFI_ERROR = (
    "ERROR: Could not find a version that satisfies the requirement certifi>=2026.10.19 (from vllm) "
    "(from versions: 2026.7.4)\nERROR: No matching distribution found for certifi>=2026.10.19"
)


@pytest.mark.parametrize(
    ("message", "explained"),
    [(CERTIFI_ERROR, True), ("ERROR: No matching distribution found for numba==0.65.0", False)],
)
def test_vllm_set_up_explains_a_missing_certifi(project: Path, message: str, explained: bool) -> None:
    environment = make_environment(project / ".venv-vllm", pip=f"printf '%s\\n' '{message}'; exit 1")
    result = run(["bash", str(project / "vllm_env_setup.sh")])
    assert result.returncode == 1
    assert message.splitlines()[-1] in result.stderr
    assert ("asks for certifi 2026.10.19 or newer" in result.stderr) is explained
    assert "vllm==0.33.0" in pip_calls(environment)[0]
    assert not {"gradio", "deepspeed", "trl"} & set(pip_calls(environment)[0].split())
    assert not (environment / ".scorers-setup").exists()


def test_lmdeploy_set_up_asks_for_versions_that_go_together(project: Path) -> None:
    environment = make_environment(project / ".venv-lmdeploy", pip="echo 'ERROR: No space left on device'; exit 1")
    result = run(["bash", str(project / "lmdeploy_env_setup.sh")])
    assert (result.returncode, "No space left on device" in result.stderr) == (1, True)
    asked = set(pip_calls(environment)[0].split())
    assert {"lmdeploy==0.18.0", "torch==2.12.1", "torchvision==0.27.1", "peft"} <= asked
    assert not {"gradio", "deepspeed", "trl"} & asked
    assert not (environment / ".scorers-setup").exists()


@pytest.mark.parametrize("engine", ["vllm", "lmdeploy"])
def test_set_ups_leave_each_others_environments_alone(project: Path, engine: str) -> None:
    basic = make_environment(project / ".venv")
    basic.joinpath(".scorers-setup").write_text("basic 0\n")
    own = make_environment(project / f".venv-{engine}", pip="exit 1")
    other = make_environment(project / "other")
    other.joinpath(".scorers-setup").write_text(("lmdeploy" if engine == "vllm" else "vllm") + " 0\n")
    for calls, active in enumerate((basic, other), 1):
        run(["bash", str(project / f"{engine}_env_setup.sh")], VIRTUAL_ENV=str(active))
        assert (len(pip_calls(active)), len(pip_calls(own))) == (0, calls)
    own.joinpath(".scorers-setup").write_text(f"{engine} 0\n")
    kept = run(["bash", str(project / "basic_env_setup.sh"), "--path"], VIRTUAL_ENV=str(own))
    assert (kept.stdout, len(pip_calls(own))) == (f"{own}\n", 2)
    assert f"made by {engine}_env_setup.sh" in kept.stderr
    assert pip_calls(basic) == []


@pytest.mark.parametrize("engine", ["vllm", "lmdeploy"])
def test_an_empty_active_environment_is_used_and_installed_once(project: Path, tmp_path: Path, engine: str) -> None:
    environment = make_environment(tmp_path / "mine")
    for _ in range(2):  # the versions cannot be shown: nothing was really installed
        run(["bash", str(project / f"{engine}_env_setup.sh")], VIRTUAL_ENV=str(environment))
    assert len(pip_calls(environment)) == 2
    assert (environment / ".scorers-setup").read_text().startswith(f"{engine} ")


def test_env_sh_works_from_any_folder_and_keeps_what_the_user_set(project: Path, tmp_path: Path) -> None:
    environment = make_environment(tmp_path / "env")
    program = 'source "$0"; echo "$WANDB_MODE $HF_HUB_OFFLINE $SCORERS_ROOT"; command -v python; echo "$PYTHONPATH"'
    result = run(
        ["bash", "-c", program, str(project / "script" / "env.sh")],
        cwd=tmp_path,
        VIRTUAL_ENV=str(environment),
        WANDB_MODE="online",
        PYTHONPATH="elsewhere",
    )
    expected = [f"online 1 {project}", str(environment / "bin" / "python"), f"{project}:elsewhere"]
    assert result.stdout.splitlines() == expected, result.stderr
