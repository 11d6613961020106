"""What is sent to a server: prompts, messages and schemas as JSON-able requests. Pure.

Completions continue the very text the local teacher reads (:mod:`scaletot_jax.teacher.prompt`). A chat model gets the
same pieces as messages, and, because it cannot simply go on writing a line, the listed values and a schema.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from scaletot_jax.profiles.render import without_control

TEMPLATE = 1  # raise it when a text changes; it enters the store's keys
COMPLETIONS, CHAT = "/completions", "/chat/completions"


class Request(NamedTuple):
    """A POST: the path behind the base address, and its JSON body."""

    path: str
    body: dict[str, Any]


class Abilities(NamedTuple):
    """What a server was found to do.

    Attributes:
      top_k: alternatives it reports at a place; 0 without log-probabilities.
      schema: it takes ``response_format: json_schema``.
      limit: its name of the bound on written tokens.
    """

    top_k: int
    schema: bool = False
    limit: str = "max_tokens"


def plain_data(text: str) -> str:
    """Data from outside, in which nothing can be read as a control token: ``<|im_end|>`` becomes ``< |im_end|>``.

    A server reads control tokens by their name wherever they stand in a prompt.
    """
    return without_control(text)


def completion(model: str, prompt: str, *, top_k: int, seed: int) -> Request:
    """One token after ``prompt``, with its alternatives. At temperature 1 every server's report is the model's own."""
    body = {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 1.0, "seed": seed, "logprobs": top_k}
    return Request(COMPLETIONS, body)


def text(model: str, prompt: str, *, close: str, max_tokens: int, top_k: int, seed: int) -> Request:
    """Free text after ``prompt`` up to ``close``, greedily, with the alternatives of every token."""
    body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0.0, "seed": seed}
    return Request(COMPLETIONS, body | {"stop": sorted({close, "\n"}), "logprobs": top_k})


def chat_text(
    model: str, messages: Sequence[dict[str, str]], able: Abilities, *, max_tokens: int, seed: int
) -> Request:
    """Free text as a chat's answer, greedily."""
    body = {"model": model, "messages": list(messages), able.limit: max_tokens, "temperature": 0.0, "seed": seed}
    return Request(CHAT, body)


def choice(
    model: str, messages: Sequence[dict[str, str]], values: Sequence[str], able: Abilities, *, seed: int
) -> Request:
    """One of ``values`` as ``{"value": …}``: greedily where log-probabilities come with it, else drawn."""
    body: dict[str, Any] = {
        "model": model,
        "messages": list(messages),
        able.limit: 48 + max(len(value.encode()) for value in values),
        "temperature": 0.0 if able.top_k else 1.0,
        "seed": seed,
    }
    if able.top_k:
        body |= {"logprobs": True, "top_logprobs": able.top_k}
    if able.schema:
        body["response_format"] = {"type": "json_schema", "json_schema": _schema(values)}
    return Request(CHAT, body)


def messages(instruction: str, profile: str, lead: str, stem: str, values: Sequence[str]) -> list[dict[str, str]]:
    """Instruction, profile and chain so far, and the line to be completed with one of ``values``."""
    listed = "\n".join(f"- {value}" for value in values)
    task = (
        "Complete the line with the one value below that fits best. "
        'Answer with the JSON object {"value": "..."} and nothing else.\n'
        f"Line: {stem} ...\nValues:\n{listed}"
    )
    return [
        {"role": "system", "content": instruction.strip()},
        {"role": "user", "content": f"{profile}{lead}\n{task}"},
    ]


def text_messages(instruction: str, profile: str, lead: str, line: str, max_tokens: int) -> list[dict[str, str]]:
    """Instruction, profile and chain so far, and the line that free text completes."""
    task = (
        f"Complete the line in a few words, at most {max(1, max_tokens // 2)}, from what is said above alone. "
        "Answer with these words and nothing else.\n"
        f"Line: {line} ..."
    )
    return [
        {"role": "system", "content": instruction.strip()},
        {"role": "user", "content": f"{profile}{lead}\n{task}"},
    ]


def repair(before: Sequence[dict[str, str]], text: str, error: str, values: Sequence[str]) -> list[dict[str, str]]:
    """The conversation so far, and what was wrong with its last answer."""
    asked = f"That cannot be used: {error}. Answer with one of {json.dumps(list(values), ensure_ascii=False)} as "
    return [
        *before,
        {"role": "assistant", "content": text or "(nothing)"},
        {"role": "user", "content": asked + '{"value": "..."}, nothing else.'},
    ]


def most_tokens(request: Request) -> tuple[int, int]:
    """Upper bounds of a request's prompt and written tokens, whatever the server's vocabulary.

    No token is shorter than a byte; a chat template adds a few tokens a message.
    """
    body = request.body
    texts = [body["prompt"]] if "prompt" in body else [m["content"] for m in body["messages"]]
    schema = len(json.dumps(body["response_format"])) if "response_format" in body else 0
    written = body.get("max_tokens", body.get("max_completion_tokens", 0))
    return sum(len(text.encode()) for text in texts) + 32 * (1 + len(texts)) + schema, written


def _schema(values: Sequence[str]) -> dict[str, Any]:
    properties = {"value": {"type": "string", "enum": list(values)}}
    shape = {"type": "object", "properties": properties, "required": ["value"], "additionalProperties": False}
    return {"name": "value", "strict": True, "schema": shape}
