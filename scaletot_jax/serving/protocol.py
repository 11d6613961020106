"""uvicorn's HTTP/1.1 protocol with the two limits it lacks: time for a request's head, and the number of connections."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from scaletot_jax.serving.guard import Limits


def protocol(limits: Limits) -> type[H11Protocol]:
    """The class for ``uvicorn.Config(http=…)``."""

    class Protocol(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                transport.abort()
            else:
                self._time()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            waiting = self.conn.their_state is h11.IDLE and self.conn.trailing_data[0] != b""
            if not waiting:
                self._untime()
            elif self._timer is None:
                self._time()

        def connection_lost(self, exc: Exception | None) -> None:
            self._untime()
            super().connection_lost(exc)

        def _time(self) -> None:
            self._timer = self.loop.call_later(limits.head_seconds, self.transport.abort)

        def _untime(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Protocol
