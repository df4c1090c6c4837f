"""Whatever is sent, by the OpenAPI description or against it: no answer is a 500; each is as described."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from serving import TOKEN, serving

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = 15
SLOW = {"/api/demo"}  # takes nothing in, and draws a phantom each time


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("schema")
    (root / "run").mkdir()
    (root / "run" / "run.json").write_text("{}")
    with serving(root / "results", str(root / "run"), "--upload_limit", "0.0001") as running:
        yield running


def test_no_request_ends_in_a_server_error(server):
    headers = {"Authorization": f"Bearer {TOKEN}"}
    api = schemathesis.openapi.from_url(f"{server.base}/api/openapi.json", headers=headers)
    asked = set()
    for result in api.get_all_operations():
        operation = result.ok()
        if operation.path in SLOW:
            continue

        @settings(
            max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck)
        )
        @given(case=operation.as_strategy())
        def ask(case):
            case.call_and_validate(checks=CHECKS, headers=headers, timeout=300)

        ask()
        asked.add(operation.label)
    assert len(asked) >= 20
    assert "Traceback" not in server.log.read_text()
