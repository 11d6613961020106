"""Evidence that reasoning was transferred: how much of the states' predictable part the encoder reproduces.

The student *samples* its chains, so states of one profile differ; only their mean given the profile can be learnt. All
figures are for held-out profiles and one segment, in the whitened space.

Held out means that the encoder never trained on the profile's group. The language model may have: its chains (SFT) and
labels (OSIPO) come from the teacher split, and a student could lay down more in the states of people it was trained on
than it will for others. So the evidence is kept apart, and only :data:`UNSEEN` groups speak for everybody else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from scaletot_jax.encoder.cka import debiased_cka
from scaletot_jax.encoder.model import Encoded
from scaletot_jax.encoder.whiten import Whitening, effective_rank, whiten
from scaletot_jax.profiles.keys import share_of_repeats

UNSEEN = "unseen_groups"  # no training stage of the language model used them
TRAINED = "trained_groups"  # the teacher, SFT or OSIPO did
MIN_SLICE = 30  # profiles; fewer say nothing about a slice
MIN_REPETITION = 0.2  # share of profiles that repeat by the coarse key, below which "seen" means nothing


class Ceiling(NamedTuple):
    """What any function of the profile can reach; None where one chain a profile leaves the noise unknown."""

    mean_target: float | None  # best possible R² on the mean over N chains
    single_chain: float | None  # 1 − Var_within / Var_total of one chain's state


def noise_ceiling(chains: np.ndarray) -> Ceiling:
    """Noise ceiling of R² from repeated chains.

    W = mean over users of the unbiased within-user variance, T = variance over users of the chain mean, both summed over
    dimensions. The target is the mean over N chains, whose noise is W/N: ceiling 1 − (W/N)/T. For a single chain,
    Var_total = T − W/N + W, so the ceiling is 1 − W/Var_total. Clipped below at 0.

    Args:
      chains: [U, N, d] whitened states of U users, N chains each.
    """
    users, count, _ = chains.shape
    if count < 2 or users < 2:
        return Ceiling(None, None)
    within = chains.var(axis=1, ddof=1).mean(0).sum()
    total = chains.mean(1).var(axis=0, ddof=1).sum()
    between = max(total - within / count, 0.0)
    return Ceiling(
        float(between / total) if total > 0 else None,
        float(between / (between + within)) if between + within > 0 else None,
    )


def transfer_r2(target: np.ndarray, predicted: np.ndarray) -> float | None:
    """Variance-weighted R² = 1 − Σ‖z − ẑ‖²/Σ‖z − z̄‖², both sums over users and dimensions [U, d]."""
    total = ((target - target.mean(0)) ** 2).sum()
    return float(1 - ((target - predicted) ** 2).sum() / total) if len(target) > 1 and total > 0 else None


def retrieval(target: np.ndarray, predicted: np.ndarray, pool: int = 1000) -> dict[str, float]:
    """How often a user's prediction is nearest (cosine) to that user's own state among ``pool`` users.

    Args:
      target: [U, d]; predicted: [U, d]. The first ``pool`` users are the pool.

    Returns:
      recall_at_1, recall_at_10, mean reciprocal rank, pool size, and what chance gives for recall_at_1 and mrr. Tied
      similarities count against the prediction.
    """
    a, b = _unit(np.asarray(predicted[:pool], np.float64)), _unit(np.asarray(target[:pool], np.float64))
    similarity = a @ b.T
    rank = (similarity >= np.diag(similarity)[:, None] - 1e-12).sum(1)
    size = len(rank)
    return {
        "recall_at_1": float((rank <= 1).mean()),
        "recall_at_10": float((rank <= 10).mean()),
        "mrr": float((1.0 / rank).mean()),
        "pool": size,
        "chance_recall_at_1": 1.0 / size,
        "chance_mrr": float((1.0 / np.arange(1, size + 1)).mean()),
    }


def transfer_evidence(
    names: list[str],
    states: Sequence[np.ndarray],
    held_out: np.ndarray,
    train: np.ndarray,
    whitening: list[Whitening],
    encoded: Encoded,
) -> list[dict[str, Any]]:
    """By segment: R² on held-out groups against the noise ceiling, in whitened space and weighted by the states' own variance.

    Args:
      names: of the segments.
      states: for each segment [U, N, D].
      held_out, train: bool [U].
      whitening: of each segment.
      encoded: the encoder's output for the held-out profiles.
    """
    out = []
    for k, (name, w) in enumerate(zip(names, whitening)):
        chains = whiten(w, states[k][held_out])  # [H, N, d]
        target, predicted = chains.mean(1), np.asarray(encoded.segments[k], np.float64)
        scale = np.sqrt(w.variance)
        row: dict[str, Any] = {
            "segment": name,
            "dim": len(scale),
            "effective_rank": effective_rank(states[k][train].mean(1)),
            "held_out": len(target),
        }
        if len(target) > 1:
            ceiling, natural = noise_ceiling(chains), noise_ceiling(chains * scale)
            row |= {
                "r2": transfer_r2(target, predicted),
                "ceiling": ceiling.mean_target,
                "ceiling_single_chain": ceiling.single_chain,
                "r2_by_variance": transfer_r2(target * scale, predicted * scale),
                "ceiling_by_variance": natural.mean_target,
                "share_of_ceiling": _share(transfer_r2(target, predicted), ceiling.mean_target),
                "cka": debiased_cka(target, predicted),
                "retrieval": retrieval(target, predicted),
            }
        out.append(row)
    return out


def evidence_by_exposure(
    names: list[str],
    states: Sequence[np.ndarray],
    held_out: np.ndarray,
    trained: np.ndarray,
    train: np.ndarray,
    whitening: list[Whitening],
    encoded: Encoded,
) -> dict[str, list[dict[str, Any]]]:
    """:func:`transfer_evidence` for held-out profiles of :data:`UNSEEN` and of :data:`TRAINED` groups, each for itself.

    Args:
      trained: bool [U], whether a training stage of the language model used the profile's group.
      names, states, held_out, train, whitening, encoded: as there; ``encoded`` is for all held-out profiles.
    """
    out = {}
    for name, chosen in ((UNSEEN, held_out & ~trained), (TRAINED, held_out & trained)):
        out[name] = transfer_evidence(names, states, chosen, train, whitening, encoded.rows(chosen[held_out]))
    return out


def evidence_by_slice(
    slices: Mapping[str, np.ndarray],
    names: list[str],
    states: Sequence[np.ndarray],
    held_out: np.ndarray,
    train: np.ndarray,
    whitening: list[Whitening],
    encoded: Encoded,
) -> dict[str, list[dict[str, Any]] | None]:
    """:func:`transfer_evidence` for slices of the held-out profiles; None where a slice is too small.

    Args:
      slices: name → bool [U].
      names, states, held_out, train, whitening, encoded: as there; ``encoded`` is for all held-out profiles.
    """
    out: dict[str, list[dict[str, Any]] | None] = {}
    for name, member in slices.items():
        chosen = held_out & member
        if chosen.sum() < MIN_SLICE:
            out[name] = None
            continue
        out[name] = transfer_evidence(names, states, chosen, train, whitening, encoded.rows(chosen[held_out]))
    return out


def slices_of(present: np.ndarray, coarse: np.ndarray, trained: np.ndarray, among: np.ndarray) -> dict[str, np.ndarray]:
    """Slices of profiles: by how much they tell, and by whether their like was trained on.

    Args:
      present: [U] number of fields that are there.
      coarse: [U] coarse keys.
      trained: bool [U], profiles that the encoder or the language model was trained on.
      among: bool [U], profiles whose median of ``present`` divides the cohorts.

    Returns:
      ``sparse`` and ``rich``, and ``seen`` and ``unseen`` unless hardly any profile repeats by its coarse key.
    """
    sparse = present <= np.median(present[among]) if among.any() else np.zeros(len(present), bool)
    out = {"sparse": sparse, "rich": ~sparse}
    if share_of_repeats(coarse) >= MIN_REPETITION:
        seen = np.isin(coarse.astype(str), np.unique(coarse[trained].astype(str)))
        out |= {"seen": seen, "unseen": ~seen}
    return out


def _share(reached: float | None, ceiling: float | None) -> float | None:
    return reached / ceiling if reached is not None and ceiling else None


def _unit(rows: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norm > 0, norm, 1.0)
