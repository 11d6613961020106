"""When a request may start: so many a minute, and none while the server asks for a pause."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Pace:
    """A queue of starting times, shared by threads.

    Starts are spaced evenly, 60 / per_minute seconds apart, so no minute sees more than ``per_minute`` + 1 of them.

    Args:
      per_minute: requests a minute; 0 for no limit.
      now, sleep: a monotonic clock in seconds and what waits for it (default: a wait that :meth:`cancel` ends).
    """

    def __init__(
        self,
        per_minute: float,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] | None = None,
    ):
        self._cancelled = threading.Event()
        self._gap = 60.0 / per_minute if per_minute else 0.0
        self._now, self._sleep = now, sleep or self._cancelled.wait
        self._lock = threading.Lock()
        self._next = self._pause = float("-inf")

    def wait(self) -> None:
        """Returns when the caller may start."""
        with self._lock:
            start = max(self._now(), self._next, self._pause)
            self._next = start + self._gap
        while True:
            with self._lock:
                start = max(start, self._pause)  # a pause may have been asked for meanwhile
            left = start - self._now()
            if left <= 0 or self._cancelled.is_set():
                return
            self._sleep(left)

    def pause(self, seconds: float) -> None:
        """Nobody starts for so many seconds."""
        with self._lock:
            self._pause = max(self._pause, self._now() + seconds)
            self._next = max(self._next, self._pause)

    def cancel(self) -> None:
        """Nobody waits any more."""
        self._cancelled.set()


def backoff(attempt: int, wait: float | None, jitter: float) -> float:
    """Seconds before attempt ``attempt`` + 1 (0 is the first): what the server asked for, at most ten minutes, else 0.5,
    1, 2 ... 60; a random part of it, ``jitter`` in [0, 1), is added or taken so that clients do not come back together.
    """
    if wait is not None:
        return min(wait, 600.0) + jitter
    return min(60.0, 0.5 * 2.0**attempt) * (0.5 + jitter)
