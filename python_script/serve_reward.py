"""Serve the score of a model as a reward: POST /v1/rewards as published, POST /v1/score for many texts of an image.

    python python_script/serve_reward.py model.path=PumpkinCat/ScoreRS port=8000

Listens on this machine alone unless told otherwise (host=0.0.0.0 api_key=...). http://127.0.0.1:8000/docs describes the
routes, /ready says whether the model is there, /metrics is for Prometheus. Ended by SIGTERM or Ctrl+C, it answers what
it has accepted. Keys are also variables of the environment (REWARD_SERVER_API_KEY keeps a key off the process list).
"""

import logging
import sys
from pathlib import Path

import uvicorn

from src.config import exit_on_job_error, run_program
from src.serving.config import ServerConfig, environment_overrides
from src.serving.reward_server import create_app

DEFAULT_CONFIG = Path(__file__).parents[1] / "config" / "reward_server.yaml"


def main(config: ServerConfig) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if config.host not in ("127.0.0.1", "::1", "localhost") and config.api_key is None:
        logging.warning("no api_key: whoever reaches %s may ask for scores", config.host)
    uvicorn.run(create_app(config), host=config.host, port=config.port)


if __name__ == "__main__":
    with exit_on_job_error():
        arguments = [*environment_overrides(), *sys.argv[1:]]
    run_program(main, ServerConfig, DEFAULT_CONFIG, arguments)
