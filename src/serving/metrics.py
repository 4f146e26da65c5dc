"""What the server has done, as Prometheus reads it (text format 0.0.4)."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

# Upper bounds of the histogram of seconds from a request's first byte to its answer.
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@dataclass
class Requests:
    """Answers by route and status, and the time that they took."""

    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    within: Counter[tuple[str, float]] = field(default_factory=Counter)

    def add(self, route: str, status: int, seconds: float) -> None:
        self.answers[route, status] += 1
        self.seconds[route] += seconds  # type: ignore[assignment]  # a sum of floats
        for bound in BOUNDS:
            self.within[route, bound] += seconds <= bound

    def lines(self) -> Iterator[str]:
        yield from family("scorers_requests_total", "counter", "Answers by route and status.")
        for (route, status), count in sorted(self.answers.items()):
            yield f'scorers_requests_total{{route="{route}",status="{status}"}} {count}'
        name = "scorers_request_seconds"
        yield from family(name, "histogram", "Seconds from a request's head to its answer.")
        for route, total in sorted(self.seconds.items()):
            count = sum(number for (asked, _), number in self.answers.items() if asked == route)
            for bound in BOUNDS:
                yield f'{name}_bucket{{route="{route}",le="{bound}"}} {self.within[route, bound]}'
            yield f'{name}_bucket{{route="{route}",le="+Inf"}} {count}'
            yield f'{name}_sum{{route="{route}"}} {total:.6f}'
            yield f'{name}_count{{route="{route}"}} {count}'


def family(name: str, kind: str, help_text: str) -> Iterator[str]:
    yield f"# HELP {name} {help_text}"
    yield f"# TYPE {name} {kind}"


def value(name: str, kind: str, help_text: str, number: float) -> Iterator[str]:
    """A metric without labels."""
    yield from family(name, kind, help_text)
    yield f"{name} {number:g}" if isinstance(number, float) else f"{name} {number}"
