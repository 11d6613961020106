"""Greedy text of a real model against transformers: the same tokens, or a difference that rounding explains."""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp
import numpy as np

from scaletot_jax.lm.cache import extend, prefill
from scaletot_jax.lm.head import logits
from scaletot_jax.lm.model import unstack_layers

PROMPTS = (
    "The three most popular fruits are",
    "Once upon a time, in a small village by the sea,",
    "Water boils at",
    "To make a simple tomato soup, first",
    "The capital of France is",
    "A customer aged 35-44 who buys coffee every week will probably",
    "1, 2, 3, 4,",
    "def add(a, b):\n    return",
    "The difference between weather and climate is",
    "Dear Sir or Madam,\n\n",
    "Students who stop visiting the course page in the third week",
    "In the year 1969,",
    "The best way to learn a language is",
    "Question: What is the largest planet?\nAnswer:",
    "My favourite season is",
    "Photosynthesis is the process by which",
    "List of colours:\n- red\n-",
    "She opened the old book and",
    "The household spent 45.60 on fresh food, so",
    "An apple a day",
)
if not os.environ.get("SCALETOT_SOAK"):
    PROMPTS = PROMPTS[::2]
NEW = 64


def check_greedy(lm, reference, *, prefix: list[int]) -> None:
    """Continues every prompt by 64 tokens, ours right-padded in one batch, theirs left-padded in one batch.

    A first difference is accepted where transformers' own logits of the two tokens, after the same text, lie within 1e-3.
    """
    import torch

    prompts = [prefix + lm.tokenizer.encode(prompt) for prompt in PROMPTS]
    lengths = np.array(list(map(len, prompts)))
    longest = int(lengths.max())
    right, left = np.zeros((2, len(prompts), longest), np.int32)
    for row, ids in enumerate(prompts):
        right[row, : len(ids)] = left[row, longest - len(ids) :] = ids
    seen = np.arange(longest) >= longest - lengths[:, None]
    with torch.no_grad():
        theirs = reference.generate(
            torch.tensor(left), attention_mask=torch.tensor(seen), max_new_tokens=NEW, min_new_tokens=NEW,
            do_sample=False, eos_token_id=None, pad_token_id=0,
        )[:, longest:].numpy()  # fmt: skip
    ours = _greedy(lm, right, lengths)
    for row, length in enumerate(lengths):
        different = np.flatnonzero(ours[row] != theirs[row])
        if not len(different):
            continue
        at = different[0]
        text = np.concatenate([right[row, :length], ours[row, :at]])
        with torch.no_grad():
            after = reference(torch.tensor(text[None])).logits[0, -1].numpy()
        gap = after[theirs[row, at]] - after[ours[row, at]]
        assert abs(gap) < 1e-3, f"prompt {row} {PROMPTS[row]!r}, token {at}: {gap}"


def _greedy(lm, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    config, rows, longest = lm.config, *tokens.shape

    @jax.jit
    def run(params, tokens, valid):
        hidden, cache = prefill(params, config, tokens, valid, size=longest + NEW)
        last = hidden[jnp.arange(rows), lengths - 1]

        def step(carry, at):
            token, cache = carry
            hidden, cache = extend(params, config, token[:, None], cache, write_at=at)
            return (jnp.argmax(logits(params, config, hidden[:, -1]), axis=-1), cache), token

        first = jnp.argmax(logits(params, config, last), axis=-1)
        return jax.lax.scan(step, (first, cache), jnp.arange(longest, longest + NEW))[1].T

    valid = np.arange(longest) < lengths[:, None]
    return np.asarray(run(unstack_layers(lm.params), jnp.asarray(tokens), jnp.asarray(valid)))
