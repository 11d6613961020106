"""The application without a socket: what large requests must not hold up."""

import asyncio
import json
import threading

import pytest
from serving.conftest import SHAPES

from scaletot_jax.datasets.synthetic import build_table
from scaletot_jax.serving import app as module
from scaletot_jax.serving.app import Service, build_app
from scaletot_jax.serving.guard import Limits

pytestmark = pytest.mark.xdist_group("serve")


@pytest.mark.parametrize(("rows", "aside"), [(3, False), (300, True)])
def test_large_answers_are_made_beside_the_event_loop(models, monkeypatch, rows, aside):
    """Explanations and the encoding of thousands of rows take longer than others should wait."""
    service = Service(models[0].directory, limits=Limits(), shapes=SHAPES)
    app = build_app(service)
    where, sent = [], []
    honest = module.json_answer

    def answer(*arguments):
        where.append(threading.current_thread() is threading.main_thread())
        return honest(*arguments)

    monkeypatch.setattr(module, "json_answer", answer)
    table = build_table(rows, seed=4).drop_columns(["user_id", "lt30", "ltv30"])
    body = json.dumps({"rows": table.to_pylist()}).encode()

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http", "path": "/v1/predict",
        "raw_path": b"/v1/predict", "query_string": b"explain=true", "root_path": "", "client": ("127.0.0.1", 1), "server": ("x", 1),
        "headers": [(b"content-type", b"application/json")],
    }  # fmt: skip
    service.batcher.start()
    try:
        asyncio.run(app(scope, receive, send))
    finally:
        service.batcher.close()
    assert sent[0]["status"] == 200 and where == [not aside]
    answered = json.loads(b"".join(message.get("body", b"") for message in sent[1:]))["predictions"]
    assert len(answered) == rows and all("explanation" in row for row in answered)
