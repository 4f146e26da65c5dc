"""Prompts of reinforcement learning: conversations whose last answer is the reference, asked in the thinking format."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset as Table
from torch.utils.data import Sampler

from src.chat import IMAGE, prompt_messages
from src.dataset.images import open_image
from src.errors import JobError
from src.rewards.answers import final_answer
from src.rewards.rewards import REWARDS, RewardRow
from src.training.grpo_config import Rewards
from src.training.vlm_data import Conversations


def thinking_turns(row: Mapping[str, Any], answer: int, system: str) -> list[dict[str, str]]:
    """The turns of a row of ``vlm_data.SCHEMA``, under the system prompt unless it has one of its own."""
    turns = list(row["turns"]) or [
        {"role": "user", "content": row["question"]},
        {"role": "assistant", "content": row["answers"][answer]},
    ]
    return turns if turns[0]["role"] == "system" else [{"role": "system", "content": system}, *turns]


def ask_in_format(data: Conversations, system: str) -> Conversations:
    """The same conversations, each under the system prompt; for held-out answers."""

    def add(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        return {**batch, "turns": [thinking_turns(row, 0, system) for row in rows]}

    return replace(data, table=data.table.with_transform(add))


def reward_of(kind: str, rewards: Rewards) -> str:
    """The kind of reward of a record of this kind: as ``by_kind`` says, its own where it is one, else the default.

    Raises:
        JobError: what ``by_kind`` or ``default`` names is no kind of reward.
    """
    named = rewards.by_kind.get(kind) or (kind if kind in REWARDS else rewards.default)
    if named not in REWARDS:
        raise JobError(f"reward of the kind {kind!r}: {named!r} is not one of {', '.join(REWARDS)}")
    return named


@dataclass(frozen=True)
class Prompts:
    """Conversations as GRPO draws them.

    Attributes:
        data: the conversations; each of several answers to a question is a prompt of its own.
        system: prompt that asks for the thinking format.
        rewards: which reward a record has.
    """

    data: Conversations
    system: str
    rewards: Rewards

    def table(self) -> Table:
        """A row a prompt, made when it is read: ``prompt`` (messages, images inside), ``id``, ``kind``, ``reward``,
        ``reference``, ``question`` and ``sources`` (the encoded images, or where they are)."""
        return self.data.index.with_transform(self._rows)

    def kinds(self) -> dict[str, str]:
        """Kinds of records, and the reward of each.

        Raises:
            JobError: as :func:`reward_of`.
        """
        found = sorted(set(self.data.table.data.column("kind").to_pylist()), key=str)
        return {kind or "": reward_of(kind or "", self.rewards) for kind in found}

    def groups(self) -> list[np.ndarray]:
        """Numbers of the prompts with images, and of those without; only groups that have any."""
        shown = pa.compute.list_value_length(self.data.table.data.column("images")).to_numpy() > 0
        with_image = shown[np.asarray(self.data.index.data.column("row"))]
        return [group for group in (np.flatnonzero(with_image), np.flatnonzero(~with_image)) if len(group)]

    def _rows(self, batch: Mapping[str, list[int]]) -> dict[str, list[Any]]:
        rows = [self._row(self.data.table[row], answer) for row, answer in zip(*batch.values(), strict=True)]
        return {name: [row[name] for row in rows] for name in rows[0]}

    def _row(self, row: Mapping[str, Any], answer: int) -> dict[str, Any]:
        turns, root = thinking_turns(row, answer, self.system), self.data.root
        told = reward_row(row, turns, self.rewards, root)
        return {
            "prompt": prompt_messages(turns[:-1], [open_image(image, root) for image in row["images"]]),
            "id": row["id"],
            "kind": row["kind"] or "",
            "reward": told.kind,
            "reference": told.reference,
            "question": told.question,
            "sources": list(told.images),
        }


def reward_row(
    row: Mapping[str, Any], turns: Sequence[Mapping[str, str]], rewards: Rewards, root: Path, response: str = ""
) -> RewardRow:
    """What a response to a row of ``vlm_data.SCHEMA`` is measured by: the last of its turns, less any reasoning.

    Args:
        root: what its images are relative to.
    """
    return RewardRow(
        kind=reward_of(row["kind"] or "", rewards),
        response=response,
        reference=final_answer(turns[-1]["content"]),
        question=turns[-2]["content"].replace(IMAGE, "").strip(),
        images=tuple(_located(image, root) for image in row["images"]),
    )


def _located(image: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """The entry of an image with a path that does not depend on where the data set is."""
    return {**image, "path": str(root / image["path"]) if image["path"] and not image["bytes"] else image["path"]}


class SeparateBatches(Sampler[int]):
    """Draws the prompts of one group at a time for a batch of generations: TRL cannot mix those with images and those
    without.

    Every prompt is drawn once an epoch; the last batch of a group is filled with some of its prompts again. The order
    goes by seed and epoch, so that a run that goes on draws what it would have drawn.

    Args:
        groups: numbers of prompts.
        prompts: of a batch.
        generations: times that each prompt is repeated within a batch.
        repeats: times that each batch is repeated (one for each micro-batch).
    """

    def __init__(self, groups: Sequence[np.ndarray], prompts: int, generations: int, repeats: int, seed: int):
        self.groups, self.prompts, self.generations, self.repeats = groups, prompts, generations, repeats
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        batches = sum(-(-len(group) // self.prompts) for group in self.groups)
        return batches * self.prompts * self.generations * self.repeats

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch])
        batches: list[np.ndarray] = []
        for group in self.groups:
            order = rng.permutation(group)
            order = np.concatenate([order, np.resize(order, -len(order) % self.prompts)])
            batches += list(order.reshape(-1, self.prompts))
        for number in rng.permutation(len(batches)):
            for _ in range(self.repeats):
                yield from np.repeat(batches[number], self.generations).tolist()
