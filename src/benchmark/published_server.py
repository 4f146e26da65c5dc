"""The published reward server's behaviour on our model: the slow twin of :mod:`src.serving` for the benchmark.

One pair per forward, each with its own copy of the image; the model is called inside an asynchronous handler, so that
requests wait for each other.
"""

from dataclasses import asdict

from fastapi import FastAPI

from src.benchmark.pairs import published_loop
from src.curation.scorer import Scorer
from src.dataset.images import open_image
from src.serving.config import config_from_environment
from src.serving.schemas import CompletionScore, RewardRequest, RewardResponse, image_bytes


def create_app() -> FastAPI:
    scorer = Scorer.from_pretrained(**asdict(config_from_environment().model))
    app = FastAPI()

    @app.post("/v1/rewards")
    async def rewards(asked: RewardRequest) -> RewardResponse:
        image, question = open_image(image_bytes(asked.image_data or "")), asked.problem_description
        scores = []
        for name, text in (("completion1", asked.completion1), ("completion2", asked.completion2)):
            (score,) = published_loop(scorer, [image], question, [text])
            scores.append(CompletionScore(completion_id=name, score=score))
        return RewardResponse(model=asked.model, scores=scores)

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        return {"status": "ready"}

    return app
