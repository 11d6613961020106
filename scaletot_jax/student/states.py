"""Reasoning states: what the student's layers hold at the end of each segment of its own chains.

For every profile N chains are sampled, and one more pass over prompt and chains reads the residual stream after the
chosen layers at each segment's closing token. z is random given the profile, so an encoder can only learn E[z | profile];
the N chains let one average, and tell how much of the variance lies within a profile.

Shape letters: U users, N chains a user, K segments, D model width, Kb answer buckets.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scaletot_jax.chains.automaton import CompiledChain
from scaletot_jax.chains.parser import parse
from scaletot_jax.lm.config import LMConfig
from scaletot_jax.lm.exit import truncate
from scaletot_jax.lm.model import forward
from scaletot_jax.lm.padding import round_up
from scaletot_jax.lm.splash import Tree
from scaletot_jax.student.constrained import GrammarArrays, closed_segments
from scaletot_jax.student.packing import gather, pack
from scaletot_jax.student.policy import PROMPT_MULTIPLE, Student, encode_prompts
from scaletot_jax.student.rollout import Rollouts, request_keys, sample_chains


class ReasoningStates(NamedTuple):
    """States of some users.

    Attributes:
      states: layer → [U, N, K, D] float32, residual stream after that layer at each segment's closing token.
      pooled: layer → [U, N, K, D] float32, its mean over each segment's content tokens: a baseline.
      prompt_end: layer → [U, D] float32, at the prompt's last token: the profile without reasoning.
      answers: [U, N, Kb] float32, answer distribution at the end of each chain.
      slots: [U, N, S] int32, which of its slot's values each chain says, of S slots; -1 for free text, and for every slot of a
        chain in which a segment cannot be read (a missing answer alone does not matter).
    """

    states: dict[int, Any]
    pooled: dict[int, Any]
    prompt_end: dict[int, Any]
    answers: Any
    slots: Any


class LayerStates(NamedTuple):
    """What :func:`read_states` reads, one array a layer; as the fields of :class:`ReasoningStates`."""

    states: tuple[jax.Array, ...]
    pooled: tuple[jax.Array, ...]
    prompt_end: tuple[jax.Array, ...]


def state_stream(seed: int) -> int:
    """The random stream of a run's reasoning states: a profile's chains depend on the run's seed and on the profile alone,
    not on the stage that asks or on which others it asks for."""
    return int(hashlib.sha256(f"{seed}:reasoning states".encode()).hexdigest()[:7], 16)


def profile_ids(keys: Iterable[str]) -> list[int]:
    """What stands for each profile in :func:`state_stream`, from its exact key: stages that ask for equal ids get equal chains."""
    return [int(key[:6], 16) for key in keys]


def closing_places(rollouts: Rollouts, grammar: GrammarArrays, num_segments: int) -> jax.Array:
    """Position of each segment's closing token within its chain, int32 [U, N, K]."""
    closes = closed_segments(grammar, rollouts.states, rollouts.tokens)
    closes = jnp.where(rollouts.valid, closes, -1)
    return jnp.argmax(closes[..., None] == jnp.arange(num_segments), axis=2).astype(jnp.int32)


def read_states(
    params: Mapping[str, Any],
    lora: Mapping[str, jax.Array],
    grammar: GrammarArrays,
    prompts: jax.Array,
    prompt_valid: jax.Array,
    rollouts: Rollouts,
    *,
    config: LMConfig,
    lora_scale: float,
    num_segments: int,
    layers: tuple[int, ...],
) -> LayerStates:
    """One pass over prompts [U, P] and their chains."""
    depth = max(layers)  # what lies above the highest layer asked for is not computed
    params, config = truncate(params, config, depth)
    lora = jax.tree.map(lambda leaf: leaf[:depth], lora)
    packed = pack(prompts, prompt_valid, rollouts.tokens, rollouts.valid)
    _, count, length = rollouts.tokens.shape
    out = forward(
        params,
        config,
        packed.tokens,
        valid=packed.valid,
        positions=packed.positions,
        mask=packed.mask,
        tree=Tree(prompts.shape[1], count, length),
        lora=lora,
        lora_scale=lora_scale,
        collect_layers=layers,
    )
    begin = prompts.shape[1] + length * jnp.arange(count)[None, :, None]
    places = begin + closing_places(rollouts, grammar, num_segments)
    last = jnp.sum(prompt_valid, axis=1) - 1
    inside = (rollouts.segment_ids[..., None] == jnp.arange(num_segments)) & rollouts.valid[..., None]  # [U, N, R, K]
    share = inside / jnp.maximum(inside.sum(2, keepdims=True), 1)
    chains = (layer[:, prompts.shape[1] :].reshape(*inside.shape[:3], -1) for layer in out.layers)
    return LayerStates(
        tuple(gather(layer, places) for layer in out.layers),
        tuple(jnp.einsum("unrk,unrd->unkd", share.astype(chain.dtype), chain) for chain in chains),
        tuple(gather(layer, last[:, None])[:, 0] for layer in out.layers),
    )


