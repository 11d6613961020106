"""What every request meets first: token, rate, number under way, size, and the time its body may take. Pure ASGI.

    host (421) ─► rate (429) ─► token (401) ─► under way (503) ─► stated length (413) ─► body, counted and timed (413, 408) ─► application

The paths that anybody may ask, as often as they like, take no body. Of any other the application gets the body whole. What it
raises becomes a 500 of the one shape; neither the log nor the answer quotes anything of the request.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import math
import sys
import time
import traceback
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from scaletot_jax.serving.failures import RequestError, too_many
from scaletot_jax.serving.meters import Meters

Message = MutableMapping[str, Any]
App = Callable[[Any, Any, Any], Awaitable[None]]
OPEN = ("/healthz", "/readyz")  # whoever watches the process has no token
PATHS = (*OPEN, "/metrics", "/openapi.json", "/v1/predict", "/v1/model", "/v1/chains", "/v1/reload")
_CLIENTS = 10_000  # whose rate is remembered


@dataclass(frozen=True)
class Limits:
    """Of one server.

    Attributes:
      body_bytes: of a request.
      rows: of a request.
      rate: requests a second of one client's address, in bursts of twice that; 0: no limit.
      under_way: requests that are being answered at one time.
      connections: open at one time.
      head_seconds: for the first line and headers; body_seconds: for the body; answer_seconds: from then to the last byte.
      queue_rows: rows that may wait.
      wait_seconds: after which a batch is closed.
    """

    body_bytes: int = 8 << 20
    rows: int = 4096
    rate: float = 0.0
    under_way: int = 512
    connections: int = 1024
    head_seconds: float = 10.0
    body_seconds: float = 10.0
    answer_seconds: float = 30.0
    queue_rows: int = 16_384
    wait_seconds: float = 0.002


class Buckets:
    """Token buckets by client: ``rate`` a second, at most twice that at once. ``now``: a clock, for tests."""

    def __init__(self, rate: float, now: Callable[[], float] = time.monotonic):
        self._rate, self._most, self._now = rate, max(1.0, 2 * rate), now
        self._clients: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> float:
        """0 where the request may go on, else the seconds until it may."""
        now = self._now()
        left, since = self._clients.pop(client, (self._most, now))
        left = min(self._most, left + (now - since) * self._rate)
        wait = 0.0 if left >= 1 else (1 - left) / self._rate
        self._clients[client] = (left if wait else left - 1, now)
        if len(self._clients) > _CLIENTS:
            self._clients.popitem(last=False)
        return wait


class Guard:
    """The middleware.

    Args:
      token: what a client must send as ``Authorization: Bearer``; empty: nothing.
      local: requests must name this machine as their host. Else a page of the web could point its own name at 127.0.0.1 and
        ask in the browser of whoever opens it.
    """

    def __init__(self, app: App, limits: Limits, meters: Meters, token: str = "", local: bool = False):
        self._local = local
        self._app, self._limits, self._meters = app, limits, meters
        self._token = token.encode()
        self._buckets = Buckets(limits.rate) if limits.rate > 0 else None
        self._under_way = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in PATHS else "other"
        started, status = time.monotonic(), 0
        deadline = asyncio.timeout(None)

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._under_way += 1
        try:
            async with deadline:
                try:
                    body = await self._admit(scope, receive)
                    deadline.reschedule(asyncio.get_running_loop().time() + self._limits.answer_seconds)
                    await self._app(scope, _replay(body, receive), counted)
                except RequestError as error:
                    await _refuse(counted, error, close=error.status in (408, 413))
                except Exception as error:
                    _report(error)
                    if not status:
                        await _refuse(counted, RequestError("the server failed", status=500, why=type(error).__name__))
        except TimeoutError:
            if not status:
                await _refuse(counted, too_many("the answer took too long", 503, 1, "the server is busy"), close=True)
            else:
                raise ConnectionAbortedError("a client reads its answer too slowly") from None
        finally:
            self._under_way -= 1
            self._meters.requests.labels(path, str(status)).inc()
            self._meters.seconds.labels(path).observe(time.monotonic() - started)

    async def _admit(self, scope: Any, receive: Any) -> bytes:
        """The body of a request that may go on."""
        headers = {name: value for name, value in reversed(scope["headers"])}
        if scope["path"] not in OPEN:
            if self._local and not is_loopback(_host(headers.get(b"host", b""))):
                self._meters.refused.labels("host").inc()
                raise RequestError(
                    "a request names another host",
                    status=421,
                    why="a server without a token answers requests to localhost alone",
                    do="ask http://127.0.0.1, or start the server with a token",
                )
            if self._buckets is not None:
                wait = self._buckets.take(str((scope.get("client") or ("",))[0]))
                if wait:
                    self._meters.refused.labels("rate").inc()
                    raise too_many(
                        "too many requests", 429, math.ceil(wait), f"more than {self._limits.rate:g} a second"
                    )
            self._check_token(headers.get(b"authorization", b""))
            if self._under_way > self._limits.under_way:
                self._meters.refused.labels("under_way").inc()
                raise too_many("the server is busy", 503, 1, f"{self._limits.under_way} requests are under way")
        most = 0 if scope["path"] in OPEN else self._limits.body_bytes
        stated = headers.get(b"content-length", b"")
        if stated.isdigit() and int(stated[:20]) > most:
            raise self._too_large(most)
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise RequestError(
                "the body is encoded", status=415, why="a compressed body may expand without limit", do="send it plain"
            )
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                return await self._read(receive, most)
        except TimeoutError as error:
            self._meters.refused.labels("slow_body").inc()
            raise RequestError(
                "the body came too slowly",
                status=408,
                why=f"more than {self._limits.body_seconds:g} s",
                do="send it again",
            ) from error

    async def _read(self, receive: Any, most: int) -> bytes:
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RequestError("the client has gone", status=400)
            part = message.get("body", b"")
            size += len(part)
            more = message.get("more_body", False)
            if size > most or (more and not most):
                raise self._too_large(most)
            parts.append(part)
            if not more:
                return b"".join(parts)

    def _too_large(self, most: int) -> RequestError:
        self._meters.refused.labels("body").inc()
        if not most:  # whoever asks here shows no token and is not counted: nothing of theirs is kept
            return RequestError("this path takes no body", status=413, why="there is one", do="send none")
        return RequestError("the body is too large", status=413, why=f"more than {most} bytes", do="send fewer rows")

    def _check_token(self, header: bytes) -> None:
        if not self._token:
            return
        scheme, _, given = header.partition(b" ")
        if not (hmac.compare_digest(given.strip(), self._token) and scheme.lower() == b"bearer"):
            self._meters.refused.labels("token").inc()
            raise RequestError(
                "no or another token",
                status=401,
                why="the server was started with one",
                do="send Authorization: Bearer TOKEN",
            )


def is_loopback(host: str) -> bool:
    """Whether an address or a name is that of this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _host(header: bytes) -> str:
    """``name``, ``name:port``, ``[v6]`` or ``[v6]:port`` → the name or address."""
    text = header.decode("latin-1")
    return text[1:].partition("]")[0] if text.startswith("[") else text.partition(":")[0]


def _replay(body: bytes, receive: Any) -> Any:
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _refuse(send: Any, error: RequestError, *, close: bool = False) -> None:
    body = error.encoded()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers()}
    if close:
        headers["connection"] = "close"
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def _report(error: Exception) -> None:
    """The places of a failure, without its message, which may quote a row."""
    print(f"serve: {type(error).__name__}", *traceback.format_tb(error.__traceback__), sep="\n", file=sys.stderr)
