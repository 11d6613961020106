"""From a server's JSON to what the teacher needs of it. Pure.

An :class:`Answer` is the part of a response that is kept in the store: text, log-probabilities of the tokens with their
alternatives, usage, and what the server says it is. Two forms of log-probabilities are understood: the lists of the
chat API (``logprobs.content``, which llama.cpp uses for completions too) and the parallel arrays of the completions
API (``logprobs.tokens`` and ``top_logprobs``).
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from scaletot_jax.teacher.served.text_tree import Found, Token, Top, Walk, walk

_VALUE = re.compile(r'"value"\s*:\s*"')
_STRING_END = re.compile(r'(?<!\\)"')


class Answer(NamedTuple):
    """One response.

    Attributes:
      text: what was written.
      tokens: per written token its text and the top tokens at its place; empty without log-probabilities.
      input_tokens, output_tokens: as the server counts them; −1 where it does not say.
      model, fingerprint: as the server reports them; "" where it does not.
      finish: why the writing ended: ``stop``, ``length``, ...; "" where the server does not say.
    """

    text: str
    tokens: tuple[tuple[str, Top], ...]
    input_tokens: int
    output_tokens: int
    model: str
    fingerprint: str
    finish: str

    def to_json(self) -> dict[str, Any]:
        tokens = [[text, [list(token) for token in top]] for text, top in self.tokens]
        return {**self._asdict(), "tokens": tokens}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Answer:
        tokens = tuple((text, tuple(Token(*token) for token in top)) for text, top in value["tokens"])
        return cls(**{**value, "tokens": tokens})


def read_answer(body: Any, *, top_k: int) -> Answer:
    """The answer in a response of either API.

    Args:
      body: the decoded JSON.
      top_k: most alternatives kept at a place (some servers add the drawn token as one more).

    Raises:
      ValueError: it is not such a response; says what is missing.
    """
    if not isinstance(body, dict) or not isinstance(body.get("choices"), list) or not body["choices"]:
        raise ValueError("the response holds no choices")
    choice = body["choices"][0]
    if not isinstance(choice, dict):
        raise ValueError("the response's choice is not an object")
    message = choice.get("message")
    text = message.get("content") if isinstance(message, dict) else choice.get("text")
    if text is None and isinstance(message, dict):
        text = ""  # a refusal: nothing was said
    if not isinstance(text, str):
        raise ValueError("the response's choice holds neither a text nor a message")
    usage = body.get("usage")
    counts = [(usage if isinstance(usage, dict) else {}).get(name) for name in ("prompt_tokens", "completion_tokens")]
    told = [count if isinstance(count, int) and count >= 0 else -1 for count in counts]
    try:
        tokens = _tokens(choice.get("logprobs"), top_k)
    except (TypeError, KeyError, IndexError, AttributeError, ValueError, OverflowError) as error:
        raise ValueError(f"the response's log-probabilities have another form: {error!r}") from error
    if isinstance(message, dict):
        tokens = _around_value(tokens)
    names = [body.get(name) if isinstance(body.get(name), str) else "" for name in ("model", "system_fingerprint")]
    finish = choice.get("finish_reason")
    finish = finish if isinstance(finish, str) else ""
    return Answer(text, tokens, told[0], told[1], names[0] or "", names[1] or "", finish)


def _tokens(logprobs: Any, top_k: int) -> tuple[tuple[str, Top], ...]:
    if not logprobs:
        return ()
    if isinstance(logprobs.get("content"), list):
        places = [
            (entry["token"], [(other["token"], other["logprob"]) for other in entry["top_logprobs"]])
            for entry in logprobs["content"]
        ]
    elif logprobs.get("top_logprobs"):
        places = [(text, list(top.items())) for text, top in zip(logprobs["tokens"], logprobs["top_logprobs"])]
    else:
        return ()
    return tuple((_text(text), _top(pairs, top_k)) for text, pairs in places)


def _around_value(tokens: tuple[tuple[str, Top], ...]) -> tuple[tuple[str, Top], ...]:
    """A chat's tokens with the alternatives of those that spell the value alone: the others would fill the store."""
    written = "".join(text for text, _ in tokens)
    opening = _VALUE.search(written)
    if opening is None:
        return tuple((text, ()) for text, _ in tokens)
    closing = _STRING_END.search(written, opening.end())
    first, last = opening.end(), closing.end() if closing else len(written)
    kept, offset = [], 0
    for text, top in tokens:
        kept.append((text, top if offset < last and offset + len(text) > first else ()))
        offset += len(text)
    return tuple(kept)