def slot_values(chain: CompiledChain, tokens: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Which value each slot of each chain [..., R] has, int32 [..., S]; see :class:`ReasoningStates`."""
    slots = chain.spec.slots
    places = [{value: i for i, value in enumerate(slot.values)} for slot in slots]
    out = np.full((*tokens.shape[:-1], len(slots)), -1, np.int32)
    for index in np.ndindex(*tokens.shape[:-1]):
        values = parse(chain, tokens[index][valid[index]]).values
        if values is not None:
            out[index] = [
                place.get(value, -1) if isinstance(value, str) else -1 for place, value in zip(places, values)
            ]
    return out


@functools.partial(jax.jit, static_argnames=("config", "lora_scale", "num_segments", "layers", "max_length"))
def _sample_and_read(
    params, lora, grammar, prompts, prompt_valid, keys, *, config, lora_scale, num_segments, layers, max_length
):
    rollouts = sample_chains(
        params, config, grammar, prompts, prompt_valid, keys, max_length=max_length, lora=lora, lora_scale=lora_scale
    )
    found = read_states(
        params,
        lora,
        grammar,
        prompts,
        prompt_valid,
        rollouts,
        config=config,
        lora_scale=lora_scale,
        num_segments=num_segments,
        layers=layers,
    )
    return found, rollouts.answers, rollouts.tokens, rollouts.valid


def stream_states(
    student: Student,
    texts: Sequence[str],
    *,
    chains: int,
    seed: int,
    layers: tuple[int, ...],
    ids: Sequence[int] | None = None,
    batch_size: int = 16,
) -> Iterator[ReasoningStates]:
    """Like :func:`reasoning_states`, a batch of users at a time, in order; the last batch may be shorter."""
    # One padded length for all calls: one compiled program, and chains that do not depend on the neighbours' lengths.
    length = round_up(len(student.tokenizer.start) + student.max_profile_tokens, PROMPT_MULTIPLE)
    tokens, valid, _ = encode_prompts(student.tokenizer, texts, student.max_profile_tokens, length=length)
    numbers = np.arange(len(texts)) if ids is None else np.asarray(ids)
    requests = numbers[:, None] * chains + np.arange(chains)[None, :]
    key = jax.random.key(seed)
    for begin in range(0, len(texts), batch_size):
        rows = np.arange(begin, min(begin + batch_size, len(texts)))
        filled = np.resize(rows, batch_size)  # one shape, one compiled program
        found, answers, chain_tokens, chain_valid = _sample_and_read(
            student.params,
            student.lora,
            student.grammar,
            tokens[filled],
            valid[filled],
            request_keys(key, jnp.asarray(requests[filled])),
            config=student.config,
            lora_scale=student.lora_scale,
            num_segments=student.spec.num_segments,
            layers=tuple(layers),
            max_length=student.chain_length,
        )
        kept = len(rows)
        states, pooled, ends = (
            {layer: np.asarray(value)[:kept] for layer, value in zip(layers, part)} for part in found
        )
        said = slot_values(student.chain, np.asarray(chain_tokens)[:kept], np.asarray(chain_valid)[:kept])
        yield ReasoningStates(states, pooled, ends, np.asarray(answers)[:kept], said)


def reasoning_states(
    student: Student,
    texts: Sequence[str],
    *,
    chains: int,
    seed: int,
    layers: tuple[int, ...],
    ids: Sequence[int] | None = None,
    batch_size: int = 16,
) -> ReasoningStates:
    """Samples chains for each text and reads the reasoning states.

    Args:
      texts: profile texts; one longer than ``student.max_profile_tokens`` is cut.
      chains: N, chains a text, sampled at temperature 1.
      seed: a user's chains depend on it, on the user's id and text, and on nothing else in the call.
      layers: layers 1..L to read.
      ids: a number a text that names its random stream; default its position.
      batch_size: texts a device batch.

    Returns:
      ReasoningStates of NumPy arrays.
    """
    parts = list(stream_states(student, texts, chains=chains, seed=seed, layers=layers, ids=ids, batch_size=batch_size))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
