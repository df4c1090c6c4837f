"""Whatever is sent, by the OpenAPI description or against it: no answer is a 500; each is as described."""

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from serving import TOKEN, serving

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    root = tmp_path_factory.mktemp("schema")
    (root / "run").mkdir()
    (root / "run" / "run.json").write_text("{}")
    with serving(root / "results", str(root / "run"), "--upload_limit", "0.0001") as server:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        yield schemathesis.openapi.from_url(f"{server.base}/api/openapi.json", headers=headers)


schema = schemathesis.pytest.from_fixture("api")


# Drawing a phantom takes long and takes nothing in; it is asked for in the tests of the page.
@schema.exclude(path="/api/demo").parametrize()
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_request_ends_in_a_server_error(case):
    case.call_and_validate(checks=CHECKS, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=300)
