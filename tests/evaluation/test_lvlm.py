"""A run asks every question once, goes on where it stopped, and gives the same bytes from any number of processes."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from python_script import make_evaluation_data
from python_script.evaluation import rs_evaluation
from src.errors import JobError, RecordError
from src.evaluation.adapters import Adapter
from src.evaluation.adapters.families import FAMILIES
from src.evaluation.backends import Sampling
from src.evaluation.backends.base import Backend, Options, Text
from src.evaluation.backends.transformers_model import TransformersBackend, TransformersOptions
from src.evaluation.lvlm import Job, Team, ask, evaluate
from src.evaluation.results import read_results
from src.evaluation.tasks import known_tasks
from tests.evaluation.backends.chat_server import serving

ROOT = Path(__file__).parents[2]


class Stopped(BaseException):
    """As a kill would."""


class Oracle(Backend):
    """Answers as its table says, else by a digest of the question; refuses, and stops when it is told to."""

    def __init__(self, root: Path, answers: dict[str, str] | None = None, stop_after: int = 10**9):
        self.options = Options(progress=False, window=3, image_root=root, workers=1)
        self.answers, self.left, self.asked = answers or {}, stop_after, []

    def answer(self, prompts, done):
        made = []
        for prompt in prompts:
            said = prompt.messages[-1]["content"][-1]["text"]
            if self.left == 0:
                raise Stopped
            self.left -= 1
            self.asked.append((said, len(prompt.images)))
            drawn = hashlib.md5(f"{said}{prompt.seed(0)}".encode()).hexdigest()[0] < "8"
            text = self.answers.get(said, "yes" if drawn else "no")
            made.append(RecordError("refused", "no") if said == "refuse" else [Text(text, "stop")])
        done(len(made))
        return made


def questions(root: Path, number: int, name: str = "RSVQA_LR-presence_RSVQA.json") -> None:
    (root / "pictures").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 20), "white").save(root / "pictures" / "a.png")
    records = [
        {"image": "a.png", "image_path": "pictures",
         "conversations": [{"value": f"<image>\nIs there {k}?"}, {"value": "yes" if k % 3 else "no"}]}
        for k in range(number)
    ]  # fmt: skip
    (root / name).write_text(json.dumps(records))


def job_of(tmp_path: Path, out: str = "out", **given) -> Job:
    model = tmp_path / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text("{}")
    root = tmp_path / "data"
    given = {"model": str(model), "sampling": Sampling(max_new_tokens=5)} | given
    return Job(model_type="transformers", data_root=root, image_root=root, output=tmp_path / out, **given)


def adapter(backend: Backend) -> Adapter:
    return Adapter(backend, FAMILIES["qwen2_vl"])


def run(job: Job, backends: list[Oracle], task: str = "vqa_LR-pre") -> bytes:
    """Run by as many processes, in threads, as there are back ends; the two files that the first one writes."""
    barrier = threading.Barrier(len(backends))
    failed: list[BaseException] = []

    def work(rank: int) -> None:
        team = Team(rank, len(backends), barrier.wait)
        try:
            answered = ask(job, adapter(backends[rank]), known_tasks()[task], team)
            if rank == 0:
                evaluate(job, adapter(backends[rank]), answered).write(job.output, dated=False)
        except BaseException as error:
            failed.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(backends))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise next((error for error in failed if not isinstance(error, threading.BrokenBarrierError)), failed[0])
    return b"".join(path.read_bytes() for path in sorted(job.output.glob("*.json*")))


@pytest.mark.parametrize("number", [3, 11])
def test_any_number_of_processes_gives_the_same_bytes(tmp_path, number):
    """Defects 47, 48 and 49: half the data and a hang, nothing written, samples lost when they do not divide."""
    questions(tmp_path / "data", number)
    written = set()
    for world in (1, 2, 3, 4):
        backends = [Oracle(tmp_path / "data") for _ in range(world)]
        written.add(run(job_of(tmp_path, f"out{world}"), backends))
        assert sorted(len(backend.asked) for backend in backends) == sorted(
            len(range(rank, number, world)) for rank in range(world)
        )
    assert len(written) == 1
    (result,) = read_results([tmp_path / "out4"])
    assert result.metrics["accuracy"]["n"] == result.counts["records"] == number
    lines = next((tmp_path / "out4").glob("*.jsonl")).read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [f"RSVQA_LR-presence_RSVQA.json:{k}" for k in range(number)]


def test_a_killed_run_goes_on_with_another_number_of_processes(tmp_path):
    questions(tmp_path / "data", 11)
    whole = run(job_of(tmp_path, "whole"), [Oracle(tmp_path / "data")])
    job = job_of(tmp_path)
    with pytest.raises(Stopped):
        run(job, [Oracle(tmp_path / "data", stop_after=3), Oracle(tmp_path / "data", stop_after=4)])
    parts = sorted((tmp_path / "out").rglob("part-*.jsonl"))
    with parts[0].open("ab") as part:
        part.write(b'{"index": 4, "asked": "torn')
    kept = sum(len(part.read_text().splitlines()) for part in parts) - 1
    assert 3 <= kept < 11
    backends = [Oracle(tmp_path / "data") for _ in range(3)]
    assert run(job, backends) == whole
    assert sum(len(backend.asked) for backend in backends) == 11 - kept
    again = [Oracle(tmp_path / "data")]
    assert run(job, again) == whole
    assert again[0].asked == []


def test_answers_belong_to_a_model_and_what_it_was_asked(tmp_path):
    """Defect 13: answers of one model were taken for those of another of a like name; 94: a limit undid the cache."""
    data = tmp_path / "data"
    questions(data, 6)
    first = Oracle(data)
    run(job_of(tmp_path, limit=2), [first])
    assert len(first.asked) == 2
    second = Oracle(data)
    run(job_of(tmp_path), [second])
    assert len(second.asked) == 4  # the first two were known
    for k, name in enumerate(("Qwen2.5-VL-3B", "Qwen2.5-VL-7B", "Qwen2.5-VL-7B")):
        model = tmp_path / name
        model.mkdir(exist_ok=True)
        (model / "config.json").write_text(f'{{"k": {k}}}')  # the last one has other weights than the one before
        other = Oracle(data)
        run(job_of(tmp_path, model=str(model)), [other])
        assert len(other.asked) == 6
    assert len(read_results([tmp_path / "out"])) == 3
    drawn = Oracle(data)
    run(job_of(tmp_path, sampling=Sampling(temperature=1, seed=1)), [drawn])
    assert len(drawn.asked) == 6
    text = (data / "RSVQA_LR-presence_RSVQA.json").read_text()
    (data / "RSVQA_LR-presence_RSVQA.json").write_text(text.replace("Is there 3?", "Are there 3?"))
    changed = Oracle(data)
    run(job_of(tmp_path), [changed])
    assert [said for said, _ in changed.asked] == ["Are there 3?"]


def test_blind_questions_show_no_image_and_are_results_of_their_own(tmp_path):
    questions(tmp_path / "data", 4)
    seeing, blind = Oracle(tmp_path / "data"), Oracle(tmp_path / "data")
    run(job_of(tmp_path), [seeing])
    run(job_of(tmp_path, blind=True), [blind])
    assert {shown for _, shown in seeing.asked} == {1}
    assert {shown for _, shown in blind.asked} == {0}
    assert [said for said, _ in seeing.asked] == [said for said, _ in blind.asked]
    assert {result.task for result in read_results([tmp_path / "out"])} == {"vqa", "vqa_blind"}


def test_what_cannot_be_asked_is_wrong_by_name_and_tried_again(tmp_path):
    data = tmp_path / "data"
    questions(data, 1)
    path = data / "RSVQA_LR-presence_RSVQA.json"
    (record,) = json.loads(path.read_text())
    missing = {**record, "image": "b.png"}
    outside = {**record, "image_path": "/etc", "image": "passwd"}
    refused = {**record, "conversations": [{"value": "refuse"}, {"value": "no"}]}
    path.write_text(json.dumps([record, missing, "nothing", outside, refused]))
    said = {"Is there 0?": "no"}
    run(job_of(tmp_path, published=True), [Oracle(data, said)])
    (result,) = read_results([tmp_path / "out"])
    kinds = {"bad_record": 1, "missing_image": 1, "refused": 1, "unsafe_path": 1}
    assert result.counts["errors"] == kinds
    assert result.counts["ok"] == 1
    assert result.metrics["accuracy"]["value"] == 0.2
    assert [one["kind"] for one in result.details["unusable"]] == [
        "missing_image",
        "bad_record",
        "unsafe_path",
        "refused",
    ]
    Image.new("RGB", (40, 20)).save(data / "pictures" / "b.png")
    again = Oracle(data, said)
    run(job_of(tmp_path, published=True), [again])
    (result,) = read_results([tmp_path / "out"])
    assert result.metrics["accuracy"]["value"] == 0.4
    assert [text for text, _ in again.asked] == ["Is there 0?", "refuse"]


def test_an_empty_task_has_no_numbers(tmp_path):
    """Defect 72."""
    questions(tmp_path / "data", 2)
    run(job_of(tmp_path, limit=0, published=True), [Oracle(tmp_path / "data")])
    (result,) = read_results([tmp_path / "out"])
    assert result.metrics["accuracy"] == {"value": None, "low": None, "high": None, "n": 0}
    assert "0 ok + 0 errors = 0 records" in str(result)


def grounding(tmp_path: Path, *records: dict) -> None:
    (tmp_path / "data" / "pictures").mkdir(parents=True)
    Image.new("RGB", (1000, 500)).save(tmp_path / "data" / "pictures" / "wide.png")
    rows = [{"image": "wide.png", "image_path": "pictures", **record} for record in records]
    (tmp_path / "data" / "VG_DOIR_RSVG_test.json").write_text(json.dumps(rows))


def chat(question: str, answer: str, **keys) -> dict:
    return {"conversations": [{"value": question}, {"value": answer}], **keys}


def test_boxes_are_of_the_image_whatever_the_order_of_its_size(tmp_path):
    """Defect 12: with the size filled in as (width, height) every perfect box of a wide image was a miss."""
    grounding(tmp_path, *(chat("x", "[100, 50, 900, 450]", **size) for size in ({}, {"size": [500, 1000]},
                                                                               {"size": [1000, 500]})))  # fmt: skip
    prompt = adapter(Oracle(tmp_path)).family.prompts["grounding"].replace("{question}", "x")
    run(job_of(tmp_path), [Oracle(tmp_path / "data", {prompt: "(100,100),(900,900)"})], "rs_vg")
    (result,) = read_results([tmp_path / "out"])
    assert result.metrics["precision"]["value"] == 1
    assert result.metrics["precision@0.9"]["n"] == 3


def test_true_boxes_may_be_shares_of_the_image(tmp_path):
    """As VRSBench writes them."""
    grounding(tmp_path)
    record = {"image_id": "wide.png", "question": "x", "ground_truth": "{<10><20><90><90>}", "question_id": 4}
    (tmp_path / "data" / "VRSBench_EVAL_referring.json").write_text(json.dumps([record]))
    (tmp_path / "data" / "pictures").rename(tmp_path / "data" / "Images_val")
    prompt = adapter(Oracle(tmp_path)).family.prompts["grounding"].replace("{question}", "x")
    run(job_of(tmp_path), [Oracle(tmp_path / "data", {prompt: "(100,200),(900,900)"})], "vrsbench_vg")
    (line,) = next((tmp_path / "out").glob("*.jsonl")).read_text().splitlines()
    told = json.loads(line)
    assert told["boxes"] == told["true_boxes"] == [[100, 100, 900, 450]]
    assert (told["id"], told["hits"]) == ("4", 1)


def test_odd_true_boxes_do_not_stop_a_run(tmp_path):
    """Defect 71: no box, three numbers and decimals in the annotations."""
    records = [chat("a", "[100.5, 50.0, 900.0, 450.5]"), chat("a", "[1, 2, 3]"), chat("a", "no box"),
               chat("a", "[10, 10, 90, 90]", image="none.png")]  # fmt: skip
    grounding(tmp_path, *records)
    prompt = adapter(Oracle(tmp_path)).family.prompts["grounding"].replace("{question}", "a")
    run(job_of(tmp_path, published=True), [Oracle(tmp_path / "data", {prompt: "(100,100),(900,900)"})], "rs_vg")
    (result,) = read_results([tmp_path / "out"])
    assert result.metrics["precision"] == pytest.approx({"value": 0.5, "low": 0, "high": 1, "n": 2})
    assert result.counts["errors"] == {"missing_image": 1, "no_true_box": 2}


def test_flags_are_read_as_they_are_written():
    """Defect 93: any text was true."""
    read = rs_evaluation.flags().parse_args
    assert read(["--do_sample", "false", "--force_inference", "False"]).do_sample is False
    assert read(["--force_inference", "false"]).force_inference is False
    assert read(["--force_inference"]).force_inference is True
    assert read(["--do_sample", "true", "--task", "rs_vg", "lhrs_bench"]).do_sample is True
    for wrong in (["--do_sample", "maybe"], ["--beam_size", "4"], ["--dtype", "int8"]):
        with pytest.raises(SystemExit):
            read(wrong)


def test_batches_go_to_the_back_end():
    """Defect 94: --batch_size did nothing."""
    read = rs_evaluation.flags().parse_args
    job, options = rs_evaluation.settings(read(["--batch_size", "7", "--option", "max_pixels=1000"]))
    assert options == {"batch_size": 7, "max_pixels": 1000, "dtype": "auto"}
    assert job.options == {"max_pixels": 1000, "dtype": "auto"}
    assert job.sampling == Sampling(max_new_tokens=1024)
    served = read(["--model_type", "openai", "--option", "url=http://h/v1", "api_key=x", "--batch_size", "3"])
    job, options = rs_evaluation.settings(served)
    assert job.options == {"url": "http://h/v1"}  # a key is written nowhere
    assert options == {"url": "http://h/v1", "api_key": "x", "concurrency": 3}
    with pytest.raises(JobError, match="use_cache"):
        rs_evaluation.settings(read(["--use_cache", "false"]))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation_data")
    make_evaluation_data.main(["--output", str(folder), "--scenes", "3", "--size", "56"])
    return folder


def test_the_program_gives_the_same_bytes_from_two_processes(scenes, tmp_path, capsys):
    """With the embedded base model; three records on two processes."""
    arguments = ["--data_root", str(scenes), "--model_path", "assets/nano/base", "--max_new_tokens", "4",
                 "--task", "scenes_yesno,scenes_vg", "scenes_caption",
                 "--metric_compat", "published", "--option", "device=cpu"]  # fmt: skip
    rs_evaluation.main([*arguments, "--output_dir", str(tmp_path / "one")])
    printed = capsys.readouterr().out
    assert "scenes_vg: 3 answers in" in printed
    assert "### caption: cider (%)" in printed
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
               "python_script/evaluation/rs_evaluation.py", *arguments,
               "--output_dir", str(tmp_path / "two")]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    names = sorted(path.name for path in (tmp_path / "one").glob("*.json*"))
    assert len(names) == 6
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    assert (tmp_path / "two" / "results.html").is_file()
    parts = {path.name for path in (tmp_path / "two").rglob("part-*.jsonl")}
    assert parts == {"part-0000.jsonl", "part-0001.jsonl"}


def test_a_server_gives_the_numbers_of_the_model_and_its_key_is_written_nowhere(scenes, tmp_path, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    arguments = ["--data_root", str(scenes), "--task", "scenes_count", "--max_new_tokens", "4"]
    backend = TransformersBackend("assets/nano/base", TransformersOptions(device="cpu", progress=False))
    rs_evaluation.main([*arguments, "--model_path", "assets/nano/base", "--output_dir", str(tmp_path / "here"),
                        "--option", "device=cpu"])  # fmt: skip
    with serving(backend) as (url, behaviour):
        behaviour.key = "sk-secret"
        rs_evaluation.main([*arguments, "--model_type", "openai", "--model_path", "nano", "--family", "qwen2_vl",
                            "--output_dir", str(tmp_path / "there"),
                            "--option", f"url={url}", "api_key=sk-secret"])  # fmt: skip
    here, there = (next((tmp_path / name).glob("*.jsonl")).read_text() for name in ("here", "there"))
    assert here == there
    for path in (tmp_path / "there").rglob("*.*"):
        assert path.is_dir() or b"sk-secret" not in path.read_bytes(), path


def test_made_scenes_hold_true_boxes_and_several_captions(scenes):
    records = json.loads((scenes / "scenes_vg.json").read_text())
    assert len(records) == 3
    for record in records:
        assert json.loads(f"[{record['conversations'][1]['value']}]")[0][3] <= 56
        assert (scenes / record["image_path"] / record["image"]).is_file()
    captions = json.loads((scenes / "scenes_caption.json").read_text())
    assert all(len({*record["references"]}) > 1 for record in captions)


def test_an_unknown_task_is_named_before_anything_is_loaded(scenes, capsys):
    with pytest.raises(SystemExit) as ended:
        rs_evaluation.main(["--data_root", str(scenes), "--task", "scenes_vgg"])
    assert ended.value.code == 2
    assert "unknown task 'scenes_vgg'; did you mean scenes_vg" in capsys.readouterr().err


def test_choice_becomes_a_folder(tmp_path, capsys):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (20, 40, 3), dtype=np.uint8)).save(tmp_path / "x.png")
    image = {"bytes": (tmp_path / "x.png").read_bytes(), "path": "x.png"}
    quad = [[0.1, 0.2], [0.5, 0.2], [0.5, 0.7], [0.1, 0.7]]
    rows = [
        {"image": image, "id": "a", "task": "t", "stem": "Same?", "options": ["Yes", "No"], "answer": "B",
         "answer_quad": None},
        {"image": image, "id": "b", "task": "vg", "stem": "Where?", "options": [], "answer": "[..]",
         "answer_quad": quad},
        {"image": image, "id": "c", "task": "mask", "stem": "Cut.", "options": [], "answer": None, "answer_quad": None},
    ]  # fmt: skip
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "choice.parquet")
    make_evaluation_data.main(
        ["--output", str(tmp_path / "e"), "--scenes", "0", "--choice", str(tmp_path / "choice.parquet")]
    )
    assert "left out: task mask 1 rows" in capsys.readouterr().out
    (asked,) = json.loads((tmp_path / "e" / "choice.json").read_text())
    assert asked["options"] == {"A": "Yes", "B": "No"}
    (where,) = json.loads((tmp_path / "e" / "choice_vg.json").read_text())
    assert (where["answer"], where["size"]) == ("[4, 4, 20, 14]", [20, 40])
    with pytest.raises(SystemExit):
        make_evaluation_data.main(["--output", str(tmp_path / "f"), "--choice", str(tmp_path / "none.parquet")])
