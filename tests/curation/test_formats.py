"""Every format goes through both programs: scored, cut, kept in its own form, and scored again to the same numbers."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from src.dataset.records import DataSpec, count_records

ROOT = Path(__file__).parents[2]
COUNT = 12


def encoded(number: int) -> bytes:
    rng = np.random.default_rng(number)
    blocks = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(20, axis=0).repeat(20, axis=1)
    stream = io.BytesIO()
    Image.fromarray(blocks).save(stream, "PNG")
    return stream.getvalue()


def rows() -> list[dict]:
    return [
        {"image": {"bytes": encoded(k), "path": f"{k:03d}.png"}, "title": f"{k} ships in a harbour", "note": f"n{k}"}
        for k in range(COUNT)
    ]


def parquet_folder(folder: Path) -> str:
    for part in range(3):
        pq.write_table(pa.Table.from_pylist(rows()[4 * part : 4 * part + 4]), folder / f"train-{part}.parquet")
    return str(folder)


def csv_pattern(folder: Path) -> str:
    for row in rows():
        (folder / row["image"]["path"]).write_bytes(row["image"]["bytes"])
    for part in range(2):
        lines = [f"{r['image']['path']},{r['title']},{r['note']}\n" for r in rows()[6 * part : 6 * part + 6]]
        (folder / f"part{part}.csv").write_text("filename,title,note\n" + "".join(lines))
    return f"{folder}/part*.csv"


def tar_shards(folder: Path) -> str:
    for part in range(2):
        with tarfile.open(folder / f"shard-{part:03d}.tar", "w") as archive:
            for row in rows()[6 * part : 6 * part + 6]:
                key = row["image"]["path"].removesuffix(".png")
                meta = json.dumps({"note": row["note"]}).encode()
                for suffix, content in (("png", row["image"]["bytes"]), ("txt", row["title"].encode()), ("json", meta)):
                    member = tarfile.TarInfo(f"{key}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return f"{folder}/shard-{{000..001}}.tar"


def saved_dataset(folder: Path) -> str:
    made = datasets.Dataset.from_list(rows()).cast_column("image", datasets.Image())
    made.save_to_disk(folder / "saved")
    return str(folder / "saved")


def llava(folder: Path) -> str:
    for row in rows():
        (folder / row["image"]["path"]).write_bytes(row["image"]["bytes"])
    table = [
        {
            "id": row["note"],
            "image": [row["image"]["path"]],
            "conversations": [
                {"from": "human", "value": "<image>\nDescribe the image."},
                {"from": "gpt", "value": row["title"]},
            ],
        }
        for row in rows()
    ]
    (folder / "llava.json").write_text(json.dumps(table))
    return str(folder / "llava.json")


def run(program: str, *keys: str) -> str:
    command = [sys.executable, f"python_script/{program}", *keys]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def scores(output: Path) -> list[float]:
    parts = sorted((output / "scores").glob("*.parquet"))
    return [row["score"] for part in parts for row in pq.read_table(part).to_pylist()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "kept_as"),
    [
        (parquet_folder, "kept"),
        (csv_pattern, "kept"),
        (tar_shards, "kept"),
        (saved_dataset, "kept"),
        (llava, "kept.json"),
    ],
)
def test_score_select_and_score_again(tmp_path, make, kept_as):
    (tmp_path / "data").mkdir()
    path = make(tmp_path / "data")
    output = tmp_path / "out"
    keys = ["model.device=cpu", "model.workers=1", "shard_size=5"]
    said = run("score_dataset.py", f"data.path={path}", f"output_dir={output}", *keys)
    assert f"{COUNT} ok + 0 errors = {COUNT} pairs" in said
    run("score_dataset.py", f"data.path={path}", f"output_dir={output}", *keys)  # nothing is left to do
    said = run("select_subset.py", f"scores_dir={output}", "fraction=0.5", "report.gallery=2")
    assert f"data   {output / kept_as}" in said
    page = (output / "report.html").read_text()
    assert page.count("data:image/jpeg") >= 4
    assert "can no longer be read" not in page
    root = [f"data.image_root={tmp_path / 'data'}"] if make in (csv_pattern, llava) else []
    again = tmp_path / "again"
    run("score_dataset.py", f"data.path={output / kept_as}", f"output_dir={again}", *keys, *root)
    assert count_records(DataSpec(str(output / kept_as))) == COUNT // 2
    best = sorted(scores(output))[-COUNT // 2 :]
    assert sorted(scores(again)) == pytest.approx(best, abs=1e-4)
