"""``scaletot view --workdir RUN [--port 8000] [--all]``: shows a run's pages on this machine alone.

Listens on 127.0.0.1. Served are the pages and the JSON of the run directory; tables, arrays, stores and logs, which may hold
identifiers, only with ``--all``. Nothing outside the run directory is ever read, a symbolic link out of it included, and a
request that names another host is refused, so that no page of the web can read the run through the browser.
"""

from __future__ import annotations

import argparse
import http
import http.server
import shutil
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scaletot_jax.errors import ConfigError, StaleRunError
from scaletot_jax.report.page import document, el, table

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".json": "application/json; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
HOST = "127.0.0.1"


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, workdir: Path, port: int, everything: bool):
        self.workdir, self.everything = workdir.resolve(), everything
        super().__init__((HOST, port), _Handler)


def server(workdir: str | Path, port: int = 0, *, everything: bool = False) -> _Server:
    """A server of a run directory, bound and not yet serving; port 0 takes a free one.

    Raises:
      StaleRunError: there is no run directory with a report.
      ConfigError: the port is taken or not allowed.
    """
    workdir = Path(workdir)
    if not (workdir / "report" / "report.html").is_file():
        raise StaleRunError("there is no report to show", where=str(workdir), do="run 'scaletot report' first")
    try:
        return _Server(workdir, port, everything)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            "this port cannot be used", where=f"--port {port}", why=str(error), do="choose another, or 0 for a free one"
        ) from error


def files_of(workdir: Path, everything: bool) -> list[Path]:
    """The files that are served, relative and in order: no hidden ones, none that lies elsewhere."""
    found = []
    for path in sorted(workdir.rglob("*")):
        relative = path.relative_to(workdir)
        if path.is_file() and allowed(workdir, relative.as_posix(), everything) is not None:
            found.append(relative)
    return found


def allowed(workdir: Path, name: str, everything: bool) -> Path | None:
    """The file behind a path of a request, or None where it is not served.

    Args:
      workdir: the run directory, resolved.
      name: the path, unquoted, without its leading slash.
      everything: whether tables, arrays, stores and logs are served.
    """
    if "\x00" in name or "\\" in name:
        return None
    parts = name.split("/")
    if any(part in ("", ".", "..") or part.startswith(".") for part in parts):
        return None
    path = workdir.joinpath(*parts).resolve()
    if not path.is_relative_to(workdir) or not path.is_file():
        return None
    return path if everything or path.suffix in TYPES else None


def index(workdir: Path, everything: bool) -> str:
    """The first page: what there is to open."""
    named = {"report/report.html": "The report", "report/explorer.html": "The explorer"}
    listed = files_of(workdir, everything)
    pages = [el("li", el("a", title, href=f"/{name}")) for name, title in named.items() if Path(name) in listed]
    rows: list[list[object]] = [
        [
            el("a", path.as_posix(), href="/" + urllib.parse.quote(path.as_posix())),
            f"{(workdir / path).stat().st_size:,}",
        ]
        for path in listed
    ]
    note = (
        None
        if everything
        else el("p", "Tables and logs are not listed: start with ", el("code", "--all"), " to see them.")
    )
    return document(
        f"Run {workdir.name}", [], el("section", el("h1", f"Run {workdir.name}"), el("ul", pages)),
        el("section", el("h2", "Files"), note, table("Files", ["File", "Bytes"], rows, numeric=[1])), scripts=(),
    )  # fmt: skip


class _Handler(http.server.BaseHTTPRequestHandler):
    """GET and HEAD of a run directory."""

    server: _Server
    server_version, sys_version = "scaletot", ""
    timeout = 30  # seconds of an idle connection

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        port = self.server.server_address[1]
        if self.headers.get("Host", "") not in (f"{HOST}:{port}", f"localhost:{port}"):
            return self._refuse(http.HTTPStatus.MISDIRECTED_REQUEST)
        name = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path, errors="replace").removeprefix("/")
        if not name:
            content = index(self.server.workdir, self.server.everything).encode()
            self._head(TYPES[".html"], len(content))
            if body:
                self.wfile.write(content)
            return None
        path = allowed(self.server.workdir, name, self.server.everything)
        if path is None:
            return self._refuse(http.HTTPStatus.NOT_FOUND)
        with open(path, "rb") as handle:
            self._head(TYPES.get(path.suffix, "application/octet-stream"), path.stat().st_size)
            if body:
                shutil.copyfileobj(handle, self.wfile)
        return None

    def _head(self, kind: str, size: int, status: http.HTTPStatus = http.HTTPStatus.OK) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(size))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.end_headers()

    def _refuse(self, status: http.HTTPStatus) -> None:
        content = f"{status.value} {status.phrase}\n".encode()
        self._head(TYPES[".txt"], len(content), status)
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a page that is looked at is no news."""


def main(arguments: Sequence[str]) -> int:
    """The verb ``view``; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="scaletot view", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--workdir", required=True, metavar="DIR", help="the run directory")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="default 8000; 0 takes a free one")
    parser.add_argument("--all", action="store_true", help="serve tables, arrays, stores and logs too")
    options = parser.parse_args(arguments)
    with server(options.workdir, options.port, everything=options.all) as serving:
        print(f"view: http://{HOST}:{serving.server_address[1]}/  (stop with Ctrl-C)", flush=True)
        try:
            serving.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0
