"""The teacher at work: the pilot and the searches of many profiles, in fixed batches through one backend."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from scaletot_jax.chains.reserved import compile_for
from scaletot_jax.chains.spec import ChainSpec
from scaletot_jax.lm.load import LoadedLM
from scaletot_jax.profiles.prompt_ids import fit_profile
from scaletot_jax.progress import Progress
from scaletot_jax.teacher import pilot as piloting
from scaletot_jax.teacher import prompt, questions, records
from scaletot_jax.teacher.backend import Backend, Batch, Question, stack
from scaletot_jax.teacher.budget import Bounds
from scaletot_jax.teacher.cost import call_cost
from scaletot_jax.teacher.dialogue import Answer, Ask, Draw
from scaletot_jax.teacher.questions import Calibration, Case
from scaletot_jax.teacher.scoring import Scorer, padded_length
from scaletot_jax.teacher.search import run_together, search
from scaletot_jax.teacher.served.backend import ServedBackend, Service
from scaletot_jax.teacher.store import Store, content_key, pack_json
from scaletot_jax.teacher.token_tree import Scores
from scaletot_jax.teacher.writing import write_texts


class Profile(NamedTuple):
    """A profile to reason about: its exact key, its fields, and its text's ids."""

    key: str
    record: Mapping[str, Any]
    ids: tuple[int, ...]


