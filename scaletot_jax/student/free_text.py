"""The student's policy where the grammar leaves the text free: a softmax over the vocabulary instead of a short list.

In a free state s, with Ω_s = every token but the reserved ones, plus the slot's closing token, and logits z = W h

    π_τ(v | s, h) = 1[v ∈ Ω_s] · exp(z_v / τ) / Σ_{u ∈ Ω_s} exp(z_u / τ)

When ``max_tokens`` are written the grammar forces the closing token, so every chain stays valid. Free states follow one
another and none comes twice, so a chain has at most F of them however long it is: only those F hidden states meet the
head, in chunks, and no array of tokens × vocabulary exists.

Shape letters: S grammar states, F free states, P reserved ids, R tokens of a chain, V vocabulary, D model width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scaletot_jax.chains.automaton import Grammar
from scaletot_jax.lm.config import LMConfig
from scaletot_jax.lm.head import in_chunks, logits

_LOW = -1e30  # logit of a token that is not allowed; finite, so that gradients stay finite


class FreeText(NamedTuple):
    """The free states of a grammar on the device, all int32.

    Attributes:
      states: [F] the free states.
      number: [S] place of a state among them, −1 where it is not free.
      next_states: [F] where a token of text leads.
      segments: [F] segment of such a token.
      closes: [F] the closing token, the one reserved id that may follow.
      reserved: [P] ids that are no text.
    """

    states: jax.Array
    number: jax.Array
    next_states: jax.Array
    segments: jax.Array
    closes: jax.Array
    reserved: jax.Array


class TextLogProbs(NamedTuple):
    """What the policy says of tokens in free states, each [...] float32 in nats.

    Attributes:
      logps: log π_τ of the token; plain_logps: log π_1 of it.
      entropy: of π_τ.
    """

    logps: jax.Array
    plain_logps: jax.Array
    entropy: jax.Array


def free_text(grammar: Grammar) -> FreeText | None:
    """The device form, or None where nothing is free: then no program has any of this."""
    states = np.flatnonzero(grammar.free)
    if not len(states):
        return None
    number = np.full(len(grammar.free), -1, np.int32)
    number[states] = np.arange(len(states))
    return FreeText(
        states=jnp.asarray(states, jnp.int32),
        number=jnp.asarray(number),
        next_states=jnp.asarray(grammar.free_next[states], jnp.int32),
        segments=jnp.asarray(grammar.segment[states], jnp.int32),
        closes=jnp.asarray(grammar.token[states, 0], jnp.int32),
        reserved=jnp.asarray(grammar.stop, jnp.int32),
    )


def writes(free: FreeText, states: jax.Array, valid: jax.Array) -> jax.Array:
    """Whether the token after each state [...] is chosen from the vocabulary, bool [...]."""
    return valid & (free.number[states] >= 0)


def text_logits(
    params: Mapping[str, Any], config: LMConfig, hidden: jax.Array, free: FreeText, closes: jax.Array
) -> jax.Array:
    """Logits z over Ω, [N, V] float32, −1e30 outside; hidden [N, D], closes [N] ids of the closing tokens."""
    ids = jnp.arange(config.vocab_size, dtype=jnp.int32)
    text = jnp.ones(config.vocab_size, bool).at[free.reserved].set(False)
    return jnp.where(text[None, :] | (ids[None, :] == closes[:, None]), logits(params, config, hidden), _LOW)


def read(scores: jax.Array, tokens: jax.Array, temperature: float | jax.Array) -> TextLogProbs:
    """Log-probabilities of tokens [N] and the entropy from :func:`text_logits` [N, V]."""
    allowed = scores > _LOW / 2
    tempered = jax.nn.log_softmax(jnp.where(allowed, scores / temperature, _LOW), axis=-1)
    chosen = jnp.arange(scores.shape[-1], dtype=jnp.int32)[None, :] == tokens[:, None]
    # A masked sum instead of a gather: it fuses, and its gradient is no scatter.
    plain = jnp.sum(jnp.where(chosen, scores, 0.0), axis=-1) - jax.nn.logsumexp(scores, axis=-1)
    safe = jnp.where(allowed, tempered, 0.0)
    entropy = -jnp.sum(jnp.where(allowed, jnp.exp(safe) * safe, 0.0), axis=-1)
    return TextLogProbs(jnp.sum(jnp.where(chosen, safe, 0.0), axis=-1), plain, entropy)


def text_log_probs(
    params: Mapping[str, Any],
    config: LMConfig,
    hidden: jax.Array,
    free: FreeText,
    states: jax.Array,
    tokens: jax.Array,
    valid: jax.Array,
    *,
    temperature: float | jax.Array,
    chunk: int = 256,
) -> TextLogProbs:
    """:func:`read` at the free states of given chains, the trainer's side.

    Args:
      hidden: [..., R, D] states that predict the tokens, after the final norm.
      states, tokens, valid: [..., R].
      temperature: τ.
      chunk: free states whose logits exist at a time; static under jit. They are computed again in the backward pass.

    Returns:
      TextLogProbs [..., R]; read it only where :func:`writes` is true.
    """
    *lead, length, width = hidden.shape
    hidden = hidden.reshape(-1, length, width)
    states, tokens, valid = (array.reshape(-1, length) for array in (states, tokens, valid))
    here = (states[:, None, :] == free.states[None, :, None]) & valid[:, None, :]
    places = jnp.argmax(here, axis=-1)  # [C, F]; 0 where the chain closed its text before, which nobody reads
    rows = jnp.take_along_axis(hidden, places[..., None], axis=1)
    chosen = jnp.take_along_axis(tokens, places, axis=1)
    closes = jnp.broadcast_to(free.closes, places.shape)

    def score(hidden: jax.Array, chosen: jax.Array, closes: jax.Array) -> jax.Array:
        return jnp.stack(read(text_logits(params, config, hidden, free, closes), chosen, temperature), axis=-1)

    out = in_chunks(score, chunk, rows.reshape(-1, width), chosen.reshape(-1), closes.reshape(-1))
    out = out.reshape(*places.shape, -1)
    numbers = jnp.maximum(free.number[jnp.where(valid, states, free.states[0])], 0)
    spread = jnp.take_along_axis(out, numbers[..., None], axis=1)
    return TextLogProbs(*jnp.moveaxis(spread.reshape(*lead, length, -1), -1, 0))
