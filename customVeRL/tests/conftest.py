"""What the tests of customVeRL share: composed settings, rows, a policy's processor, and a live score server."""

import os
import subprocess
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from PIL import Image
from transformers import AutoProcessor

VERL = Path(__file__).resolve().parents[1]
ROOT = VERL.parent
CONFIGS = VERL / "examples" / "config"
POLICY = ROOT / "assets" / "nano" / "vlm"
# The environment that has the score server: not this one.
SCORERS_PYTHON = Path(os.environ.get("SCORERS_PYTHON", ROOT / ".venv" / "bin" / "python"))

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def composed(name: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONFIGS), version_base=None):
        return compose(name, list(overrides))


def png(width: int = 112, height: int = 112, colour: str = "red") -> bytes:
    stream = BytesIO()
    Image.new("RGB", (width, height), colour).save(stream, "PNG")
    return stream.getvalue()


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    pd.DataFrame(rows).to_parquet(path)
    return path


@pytest.fixture(scope="session")
def processor() -> Any:
    return AutoProcessor.from_pretrained(POLICY)


class ScoreServer:
    """``serve_reward.py`` in a process of the basic environment."""

    def __init__(self, log: Path, port: int):
        self.log, self.port, self.url = log, port, f"http://127.0.0.1:{port}"
        command = [str(SCORERS_PYTHON), str(ROOT / "python_script" / "serve_reward.py"), f"port={port}"]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [*command, f"model.path={ROOT / 'assets' / 'nano' / 'scorer'}"],
                env=environment, stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def wait(self, seconds: float = 120.0) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.process.poll() is None:
            try:
                if httpx.get(f"{self.url}/ready", trust_env=False).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        raise AssertionError(f"the score server is not ready:\n{self.log.read_text()[-2000:]}")

    def requests(self) -> int:
        """Requests for scores that it has answered."""
        lines = httpx.get(f"{self.url}/metrics", trust_env=False).text.splitlines()
        counted = [line for line in lines if line.startswith("scorers_requests_total{") and "/v1/score" in line]
        return sum(int(float(line.rsplit(" ", 1)[1])) for line in counted)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def score_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScoreServer]:
    assert SCORERS_PYTHON.is_file(), (
        f"{SCORERS_PYTHON} is not there: SCORERS_PYTHON names the basic environment's Python"
    )
    server = ScoreServer(tmp_path_factory.mktemp("server") / "log.txt", free_port())
    try:
        server.wait()
        yield server
    finally:
        server.stop()
