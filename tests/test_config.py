"""Configuration: order of precedence, and every kind of mistake refused by the full name of the key."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from omegaconf import MISSING, OmegaConf

from src.config import flatten_keys, load_config, run_program, yaml_comments
from src.errors import JobError


@dataclass
class Data:
    path: str = MISSING
    text_column: str = "title"


@dataclass
class Job:
    data: Data = field(default_factory=Data)
    output_dir: str = "${data.path}/out"
    fraction: float | None = 0.3
    workers: int = 2
    verbose: bool = False
    device: Literal["auto", "cpu"] = "auto"
    tags: list[str] = field(default_factory=list)


def write(folder: Path, text: str) -> Path:
    path = folder / "job.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_give_way_to_yaml_and_yaml_to_overrides(tmp_path):
    path = write(tmp_path, "data: {path: here, text_column: caption}\nworkers: 3\n")
    job = load_config(Job, path, ["workers=5", "fraction=1e-1", "verbose=yes", "tags=[a, b]"])
    expected = Job(
        Data("here", "caption"), output_dir="here/out", fraction=0.1, workers=5, verbose=True, tags=["a", "b"]
    )
    assert job == expected


def test_null_clears_an_optional_value():
    assert load_config(Job, None, ["data.path=x", "fraction=null"]).fraction is None


@pytest.mark.parametrize("text", ["007", "1e3", "true", "a=b", "[x", "-", "a: b", "2024-01-01"])
def test_text_of_an_override_reaches_a_string_field_as_typed(text):
    assert load_config(Job, None, [f"data.path={text}"]).data.path == text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.pth=x", "unknown key data.pth; did you mean data.path?"),
        ("text_column=x", "unknown key text_column; did you mean data.text_column?"),
        ("colour.of.sky=blue", "unknown key colour.of.sky; known keys: data.path"),
        ("workers=many", "workers: Value 'many'"),
        ("workers=1.5", "workers: Value '1.5'"),
        ("workers=null", "workers: "),
        ("device=tpu", "device: Invalid value 'tpu', expected one of"),
        ("data=x", "data: "),
        ("tags=x", "tags: "),
        ("data.path=", "no value for data.path"),
        ("workers", "'workers' is not of the form key=value"),
        ("output_dir=${nowhere}", "output_dir: Interpolation key 'nowhere' not found"),
    ],
)
def test_override_refused_by_name(override, message):
    with pytest.raises(JobError) as caught:
        load_config(Job, None, ["data.path=x", override])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no value for data.path"),
        ("data: {path: ''}", "no value for data.path"),
        ("data:\n  path: ???", "no value for data.path"),
        ("data: {path: null}", "data.path: "),
        ("data: {pth: x}", "unknown key data.pth; did you mean data.path?"),
        ("data: 5", "data: "),
        ("workers: abc", "workers: "),
        ("data: {path: x}\nworker: 1", "unknown key worker; did you mean workers?"),
        ("a: [", "cannot read"),
        ("- a", "must hold"),
        ("workers: 1\nworkers: 2", "cannot read"),
    ],
)
def test_yaml_refused_by_name(tmp_path, text, message):
    with pytest.raises(JobError) as caught:
        load_config(Job, write(tmp_path, text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(JobError, match=r"no such config file: .*absent\.yaml"):
        load_config(Job, tmp_path / "absent.yaml")


def test_comments_above_and_beside_a_key_belong_to_it():
    text = (
        "# the file\n\n# where the data is\ndata:\n  path: a#b # a file\n  # its text\n  text_column: t\nworkers: 1\n"
    )
    comments = yaml_comments(text)
    assert comments == {
        "data": "where the data is",
        "data.path": "a file",
        "data.text_column": "its text",
        "workers": "",
    }


def test_program_runs_on_its_default_file_a_given_file_and_overrides(tmp_path):
    default = write(tmp_path, "data: {path: default}\n")
    other = tmp_path / "other.yaml"
    other.write_text("data: {path: other}\nworkers: 7\n", encoding="utf-8")
    seen: list[Job] = []
    run_program(seen.append, Job, default, [])
    run_program(seen.append, Job, default, ["workers=4"])
    run_program(seen.append, Job, default, [str(other), "verbose=true"])
    found = [(job.data.path, job.workers, job.verbose) for job in seen]
    assert found == [("default", 2, False), ("default", 4, False), ("other", 7, True)]


@pytest.mark.parametrize("argv", [["--fast"], ["a.yaml", "b.yaml"], ["data.pth=x"], ["absent.yaml"]])
def test_program_leaves_with_status_2_and_one_line(tmp_path, capsys, argv):
    with pytest.raises(SystemExit) as caught:
        run_program(print, Job, write(tmp_path, "data: {path: x}\n"), argv)
    shown = capsys.readouterr()
    assert caught.value.code == 2
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1


def test_help_lists_every_key_with_default_and_comment(tmp_path, capsys):
    def main(job: Job) -> None:
        raise AssertionError("help must not start the program")

    run_program(main, Job, write(tmp_path, "data:\n  path: ??? # a file\nworkers: 6 # threads\n"), ["--help"])
    shown = capsys.readouterr().out
    assert shown.startswith(__doc__ or "?")
    lines = {line.split()[0]: line.split(maxsplit=1)[1] for line in shown.splitlines() if line.startswith("  ")}
    assert lines["data.path"].split(maxsplit=1) == ["(required)", "a file"]
    assert lines["workers"].split() == ["6", "threads"]
    assert set(lines) == {
        "data.path",
        "data.text_column",
        "output_dir",
        "fraction",
        "workers",
        "verbose",
        "device",
        "tags",
    }


def test_flatten_keeps_interpolations_unresolved():
    assert flatten_keys(OmegaConf.structured(Job))["output_dir"] == "${data.path}/out"
