"""From raw log-probabilities to distributions and uncertainties. NumPy in, NumPy out.

A small model's raw probabilities mostly say which words it likes. Batch calibration removes that:

    p(v | profile) ∝ exp( log π(v | profile, stem) − mean over the label-blind pilot of the same )

(Zhou et al., "Batch calibration", arXiv:2309.17249). Uncertainty of a node joins the calibrated entropy, as a rank
among the pilot's, with the disagreement between wordings:

    u = ½ · CDF( H(p) / ln V ) + ½ · JSD(p_1 … p_J) / ln J        in [0, 1]

or either term alone (``teacher.guide``), which the ablation of ``benchmarks/teacher_ablation.py`` compares.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

GUIDES = {"both": (0.5, 0.5), "entropy": (1.0, 0.0), "disagreement": (0.0, 1.0)}  # weights of the two terms of u


def softmax(scores: ArrayLike) -> Array:
    """Along the last axis, in float64."""
    x = np.asarray(scores, np.float64)
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def pilot_mean(log_probs: ArrayLike) -> Array:
    """Mean log-probability of every value under every stem: [users, J, V] to [J, V]."""
    return np.asarray(log_probs, np.float64).mean(0)


def by_stem(log_probs: ArrayLike, mean: ArrayLike) -> Array:
    """Calibrated distributions, one a stem: log_probs [..., J, V] and mean [J, V] to [..., J, V]."""
    return softmax(np.asarray(log_probs, np.float64) - np.asarray(mean, np.float64))


def pooled(log_probs: ArrayLike, mean: ArrayLike, shift: ArrayLike = 0.0) -> Array:
    """One distribution from all stems: the normalised geometric mean of :func:`by_stem`, [..., J, V] to [..., V].

    Args:
      shift: [V] added log-weights. Calibrated distributions suppose every value equally common; the log of an aggregate
        base rate makes it their prior instead, p ∝ calibrated · base, without touching the odds between users.
    """
    scores = np.asarray(log_probs, np.float64) - np.asarray(mean, np.float64)
    return softmax(scores.mean(-2) + shift)


def entropy(p: ArrayLike) -> Array:
    """H(p) / ln V along the last axis, in [0, 1]."""
    q = np.asarray(p, np.float64)
    terms = np.where(q > 0, q * np.log(np.where(q > 0, q, 1.0)), 0.0)
    return np.clip(-terms.sum(-1) / np.log(max(2, q.shape[-1])), 0.0, 1.0)


def disagreement(p: ArrayLike) -> Array:
    """Jensen–Shannon divergence of J distributions over its maximum ln min(J, V): [..., J, V] to [...], in [0, 1].

    A single distribution disagrees with nobody: 0.
    """
    q = np.asarray(p, np.float64)
    count, size = q.shape[-2:]
    if count < 2:
        return np.zeros(q.shape[:-2])
    mixed = entropy(q.mean(-2)) - entropy(q).mean(-1)
    return np.clip(mixed * np.log(max(2, size)) / np.log(min(count, max(2, size))), 0.0, 1.0)


def mid_rank(sample: ArrayLike, x: ArrayLike) -> Array:
    """Empirical distribution function with ties counted half: (#{s < x} + #{s ≤ x}) / 2n; ½ for an empty sample."""
    ordered = np.sort(np.asarray(sample, np.float64))
    value = np.asarray(x, np.float64)
    if len(ordered) == 0:
        return np.full(value.shape, 0.5)
    return (np.searchsorted(ordered, value, "left") + np.searchsorted(ordered, value, "right")) / (2 * len(ordered))


def uncertainty(sample: ArrayLike, node_entropy: ArrayLike, node_disagreement: ArrayLike, guide: str = "both") -> Array:
    """u of the module's docstring; ``sample`` holds the pilot's entropies of the same segment.

    Args:
      guide: ``both`` (equal weights), or ``entropy`` or ``disagreement`` alone.
    """
    by_entropy, by_spread = GUIDES[guide]
    return by_entropy * mid_rank(sample, node_entropy) + by_spread * np.asarray(node_disagreement, np.float64)


def agreement(log_probs: ArrayLike, mean: ArrayLike) -> float:
    """How alike the wordings order users: mean Pearson correlation over pairs of stems of the calibrated log-odds.

    Free of scale, so that a flat and a sharp scoring mode can be compared. Args as in :func:`by_stem` with a leading
    user axis, [users, J, V]. 1 for a single stem, 0 where a stem does not vary.
    """
    scores = np.asarray(log_probs, np.float64) - np.asarray(mean, np.float64)
    scores = scores - scores.mean(-1, keepdims=True)
    flat = np.moveaxis(scores, 1, 0).reshape(scores.shape[1], -1)
    if len(flat) < 2:
        return 1.0
    norms = np.sqrt((flat**2).sum(-1))
    pairs = [
        float(flat[i] @ flat[j] / (norms[i] * norms[j])) if norms[i] > 1e-12 and norms[j] > 1e-12 else 0.0
        for i in range(len(flat))
        for j in range(i)
    ]
    return float(np.mean(pairs))


def pool_answers(direct: ArrayLike, chain: ArrayLike) -> Array:
    """The pooled answer: the normalised geometric mean, ∝ √(p_direct · p_chain)."""
    logs = [np.log(np.maximum(np.asarray(p, np.float64), 1e-12)) for p in (direct, chain)]
    return softmax((logs[0] + logs[1]) / 2)


def redistribute(p: ArrayLike, members: Sequence[int], scores: ArrayLike) -> Array:
    """Moves probability among ``members`` only: their total mass is split by softmax(scores), the rest stays."""
    out = np.array(p, np.float64)
    chosen = list(members)
    out[chosen] = out[chosen].sum() * softmax(scores)
    return out
