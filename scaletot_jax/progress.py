"""Progress of long stages: a live line on a terminal, a line at the start and the end when piped."""

from __future__ import annotations

import sys
import time


def _duration(seconds: float) -> str:
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"


class Progress:
    """Counts finished units and reports the rate and the time left on stderr.

    On a terminal one line is rewritten at most five times a second. When stderr is piped, only the start and the end
    are printed, without control characters.

    Args:
      label: what is being done, e.g. ``"teach"``.
      total: number of units in all.
      unit: name of one unit in the plural, e.g. ``"profiles"``.
      done: units finished before this process started (a resumed stage).
    """

    def __init__(self, label: str, total: int, unit: str, *, done: int = 0, stream=None):
        self.label, self.total, self.unit = label, total, unit
        self.done, self._resumed_at = done, done
        self._stream = sys.stderr if stream is None else stream
        self._live = bool(getattr(self._stream, "isatty", lambda: False)())
        self._start = time.monotonic()
        self._last_draw = 0.0

    def __enter__(self) -> Progress:
        note = f" (continuing at {self.done})" if self.done else ""
        if not self._live:
            self._print(f"{self.label}: {self.total} {self.unit}{note}\n")
        return self

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count
        now = time.monotonic()
        if self._live and (now - self._last_draw > 0.2 or self.done >= self.total):
            self._last_draw = now
            self._print(f"\r\033[K{self.label}: {self.done}/{self.total} {self.unit}{self._rate(now)} {note}".rstrip())

    def __exit__(self, exc_type, exc, tb) -> None:
        state = "stopped" if exc_type else "done"
        took = _duration(time.monotonic() - self._start)
        text = f"{self.label}: {state}, {self.done}/{self.total} {self.unit} in {took}\n"
        self._print(("\r\033[K" if self._live else "") + text)

    def _rate(self, now: float) -> str:
        fresh, elapsed = self.done - self._resumed_at, now - self._start
        if fresh <= 0 or elapsed <= 0:
            return ""
        left = (self.total - self.done) * elapsed / fresh
        return f", {fresh / elapsed:.1f}/s, {_duration(left)} left"

    def _print(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # a closed pipe must not end a long stage
            self._live = False