def _top(pairs: Sequence[tuple[Any, Any]], top_k: int) -> Top:
    """The most probable tokens in order; equal ones in the order of their texts, so that a reading is reproducible."""
    kept = [Token(_text(text), min(0.0, float(log_prob))) for text, log_prob in pairs if log_prob is not None]
    kept = [token for token in kept if math.isfinite(token.log_prob)]
    return tuple(sorted(kept, key=lambda token: (-token.log_prob, token.text))[:top_k])


def _text(text: Any) -> str:
    if not isinstance(text, str):
        raise ValueError("a token without text")
    return text.replace("▁", " ")  # the space of SentencePiece vocabularies, where a server leaves it in


def chat_texts(values: Sequence[str]) -> list[str]:
    """Values as they stand in ``{"value": "…"}`` between the quotes."""
    return [json.dumps(value, ensure_ascii=False)[1:-1] for value in values]


def read_decision(answer: Answer, values: Sequence[str]) -> Found | None:
    """The values' distribution at the tokens where ``{"value": "…"}`` was decided.

    Only the places the server went through are known: values that share a token with the written one are told apart at
    its next, those that share another token get equal parts of it.

    Returns:
      None without log-probabilities, without such an object, or where no reported token begins a value.
    """
    written = "".join(text for text, _ in answer.tokens)
    opening = _VALUE.search(written)
    if opening is None:
        return None
    texts = chat_texts(values)
    found = drive(walk(texts, close='"'), lambda prefix: _top_at(answer, written, opening.end(), prefix))
    return None if found.unseen == len(values) else found._replace(how="decision tokens", requests=1)


def drive(walking: Walk, tell: Any) -> Found:
    """Runs a walk with a function from the text after the stem to the top tokens there."""
    try:
        prefix = next(walking)
        while True:
            prefix = walking.send(tell(prefix))
    except StopIteration as stop:
        return stop.value


def _top_at(answer: Answer, written: str, start: int, prefix: str) -> Top | None:
    """Top tokens at ``prefix`` behind ``start``, where the writing went that way; what a token holds before is cut."""
    if not written.startswith(prefix, start):
        return None
    at, offset = start + len(prefix), 0
    for text, top in answer.tokens:
        if offset <= at < offset + len(text):
            head = written[offset:at]
            return tuple(Token(t.text[len(head) :], t.log_prob) for t in top if t.text.startswith(head))
        offset += len(text)
    return None


def parse_value(text: str, values: Sequence[str]) -> int | str:
    """The value that a text names: as ``{"value": "…"}`` anywhere in it, or alone. Case and outer marks do not matter.

    Returns:
      Its index, or what is wrong with the text, in words for its writer.
    """
    said: Any = None
    decoder = json.JSONDecoder()
    for brace in itertools.islice((i for i, letter in enumerate(text) if letter == "{"), 100):
        try:
            candidate, _ = decoder.raw_decode(text, brace)
        except (ValueError, RecursionError):
            continue
        if isinstance(candidate, dict) and "value" in candidate:
            said = candidate["value"]
            break
    if said is None:
        said = text if len(text) <= 200 else ""
    said = "" if isinstance(said, (dict, list, bool)) else str(said)
    hits = [i for i, value in enumerate(values) if _plain(value) == _plain(said)]
    if len(hits) == 1:
        return hits[0]
    if "{" not in text:
        return 'the answer is not the JSON object {"value": "..."}'
    return f"{said[:80]!r} is not one of the listed values" if said else "the JSON object cannot be read"


def _plain(text: str) -> str:
    return text.strip().strip("\"'`.* ").casefold()
