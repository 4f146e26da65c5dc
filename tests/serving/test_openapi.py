"""A running server, asked by schemathesis all that its own OpenAPI description allows, and what it does not."""

import itertools
from collections import Counter

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from src.benchmark.serving import Server
from tests.conftest import LEGACY

VARIABLES = {
    "REWARD_SERVER_MODEL_PATH": str(LEGACY / "checkpoint"),
    "REWARD_SERVER_MODEL_DEVICE": "cpu",
    "REWARD_SERVER_LIMITS_MAX_BODY_BYTES": "80000",
}
WITH_BODY = ("POST /v1/rewards", "POST /v1/score")
MODES = schemathesis.GenerationMode


@pytest.fixture(scope="module")
def operations():
    with Server(variables=VARIABLES).wait() as server:
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        yield {found.ok().label: found.ok() for found in schema.get_all_operations()}


def test_every_route_is_described(operations):
    assert set(operations) == {*WITH_BODY, "GET /health", "GET /ready", "GET /metrics"}


@pytest.mark.parametrize(
    ("label", "mode"),
    [*itertools.product(WITH_BODY, MODES), ("GET /health", MODES.POSITIVE), ("GET /ready", MODES.POSITIVE),
     ("GET /metrics", MODES.POSITIVE)],
    ids=lambda value: str(getattr(value, "value", value)),
)  # fmt: skip
def test_answers_are_those_that_are_described(operations, label, mode):
    """No failure of the server's own, no status, content type or form that is not in the description; what goes
    against the description is refused."""
    statuses: Counter[int] = Counter()

    @settings(max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=[*HealthCheck])
    @given(case=operations[label].as_strategy(generation_mode=mode))
    def ask(case):
        response = case.call()
        statuses[response.status_code] += 1
        # A text may be a string and blank, and an image no image: what a schema cannot say may be refused.
        case.validate_response(response, excluded_checks=[positive_data_acceptance])

    ask()
    assert not {status for status in statuses if status >= 500}
    assert (200 in statuses) == (mode is MODES.POSITIVE)
