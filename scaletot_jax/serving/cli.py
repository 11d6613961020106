"""``scaletot serve --model DIR``: options, the socket, signals."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

from scaletot_jax.errors import ConfigError

_EPILOG = """A request holds the columns that the model reads, as JSON or as an Arrow IPC stream:

  curl -s localhost:8000/v1/model
  curl -s localhost:8000/v1/predict -H 'content-type: application/json' -d '{"rows": [{"age": "old", "visits": null}]}'

SIGHUP, POST /v1/reload with the token, or --watch-seconds take up a new export in DIR without losing a request.
docs/serving.md has everything."""


def main(arguments: Sequence[str]) -> int:
    """Serves until SIGINT or SIGTERM; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise ConfigError(
            "the verb 'serve' needs packages",
            where="scaletot serve",
            why=str(error),
            do="pip install 'scaletot_jax[serve]'",
        ) from error
    from scaletot_jax.serving.app import Service, build_app
    from scaletot_jax.serving.failures import RequestError
    from scaletot_jax.serving.guard import Limits
    from scaletot_jax.serving.protocol import protocol

    token = read_token(options.token_env, options.host, insecure=options.insecure)
    limits = replace(
        Limits(), body_bytes=options.max_body_bytes, rows=options.max_rows, rate=options.rate,
        under_way=options.max_requests, connections=options.max_connections, head_seconds=options.head_seconds,
        body_seconds=options.body_seconds, answer_seconds=options.answer_seconds, queue_rows=options.queue_rows,
        wait_seconds=options.wait_ms / 1000,
    )  # fmt: skip
    listening = listen(options.host, options.port)
    service = Service(options.model, limits=limits, shapes=parse_shapes(options.shapes))
    local = not token and not options.insecure
    app = build_app(service, token=token, watch_seconds=options.watch_seconds, local=local)
    config = uvicorn.Config(
        app, http=protocol(limits), ws="none", lifespan="on", log_level="warning", access_log=False, server_header=False,
        proxy_headers=False, h11_max_incomplete_event_size=16 << 10, timeout_keep_alive=options.keep_alive_seconds,
        timeout_graceful_shutdown=max(1, round(limits.answer_seconds)),
    )  # fmt: skip

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield  # they are handled below: uvicorn would raise them again at the end

    server = Server(config)

    async def run() -> None:
        reloads: set[asyncio.Task[None]] = set()

        async def reload() -> None:
            with contextlib.suppress(RequestError):  # said on stderr
                await service.reload()

        def hung_up() -> None:
            task = asyncio.ensure_future(reload())
            reloads.add(task)
            task.add_done_callback(reloads.discard)

        def stop() -> None:
            server.force_exit = server.should_exit  # the second time at once
            server.should_exit = True

        loop = asyncio.get_running_loop()
        for number, action in ((signal.SIGHUP, hung_up), (signal.SIGTERM, stop), (signal.SIGINT, stop)):
            loop.add_signal_handler(number, action)
        await server.serve(sockets=[listening])

    host, port = listening.getsockname()[:2]
    guarded = "with a token" if token else "without a token"
    print(
        f"serve: model {service.now.model.fingerprint} on http://{host}:{port} ({guarded})", file=sys.stderr, flush=True
    )
    asyncio.run(run())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scaletot serve", description="An exported model answers requests over HTTP.", epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip

    def number(flag: str, kind: type, default: float, low: float, text: str) -> None:
        def read(value: str) -> float:
            found = kind(value)
            if not low <= found < float("inf"):
                raise argparse.ArgumentTypeError(f"must be at least {low:g}")
            return found

        parser.add_argument(flag, type=read, default=default, metavar="N", help=f"{text} (default: {default:g})")

    parser.add_argument("--model", required=True, metavar="DIR", help="what 'scaletot export' wrote")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)"
    )
    number("--port", int, 8000, 0, "0 takes a free one")
    parser.add_argument(
        "--token-env", default="SCALETOT_TOKEN", metavar="NAME",
        help="environment variable with the token that clients must send (default: SCALETOT_TOKEN; none where it is unset)",
    )  # fmt: skip
    parser.add_argument("--insecure", action="store_true", help="listen on other addresses without a token, too")
    parser.add_argument(
        "--shapes", default="8,64,512", metavar="LIST", help="rows of the compiled calls (default: 8,64,512)"
    )
    number("--wait-ms", float, 2, 0, "a batch is closed so long after its first request")
    number("--queue-rows", int, 16_384, 1, "rows that may wait; beyond it 503")
    number("--max-rows", int, 4096, 1, "rows of a request")
    number("--max-body-bytes", int, 8 << 20, 1, "bytes of a request")
    number("--max-requests", int, 512, 1, "requests under way at one time")
    number("--max-connections", int, 1024, 1, "connections open at one time")
    number("--rate", float, 0, 0, "requests a second of one address; 0: no limit")
    number("--head-seconds", float, 10, 0.01, "for a request's first line and headers")
    number("--body-seconds", float, 10, 0.01, "for its body")
    number("--answer-seconds", float, 30, 0.01, "from its body to the last byte of the answer")
    number("--keep-alive-seconds", int, 5, 1, "an idle connection stays open so long")
    number("--watch-seconds", float, 0, 0, "look for a new export so often; 0: never")
    return parser


def parse_shapes(text: str) -> tuple[int, ...]:
    """``"8,64,512"`` → ascending sizes; ConfigError otherwise."""
    try:
        shapes = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        shapes = ()
    if not shapes or shapes[0] < 1:
        raise ConfigError(
            "shapes are positive numbers of rows", where="--shapes", why=repr(text), do="for example 8,64,512"
        )
    return shapes


def read_token(name: str, host: str, *, insecure: bool) -> str:
    """The token; ConfigError where other machines could reach a server that has none."""
    from scaletot_jax.serving.guard import is_loopback

    token = os.environ.get(name, "")
    if not token and not insecure and not is_loopback(host):
        raise ConfigError(
            "a server that other machines reach needs a token", where=f"--host {host}", why=f"{name} is not set",
            do=f"set {name} to a long random word, or pass --insecure",
        )  # fmt: skip
    if token and (len(token) < 16 or not token.isascii() or any(c.isspace() for c in token)):
        raise ConfigError(
            "the token is too weak", where=name, why="less than 16 characters, or some that a header cannot hold",
            do="for example: openssl rand -hex 32",
        )  # fmt: skip
    return token


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; ConfigError where there can be none."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            "cannot listen", where=f"{host}:{port}", why=str(error), do="choose another --port or --host"
        ) from error
    # asyncio sets it for sockets that it opens itself. Without it a body waits for the acknowledgement of its head, 40 ms.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening
