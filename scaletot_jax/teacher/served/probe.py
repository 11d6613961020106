"""What a server is and can do, found out with a few tiny requests before anything else is asked of it.

Servers differ in what they take (a JSON schema, log-probabilities, how many, the name of a limit) and say so with
HTTP 400 at best. What was found is kept in the store, so a run's later requests, and its replay without any server, are
the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from scaletot_jax.errors import ConfigError, DataError
from scaletot_jax.teacher.served import wording
from scaletot_jax.teacher.served.drawing import Drawer
from scaletot_jax.teacher.served.reading import Answer
from scaletot_jax.teacher.served.transport import Endpoint, Failure, refused
from scaletot_jax.teacher.served.wording import Abilities, Request

_PROMPT = "The capital of France is"
_MESSAGES = [{"role": "user", "content": 'Is ice cold? Answer with {"value": "yes"} or {"value": "no"}.'}]
_SMALLER = (20, 5)  # what widespread servers allow at most
_TOLD = (
    "id",
    "root",
    "owned_by",
    "max_model_len",
)  # what a list of models says of one and does not change from call to call
_META = ("n_params", "size", "n_vocab", "n_embd", "ftype")


class Server(NamedTuple):
    """A server as it was found.

    Attributes:
      model: the name to ask for.
      description: what its list of models says of it; empty where it has no list.
      able: what it does.
    """

    model: str
    description: dict[str, Any]
    able: Abilities

    def to_json(self) -> dict[str, Any]:
        return {**self._asdict(), "able": self.able._asdict()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Server:
        return cls(value["model"], value["description"], Abilities(**value["able"]))


def describe(endpoint: Endpoint, model: str) -> tuple[str, dict[str, Any]]:
    """The model's name and what the server's list says of it. Costs no tokens.

    Args:
      model: the wanted name; "" for the only one there is.

    Raises:
      ConfigError: there is no such model, no single one, or the key is refused.
      Failure: the server does not answer.
    """
    try:
        listed = endpoint.exchange("/models")
    except Failure as failure:
        if failure.status in (401, 403):
            raise refused(failure) from failure
        if failure.passing and failure.kind != "garbled":
            raise
        listed = None
    entries = listed.get("data") if isinstance(listed, dict) else None
    entries = [e for e in entries or () if isinstance(e, dict) and isinstance(e.get("id"), str)]
    names = [entry["id"] for entry in entries]
    if not model:
        if len(names) != 1:
            raise ConfigError(
                "the served teacher needs a model's name",
                where="teacher.served.model",
                why=f"the server lists {len(names)} models",
                do=f"choose one of: {', '.join(names[:20])}" if names else "set the name that the server knows it by",
            )
        model = names[0]
    known = [e for e in entries if e["id"] == model or model in (e.get("aliases") or ())]
    if not known:  # some servers take names that they do not list; the first request will tell
        return model, {}
    told = {name: known[0][name] for name in _TOLD if known[0].get(name) is not None}
    meta = known[0].get("meta")
    if isinstance(meta, dict):
        told["meta"] = {name: meta[name] for name in _META if meta.get(name) is not None}
    return model, told


def find_out(drawer: Drawer, api: str, model: str, top_k: int) -> Abilities:
    """Tries out what the server does.

    Raises:
      ConfigError: it gives no log-probabilities for completions, or refuses the plainest request.
    """
    return _completions(drawer, model, top_k) if api == "completions" else _chat(drawer, model, top_k)


def _completions(drawer: Drawer, model: str, top_k: int) -> Abilities:
    counts = [top_k, *(k for k in _SMALLER if k < top_k)]
    for k in counts:
        answer = _attempt(drawer, wording.completion(model, _PROMPT, top_k=k, seed=0))
        if isinstance(answer, Answer):
            break
        if k == counts[-1]:
            raise refused(answer)
    assert isinstance(answer, Answer)
    told = len(answer.tokens[0][1]) if answer.tokens else 0
    if told < 2:
        raise ConfigError(
            "the server gives no log-probabilities for completions",
            where="teacher.served.api",
            why=f"it was asked for {k} and told {told}",
            do="start it with them allowed (vLLM: --max-logprobs), or set teacher.served.api to chat",
        )
    return Abilities(told)


def _chat(drawer: Drawer, model: str, top_k: int) -> Abilities:
    limits, counts = ["max_tokens", "max_completion_tokens"], [top_k, *(k for k in _SMALLER if k < top_k), 0]
    plans = [Abilities(k, schema, limit) for schema in (True, False) for k in counts for limit in limits]
    answer: Answer | Failure | None = None
    for able in plans:
        if isinstance(answer, Failure) and able.limit != limits[0] and "max_completion_tokens" not in answer.message:
            continue  # the other name is tried only where the server asks for it
        answer = _attempt(drawer, wording.choice(model, _MESSAGES, ("yes", "no"), able, seed=0))
        if isinstance(answer, Answer):
            told = max((len(top) for _, top in answer.tokens), default=0)
            return able._replace(top_k=told if told > 1 else 0)
    assert isinstance(answer, Failure)
    raise refused(answer)


def _attempt(drawer: Drawer, request: Request) -> Answer | Failure:
    """The answer, or the refusal of just this form of request."""
    try:
        return drawer.attempt(request)
    except Failure as failure:
        if failure.status in (400, 413, 422, 501):
            return failure
        raise refused(failure) from failure


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> DataError:
    """What to tell when another model answers under the same name."""
    return DataError(
        "the server now serves another model than the one this run began with",
        where="teacher.served.base_url",
        why=f"it described itself as {dict(before)}, now as {dict(now)}",
        do="serve the former model again, or start anew in another --workdir: answers of two models do not mix",
    )
