"""A served model as the teacher's backend: the same questions in, the same scores out, answers from an API.

The student's tokenizer measures texts here: profiles are cut as the student will see them, and a search's token bound
counts what the questions hold, the same for every teacher. What the server counts and charges is the ledger's business
(:mod:`scaletot_jax.teacher.served.ledger`).
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scaletot_jax.lm.tokenizer import Tokenizer
from scaletot_jax.teacher import prompt
from scaletot_jax.teacher.backend import Backend, Batch, Question
from scaletot_jax.teacher.dialogue import Draft, TextRequest
from scaletot_jax.teacher.served import probe, wording
from scaletot_jax.teacher.served.asking import Asking, Stem, ask_chat, ask_completions, read_text, text_request
from scaletot_jax.teacher.served.drawing import Drawer
from scaletot_jax.teacher.served.ledger import Ledger, Prices
from scaletot_jax.teacher.served.pace import Pace
from scaletot_jax.teacher.served.reading import Answer
from scaletot_jax.teacher.served.settings import api_key
from scaletot_jax.teacher.served.spare import Spare
from scaletot_jax.teacher.served.text_tree import Found
from scaletot_jax.teacher.served.transport import Endpoint, Failure, unanswered
from scaletot_jax.teacher.store import Store, content_key, pack_json
from scaletot_jax.teacher.token_tree import Scores

_SPARE_BYTES = 64 << 10  # room on the disk for each request under way,
_SPARE_PER_TOKEN = 2 << 10  # and for each log-probability it may hold
_MANY_OUTSIDE = 0.25  # share of values outside the top k beyond which the reader is told


class Service:
    """A served model with its account, for one run. Use as a context manager; says what was spent when it closes.

    Args:
      settings: the configuration's section ``teacher.served``.
      store: keeps every answer.
      folder: where the ledger ``requests.jsonl`` lies.
      tokenizer: the student's.
      seed: the configuration's.
      pace: when requests may start (default: by the settings).

    Raises:
      ConfigError: the key is not set.
      ResourceError: the disk is full.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        store: Store,
        folder: str | Path,
        tokenizer: Tokenizer,
        *,
        seed: int = 0,
        pace: Pace | None = None,
    ):
        self.tokenizer, self._settings, self._store, self._seed = tokenizer, settings, store, seed
        self._endpoint = Endpoint(settings["base_url"], api_key(settings), settings["timeout_s"])
        prices = Prices(settings["usd_per_million_input"], settings["usd_per_million_output"])
        room = _SPARE_BYTES + settings["top_k"] * _SPARE_PER_TOKEN
        self._spare = Spare(Path(folder) / ".spare.tmp", (4 + settings["concurrency"]) * room)
        self._ledger = Ledger(
            Path(folder) / "requests.jsonl",
            prices,
            max_tokens=settings["max_total_tokens"],
            max_usd=settings["max_usd"],
        )
        self._drawer = Drawer(
            self._endpoint,
            store,
            self._ledger,
            self._spare,
            top_k=settings["top_k"],
            concurrency=settings["concurrency"],
            retries=settings["retries"],
            pace=Pace(settings["requests_per_minute"]) if pace is None else pace,
        )
        self._before = self._ledger.spent
        self._checked = False  # whether this process knows that the server is the one the run began with

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        spent, before = self._ledger.spent, self._before
        if spent != before:
            print(
                f"served teacher: {spent.requests - before.requests:,} requests answered, "
                f"{spent.lost - before.lost:,} lost; in all {spent.input_tokens:,} input and "
                f"{spent.output_tokens:,} output tokens, {spent.usd:.4f} US dollars ({self._ledger.path})",
                file=sys.stderr,
            )
        self._ledger.close()
        self._spare.release()

    def backend(self, instruction: str) -> ServedBackend:
        """The backend for one instruction. Asks the server what it can do, unless the store knows."""
        return ServedBackend(self, self._store, self.tokenizer, self._server(), instruction, self._settings, self._seed)

    def draw(self, server: probe.Server, requests: Mapping[str, wording.Request]) -> dict[str, Answer]:
        """Answers by key, see :meth:`Drawer.draw`."""
        if not self._checked and any(self._store.get(key) is None for key in requests):
            _, now = self._describe()
            if now and server.description and now != server.description:
                raise probe.changed(server.description, now)
        return self._drawer.draw(requests)

    def _server(self) -> probe.Server:
        wanted = [self._settings[name] for name in ("api", "model", "top_k")]
        key = content_key("served.server", wording.TEMPLATE, *wanted)
        kept = self._store.get_json(key)
        if kept is None:
            model, description = self._describe()
            able = probe.find_out(self._drawer, wanted[0], model, wanted[2])
            kept = probe.Server(model, description, able).to_json()
            self._store.put({key: pack_json(kept)})
        return probe.Server.from_json(kept)

    def _describe(self) -> tuple[str, dict[str, Any]]:
        try:
            described = probe.describe(self._endpoint, self._settings["model"])
        except Failure as failure:
            raise unanswered(failure, 1) from failure
        self._checked = True
        return described


