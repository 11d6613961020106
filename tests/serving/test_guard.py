"""What stands before the application, without a server: rate, token, requests under way, failures."""

import asyncio
import json

import pytest

from scaletot_jax.errors import ConfigError
from scaletot_jax.serving.cli import listen, parse_shapes, read_token
from scaletot_jax.serving.guard import Buckets, Guard, Limits
from scaletot_jax.serving.meters import Meters


def call(guard, path="/v1/model", headers=(), body=b"", client="1.2.3.4", parts=1):
    """``parts``: how often the body comes before the end of it."""
    sent, left = [], [parts]

    async def receive():
        left[0] -= 1
        return {"type": "http.request", "body": body, "more_body": left[0] > 0}

    async def send(message):
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers]
    scope = {"type": "http", "path": path, "headers": raw, "client": (client, 1)}
    return guard(scope, receive, send), sent


def answer(guard, **request):
    waiting, sent = call(guard, **request)
    asyncio.run(waiting)
    return sent[0]["status"], dict(sent[0]["headers"]), json.loads(sent[1]["body"] or b"{}")


async def fine(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


def test_a_bucket_refills_and_clients_do_not_share_one():
    clock = [0.0]
    buckets = Buckets(2.0, now=lambda: clock[0])
    assert [buckets.take("a") for _ in range(4)] == [0] * 4  # the burst
    assert buckets.take("a") == pytest.approx(0.5) and buckets.take("b") == 0
    clock[0] = 0.5
    assert buckets.take("a") == 0 and buckets.take("a") == pytest.approx(0.5)


@pytest.mark.parametrize(
    "host,taken",
    [
        ("127.0.0.1:8000", True),
        ("localhost", True),
        ("LocalHost:1", True),
        ("[::1]:8000", True),
        ("127.9.9.9", True),
        ("evil.example", False),
        ("evil.example:8000", False),
        ("localhost.evil.example", False),
        ("192.168.0.7:8000", False),
        ("", False),
        ("[", False),
    ],
)
def test_without_a_token_a_request_must_name_this_machine(host, taken):
    asked = [("host", host)] if host else []
    status, _, body = answer(Guard(fine, Limits(), Meters(), local=True), headers=asked)
    assert status == (200 if taken else 421) and (taken or "another host" in body["error"]["what"])
    assert answer(Guard(fine, Limits(), Meters()), headers=asked)[0] == 200
    assert answer(Guard(fine, Limits(), Meters(), local=True), path="/healthz", headers=asked)[0] == 200


def test_rate_and_token():
    meters = Meters()
    guard = Guard(fine, Limits(rate=1.0), meters, "a-token-of-the-tests")
    good = ("authorization", "Bearer a-token-of-the-tests")
    status, headers, body = answer(guard)
    assert status == 401 and headers[b"www-authenticate"] == b"Bearer" and "token" in body["error"]["what"]
    assert answer(guard, headers=[good])[0] == 200
    status, headers, _ = answer(guard, headers=[good])
    assert status == 429 and int(headers[b"retry-after"]) >= 1
    assert answer(guard, path="/healthz")[0] == 200  # neither
    assert answer(guard, headers=[("authorization", "Basic a-token-of-the-tests")], client="5.6.7.8")[0] == 401
    assert b'scaletot_requests_total{path="/v1/model",status="401"} 2.0' in meters.text()


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_what_anybody_may_ask_takes_no_body(path):
    """No token, rate or number under way stands before it, so nothing that is sent there may be kept."""
    meters = Meters()
    guard = Guard(fine, Limits(), meters, "a-token-of-the-tests")
    assert answer(guard, path=path)[0] == answer(guard, path=path, headers=[("content-length", "0")])[0] == 200
    for request in (
        {"body": b"x"},
        {"headers": [("content-length", "1")]},
        {"body": b"x" * 100, "parts": 50},
        {"parts": 2},
    ):
        status, headers, said = answer(guard, path=path, **request)
        assert status == 413 and headers[b"connection"] == b"close" and "no body" in said["error"]["what"]
    assert b'scaletot_refused_total{limit="body"} 4.0' in meters.text()


def test_a_failure_is_said_in_the_one_shape_and_quotes_nothing(capsys):
    async def broken(scope, receive, send):
        raise ValueError(f"a row of {scope['client'][0]}")

    status, _, body = answer(Guard(broken, Limits(), Meters()))
    assert status == 500 and "1.2.3.4" not in json.dumps(body) and body["error"]["why"] == "ValueError"
    said = capsys.readouterr().err
    assert "ValueError" in said and "test_guard.py" in said and "1.2.3.4" not in said


def test_requests_under_way_and_an_answer_that_takes_too_long():
    async def run():
        stuck = asyncio.Event()

        async def wait(scope, receive, send):
            await stuck.wait()

        guard = Guard(wait, Limits(under_way=1, answer_seconds=0.2), Meters())
        first, sent = call(guard)
        task = asyncio.ensure_future(first)
        await asyncio.sleep(0.01)
        second, refused = call(guard)
        await second
        await task
        return sent[0]["status"], refused[0]["status"], dict(refused[0]["headers"])

    slow, busy, headers = asyncio.run(run())
    assert (slow, busy) == (503, 503) and headers[b"retry-after"] == b"1"


def test_other_machines_need_a_token_and_a_token_some_length(monkeypatch):
    monkeypatch.delenv("TOKEN_X", raising=False)
    assert read_token("TOKEN_X", "127.0.0.1", insecure=False) == read_token("TOKEN_X", "0.0.0.0", insecure=True) == ""
    with pytest.raises(ConfigError, match="needs a token"):
        read_token("TOKEN_X", "0.0.0.0", insecure=False)
    monkeypatch.setenv("TOKEN_X", "short")
    with pytest.raises(ConfigError, match="too weak"):
        read_token("TOKEN_X", "127.0.0.1", insecure=False)


def test_bad_options():
    assert parse_shapes("64,8") == (8, 64)
    for text in ("", "8,x", "0,8"):
        with pytest.raises(ConfigError):
            parse_shapes(text)
    taken = listen("127.0.0.1", 0)
    with pytest.raises(ConfigError, match="cannot listen"):
        listen("127.0.0.1", taken.getsockname()[1])
    taken.close()
