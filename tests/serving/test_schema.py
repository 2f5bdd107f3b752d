"""The server keeps to its own OpenAPI description, whatever is sent: schemathesis draws the calls."""

from collections import Counter

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
MADE = settings(deadline=None, suppress_health_check=list(HealthCheck), database=None)


@pytest.fixture(scope="module")
def small_server(tmp_path_factory):
    """A server whose jobs take next to nothing."""
    from tests.serving.conftest import serve

    running = serve(tmp_path_factory.mktemp("schema"), max_pixels=32 * 32, max_steps=1, max_pictures=2, max_queue=16)
    yield running
    running.close()


@pytest.fixture(scope="module")
def description(small_server):
    return schemathesis.openapi.from_url(f"{small_server.url}/openapi.json")


def check(description, examples, derandomize):
    """Call every operation so many times; the calls made, by operation."""
    calls = Counter()

    def call(case):
        calls[case.operation.label] += 1
        case.call_and_validate(checks=CHECKS)

    for found in description.get_all_operations():
        drawn = given(case=found.ok().as_strategy())(call)
        settings(MADE, max_examples=examples, derandomize=derandomize)(drawn)()
    return calls


def test_every_answer_is_as_described(description):
    calls = check(description, 12, derandomize=True)
    assert {"POST /v1/jobs", "GET /v1/jobs/{id}/events", "POST /v1/images/generations", "GET /metrics"} <= set(calls)


@pytest.mark.long
def test_every_answer_is_as_described_five_thousand_times(description):
    calls = check(description, 400, derandomize=False)
    assert sum(calls.values()) >= 5000, calls
