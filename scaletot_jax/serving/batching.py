"""Requests become batches: a bounded queue, one worker thread, and a deadline that closes a batch.

    handler ─► queue (rows bounded) ─► worker: tables joined ─► inputs ─► one compiled call ─► results by request

A batch closes when the largest compiled shape is full, or ``wait`` seconds after its first request came, whichever is first;
while the worker is at work, requests gather by themselves. A request that is alone, as the one before it was, does not wait
for company that did not come then either. A batch holds requests of one generation only, so that a reload
changes nothing for those that are under way. Where the joined table has a value that is not allowed, the requests of the
batch are encoded each alone, and only those at fault are refused.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from scaletot_jax.encoder.model import Inputs
from scaletot_jax.errors import DataError
from scaletot_jax.population.compute import FINITE
from scaletot_jax.serving.failures import RequestError, from_data_error, too_many
from scaletot_jax.serving.generation import Generation
from scaletot_jax.serving.meters import Meters

Columns = dict[str, np.ndarray]


class Work(NamedTuple):
    """One request in the queue."""

    generation: Generation
    table: pa.Table
    came: float  # time.monotonic
    future: asyncio.Future[Columns]


class Batcher:
    """Start it before the first request.

    Args:
      limit: rows that may wait.
      wait: seconds after which a batch is closed.
      meters: where it counts.
    """

    def __init__(self, *, limit: int, wait: float, meters: Meters):
        self._limit, self._wait, self._meters = limit, wait, meters
        self._queue: deque[Work] = deque()
        self._rows = 0
        self._changed = threading.Condition()
        self._closing = False
        self._lonely = False  # the last batch was one request
        self._row_seconds = 1e-3  # of late, for Retry-After
        self._thread = threading.Thread(target=self._run, name="scaletot batches", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closing

    def close(self) -> None:
        """What is queued is still answered."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def submit(self, generation: Generation, table: pa.Table) -> asyncio.Future[Columns]:
        """To be called on the event loop; the future holds the columns of the table's rows, or a RequestError.

        Raises:
          RequestError: 503, the queue is full.
        """
        future: asyncio.Future[Columns] = asyncio.get_running_loop().create_future()
        with self._changed:
            if self._closing:
                raise too_many("the server is closing", 503, 1, "it was told to stop")
            if self._rows and self._rows + table.num_rows > self._limit:
                seconds = max(1, math.ceil(self._rows * self._row_seconds))
                self._meters.refused.labels("queue").inc()
                raise too_many("the queue is full", 503, seconds, f"{self._rows} rows wait, {self._limit} may")
            self._queue.append(Work(generation, table, time.monotonic(), future))
            self._count(table.num_rows)
            self._changed.notify_all()
        return future

    def _count(self, rows: int) -> None:
        self._rows += rows
        self._meters.queued.set(self._rows)

    def _run(self) -> None:
        while True:
            batch = self._next()
            if batch is None:
                return
            batch = [work for work in batch if not work.future.done()]  # given up by its handler
            if not batch:
                continue
            started = time.monotonic()
            try:
                results = answer(batch)
            except Exception as error:  # a bug must cost this batch, not the server
                results = [error] * len(batch)
            rows = sum(work.table.num_rows for work in batch)
            seconds = time.monotonic() - started
            self._row_seconds += 0.2 * (seconds / rows - self._row_seconds)
            self._meters.batch_rows.observe(rows)
            self._meters.batch_seconds.observe(seconds)
            for loop in {work.future.get_loop() for work in batch}:
                pairs = [(work, result) for work, result in zip(batch, results) if work.future.get_loop() is loop]
                if not loop.is_closed():
                    loop.call_soon_threadsafe(_deliver, pairs)

    def _next(self) -> list[Work] | None:
        """The requests of the next batch; None when closed and empty."""
        with self._changed:
            while not self._queue:
                if self._closing:
                    return None
                self._changed.wait()
            first = self._queue[0]
            most, close = first.generation.most_rows, first.came + self._wait
            if self._lonely and len(self._queue) == 1:
                close = first.came
            while self._rows < most and not self._closing and (left := close - time.monotonic()) > 0:
                self._changed.wait(left)
            batch = [self._queue.popleft()]
            rows = first.table.num_rows
            while (
                self._queue
                and self._queue[0].generation is first.generation
                and rows + self._queue[0].table.num_rows <= most
            ):
                batch.append(self._queue.popleft())
                rows += batch[-1].table.num_rows
            self._count(-rows)
            self._lonely = len(batch) == 1
            return batch


def answer(batch: list[Work]) -> list[Columns | Exception]:
    """The columns of each request, or why there are none. All requests are of one generation."""
    generation = batch[0].generation
    encoded: list[Inputs | Exception]
    if len(batch) == 1:
        encoded = [_encode(generation, batch[0].table)]
    else:
        # Arrow joins columns of one type; a JSON request's integers beside another's fractions become fractions.
        joined = _join([work.table for work in batch])
        whole = None if joined is None else _encode(generation, joined)
        if isinstance(whole, tuple):
            ends = np.cumsum([work.table.num_rows for work in batch])
            return _split(generation.compute(whole), [0, *ends.tolist()])
        encoded = [_encode(generation, work.table) for work in batch]
    good = [inputs for inputs in encoded if isinstance(inputs, tuple)]
    if not good:
        return [inputs for inputs in encoded if isinstance(inputs, Exception)]
    found = generation.compute(Inputs(*(np.concatenate(parts) for parts in zip(*good))))
    cuts = [0, *np.cumsum([inputs.cat.shape[0] for inputs in good]).tolist()]
    parts = iter(_split(found, cuts))
    return [next(parts) if isinstance(inputs, tuple) else inputs for inputs in encoded]


def _join(tables: list[pa.Table]) -> pa.Table | None:
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException:
        return None


def _encode(generation: Generation, table: pa.Table) -> Inputs | Exception:
    try:
        return generation.inputs(table)
    except DataError as error:
        return from_data_error(error)
    except Exception as error:  # whatever a table can do to the encoder is of its own request
        return error


def _split(found: Columns, cuts: list[int]) -> list[Columns | Exception]:
    out: list[Columns | Exception] = []
    for begin, end in pairwise(cuts):
        finite = found[FINITE][begin:end]
        if finite.all():
            out.append({name: value[begin:end] for name, value in found.items() if name != FINITE})
        else:
            row = int(np.flatnonzero(~finite)[0])
            out.append(RequestError("what the model says of a row is not finite", status=500, row=row))
    return out


def _deliver(pairs: list[tuple[Work, Any]]) -> None:
    for work, result in pairs:
        if work.future.done():
            continue
        if isinstance(result, Exception):
            work.future.set_exception(result)
        else:
            work.future.set_result(result)
