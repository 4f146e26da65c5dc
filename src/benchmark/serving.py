"""The reward server under load: beside the published handler, and killed and started again in the middle."""

import argparse
import asyncio
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

import httpx
import numpy as np
from tqdm import tqdm

from src.benchmark.measure import QUESTION, jpeg, noise, sentences
from src.benchmark.pairs import TOLERANCE
from src.curation.scorer import Scorer
from src.errors import JobError
from src.serving.client import AsyncRewardClient, Retry, as_base64
from src.serving.schemas import image_bytes

OURS = "src.serving.reward_server:create_app"
PUBLISHED = "src.benchmark.published_server:create_app"


class Server:
    """A server process on a free port of this machine, ready when it is there; it ends with the ``with`` block.

    Args:
        app: factory, as ``module:function``.
        variables: of the environment, for example ``REWARD_SERVER_MODEL_PATH``.
    """

    def __init__(self, app: str = OURS, variables: Mapping[str, str] | None = None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._app, self._environment = app, {**os.environ, **(variables or {})}
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "uvicorn", "--factory", self._app, "--port", str(self.port)]
        self.process = subprocess.Popen([*command, "--log-level", "warning"], env=self._environment)

    def wait(self, seconds: float = 120.0) -> Self:
        """Until it has a model.

        Raises:
            JobError: it ended, or is not ready in time.
        """
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.process.poll() is None:
            try:
                if httpx.get(f"{self.url}/ready", trust_env=False).is_success:
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise JobError(f"the server {self._app} is not ready (exit status {self.process.poll()})")

    def kill(self) -> None:
        """As a crash would: nothing is answered any more."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """As an administrator would: what was accepted is answered. Returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def load(args: argparse.Namespace) -> float:
    """Requests per second of ours / of the published handler, with several completions an image.

    Raises:
        SystemExit: scores differ.
    """
    keys = {"PATH": args.model, "MAX_PIXELS": str(args.side**2), "DTYPE": "float32"}
    variables = {f"REWARD_SERVER_MODEL_{key}": value for key, value in keys.items()}
    requests = made_requests(args, images=-(-args.requests // args.completions), reference=True)
    what = f"{args.requests} requests of two texts, {args.completions} an image of {args.side} px"
    print(f"{what}, {args.clients} clients at a time")
    rates, scores = [], []
    for name, app in (("ours", OURS), ("published form", PUBLISHED)):
        with Server(app, variables).wait() as server:
            asyncio.run(send(server.url, requests[:2], 1, name="warm-up"))
            seconds, taken, answers = asyncio.run(send(server.url, requests, args.clients, name))
        rates.append(len(requests) / seconds)
        scores.append(answers)
        p50, p99 = np.percentile(taken, [50, 99])
        print(f"{name:<16} {rates[-1]:8.1f} requests/s   median {p50:7.3f} s   p99 {p99:7.3f} s", flush=True)
    difference = float(np.abs(np.array(scores[0]) - np.array(scores[1])).max())
    if difference > TOLERANCE:
        raise SystemExit(f"scores differ by {difference:.2g}")
    print(f"largest difference of scores {difference:.1e}")
    return rates[0] / rates[1]


async def send(
    url: str, requests: Sequence[dict[str, str]], clients: int, name: str
) -> tuple[float, list[float], list[list[float]]]:
    """Wall time of all requests, so many at a time; seconds of each, and its scores."""
    taken, scores = [0.0] * len(requests), [[0.0]] * len(requests)
    numbers, bar = itertools.count(), tqdm(total=len(requests), desc=name, disable=len(requests) < 100)
    options: dict[str, Any] = {"timeout": None, "trust_env": False, "limits": httpx.Limits(max_connections=clients)}
    async with httpx.AsyncClient(base_url=url, **options) as http:

        async def client() -> None:
            while (number := next(numbers)) < len(requests):
                began = time.perf_counter()
                response = await http.post("/v1/rewards", json=requests[number])
                taken[number] = time.perf_counter() - began
                scores[number] = [score["score"] for score in response.raise_for_status().json()["scores"]]
                bar.update()

        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        bar.close()
        return time.perf_counter() - began, taken, scores


def made_requests(args: argparse.Namespace, images: int, reference: bool) -> list[dict[str, str]]:
    """Published requests on random images; those on one image follow each other and, as in GRPO, may share the second
    completion, the reference."""
    rng = np.random.default_rng(0)
    encoded = [as_base64(jpeg(noise(rng, args.side))) for _ in range(images)]
    first, second = (sentences(rng, args.requests, args.words) for _ in range(2))
    each = -(-args.requests // images)
    return [
        {
            "model": "score",
            "problem_description": QUESTION,
            "image_data": encoded[number // each],
            "completion1": first[number],
            "completion2": second[number // each if reference else number],
        }
        for number in range(args.requests)
    ]


def restart(args: argparse.Namespace) -> float:
    """The share of right rewards through a server that is killed and started again in the middle.

    Raises:
        SystemExit: a reward is wrong (by more than 1e-5), or there is none.
    """
    requests = made_requests(args, images=args.images, reference=False)
    texts = [(request[name], request) for request in requests for name in ("completion1", "completion2")]
    pairs = ({"image": _content(request), "question": QUESTION, "text": text} for text, request in texts)
    right = np.reshape(Scorer.from_pretrained(args.model, device="cpu").score(pairs), (-1, 2))
    variables = {"REWARD_SERVER_MODEL_PATH": args.model, "REWARD_SERVER_MODEL_DEVICE": "cpu"}
    with Server(variables=variables).wait() as server:
        rewards, seconds = asyncio.run(_through_a_crash(server, requests, args.clients))
    print(f"{len(requests):,} requests, {args.clients} at a time, in {seconds:.1f} s with a crash and a restart")
    wrong = int((~(np.abs(rewards - right) <= 1e-5)).any(axis=1).sum())  # also what is not a number
    print(f"{wrong} wrong, {int((rewards == 0).sum())} zero; largest difference {np.abs(rewards - right).max():.1e}")
    if wrong:
        raise SystemExit(f"{wrong} rewards are wrong")
    return 1 - wrong / len(requests)


async def _through_a_crash(
    server: Server, requests: Sequence[dict[str, str]], clients: int
) -> tuple[np.ndarray, float]:
    bar = tqdm(total=len(requests), disable=len(requests) < 1000)
    numbers = itertools.count()
    rewards = np.full((len(requests), 2), np.nan)
    began = time.perf_counter()
    patient = Retry(tries=1000, longest_wait=2)  # up to the deadline: a busy machine takes minutes to start a server
    async with AsyncRewardClient(server.url, connections=clients, retry=patient) as client:

        async def one_client() -> None:
            while (number := next(numbers)) < len(requests):
                asked = requests[number]
                texts = asked["completion1"], asked["completion2"]
                rewards[number] = await client.rewards(asked["problem_description"], *texts, _content(asked))
                bar.update()

        async def crash() -> None:
            while np.isfinite(rewards[:, 0]).sum() < len(requests) // 2:
                await asyncio.sleep(0.01)
            server.kill()
            server.start()

        await asyncio.gather(crash(), *(one_client() for _ in range(clients)))
    bar.close()
    return rewards, time.perf_counter() - began


def _content(request: dict[str, str]) -> bytes:
    return image_bytes(request["image_data"])
