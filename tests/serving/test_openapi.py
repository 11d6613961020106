"""The server keeps what its OpenAPI description says: requests made from it, well formed and not."""

import json
import urllib.request

import pyarrow as pa
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from serving.conftest import TOKEN

from scaletot_jax.serving.answers import ARROW

pytestmark = pytest.mark.xdist_group("serve")
EXAMPLES = 12
AUTH = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def description(server, rows):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows.slice(0, 3))
    schemathesis.openapi.media_type(ARROW, st.just(sink.getvalue().to_pybytes()))
    url = f"http://127.0.0.1:{server.port}/openapi.json"
    with urllib.request.urlopen(urllib.request.Request(url, headers=AUTH)) as answer:
        found = json.load(answer)
    for operation in (operation for path in found["paths"].values() for operation in path.values()):
        operation.pop("security", None)  # the token is sent always here, and tested elsewhere
    return found


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_requests_made_from_the_description(server, description, mode):
    schema = schemathesis.openapi.from_dict(description)
    calls: dict[str, int] = {}
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(
            max_examples=EXAMPLES, phases=[Phase.generate], deadline=None, derandomize=True, database=None,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(operation.as_strategy(generation_mode=mode))
        def check(case):
            case.call_and_validate(base_url=f"http://127.0.0.1:{server.port}", headers=AUTH)
            calls[case.path] = calls.get(case.path, 0) + 1

        try:
            check()
        except Exception as error:
            if "Unsatisfiable" not in type(error).__name__:  # an operation without input has no negative case
                raise
    assert calls["/v1/predict"] >= EXAMPLES // 2
    if mode is GenerationMode.POSITIVE:
        assert set(calls) == set(description["paths"])