class Reasoner:
    """A teacher for one chain specification.

    Args:
      spec: the chain specification.
      lm: the language model, run here or served.
      store: keeps scores and finished searches.
      settings: the configuration's teacher section.
      max_profile_tokens: longer profile texts lose whole lines from the top.
      fields: names of the profile fields in use.
      render: record -> profile text.
      vocabulary: values that a free text may hold only where the profile does, see :mod:`scaletot_jax.teacher.grounding`.

    Raises:
      DataError: a specification with free slots cannot be compiled for the model's tokenizer.
    """

    def __init__(
        self,
        spec: ChainSpec,
        lm: LoadedLM | Service,
        store: Store,
        settings: Mapping[str, Any],
        *,
        max_profile_tokens: int,
        fields: Collection[str],
        render: Callable[[Mapping[str, Any]], str],
        vocabulary: Collection[str] = (),
    ):
        self.spec, self.settings, self.fields, self.render = spec, settings, frozenset(fields), render
        self._encode, self._limit = lm.tokenizer.encode, max_profile_tokens
        self._encode_data = partial(lm.tokenizer.encode, control=False)
        self._vocabulary = tuple(vocabulary)
        rows = lm.tokenizer.vocab_size if isinstance(lm, Service) else lm.config.vocab_size
        self._chain = compile_for(spec, lm.tokenizer, rows) if spec.free_slots else None
        self.backend: Backend = (
            lm.backend(prompt.instruction_text(spec))
            if isinstance(lm, Service)
            else self._scoring_backend(lm, store, rows)
        )
        self.shortened = 0  # profiles that lost tokens

    def _scoring_backend(self, lm: LoadedLM, store: Store, rows: int) -> Backend:
        instruction = [*lm.tokenizer.start, *prompt.encode_pieces([prompt.instruction_text(self.spec)], self._encode)]
        scorer = Scorer(
            lm.params,
            lm.config,
            instruction=instruction,
            max_profile_tokens=self._limit,
            batch_size=self.settings["batch_size"],
        )
        identity = content_key(lm.fingerprint, lm.tokenizer.fingerprint, prompt.TEMPLATE, instruction)
        (close,) = self._encode("\n")
        return Backend(
            scorer,
            store,
            self._encode,
            identity=identity,
            close=close,
            decode=lm.tokenizer.decode,
            reserved=None if self._chain is None else np.isin(np.arange(rows), self._chain.grammar.stop),
        )

    def profile(self, key: str, record: Mapping[str, Any]) -> Profile:
        """Renders and encodes one record."""
        ids, left_out = fit_profile(self.render(record), self._encode_data, self._limit)
        self.shortened += left_out > 0
        return Profile(key, record, tuple(ids))

    # -- the pilot --------------------------------------------------------------------------------------------------

    def pilot(
        self, profiles: Sequence[Profile], base_rate: Sequence[float] | None, progress: Progress | None = None
    ) -> tuple[Calibration, dict[str, Any]]:
        """Scores the pilot profiles, tests polarity, and decides.

        Args:
          base_rate: [Kb] aggregate bucket shares of the training rows, or None.

        Returns:
          The calibration, and the evidence of every decision.
        """
        served = isinstance(self.backend, ServedBackend)
        scoring = "trie" if served else self.settings["scoring"]  # sums over the vocabulary are not served
        provisional = "trie" if scoring == "auto" else scoring
        trial = piloting.MODE_PROFILES if scoring == "auto" else 0
        scores, direct, spent = self._score_pilot(profiles, provisional, trial, progress)
        mode, mode_evidence = piloting.choose_mode(direct, scoring)
        if mode != provisional:  # the shorter trees do not hold what is needed: score again
            scores, _, again = self._score_pilot(profiles, mode, 0, None)
            spent = (spent[0] + again[0], spent[1] + again[1])
        decide = {
            "paraphrases": self.settings["paraphrases"],
            "quantile": self.settings["refine_quantile"],
            "guide": self.settings["guide"],
            "base_rate": base_rate,
        }
        calibration, _ = piloting.decide(self.spec, scores, **decide)
        polarity = self._polarity(profiles[: piloting.POLARITY_PROFILES], calibration)
        dropped = {name: result for name, result in polarity.items() if result.get("passed") is False}
        calibration, evidence = piloting.decide(self.spec, scores, **decide, dropped=dropped)
        if isinstance(self.backend, ServedBackend):
            mode_evidence = {"chosen": mode, "by": "what is served", "served": self.backend.evidence()}
        return calibration, {
            "scoring": mode_evidence,
            **evidence,
            "polarity": polarity,
            "calls": spent[0],
            "tokens": spent[1],
        }

    def _score_pilot(
        self, profiles: Sequence[Profile], mode: str, trial: int, progress: Progress | None
    ) -> tuple[piloting.PilotScores, list[list[Scores]], tuple[int, int]]:
        """Scores of all profiles in one mode; the first ``trial`` profiles' direct answers in both; calls and tokens."""
        scores, direct = piloting.PilotScores(mode), list[list[Scores]]()
        done = calls = tokens = 0
        for members in self.batches(profiles):
            batch = self.backend.open([p.ids for p in members])
            tokens += sum(len(p.ids) for p in members)
            if done < trial:
                asked = [questions.answer_question(self.spec, row, ()) for row in range(len(members))]
                for both, cost in batch.ask(asked, full=True):
                    direct.append(both)
                    calls, tokens = calls + 1, tokens + cost
            spent = piloting.score_batch(self.spec, [self._case(p) for p in members], batch, done, scores)
            batch.commit()
            done, calls, tokens = done + len(members), calls + spent[0], tokens + spent[1]
            if progress:
                progress.advance(len(members), "pilot")
        return scores, direct, (calls, tokens)

    def _polarity(self, profiles: Sequence[Profile], calibration: Calibration) -> dict[str, Any]:
        """Scores every slot that has a polarity with its field forced low and high."""
        results: dict[str, Any] = {}
        for name, untestable in piloting.polarity_slots(self.spec, self.fields).items():
            slot = next(slot for slot in self.spec.slots if slot.name == name)
            if untestable or name not in calibration.means or not profiles:
                results[name] = {"skipped": untestable or "no pilot profile has it to judge"}
                continue
            assert slot.polarity is not None
            field, stems = slot.polarity.field, calibration.stems[name]
            forced = [
                self.profile(str(2 * i + side), {**p.record, field: value})
                for i, p in enumerate(profiles)
                for side, value in enumerate((slot.polarity.low, slot.polarity.high))
            ]
            scored: dict[int, np.ndarray] = {}
            for members in self.batches(forced):
                batch = self.backend.open([p.ids for p in members])
                asked = [Question(row, (), tuple(questions.slot_wordings(slot, stems))) for row in range(len(members))]
                for member, (scores, _) in zip(members, batch.ask(asked, full=calibration.mode == "full")):
                    scored[int(member.key)] = stack(scores, calibration.mode)
                batch.commit()
            low, high = (np.stack([scored[2 * i + side] for i in range(len(profiles))]) for side in (0, 1))
            results[name] = piloting.polarity_effect(low, high, calibration.means[name], slot.polarity.moves)
        return results

    # -- the searches -----------------------------------------------------------------------------------------------

    def search(
        self, profiles: Sequence[Profile], calibration: Calibration, progress: Progress | None = None
    ) -> list[dict[str, Any]]:
        """Searches every profile's chain and writes its free texts, or reads both from the store.

        Returns:
          One record a profile, in the given order; see :func:`records.search_record`.
        """
        bounds = {name: self.settings[name] for name in Bounds.__dataclass_fields__}
        decided = content_key(calibration.to_dict(), bounds, self.spec.fingerprint)
        checked = [content_key(self._vocabulary)] if self.spec.free_slots else []  # with the facts, it decides on texts
        found: dict[str, dict[str, Any]] = {}
        for members in self.batches(profiles):
            cases = [self._case(p, calibration.dropped) for p in members]
            keys = [
                content_key(
                    *("search", self.backend.identity, decided, c.ids, c.segments, sorted(c.evidence.items())),
                    *(part for known in checked for part in (known, c.written, c.facts)),
                )
                for c in cases
            ]
            stored = [self.backend.store.get_json(key) for key in keys]
            if any(record is None for record in stored):  # a batch is done whole, so that its calls keep their shapes
                batch = self.backend.open([p.ids for p in members])
                stored = self._search_batch(cases, batch, calibration, bounds)
                batch.commit({key: pack_json(record) for key, record in zip(keys, stored)})
            found.update((p.key, record) for p, record in zip(members, stored))
            if progress:
                progress.advance(len(members), "search")
        return [found[p.key] for p in profiles]

    def _search_batch(
        self, cases: Sequence[Case], batch: Batch, calibration: Calibration, bounds: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        spec, started = self.spec, time.monotonic()
        draws: dict[tuple[int, Any, int], Draw] = {}

        def reply(asks: list[tuple[int, Ask]]) -> list[Draw | Answer]:
            replies: list[Draw | Answer] = []
            asked = [questions.question(spec, row, cases[row], ask, calibration) for row, ask in asks]
            for (row, ask), (scores, tokens) in zip(asks, batch.ask(asked, full=calibration.mode == "full")):
                if ask.kind == "answer":
                    replies.append(questions.answer_reply(scores, calibration, chain=bool(ask.path), tokens=tokens))
                    continue
                at = (row, ask.path, ask.segment)
                if ask.kind == "segment":
                    draw = questions.segment_draw(spec, cases[row], ask.segment, scores, calibration, tokens)
                    draws[at] = draw
                else:
                    draw = questions.revision_draw(spec, cases[row], ask, draws[at], scores, calibration, tokens)
                replies.append(draw)
            return replies

        thresholds = [calibration.thresholds[segment.name] for segment in spec.segments]
        searches = []
        for case in cases:
            # The profile's own tokens count against the bound too.
            limits = Bounds(**{**bounds, "max_tokens": bounds["max_tokens"] - len(case.ids)})
            cost = call_cost(spec, case, calibration, self.backend.ids)
            searches.append(search(case.segments, thresholds, limits, cost=cost, clock=time.monotonic))
        found = [
            records.search_record(spec, result, profile_tokens=len(case.ids))
            for case, result in zip(cases, run_together(searches, reply))
        ]
        for record, unread in zip(found, batch.unread):
            record.update({"unread": unread} if unread else {})
        if self._chain is None:
            return found
        return write_texts(
            self._chain,
            cases,
            found,
            batch.write,
            ids=self.backend.ids,
            bounds=Bounds(**bounds),
            started=started,
            clock=time.monotonic,
            vocabulary=self._vocabulary,
        )

    # -- both -------------------------------------------------------------------------------------------------------

    def _case(self, profile: Profile, dropped: Collection[str] = ()) -> Case:
        return questions.make_case(
            self.spec, profile.key, profile.record, profile.ids, fields=self.fields, render=self.render, dropped=dropped
        )

    def batches(self, profiles: Sequence[Profile]) -> list[list[Profile]]:
        """Batches of profiles whose padded length is the same, in a fixed order: a profile's shapes, and so its numbers
        to the last bit, depend on itself alone."""
        size = self.settings["batch_size"]
        by_length: dict[int, list[Profile]] = {}
        for profile in profiles:
            by_length.setdefault(padded_length(len(profile.ids)), []).append(profile)
        groups = [by_length[length] for length in sorted(by_length)]
        return [group[i : i + size] for group in groups for i in range(0, len(group), size)]
