"""How good is the student's own answer? Ranked probability score on held-out users, against the base rate.

For each user M chains are sampled with fixed keys and the chain-conditioned answer distributions are averaged:
p(b | x) ≈ (1/M) Σ_m p(b | x, chain_m).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scaletot_jax.evaluation.metrics import rps, spearman
from scaletot_jax.lm.padding import round_up
from scaletot_jax.parallel.distributed import gather, place
from scaletot_jax.parallel.sharding import ShardingRules, batch_parts, batch_shardings
from scaletot_jax.student.policy import Student
from scaletot_jax.student.rollout import request_keys, sample_chains


@functools.partial(jax.jit, static_argnames=("config", "lora_scale", "max_length"))
def _answers(params, lora, grammar, prompts, prompt_valid, keys, *, config, lora_scale, max_length):
    rollouts = sample_chains(
        params, config, grammar, prompts, prompt_valid, keys, max_length=max_length, lora=lora, lora_scale=lora_scale
    )
    return jnp.mean(rollouts.answers, axis=1), jnp.mean(rollouts.complete.astype(jnp.float32), axis=1)


def answer_distributions(
    student: Student,
    prompts: np.ndarray,
    prompt_valid: np.ndarray,
    *,
    chains: int,
    key: jax.Array,
    advance: Callable[[int], None] | None = None,
    batch_size: int = 32,
) -> tuple[np.ndarray, float]:
    """Mean answer distribution of M sampled chains, [U, Kb] float32, and the share of complete chains.

    Under a mesh the work is divided among its devices.

    Args:
      student: where a mesh is active, on it (:func:`scaletot_jax.student.policy.split`).
      prompts, prompt_valid: [U, P] from :func:`scaletot_jax.student.policy.encode_prompts`.
      chains: M. key: random key; user u's chains depend on it and on the user's position. advance: called with the number
        of users finished.
    """
    mesh, rules = jax.sharding.get_mesh(), ShardingRules()
    if not mesh.empty:  # every device takes as many rows
        batch_size = round_up(batch_size, batch_parts(mesh, rules))
    answers, complete = [], []
    for begin in range(0, len(prompts), batch_size):
        rows = np.arange(begin, min(begin + batch_size, len(prompts)))
        filled = np.resize(rows, batch_size)
        requests = filled[:, None] * chains + np.arange(chains)[None, :]
        batch = (prompts[filled], prompt_valid[filled], request_keys(key, jnp.asarray(requests)))
        if not mesh.empty:
            batch = place(batch, batch_shardings(batch, mesh, rules))
        probabilities, whole = _answers(
            student.params,
            student.lora,
            student.grammar,
            *batch,
            config=student.config,
            lora_scale=student.lora_scale,
            max_length=student.chain_length,
        )
        probabilities, whole = gather((probabilities, whole))
        answers.append(probabilities[: len(rows)])
        complete.append(whole[: len(rows)])
        if advance:
            advance(len(rows))
    return np.concatenate(answers), float(np.mean(np.concatenate(complete)))


def score_answers(
    probabilities: np.ndarray, buckets: np.ndarray, base_rate: np.ndarray, bucket_value: np.ndarray
) -> dict[str, Any]:
    """Scores of the answers of U users.

    Args:
      probabilities: [U, Kb]. buckets: [U] int, the truth. base_rate: [Kb], shares among training users.
      bucket_value: [Kb] label value of each bucket.

    Returns:
      ``rps`` (0 is perfect, lower is better), ``base_rate_rps``, ``skill`` = 1 − rps / base_rate_rps, ``spearman`` of the expected bucket value with the
      true one (None where either is constant), ``users``.
    """
    own = float(rps(buckets, probabilities))
    base = float(rps(buckets, np.broadcast_to(base_rate, probabilities.shape)))
    correlation = float(spearman(bucket_value[buckets], np.asarray(probabilities, np.float64) @ bucket_value))
    return {
        "rps": own,
        "base_rate_rps": base,
        "skill": 1 - own / base if base > 0 else None,
        "spearman": correlation if np.isfinite(correlation) else None,
        "users": len(buckets),
    }
