"""What the benchmarks share: made input, the clock, the peak memory of a program, and how two ways are compared."""

import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO

import numpy as np
from PIL import Image

from src.errors import JobError

QUESTION = "What does the image show?"
_WORDS = ("two", "three", "white", "red", "ships", "tanks", "cars", "near", "beside", "left", "of", "a", "the", "pier",
          "field")  # fmt: skip
# The peak of the program's own address space; what getrusage tells of a child includes the parent that started it.
_TELL_PEAK = """
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")), end="")
"""


def noise(rng: np.random.Generator, side: int) -> Image.Image:
    """A random image."""
    return Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))


def jpeg(image: Image.Image) -> bytes:
    """An image as a JPEG file."""
    file = BytesIO()
    image.save(file, "JPEG")
    return file.getvalue()


def sentences(rng: np.random.Generator, count: int, words: int) -> list[str]:
    """Random sentences."""
    return [" ".join(rng.choice(_WORDS, words)) for _ in range(count)]


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def ratio(
    ways: Mapping[str, Callable[[], object]], repeats: int, pairs: int = 0, used: Callable[[float], str] | None = None
) -> float:
    """Time two ways in turn, print the median of each, and return the median of second / first.

    Args:
        pairs: in a run; printed as pairs a second.
        used: what else there is to say at so many pairs a second.
    """
    times = [tuple(seconds(way) for way in ways.values()) for _ in range(repeats)]
    for name, taken in zip(ways, zip(*times, strict=True), strict=True):
        median = statistics.median(taken)
        rate = f"  {pairs / median:8.1f} pairs/s" if pairs else ""
        print(f"{name:<16} {median:8.3f} s{rate}{used(pairs / median) if used else ''}")
    return statistics.median(theirs / ours for ours, theirs in times)


def peak_memory(code: str, arguments: Sequence[str]) -> int:
    """Greatest resident memory, in bytes, of Python code run in a process of its own with these arguments; Linux only.

    Raises:
        JobError: the code failed; its last words are in the message.
    """
    command = [sys.executable, "-c", code + _TELL_PEAK, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    peak = re.search(r"^VmHWM:\s+(\d+) kB", done.stdout, re.MULTILINE)
    if done.returncode or not peak:
        raise JobError(f"the measured process failed: {done.stderr.strip()[-500:]}")
    return int(peak[1]) * 1024
