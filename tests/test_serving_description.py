"""schemathesis asks what the server's own description says: no 5xx, everything documented."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable

from served_models import write_model
from shipyard import serving

pytestmark = pytest.mark.slow
schemathesis = pytest.importorskip("schemathesis", reason="needs the package schemathesis")
CHECKS = [
    "not_a_server_error", "status_code_conformance", "content_type_conformance",
    "response_schema_conformance", "response_headers_conformance",
]  # fmt: skip
ASKED = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def test_no_defect_and_nothing_undocumented(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,::1")
    path = write_model(tmp_path / "colours.onnx")
    schemathesis.checks.load_all_checks()
    checks = schemathesis.checks.CHECKS.get_by_names(CHECKS)
    statuses = {}
    with serving.serve_in_background(path) as running:
        schema = schemathesis.openapi.from_url(f"{running.url}/openapi.json")
        for found in schema.get_all_operations():
            operation = found.ok()

            # Both what the description asks for, and what it does not.
            for mode in schemathesis.GenerationMode:

                @ASKED
                @given(operation.as_strategy(generation_mode=mode))
                def ask(case):
                    reply = case.call_and_validate(checks=checks)
                    statuses.setdefault(operation.label, set()).add(reply.status_code)  # noqa: B023

                # Nothing breaks the rules of a request that has none.
                with contextlib.suppress(Unsatisfiable):
                    ask()
    print(statuses)
    assert statuses["GET /v2"] == {200}
    assert len(statuses) == len(list(schema.get_all_operations())) > 12
    assert statuses["POST /predict"] >= {200, 422}
    assert statuses["POST /v2/models/{name}/infer"] >= {400, 404}
