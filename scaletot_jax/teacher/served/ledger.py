"""The account of a served teacher: every request, its tokens and its price, one JSON line each, never rewritten.

A line is written before a request is sent, with the most it can cost, and another when its cost is known. So the limits
hold whatever happens: what was sent and never settled, because the process was killed or the answer lost, counts in
full. The last line may be torn by a kill or a full disk; it is cut off when the file is opened.
"""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from scaletot_jax.errors import DataError, ResourceError
from scaletot_jax.files import disk_errors


class Prices(NamedTuple):
    """US dollars for a million tokens."""

    input: float
    output: float

    def usd(self, input_tokens: int, output_tokens: int) -> float:
        return (input_tokens * self.input + output_tokens * self.output) / 1e6


class Spent(NamedTuple):
    """Totals. ``requests`` were answered; ``lost`` were sent and maybe paid, but brought nothing."""

    requests: int = 0
    lost: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    usd: float = 0.0


class Ledger:
    """The account in one file. Safe for threads of one process. Use as a context manager.

    Args:
      path: the file; made where absent.
      prices: of tokens.
      max_tokens, max_usd: limits over the file's whole life; 0 for none.

    Raises:
      DataError: a line before the last is damaged.
      ResourceError: the disk is full.
    """

    def __init__(self, path: str | Path, prices: Prices, *, max_tokens: int = 0, max_usd: float = 0.0):
        self.path, self._prices, self._max_tokens, self._max_usd = Path(path), prices, max_tokens, max_usd
        self._changed = threading.Condition()
        self._open: dict[int, tuple[int, int]] = {}  # sent and not settled: the most each may cost
        self.spent = Spent()
        self.unsettled: dict[int, str] = {}  # number -> key of what an earlier process sent and did not settle
        self._closed = False
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            self._size = self._read()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._file)

    def reserve(self, key: str, input_tokens: int, output_tokens: int) -> int:
        """Announces a request with the most it can cost. Waits while only what is in flight stands in its way.

        Returns:
          Its number.

        Raises:
          ResourceError: a limit does not allow it, or :meth:`refuse_more` was called.
        """
        with self._changed:
            while (limit := self._hindrance(input_tokens, output_tokens)) and self._open and not self._closed:
                self._changed.wait(1.0)
            if limit or self._closed:
                raise ResourceError(
                    "the budget of the served teacher is spent" if limit else "the run is stopping",
                    where=str(self.path),
                    why=limit,
                    do="raise the limit and run the same command again; everything paid for is kept and not asked again",
                )
            self._number += 1
            self._write(
                {"id": self._number, "event": "sent", "key": key, "input": input_tokens, "output": output_tokens}
            )
            self._open[self._number] = (input_tokens, output_tokens)
            return self._number

    def settle(self, number: int, event: str, input_tokens: int = -1, output_tokens: int = -1, why: str = "") -> None:
        """Closes a request.

        Args:
          event: ``answered``, ``lost`` (maybe paid, nothing came of it) or ``free`` (certainly not paid).
          input_tokens, output_tokens: as the server counted; −1 for the most announced.
          why: for a failure.
        """
        with self._changed:
            most = self._open.get(number, (0, 0))
            told = [m if t < 0 else t for t, m in zip((input_tokens, output_tokens), most)]
            read, written = (0, 0) if event == "free" else told
            usd = self._prices.usd(read, written)
            line = {"id": number, "event": event, "input": read, "output": written, "usd": usd}
            self._write(line | ({"why": why} if why else {}))
            self._open.pop(number, None)
            self.unsettled.pop(number, None)
            self._add(event, read, written, usd)
            self._changed.notify_all()

    def refuse_more(self) -> None:
        """No further request is let through; those in flight may settle."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _hindrance(self, input_tokens: int, output_tokens: int) -> str:
        """Why this much more cannot be spent, or ""."""
        held = [sum(cost[i] for cost in self._open.values()) for i in (0, 1)]
        more = (held[0] + input_tokens, held[1] + output_tokens)
        tokens = self.spent.input_tokens + self.spent.output_tokens
        if self._max_tokens and tokens + sum(more) > self._max_tokens:
            return f"{tokens:,} of teacher.served.max_total_tokens = {self._max_tokens:,} tokens are spent"
        if self._max_usd and self.spent.usd + self._prices.usd(*more) > self._max_usd:
            return f"{self.spent.usd:.4f} of teacher.served.max_usd = {self._max_usd:g} US dollars are spent"
        return ""

    def _read(self) -> int:
        """Adds up the file and cuts off a torn end. Prices may have changed: what was paid is what was written."""
        content, end, self._number = self.path.read_bytes(), 0, 0
        for number, line in enumerate(content.splitlines(keepends=True), 1):
            try:
                entry = json.loads(line) if line.endswith(b"\n") else None
                if not isinstance(entry, dict):
                    raise ValueError("not an object")
                self._replay(entry)
            except (ValueError, KeyError, TypeError) as error:
                if end + len(line) < len(content):
                    raise DataError(
                        "the ledger of the served teacher is damaged",
                        where=f"{self.path}, line {number}",
                        why="only its last line can be torn by a kill",
                        do="restore the file, or put it aside and lower the limits by what was spent",
                    ) from error
                os.ftruncate(self._file, end)
                break
            end += len(line)
        return end

    def _replay(self, entry: dict[str, Any]) -> None:
        number, cost = int(entry["id"]), (int(entry["input"]), int(entry["output"]))
        if entry["event"] == "sent":
            self._open[number], self.unsettled[number] = cost, str(entry["key"])
            self._number = max(self._number, number)
        else:
            self._open.pop(number, None)
            self.unsettled.pop(number, None)
            self._add(entry["event"], *cost, float(entry["usd"]))

    def _add(self, event: str, input_tokens: int, output_tokens: int, usd: float) -> None:
        s = self.spent
        self.spent = Spent(
            s.requests + (event == "answered"),
            s.lost + (event == "lost"),
            s.input_tokens + input_tokens,
            s.output_tokens + output_tokens,
            s.usd + usd,
        )

    def _write(self, entry: dict[str, Any]) -> None:
        """One line, whole or not at all."""
        line = json.dumps({**entry, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}).encode() + b"\n"
        with disk_errors(self.path):
            try:
                if os.write(self._file, line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                os.ftruncate(self._file, self._size)
                raise
        self._size += len(line)
