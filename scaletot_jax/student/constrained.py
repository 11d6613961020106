"""The student's policy: the language model restricted to the alternatives of the chain grammar.

In state s with alternatives c_1 … c_A (token ids) and hidden state h

    π_τ(c_a | s, h) = softmax_a( h · w_{c_a} / τ )

over the alternatives alone, for sampling and for training alike: every rollout is a valid chain, and a forced token has
log-probability 0. Where a slot is free text the alternatives are the vocabulary, see :mod:`scaletot_jax.student.free_text`;
a grammar without such slots has none of it in its programs. The temperature τ belongs to the policy: sampler and trainer apply it in this one module, so their
log-probabilities agree at every temperature.

Shape letters: R tokens of a chain, A alternatives, D model width, S grammar states, K segments, Kb answer buckets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scaletot_jax.chains.grammar import CompiledChain
from scaletot_jax.lm.config import LMConfig
from scaletot_jax.lm.head import candidate_log_probs
from scaletot_jax.parallel.sharding import ShardingRules
from scaletot_jax.student.free_text import FreeText, free_text, text_log_probs, writes

_LOW = -1e30  # log-probability of an alternative that is not there; finite, so that gradients stay finite
PADDING = -3  # segment id of what is no token of the chain


class GrammarArrays(NamedTuple):
    """The part of the grammar that the device needs, all int32.

    Attributes:
      tokens: [S, A] alternatives of each state, −1 = none.
      next_states: [S, A] where each leads.
      segments: [S, A] segment id of each alternative: 0..K−1 content, −1 structural, −2 answer, −3 none.
      closes: [S, A] the segment whose line this alternative closes, −1 otherwise.
      start, end, answer_state: scalar states.
      answer_places: [Kb] column of each bucket's token among the alternatives of the answer state.
      free: the states of free text, whose only listed alternative is the closing token; None where there are none.
    """

    tokens: jax.Array
    next_states: jax.Array
    segments: jax.Array
    closes: jax.Array
    start: jax.Array
    end: jax.Array
    answer_state: jax.Array
    answer_places: jax.Array
    free: FreeText | None = None


def grammar_arrays(chain: CompiledChain) -> GrammarArrays:
    """The device form of a compiled chain. Chains with free text are compiled with their reserved ids, by
    :func:`scaletot_jax.chains.reserved.compile_for`."""
    grammar = chain.grammar
    row = grammar.token[chain.answer_state]
    places = [int(np.flatnonzero(row == token)[0]) for token in chain.answer_tokens]
    return GrammarArrays(
        tokens=jnp.asarray(grammar.token, jnp.int32),
        next_states=jnp.asarray(grammar.next_state, jnp.int32),
        segments=jnp.asarray(grammar.alternative_segment, jnp.int32),
        closes=jnp.asarray(grammar.closes, jnp.int32),
        start=jnp.int32(chain.start),
        end=jnp.int32(chain.end),
        answer_state=jnp.int32(chain.answer_state),
        answer_places=jnp.asarray(places, jnp.int32),
        free=free_text(grammar),
    )


class TokenLogProbs(NamedTuple):
    """What the policy says of given chains.

    Attributes:
      logps: [..., R] float32, log π_τ of each token in nats; 0 at invalid places.
      entropy: [..., R] float32, −Σ_a π_τ log π_τ in nats; 0 at forced and invalid places.
      answer_logps: [..., Kb] float32, log π_1 of each bucket where the chain answers.
    """

    logps: jax.Array
    entropy: jax.Array
    answer_logps: jax.Array


def alternative_log_probs(
    params: Mapping[str, Any],
    config: LMConfig,
    hidden: jax.Array,
    candidates: jax.Array,
    *,
    chunk: int = 1024,
    rules: ShardingRules | None = None,
) -> jax.Array:
    """log π_1 over the alternatives: hidden [..., D], candidates [..., A] (−1 = none) to [..., A] float32.

    Unused places hold −1e30. A row without any alternative holds nothing else, and nobody may read it.
    """
    lead = hidden.shape[:-1]
    out = candidate_log_probs(
        params,
        config,
        hidden.reshape(-1, hidden.shape[-1]),
        candidates.reshape(-1, candidates.shape[-1]),
        normalise="candidates",
        chunk=chunk,
        rules=rules,
    ).reshape(*lead, candidates.shape[-1])
    return jnp.where(candidates >= 0, out, _LOW)


def temper(log_probs: jax.Array, candidates: jax.Array, temperature: float | jax.Array) -> jax.Array:
    """log π_τ from log π_1, both [..., A]: log-softmax ignores a shift, so log π_1 serves as logits for any τ > 0."""
    used = candidates >= 0
    scaled = jnp.where(used, jnp.where(used, log_probs, 0.0) / temperature, _LOW)
    return jnp.where(used, jax.nn.log_softmax(scaled, axis=-1), _LOW)


def pick(log_probs: jax.Array, candidates: jax.Array, tokens: jax.Array, valid: jax.Array) -> jax.Array:
    """Reads the chosen tokens [...] out of [..., A]; 0 where not valid."""
    hit = (candidates == tokens[..., None]) & valid[..., None]
    return jnp.sum(jnp.where(hit, log_probs, 0.0), axis=-1)


def entropy(log_probs: jax.Array, candidates: jax.Array, valid: jax.Array) -> jax.Array:
    """−Σ_a π log π [...] in nats; 0 where not valid."""
    used = (candidates >= 0) & valid[..., None]
    safe = jnp.where(used, log_probs, 0.0)
    return -jnp.sum(jnp.where(used, jnp.exp(safe) * safe, 0.0), axis=-1)


def token_log_probs(
    params: Mapping[str, Any],
    config: LMConfig,
    hidden: jax.Array,
    grammar: GrammarArrays,
    states: jax.Array,
    tokens: jax.Array,
    valid: jax.Array,
    *,
    temperature: float | jax.Array = 1.0,
    rules: ShardingRules | None = None,
) -> TokenLogProbs:
    """Policy log-probabilities of given chains.

    Args:
      hidden: [..., R, D] states that predict the tokens, after the final norm.
      states: [..., R] int32, grammar state before each token; ignored where invalid.
      tokens, valid: [..., R] the chosen tokens and which of them are real.
      temperature: τ of the policy.
      rules: with rules, the head's part of the work is split over the active mesh; None leaves placement to XLA.
    """
    candidates = grammar.tokens[jnp.where(valid, states, grammar.start)]
    plain = alternative_log_probs(params, config, hidden, candidates, rules=rules)
    tempered = temper(plain, candidates, temperature)
    answers = (valid & (states == grammar.answer_state))[..., None]
    buckets = plain[..., grammar.answer_places]
    logps, entropies = pick(tempered, candidates, tokens, valid), entropy(tempered, candidates, valid)
    if grammar.free is not None:
        text = text_log_probs(params, config, hidden, grammar.free, states, tokens, valid, temperature=temperature)
        here = writes(grammar.free, states, valid)
        logps, entropies = jnp.where(here, text.logps, logps), jnp.where(here, text.entropy, entropies)
    return TokenLogProbs(logps, entropies, jnp.sum(jnp.where(answers, buckets, 0.0), axis=-2))


def taught_tokens(grammar: GrammarArrays, states: jax.Array, tokens: jax.Array, valid: jax.Array) -> jax.Array:
    """The tokens [..., A] that a row of teacher targets speaks of: the alternatives of each state, −1 = none.

    In a free state the teacher gives the written token alone, which then stands in the first column.
    """
    candidates = grammar.tokens[jnp.where(valid, states, grammar.start)]
    if grammar.free is None:
        return candidates
    first = jnp.where(writes(grammar.free, states, valid), tokens, candidates[..., 0])
    return jnp.concatenate([first[..., None], candidates[..., 1:]], axis=-1)


def _chosen(table: jax.Array, grammar: GrammarArrays, states: jax.Array, tokens: jax.Array, text: Any) -> jax.Array:
    """Looks up a [S, A] table at the alternatives that were chosen, int32 [...]; ``text`` at tokens of free text."""
    match = grammar.tokens[states] == tokens[..., None]
    place = jnp.argmax(match, axis=-1)
    found = jnp.take_along_axis(table[states], place[..., None], axis=-1)[..., 0]
    return found if grammar.free is None else jnp.where(match.any(-1), found, text)


def segment_ids(grammar: GrammarArrays, states: jax.Array, tokens: jax.Array, valid: jax.Array) -> jax.Array:
    """Segment id of each token [...]: 0..K−1 content (free text too), −1 structural, −2 answer, −3 padding."""
    text = None if grammar.free is None else grammar.free.segments[jnp.maximum(grammar.free.number[states], 0)]
    return jnp.where(valid, _chosen(grammar.segments, grammar, states, tokens, text), PADDING).astype(jnp.int32)


def closed_segments(grammar: GrammarArrays, states: jax.Array, tokens: jax.Array) -> jax.Array:
    """The segment whose line each token [...] closes, −1 where it closes none."""
    return _chosen(grammar.closes, grammar, states, tokens, -1)