class ServedBackend(Backend):
    """See :class:`Backend`. ``identity`` covers the server, its model, the instruction and the templates."""

    def __init__(
        self,
        service: Service,
        store: Store,
        tokenizer: Tokenizer,
        server: probe.Server,
        instruction: str,
        settings: Mapping[str, Any],
        seed: int,
    ):
        api, samples = settings["api"], settings["samples"]
        templates = (prompt.TEMPLATE, wording.TEMPLATE)
        identity = content_key(
            "served", server.to_json(), api, samples, seed, templates, instruction, tokenizer.fingerprint
        )
        (close,) = tokenizer.encode("\n")
        super().__init__(None, store, tokenizer.encode, identity=identity, close=close, decode=tokenizer.decode)
        self._service, self._server, self._instruction = service, server, instruction
        self._api, self._samples, self._seed = api, samples, seed
        self._decode = tokenizer.decode
        self._found: list[Found] = []
        self._reported: set[tuple[str, str]] = set()

    def open(self, profiles: Sequence[Sequence[int]]) -> ServedBatch:
        """Up to B profiles, as ids of the student's tokenizer."""
        return ServedBatch(self, [tuple(ids) for ids in profiles])

    def find(self, questions: Sequence[Question], profiles: Sequence[Sequence[int]]) -> list[list[Found]]:
        """Distributions of every wording of every question; open requests go to the server together.

        Args:
          profiles: ids of the profiles that the questions are about.
        """
        texts = [wording.plain_data(self._decode(list(ids))) for ids in profiles]
        stems = [
            Stem(self._instruction, texts[q.profile], *_last_line("".join((*q.lead, *w.pieces))), w.values)
            for q in questions
            for w in q.wordings
        ]
        found = iter(self._run([self._ask(stem) for stem in stems]))
        grouped = [[next(found) for _ in question.wordings] for question in questions]
        self._found += [one for group in grouped for one in group]
        return grouped

    def write(self, requests: Sequence[TextRequest], profiles: Sequence[Sequence[int]]) -> list[Draft]:
        """Free texts, asked for together; ``profiles`` as in :meth:`find`."""
        sent = []
        for request in requests:
            profile = wording.plain_data(self._decode(list(profiles[request.profile])))
            stem = Stem(self._instruction, profile, *_last_line("".join(request.lead)), ())
            server = (self._server.model, self._server.able, self._api)
            sent.append(
                text_request(stem, *server, close=request.close, max_tokens=request.max_tokens, seed=self._seed)
            )
        keys = [self._key(request) for request in sent]
        answers = self._service.draw(self._server, dict(zip(keys, sent)))
        return [
            read_text(answers[key], max_tokens=request.max_tokens, read=len(self.ids(request.lead)))
            for key, request in zip(keys, requests)
        ]

    def evidence(self) -> dict[str, Any]:
        """How the answers so far were come by; the same when they are replayed."""
        measured = [(f.entropy, f.tail) for f in self._found if np.isfinite(f.entropy)]
        means = np.mean(measured, axis=0).tolist() if measured else [None, None]
        outside = sum(f.unseen for f in self._found) / max(1, sum(len(f.log_probs) for f in self._found))
        if outside > _MANY_OUTSIDE:
            print(
                f"warning: {outside:.0%} of the values are outside the server's top {self._server.able.top_k} tokens, and "
                "only bounded; let it report more (teacher.served.top_k, vLLM: --max-logprobs), or try api=chat",
                file=sys.stderr,
            )
        return {
            "api": self._api,
            "model": self._server.model,
            "reported": [list(pair) for pair in sorted(self._reported)],
            "top_k": self._server.able.top_k,
            "schema": self._server.able.schema,
            "distributions": len(self._found),
            "requests": sum(f.requests for f in self._found),
            "read_from": dict(sorted(Counter(f.how for f in self._found).items())),
            "mean_truncated_entropy": means[0],
            "mean_tail": means[1],
            "values_outside_top_k": outside,
            "repaired": sum(f.repaired for f in self._found),
        }

    def _ask(self, stem: Stem) -> Asking:
        able, model = self._server.able, self._server.model
        if self._api == "completions":
            return ask_completions(stem, model, able, seed=self._seed)
        return ask_chat(stem, model, able, seed=self._seed, samples=self._samples)

    def _run(self, asking: Sequence[Asking]) -> list[Found]:
        """Drives all in rounds: the requests of a round are independent of each other."""
        found: dict[int, Found] = {}
        waiting: dict[int, list[wording.Request]] = {i: next(ask) for i, ask in enumerate(asking)}
        while waiting:
            keys = {i: [self._key(request) for request in requests] for i, requests in waiting.items()}
            distinct = {key: r for i in waiting for key, r in zip(keys[i], waiting[i])}
            answers = self._service.draw(self._server, distinct)
            self._reported |= {(answers[key].model, answers[key].fingerprint) for key in distinct}
            before, waiting = waiting, {}
            for i in before:
                try:
                    waiting[i] = asking[i].send([answers[key] for key in keys[i]])
                except StopIteration as stop:
                    found[i] = stop.value
        return [found[i] for i in range(len(asking))]

    def _key(self, request: wording.Request) -> str:
        """Of an answer in the store: the server as it described itself, and the whole request, which holds template,
        profile, chain, stem and seed."""
        return content_key("served.answer", self._server.model, self._server.description, *request)


