"""A scored data set of made scenes, the page over it as a process of its own, and a browser."""

import csv
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from src.dataset.scenes import png_bytes, scene_example
from tests.curation.score_tables import failed, pair, write_scores
from tests.serving.web.web_server import HOSTILE

ROOT = Path(__file__).parents[3]
CHROMIUM = Path("/usr/bin/chromium")
SCENES = 20
RECORDS = 200


def make_scored(folder: Path, records: int = RECORDS, scenes: int = SCENES) -> Path:
    """``records`` captions of ``scenes`` pictures; scores fall with the row, every tenth picture is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = []
    for number in range(scenes):
        image, captions, _ = scene_example(number, size=112)
        (folder / f"{number}.png").write_bytes(png_bytes(image))
        texts.append(captions[0])
    rows = []
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "title", "place", "kind"])
        for row in range(records):
            name = f"{row % scenes}.png" if row % 10 != 9 else "gone.png"
            text = HOSTILE if row == 3 else f"{texts[row % scenes]} No. {row}"
            source = f"place {row % 3}"
            writer.writerow([name, text, source, "even" if row % 2 == 0 else "odd"])
            if row % 10 == 9:
                rows.append(failed(row, source=source))
            else:
                rows.append(pair(row, 10 - 8 * row / records, source=source, text_chars=len(text)))
    data = {"path": str(folder / "captions.csv"), "source_column": "place"}
    return write_scores(folder / "scored", rows, data)


@pytest.fixture(scope="session")
def scored(tmp_path_factory) -> Path:
    return make_scored(tmp_path_factory.mktemp("web"))


@dataclass
class Site:
    """The page's process, and how long it took until the page was there, in seconds of the clock and of CPU."""

    url: str
    process: subprocess.Popen
    seconds: float
    cpu_seconds: float
    log: Path


@pytest.fixture(scope="session")
def site(scored, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    scores = os.environ.get("WEB_SCORES", scored)
    column = "corruption" if "WEB_SCORES" in os.environ else "kind"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "tests.serving.web.web_server", "--cpu-only", "--server-port", str(port)]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "GRADIO_TEMP_DIR": str(folder / "files"),
    }
    began = time.monotonic()
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--scores", str(scores), "--class-column", column],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        while True:
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() - began < 120, (folder / "log").read_text()
            try:
                if httpx.get(url).is_success:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        spent = psutil.Process(process.pid).cpu_times()
        yield Site(url, process, time.monotonic() - began, spent.user + spent.system, folder / "log")
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")  # an event loop runs as long, in which no other test could run its own
def browser():
    if not CHROMIUM.exists():
        pytest.skip(f"no browser: {CHROMIUM} is not there")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def visit(site, browser):
    """Opens the page for a new visitor; a request that leaves the machine, or an error of a script, fails the test."""
    opened, outside, errors = [], [], []

    def open_page(width: int = 1280, height: int = 860, tab: str = "Chat"):
        context = browser.new_context(viewport={"width": width, "height": height})
        context.set_default_timeout(60_000)
        page = context.new_page()
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith((site.url, "data:", "blob:")) else outside.append(request.url)
            ),
        )
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if "Content Security" in message.text else None)
        page.goto(site.url)
        page.locator("#chat-entry textarea").wait_for()
        if tab != "Chat":
            page.get_by_role("tab", name=tab, exact=True).click()
        opened.append(context)
        return page

    yield open_page
    for context in opened:
        context.close()
    assert outside == []
    assert errors == []
