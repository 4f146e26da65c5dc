"""What verl loads in each of its processes (entry point ``verl.plugins``): the CPU back end if VERL_PLATFORM=cpu."""

import os
import sys
from importlib.metadata import version

VERL = "0.9.1"  # whose inner hooks scorers_verl/cpu.py uses


def check_version(found: str) -> None:
    """Raises RuntimeError, and says so on standard error, since verl itself is silent about plugins that raise."""
    if found != VERL:
        message = f"scorers_verl: VERL_PLATFORM=cpu needs verl {VERL}, whose hooks it uses; here is verl {found}"
        print(message, file=sys.stderr, flush=True)
        raise RuntimeError(message)


if os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu":
    check_version(version("verl"))
    try:
        from scorers_verl import cpu

        cpu.register()
    except Exception as error:
        print(f"scorers_verl: the CPU back end cannot be loaded: {error!r}", file=sys.stderr, flush=True)
        raise
