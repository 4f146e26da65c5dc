"""verl's own trainer on the CPU: a platform under its FSDP engine, and rollout by transformers.

For trying things out and for tests, at nano size: chosen by VERL_PLATFORM=cpu (see :mod:`scorers_verl.plugin`) with
``trainer.device=cpu actor_rollout_ref.rollout.name=hf actor_rollout_ref.actor.strategy=fsdp2`` and for the rollout
``actor_rollout_ref.model.external_lib=scorers_verl.cpu_rollout``. Three of verl's inner hooks are used, hence the
pinned release: the table of rollout adapters, the start of process groups and the pinning of memory under FSDP2, of
which PyTorch takes neither on a machine without GPUs.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import ModuleType
from typing import Any

import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry


def _device_module() -> ModuleType:
    """What verl asks of ``torch.cuda``, for the memory of the machine."""
    module = ModuleType("scorers_verl.cpu_device")
    answers: dict[str, Any] = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": "cpu",
        "mem_get_info": (0, 0),
        "memory_allocated": 0,
        "memory_reserved": 0,
        "max_memory_allocated": 0,
        "max_memory_reserved": 0,
        "reset_peak_memory_stats": None,
        "set_per_process_memory_fraction": None,
        "empty_cache": None,
        "ipc_collect": None,
        "synchronize": None,
        "set_device": None,
    }
    for name, answer in answers.items():
        setattr(module, name, lambda *_, _answer=answer, **__: _answer)
    module.manual_seed = module.manual_seed_all = torch.manual_seed  # type: ignore[attr-defined]
    module.get_rng_state = lambda *_: torch.get_rng_state()  # type: ignore[attr-defined]
    module.set_rng_state = lambda state, *_: torch.set_rng_state(state)  # type: ignore[attr-defined]
    return module


class CpuPlatform(PlatformBase):
    """The CPU as a device of verl; one "GPU" of Ray that nothing backs is counted for each worker."""

    _module = _device_module()
    device_name, vendor_name, device_module = "cpu", "cpu", _module

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:  # noqa: ARG002
        return False  # only where VERL_PLATFORM names it

    def current_device(self) -> Any:
        return "cpu"  # taken as the device of tensors

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        pass

    def synchronize(self, device_index: int | None = None) -> None:
        pass

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def set_allocator_settings(self, settings: str) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:  # noqa: ARG002
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:  # noqa: ARG002
        yield

    def profiler_start(self) -> None:
        pass

    def profiler_stop(self) -> None:
        pass

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        return False

    def cudart(self) -> None:
        return None


def _initialize_process_group(timeout_second: float | None = None, backend: str | None = None) -> None:  # noqa: ARG001
    """verl asks for ``cpu:gloo,cpu:gloo``, which PyTorch refuses."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group(
            "gloo",
            rank=int(os.environ.get("RANK", "0")),
            world_size=int(os.environ.get("WORLD_SIZE", "1")),
            timeout=timedelta(seconds=timeout_second) if timeout_second else None,
            init_method=os.environ.get("DIST_INIT_METHOD"),
        )


def _no_offload(**_: Any) -> None:
    """FSDP2 would pin the memory of the reference model, which needs a CUDA driver; it is in the machine's anyway."""


def register() -> None:
    """Makes the platform known to verl in this process, and puts the two hooks in place before its workers take them.

    Imports as little of verl as it can, for many of verl's processes neither train nor generate.
    """
    PlatformRegistry.register("cpu")(CpuPlatform)
    os.environ.setdefault("VERL_ENGINE_DEVICE", "cuda")  # the engine that is registered for CUDA; it asks the platform

    import torch.distributed.fsdp
    from verl.utils import distributed

    distributed.initialize_global_process_group_ray = _initialize_process_group
    torch.distributed.fsdp.CPUOffloadPolicy = _no_offload  # type: ignore[misc]
