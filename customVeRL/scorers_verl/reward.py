"""Rewards of ScoreRS in verl: responses are gathered into few calls, and scored with the images of their prompts."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from verl import DataProto
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from src.rewards.rewards import Reward, RewardResult, RewardRow
from src.serving.client import Retry, RewardClient
from src.serving.pair_scorer import server_scorer

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class MicroBatches(Generic[Item, Answer]):
    """Turns calls with one item each, from one event loop, into few calls with many.

    Args:
        answer: gives an answer or an error for every item, in order; called in a thread.
        items: that make a call at once.
        seconds: after which fewer make one.
        threads: calls at a time.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Item]], Sequence[Answer | Exception]],
        items: int,
        seconds: float,
        threads: int = 8,
    ):
        if items < 1 or seconds < 0:
            raise ValueError(f"a batch of {items} items, or after {seconds} s, is none")
        self._answer, self._items, self._seconds = answer, items, seconds
        self._waiting: list[tuple[Item, asyncio.Future[Answer]]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._under_way: set[asyncio.Task[None]] = set()
        self._threads = ThreadPoolExecutor(threads, "rewards")

    async def __call__(self, item: Item) -> Answer:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append((item, future))
        if len(self._waiting) >= self._items:
            self._flush()
        elif self._timer is None:
            self._timer = loop.call_later(self._seconds, self._flush)
        return await future

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        batch, self._waiting, self._timer = self._waiting, [], None
        task = asyncio.get_running_loop().create_task(self._call(batch))
        self._under_way.add(task)  # a task that nobody holds may be collected
        task.add_done_callback(self._under_way.discard)

    async def _call(self, batch: Sequence[tuple[Item, "asyncio.Future[Answer]"]]) -> None:
        work: Awaitable[Sequence[Answer | Exception]] = asyncio.get_running_loop().run_in_executor(
            self._threads, self._answer, [item for item, _ in batch]
        )
        answers: Sequence[Answer | Exception]
        try:
            answers = await work
        except Exception as error:
            answers = [error] * len(batch)
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():  # its caller has gone
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)


class ScoreRewardManager(RewardManagerBase):
    """Rewards by ``scorers`` of the configuration: by rule, and for ``open_ended`` by the score server.

    A response without a reward raises: verl then takes the responses to its prompt out of the step. Once the server did
    not answer through all tries, every response raises, so that training ends instead of going on with other rewards.
    """

    def __init__(
        self,
        config: Any,
        tokenizer: Any,
        compute_score: Any = None,
        reward_router_address: str | None = None,  # noqa: ARG002  # of verl's own reward models, which score text alone
        reward_model_tokenizer: Any = None,  # noqa: ARG002
    ):
        super().__init__(config, tokenizer, compute_score)
        keys = config.scorers
        scorer = None
        if keys.server_url:
            client = RewardClient(keys.server_url, keys.api_key, deadline=keys.deadline, retry=Retry(keys.tries))
            scorer = server_scorer(client)
        self._reward = Reward(keys.format_weight, scorer)
        self._batches = MicroBatches[RewardRow, RewardResult](self._grade, keys.batch_items, keys.batch_ms / 1000)
        self._ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        """The reward of the last response in ``data``, and its parts: always the same keys, all in 0..1.

        Raises:
            RecordError: it has none, for the reason given.
            JobError: rewards cannot be had any more.
        """
        result = await self._batches(self.row(data[-1:][0]))
        return {"reward_score": result.overall, "reward_extra_info": result.parts()}

    def row(self, item: Any) -> RewardRow:
        """What a response is measured by; its images are those of the prompt, as they were before any resizing."""
        told, response = item.non_tensor_batch, item.batch["responses"]
        length = int(item.batch["attention_mask"][-len(response) :].sum())
        # Tokens of boxes are special ones too: only those that end a response are left out.
        ids = [token for token in response[:length].tolist() if token not in self._ends]
        parts = [part for message in told["raw_prompt"] for part in message["content"]]
        return RewardRow(
            kind=str(told["reward_type"]),
            response=self.tokenizer.decode(ids, skip_special_tokens=False),
            reference=str(told["reward_model"]["ground_truth"]),
            question=str(told["problem"]),
            images=tuple(part["image"] for part in parts if part["type"] == "image"),
        )

    def _grade(self, rows: Sequence[RewardRow]) -> Sequence[RewardResult | Exception]:
        if self._reward.lost is None:
            results = self._reward(rows)
        return results if self._reward.lost is None else [self._reward.lost] * len(rows)
