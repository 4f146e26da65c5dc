"""Serve the score of a model as a reward: POST /v1/rewards as published, POST /v1/score for many texts of an image.

    python python_script/serve_reward.py model.path=PumpkinCat/ScoreRS port=8000

Listens on this machine alone unless told otherwise: host=0.0.0.0 api_key=... lets others in, who must know the key.
http://127.0.0.1:8000/docs describes the routes, /ready says whether the model is there, /metrics is for Prometheus.
Ended by SIGTERM or Ctrl+C, it answers what it has accepted. Keys are also variables of the environment
(REWARD_SERVER_API_KEY keeps a key off the process list).
"""

import logging
import sys
from pathlib import Path

import uvicorn

from src.config import exit_on_job_error, run_program
from src.errors import JobError
from src.serving.config import ServerConfig, environment_overrides, is_loopback
from src.serving.heads import TimedHeads
from src.serving.reward_server import create_app

DEFAULT_CONFIG = Path(__file__).parents[1] / "config" / "reward_server.yaml"


def uvicorn_config(config: ServerConfig) -> uvicorn.Config:
    """How uvicorn runs it: nobody can hold connections with requests that never come.

    Raises:
        JobError: others would get in without a key.
    """
    if not is_loopback(config.host) and config.api_key is None:
        raise JobError(f"host={config.host} lets others in: set an api_key, best as REWARD_SERVER_API_KEY")
    return uvicorn.Config(
        create_app(config),
        host=config.host,
        port=config.port,
        http=TimedHeads,
        h11_max_incomplete_event_size=2**15,  # bytes of a head
        limit_concurrency=config.connections,
        timeout_graceful_shutdown=int(config.limits.body_seconds + config.queue.request_seconds) + 1,
    )


def main(config: ServerConfig) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    uvicorn.Server(uvicorn_config(config)).run()


if __name__ == "__main__":
    with exit_on_job_error():
        arguments = [*environment_overrides(), *sys.argv[1:]]
    run_program(main, ServerConfig, DEFAULT_CONFIG, arguments)
