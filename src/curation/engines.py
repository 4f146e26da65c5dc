"""Where the shards of a scoring job are scored: in this process, by processes of ``accelerate launch``, or on Ray.

All three share one :class:`src.curation.job.Job`: a shard is scored by one process, windows never cross its border, and
it is written once it is whole. So they give the same table, and what dies in between costs its shard only.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from src.curation.job import Job, Summary
from src.curation.scorer import Scorer
from src.dataset.writers import sole_user
from src.errors import JobError

ENGINES = ("local", "accelerate", "ray")
RUN = 16  # neighbouring shards that a Ray worker takes at most at a time, since most formats are read from their start

Load = Callable[[str], Scorer]


def score_by_processes(job: Job, load: Load) -> Summary | None:
    """Score with the other processes of one ``accelerate launch`` or ``torchrun``, each on its device.

    The nodes must share ``job.output``. The first process claims the folder, divides the shards and shows its own
    progress; it alone returns the summary.

    Raises:
        JobError: as for one process; the launcher then ends the others.
    """
    state = PartialState(cpu=not torch.cuda.is_available())
    with _first_holds(job, state):
        scorer = load(str(state.device))
        shared: list[Any] = [None]
        if state.is_main_process:
            job.claim(scorer)
            shared = [job.open_shards()]
        starts = broadcast_object_list(shared)[0][state.process_index :: state.num_processes]
        with job.progress(starts, disable=not state.is_main_process, postfix=f"process 1/{state.num_processes}") as bar:
            job.score(scorer, starts, bar)
        state.wait_for_everyone()
        return job.finish() if state.is_main_process else None


def score_on_ray(job: Job, load: Load, workers: int | None = None) -> Summary:
    """Score on a Ray cluster, or on a Ray started here if there is none (``RAY_ADDRESS`` names one).

    Args:
        workers: processes with a model each; None: one per GPU of the cluster, or one without GPUs.

    Raises:
        JobError: Ray is not installed, or a worker met an error that would meet every one.
    """
    try:
        import ray
        from ray.exceptions import RayTaskError
    except ImportError as error:
        raise JobError("engine=ray needs Ray: pip install 'ray[data]'") from error
    with sole_user(job.output):
        ray.init(ignore_reinit_error=True, log_to_driver=False, include_dashboard=False, logging_level=logging.WARNING)
        gpus = int(ray.cluster_resources().get("GPU", 0))
        workers = workers or gpus or 1
        starts = job.open_shards()
        run = max(1, min(RUN, len(starts) // (4 * workers)))
        runs = [{"starts": starts[k : k + run]} for k in range(0, len(starts), run)]
        ray.data.DataContext.get_current().enable_progress_bars = False
        try:
            with job.progress(starts, job.done_besides(starts), postfix=f"{workers} Ray workers") as bar:
                if not runs:  # nothing is open, but what is asked for may differ from what was done
                    ray.get(ray.remote(_claim).remote(job, load))
                for done in _on_workers(runs, job, load, workers, gpus):
                    bar.update(int(done["records"]))
        except RayTaskError as error:
            cause = error.cause
            raise cause if isinstance(cause, JobError) else JobError(f"a Ray worker failed: {cause}") from error
        return job.finish()


def _on_workers(runs: list[dict[str, Any]], job: Job, load: Load, workers: int, gpus: int) -> Iterator[dict[str, Any]]:
    import ray

    if not runs:
        return
    # One block a run, so that a worker that dies gives back that run and no more; Ray starts it again.
    data = ray.data.from_items(runs, override_num_blocks=len(runs)).map(
        _RayWorker,  # type: ignore[arg-type]  # Ray makes one in every process, with these arguments
        fn_constructor_args=(job, load),
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_gpus=1 if gpus else 0,
        num_cpus=1,
    )
    yield from data.iter_rows()


def _claim(job: Job, load: Load) -> None:
    job.claim(load("auto"))


class _RayWorker:
    """A model that scores runs of shards; made in a process of its own."""

    def __init__(self, job: Job, load: Load):
        self.job, self.scorer = job, load("auto")
        job.claim(self.scorer)  # the same words from every worker, or a refusal

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        starts = [int(start) for start in row["starts"]]
        # A run that a dead worker had begun comes again: its whole shards are there already.
        self.job.score(self.scorer, self.job.open_shards(starts))
        return {"records": sum(self.job.rows_of(start) for start in starts), "process": os.getpid()}


@contextmanager
def _first_holds(job: Job, state: PartialState) -> Iterator[None]:
    if not state.is_main_process:
        yield
        return
    with sole_user(job.output):
        yield
