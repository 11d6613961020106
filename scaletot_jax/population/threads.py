"""A reader before the device and a writer after it, each in a thread of its own, with bounded queues between.

An error in either surfaces in the main loop with its own place and type; nobody waits for a thread that has ended.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
_POLL_S = 0.1
_END = object()


class Reader(Generic[T]):
    """Runs an iterable in a thread, at most ``depth`` items ahead. A context manager and an iterator."""

    def __init__(self, items: Iterable[T], depth: int = 2):
        self._items = items
        self._queue: queue.Queue = queue.Queue(depth)
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="reader", daemon=True)

    def __enter__(self) -> Reader[T]:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def __iter__(self) -> Iterator[T]:
        while True:
            try:
                item = self._queue.get(timeout=_POLL_S)
            except queue.Empty:
                if self._thread.is_alive():
                    continue
                item = _END if self._queue.empty() else self._queue.get()
            if item is _END:
                if self._error is not None:
                    raise self._error
                return
            yield item

    def _run(self) -> None:
        try:
            for item in self._items:
                if not _put(self._queue, item, self._stop):
                    return
        except BaseException as error:
            self._error = error
        _put(self._queue, _END, self._stop)


class Writer(Generic[T]):
    """Hands items to ``consume`` in a thread, at most ``depth`` waiting. A context manager.

    Args:
      consume: called with every item in order.
      close: called in the thread after the last item, with whether all went well; never twice.
    """

    def __init__(self, consume: Callable[[T], None], close: Callable[[bool], None], depth: int = 2):
        self._consume, self._close = consume, close
        self._queue: queue.Queue = queue.Queue(depth)
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)

    def __enter__(self) -> Writer[T]:
        self._thread.start()
        return self

    def put(self, item: T) -> None:
        """Waits for a free place; raises what the thread failed with."""
        if not _put(self._queue, item, self._stop):
            self._thread.join()
            assert self._error is not None
            raise self._error

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            _put(self._queue, _END, self._stop)
        else:
            self._stop.set()
        self._thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def _run(self) -> None:
        well = False
        try:
            while not self._stop.is_set():
                try:
                    item = self._queue.get(timeout=_POLL_S)
                except queue.Empty:
                    continue
                if item is _END:
                    well = True
                    break
                self._consume(item)
        except BaseException as error:
            self._error = error
        try:
            self._close(well)
        except BaseException as error:
            self._error = self._error or error
        self._stop.set()


def _put(target: queue.Queue, item: object, stop: threading.Event) -> bool:
    """Whether the item found a place before ``stop``."""
    while not stop.is_set():
        try:
            target.put(item, timeout=_POLL_S)
            return True
        except queue.Full:
            continue
    return False
