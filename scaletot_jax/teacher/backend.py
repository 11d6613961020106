"""Questions about a batch of profiles, answered from the store where they were asked before, else by the scorer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from scaletot_jax.teacher.dialogue import Draft, TextRequest
from scaletot_jax.teacher.scoring import Job, Prefixes, Scorer, TextJob
from scaletot_jax.teacher.store import Store, content_key, pack_json, pack_scores, unpack_json, unpack_scores
from scaletot_jax.teacher.token_tree import Scores, TokenTree, Variant, token_tree


class Wording(NamedTuple):
    """One stem as pieces of text (a revision's note precedes it), and the values that may follow (with their space)."""

    pieces: tuple[str, ...]
    values: tuple[str, ...]


class Question(NamedTuple):
    """What is asked after one profile: the chain so far as pieces of text, then several wordings at once."""

    profile: int  # row of the batch
    lead: tuple[str, ...]
    wordings: tuple[Wording, ...]


class Backend:
    """A scorer with a store.

    Args:
      scorer: runs the model; None where a subclass answers otherwise.
      store: keeps raw scores; a batch's are written together by :meth:`Batch.commit`.
      encode: text piece -> ids.
      identity: hash of all that determines a score beside the text: weights, tokenizer, template version, instruction.
      close: id of the line break.
      decode: ids -> text, for free text.
      reserved: [V] bool, ids that free text cannot contain.
    """

    def __init__(
        self,
        scorer: Scorer | None,
        store: Store,
        encode: Callable[[str], list[int]],
        *,
        identity: str,
        close: int,
        decode: Callable[[Sequence[int]], str] | None = None,
        reserved: np.ndarray | None = None,
    ):
        self.scorer, self.store, self.identity, self.close = scorer, store, identity, close
        self.decode, self.reserved = decode, reserved
        self._encode = encode
        self._ids: dict[str, tuple[int, ...]] = {}

    def ids(self, pieces: Sequence[str]) -> tuple[int, ...]:
        """Ids of separately encoded pieces, joined."""
        for piece in pieces:
            if piece not in self._ids:
                self._ids[piece] = tuple(self._encode(piece))
        return tuple(token for piece in pieces for token in self._ids[piece])

    def tree(self, question: Question, *, full: bool) -> TokenTree:
        """The question as a packed tree; ``full`` as in :func:`token_tree`."""
        variants = [
            Variant(self.ids((*question.lead, *wording.pieces)), tuple(self.ids((value,)) for value in wording.values))
            for wording in question.wordings
        ]
        return token_tree(variants, close=self.close, full=full)

    def open(self, profiles: Sequence[Sequence[int]]) -> Batch:
        """Up to B profiles, as ids."""
        return Batch(self, [tuple(ids) for ids in profiles])


class Batch:
    """Up to B profiles whose caches are made once, and only if something must be computed.

    Attributes:
      unread: per profile, questions that got no answer and count as undecided; a scorer always answers.
    """

    def __init__(self, backend: Backend, profiles: list[tuple[int, ...]]):
        self._backend, self._profiles = backend, profiles
        self.unread = [0] * len(profiles)
        self._prefixes: Prefixes | None = None
        self._fresh: dict[str, bytes] = {}

    def ask(self, questions: Sequence[Question], *, full: bool = False) -> list[tuple[list[Scores], int]]:
        """Scores of every wording of every question, and the tokens of the question's tree.

        Args:
          questions: about profiles of this batch.
          full: whether sums over the vocabulary are wanted, which take longer trees.

        Returns:
          One pair a question. The tokens are the same whether it was stored or computed, so that what is left of a
          profile's budget does not depend on what came before.
        """
        trees = [self._backend.tree(question, full=full) for question in questions]
        contents = [self._known(question, full) for question in questions]
        missing = [i for i, known in enumerate(contents) if known is None]
        if missing:
            scorer = self._backend.scorer
            assert scorer is not None
            if self._prefixes is None:
                self._prefixes = scorer.prefix(self._profiles)
            computed = scorer.score(self._prefixes, [Job(questions[i].profile, trees[i]) for i in missing])
            for i, scores in zip(missing, computed):
                contents[i] = [pack_scores(*score) for score in scores]
                self._fresh.update(zip(self._keys(questions[i], full), contents[i] or ()))
        return [
            ([Scores(*unpack_scores(content)) for content in known or ()], len(tree.tokens))
            for known, tree in zip(contents, trees)
        ]

    def write(self, requests: Sequence[TextRequest]) -> list[Draft]:
        """What the model writes at each request about profiles of this batch; equal requests are written once.

        A draft's tokens, read and written, are the same whether it was stored or computed.
        """
        keys = [self._text_key(request) for request in requests]
        missing = {
            key: request
            for key, request in zip(keys, requests)
            if key not in self._fresh and self._backend.store.get(key) is None
        }
        for key, draft in zip(missing, self._decode(list(missing.values()))):
            self._fresh[key] = pack_json(draft._asdict())
        drafts = []
        for key in keys:
            known = unpack_json(self._fresh.get(key) or self._backend.store.get(key) or b"")
            drafts.append(
                Draft(**{**known, **{name: tuple(known[name]) for name in ("ids", "log_probs", "entropies")}})
            )
        return drafts

    def _decode(self, requests: Sequence[TextRequest]) -> list[Draft]:
        """Runs the model; requests of the same bound and mark share calls."""
        backend, out = self._backend, dict[int, Draft]()
        kinds = [(request.max_tokens, request.close) for request in requests]
        for limit, mark in sorted(set(kinds)):
            assert backend.scorer is not None and backend.decode is not None and backend.reserved is not None
            if self._prefixes is None:
                self._prefixes = backend.scorer.prefix(self._profiles)
            members = [i for i, kind in enumerate(kinds) if kind == (limit, mark)]
            jobs = [TextJob(requests[i].profile, backend.ids(requests[i].lead)) for i in members]
            (close,) = backend.ids((mark,))
            decoded = backend.scorer.write(
                self._prefixes, jobs, close=close, reserved=backend.reserved, max_tokens=limit
            )
            for i, job, found in zip(members, jobs, decoded):
                count = int(found.length)
                ids = tuple(int(token) for token in found.tokens[:count])
                log_probs, entropies = (
                    tuple(float(x) for x in part[:count]) for part in (found.log_probs, found.entropies)
                )
                out[i] = Draft(
                    backend.decode(ids), ids, log_probs, entropies, bool(found.closed), len(job.lead) + count
                )
        return [out[i] for i in range(len(requests))]

    def _text_key(self, request: TextRequest) -> str:
        profile = self._profiles[request.profile]
        return content_key("text", self._backend.identity, profile, request.lead, request.close, request.max_tokens)

    def commit(self, extra: dict[str, bytes] | None = None) -> None:
        """Writes everything computed since the last commit, and ``extra``, in one transaction."""
        if self._fresh or extra:
            self._backend.store.put({**self._fresh, **(extra or {})})
        self._fresh = {}

    def _known(self, question: Question, full: bool) -> list[bytes] | None:
        """What is known of all wordings of a question, or None if any is missing. Full scores hold the local ones."""
        for wider in (full, True):
            keys = self._keys(question, wider)
            found = [self._fresh.get(key) or self._backend.store.get(key) for key in keys]
            contents = [content for content in found if content is not None]
            if len(contents) == len(keys):
                return contents
        return None

    def _keys(self, question: Question, full: bool) -> list[str]:
        kind, profile = "full" if full else "local", self._profiles[question.profile]
        common = (kind, self._backend.identity, profile, question.lead)
        return [content_key(*common, wording.pieces, wording.values) for wording in question.wordings]


def stack(scores: Sequence[Scores], mode: str) -> np.ndarray:
    """The wordings' log-probabilities as [J, V] float64; ``mode`` is ``trie`` or ``full``."""
    return np.stack([score.local if mode == "trie" else score.full for score in scores]).astype(np.float64)
