"""Requests to answers: from the store where they were answered before, else from the server, each kept at once.

Requests run side by side, and at most ``concurrency`` are under way, counted until their answer is in the store and
the ledger: that many, and no more, a kill can cost. The store is written by the calling thread alone. When a request
fails for good, or the run is interrupted, those under way are still waited for and kept, because they are paid for.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import NamedTuple

from scaletot_jax.errors import ResourceError, ScaleToTError
from scaletot_jax.teacher.served.ledger import Ledger
from scaletot_jax.teacher.served.pace import Pace, backoff
from scaletot_jax.teacher.served.reading import Answer, read_answer
from scaletot_jax.teacher.served.spare import Spare
from scaletot_jax.teacher.served.transport import Endpoint, Failure, refused, unanswered
from scaletot_jax.teacher.served.wording import Request, most_tokens
from scaletot_jax.teacher.store import Store, pack_json


class _Done(NamedTuple):
    """An answered request that is not yet settled."""

    number: int  # in the ledger
    answer: Answer


class Drawer:
    """Draws answers.

    Args:
      endpoint: the server.
      store, ledger, spare: where answers and their cost are kept, and room for them.
      key: request -> its key in the store.
      top_k: alternatives kept at a place.
      concurrency, retries: as in the configuration.
      pace: when requests may start.
      jitter: numbers in [0, 1).
    """

    def __init__(
        self,
        endpoint: Endpoint,
        store: Store,
        ledger: Ledger,
        spare: Spare,
        *,
        top_k: int,
        concurrency: int,
        retries: int,
        pace: Pace,
        jitter: Callable[[], float] = random.random,
    ):
        self._endpoint, self._store, self._ledger, self._spare = endpoint, store, ledger, spare
        self._top_k, self._concurrency, self._retries = top_k, concurrency, retries
        self._pace, self._jitter = pace, jitter
        self._stopping = threading.Event()
        for number, key in list(ledger.unsettled.items()):  # an earlier process was killed between the two
            kept = store.get_json(key)
            if kept is None:
                ledger.settle(number, "lost", why="the process ended before the answer was kept")
            else:
                ledger.settle(number, "answered", kept["input_tokens"], kept["output_tokens"])

    def draw(self, requests: Mapping[str, Request]) -> dict[str, Answer]:
        """Answers of requests by their keys.

        Raises:
          ResourceError: the budget is spent, the disk is full, or the server does not answer, after all retries.
          ConfigError: the server refuses a request.
        """
        found = {key: self._store.get_json(key) for key in requests}
        answers = {key: Answer.from_json(kept) for key, kept in found.items() if kept is not None}
        waiting = [key for key in requests if key not in answers]
        if waiting:
            self._draw({key: requests[key] for key in waiting}, answers)
        return answers

    def attempt(self, request: Request) -> Answer:
        """The answer of a request that is not kept: what finding out about a server takes.

        Raises:
          Failure: the server refuses it.
        """
        try:
            done = self._one("", request)
        except ScaleToTError as error:
            if isinstance(error.__cause__, Failure) and not error.__cause__.passing:
                raise error.__cause__ from None
            raise
        self._ledger.settle(done.number, "answered", done.answer.input_tokens, done.answer.output_tokens)
        return done.answer

    def _draw(self, requests: Mapping[str, Request], answers: dict[str, Answer]) -> None:
        queue, failed = list(requests), None
        under_way: dict[Future[_Done], str] = {}
        with ThreadPoolExecutor(self._concurrency) as pool:
            try:
                while (queue and failed is None) or under_way:
                    while queue and failed is None and len(under_way) < self._concurrency:
                        key = queue.pop(0)
                        under_way[pool.submit(self._one, key, requests[key])] = key
                    finished, _ = wait(under_way, return_when=FIRST_COMPLETED)
                    for future in finished:
                        error = self._keep(future, under_way.pop(future), answers)
                        failed = failed or error
                        if failed is not None:
                            self._stop()
            except BaseException:
                self._stop()
                for future, key in under_way.items():
                    self._keep(future, key, answers)
                raise
        if failed is not None:
            raise failed

    def _keep(self, future: Future[_Done], key: str, answers: dict[str, Answer]) -> ScaleToTError | None:
        """Writes a finished request's answer, then its cost. Returns why there is none, or what stops the run."""
        try:
            done = future.result()
        except ScaleToTError as error:
            return error
        content = pack_json(done.answer.to_json())
        cost = (done.answer.input_tokens, done.answer.output_tokens)
        failed = None
        for write in (
            lambda: self._store.put({key: content}),
            lambda: self._ledger.settle(done.number, "answered", *cost),
        ):
            try:
                self._spare.keep(write)
            except ResourceError as error:
                failed = error
        answers[key] = done.answer
        return failed

    def _stop(self) -> None:
        self._stopping.set()
        self._ledger.refuse_more()
        self._pace.cancel()

    def _one(self, key: str, request: Request) -> _Done:
        """Sends a request until it is answered. Runs in a thread; touches no store."""
        for attempt in range(self._retries + 1):
            self._pace.wait()
            number = self._ledger.reserve(key, *most_tokens(request))
            try:
                try:
                    answer = read_answer(self._endpoint.exchange(request.path, request.body), top_k=self._top_k)
                except ValueError as error:
                    raise Failure("garbled", str(error)) from error
            except Failure as failure:
                self._ledger.settle(number, "lost" if failure.paid else "free", why=failure.message)
                if not failure.passing:
                    raise refused(failure) from failure
                if attempt == self._retries or self._stopping.is_set():
                    raise unanswered(failure, attempt + 1) from failure
                pause = backoff(attempt, failure.wait, self._jitter())
                if failure.kind == "busy":
                    self._pace.pause(pause)  # the server asked everybody
                else:
                    self._stopping.wait(pause)
                continue
            return _Done(number, answer)
        raise AssertionError("unreachable")
