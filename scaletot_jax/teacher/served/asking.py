"""One stem's values asked of a server: which requests, and what follows from the answers. Pure.

Each way is a generator that yields requests and is sent their answers, so recorded answers replay it:

* completions: the tree of values is walked with the top k tokens (:mod:`scaletot_jax.teacher.served.text_tree`);
* chat with log-probabilities: one answer, read at the tokens where its value was decided;
* chat without: n drawn answers are counted, p(v) = (c_v + ½) / (n + V/2).

An answer that names no value is sent back once with the error. If nothing can be read at all, the values are equally
likely, and the distribution says so (``how == "nothing"``).
"""

from __future__ import annotations

from collections.abc import Generator
from typing import NamedTuple

import numpy as np

from scaletot_jax.teacher.dialogue import Draft
from scaletot_jax.teacher.served import wording
from scaletot_jax.teacher.served.reading import Answer, parse_value, read_decision
from scaletot_jax.teacher.served.text_tree import Found, entropy_of, walk
from scaletot_jax.teacher.served.wording import Abilities, Request

Asking = Generator[list[Request], list[Answer], Found]


_TEXT_TOP = 20  # alternatives at each token of a free text


class Stem(NamedTuple):
    """Texts around one decision: all that precedes the stem, the stem (with a revision's note), and its values."""

    instruction: str
    profile: str
    lead: str
    stem: str
    values: tuple[str, ...]


def text_request(
    stem: Stem, model: str, able: Abilities, api: str, *, close: str, max_tokens: int, seed: int
) -> Request:
    """The request for a free text behind the stem; ``stem.values`` is not used."""
    if api == "completions":
        prompt = stem.instruction + stem.profile + stem.lead + stem.stem
        k = min(able.top_k, _TEXT_TOP)
        return wording.text(model, prompt, close=close, max_tokens=max_tokens, top_k=k, seed=seed)
    asked = wording.text_messages(stem.instruction, stem.profile, stem.lead, stem.stem, max_tokens)
    return wording.chat_text(model, asked, able, max_tokens=max_tokens, seed=seed)


def read_text(answer: Answer, *, max_tokens: int, read: int) -> Draft:
    """The draft in an answer. Its ids are not known; entropies are those of the truncated distributions.

    Args:
      max_tokens: most tokens of the text.
      read: tokens that lead to it.
    """
    places = [(token, top) for token, top in answer.tokens[:max_tokens] if top]
    log_probs = tuple(next((t.log_prob for t in top if t.text == token), top[-1].log_prob) for token, top in places)
    written = min(max_tokens, answer.output_tokens if answer.output_tokens >= 0 else max_tokens)
    entropies = tuple(entropy_of(top) for _, top in places)
    return Draft(answer.text, (), log_probs, entropies, answer.finish == "stop", read + written)


def ask_completions(stem: Stem, model: str, able: Abilities, *, seed: int) -> Asking:
    """Walks the tree of values behind the stem, one request a place."""
    prompt = stem.instruction + stem.profile + stem.lead + stem.stem
    walking = walk(stem.values)
    try:
        prefix = next(walking)
        while True:
            (answer,) = yield [wording.completion(model, prompt + prefix, top_k=able.top_k, seed=seed)]
            prefix = walking.send(answer.tokens[0][1] if answer.tokens else ())
    except StopIteration as stop:
        return stop.value


def ask_chat(stem: Stem, model: str, able: Abilities, *, seed: int, samples: int) -> Asking:
    """Asks for a value as JSON: once where log-probabilities come with it, else ``samples`` times."""
    values = [value.strip() for value in stem.values]
    asked = wording.messages(stem.instruction, stem.profile, stem.lead, stem.stem, values)
    count = 1 if able.top_k else samples
    answers = yield [wording.choice(model, asked, values, able, seed=seed + i) for i in range(count)]
    found = read_decision(answers[0], values) if able.top_k else None
    if found is not None:
        return found

    named = [parse_value(answer.text, values) for answer in answers]
    bad = [i for i, value in enumerate(named) if isinstance(value, str)]
    if bad:
        again = yield [
            wording.choice(
                model,
                wording.repair(asked, answers[i].text, str(named[i]), values),
                values,
                able._replace(top_k=0),
                seed=seed + i,
            )
            for i in bad
        ]
        for i, answer in zip(bad, again):
            named[i] = parse_value(answer.text, values)
    repaired = sum(isinstance(named[i], int) for i in bad)
    counts = np.bincount([v for v in named if isinstance(v, int)], minlength=len(values)) + 0.5
    how = "samples" if any(isinstance(v, int) for v in named) else "nothing"
    return Found(np.log(counts / counts.sum()), how, count + len(bad), repaired=repaired)
