"""One HTTP exchange, within a deadline, and what its failure means.

The standard library's client: one connection a request, no redirects (a key must not travel to another host), no
proxies. The deadline covers everything from connecting to the last byte, so that a server that hangs and one that
drips are the same.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import socket
import threading
import time
import urllib.parse
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from scaletot_jax.errors import ConfigError, DataError, ResourceError, ScaleToTError

_LARGEST = 32 << 20  # bytes of a response
_PASSING = (408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529)

Kind = Literal["refused", "busy", "error", "timeout", "connection", "garbled"]


class Failure(Exception):
    """An exchange without a usable answer.

    Attributes:
      kind: ``refused`` (the server will not do this), ``busy``, ``error`` (5xx), ``timeout``, ``connection``,
        ``garbled`` (no JSON, or not what was asked for).
      status: the HTTP status, 0 without one.
      wait: seconds the server asked for, or None.
      message: for the reader; holds no key.
    """

    def __init__(self, kind: Kind, message: str, *, status: int = 0, wait: float | None = None):
        super().__init__(message)
        self.kind, self.status, self.wait, self.message = kind, status, wait, message

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed later."""
        return self.kind != "refused"

    @property
    def paid(self) -> bool:
        """Whether the server may have done the work, and count it, although nothing came of it."""
        return self.kind in ("timeout", "garbled") or (self.kind == "connection" and self.status == -1)


class Endpoint:
    """An address with a key.

    Args:
      base_url: such as ``https://host/v1``.
      key: sent as a bearer token; "" for none.
      timeout: seconds for one exchange.
    """

    def __init__(self, base_url: str, key: str, timeout: float):
        self._url, self._key, self._timeout = urllib.parse.urlsplit(base_url.rstrip("/")), key, timeout

    def exchange(self, path: str, body: Any = None) -> Any:
        """POSTs ``body`` as JSON, or GETs without one.

        Returns:
          The decoded JSON of a 2xx response.

        Raises:
          Failure: anything else.
        """
        kind = http.client.HTTPSConnection if self._url.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._url.hostname or "", self._url.port, timeout=self._timeout)
        late, sent = threading.Event(), False
        line: list[socket.socket] = []  # the connection forgets its socket once a response has begun

        def expire() -> None:
            late.set()
            for open_socket in line:
                with contextlib.suppress(OSError):
                    open_socket.shutdown(socket.SHUT_RDWR)  # wakes whoever reads

        watch = threading.Timer(self._timeout, expire)
        watch.daemon = True
        watch.start()
        try:
            connection.connect()
            line.append(connection.sock)
            headers = {"Content-Type": "application/json", "Accept": "application/json"}
            if self._key:
                headers["Authorization"] = f"Bearer {self._key}"
            sent = True
            content = None if body is None else json.dumps(body).encode()
            connection.request("GET" if body is None else "POST", self._url.path + path, content, headers)
            response = connection.getresponse()
            data = response.read(_LARGEST)
            if late.is_set():
                raise TimeoutError
        except (OSError, http.client.HTTPException, ValueError) as error:
            if late.is_set() or isinstance(error, TimeoutError):
                raise Failure("timeout", f"no whole answer within {self._timeout:g} s") from error
            raise Failure("connection", self._said(repr(error)), status=-1 if sent else 0) from error
        finally:
            watch.cancel()
            connection.close()
        if 200 <= response.status < 300:
            try:
                return json.loads(data)
            except (ValueError, RecursionError) as error:
                raise Failure("garbled", "the answer is not JSON, or ends early", status=response.status) from error
        raise self._failure(response.status, response.getheader("Retry-After"), data)

    def _failure(self, status: int, wait: str | None, data: bytes) -> Failure:
        said = self._said(data[:2000].decode("utf-8", "replace"))
        with contextlib.suppress(ValueError, AttributeError, RecursionError):
            error = json.loads(data).get("error")
            said = self._said(str(error.get("message", error)) if isinstance(error, dict) else str(error))
        kind: Kind = "busy" if status in (429, 503, 529) else "error" if status in _PASSING else "refused"
        return Failure(kind, f"HTTP {status}: {said}", status=status, wait=retry_after(wait))

    def _said(self, text: str) -> str:
        """A server's words, short, on one line, and without the key, which some servers repeat."""
        text = text.replace(self._key, "(key)") if self._key else text
        return " ".join(text.split())[:300]


def retry_after(header: str | None, now: float | None = None) -> float | None:
    """Seconds in a ``Retry-After`` header: a number or an HTTP date; None where it is absent or unreadable.

    Args:
      now: seconds since the epoch, for a date (default: the clock).
    """
    if header is None:
        return None
    try:
        wait = float(header)
    except ValueError:
        try:
            wait = parsedate_to_datetime(header).timestamp() - (time.time() if now is None else now)
        except (TypeError, ValueError):
            return None
    return max(0.0, wait) if math.isfinite(wait) else None


def refused(failure: Failure) -> ConfigError:
    """What to tell about a request that the server will not do."""
    where, do = "teacher.served", "read the server's words above; its log may say more"
    if failure.status in (401, 403):
        where, do = "teacher.served.api_key_env", "check the key in that environment variable, and what it may do"
    elif failure.status in (404, 405):
        where = "teacher.served.base_url, model, api"
        do = "check the address (it mostly ends in /v1), the model's name, and whether the server has this API"
    return ConfigError("the served teacher refuses a request", where=where, why=failure.message, do=do)


def unanswered(failure: Failure, attempts: int) -> ScaleToTError:
    """What to tell when the last attempt failed too."""
    why = f"{failure.message} ({attempts} attempts)"
    do = "run the same command again when the server is well; what was answered is kept and not asked again"
    if failure.kind == "garbled":
        return DataError("the answers of the served teacher cannot be read", where="teacher.served", why=why, do=do)
    return ResourceError("the served teacher does not answer", where="teacher.served.base_url", why=why, do=do)