class ServedBatch(Batch):
    """Up to B profiles. ``unread`` counts wordings whose distribution is uniform because no answer could be read."""

    def __init__(self, backend: ServedBackend, profiles: list[tuple[int, ...]]):
        super().__init__(backend, profiles)
        self._served = backend

    def ask(self, questions: Sequence[Question], *, full: bool = False) -> list[tuple[list[Scores], int]]:
        """See :meth:`Batch.ask`; answers are kept as they arrive, not by :meth:`commit`.

        Raises:
          ValueError: sums over the vocabulary are asked for.
        """
        if full:
            raise ValueError("a served teacher has no sums over the vocabulary")
        grouped = self._served.find(questions, self._profiles)
        for question, found in zip(questions, grouped):
            self.unread[question.profile] += sum(one.how == "nothing" for one in found)
        return [
            ([_scores(one) for one in found], len(self._served.tree(question, full=False).tokens))
            for question, found in zip(questions, grouped)
        ]

    def write(self, requests: Sequence[TextRequest]) -> list[Draft]:
        """See :meth:`Batch.write`."""
        return self._served.write(requests, self._profiles)


def _last_line(text: str) -> tuple[str, str]:
    """What precedes the last line, and the last line, which is to be completed."""
    start = text.rfind("\n") + 1
    return text[:start], text[start:]


def _scores(found: Found) -> Scores:
    local = found.log_probs.astype(np.float32)
    return Scores(np.full_like(local, np.nan), local)
