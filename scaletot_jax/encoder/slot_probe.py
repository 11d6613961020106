"""Does ẑ know what the student's chains say? A linear probe from the embedding to each slot's value, on held-out users. Pure.

The probe is a ridge regression on the shares of a slot's values among a profile's chains, its penalty chosen by the
leave-one-group-out error; it says the value with the largest share. Accuracy is over the chains themselves, which are
sampled, so even the truth about a profile is right only as often as its chains agree (``agreement``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from scaletot_jax.encoder.kernel import group_errors
from scaletot_jax.evaluation.bootstrap import bootstrap, percentile_interval

PENALTIES = tuple(10.0**power for power in range(-4, 3))
ABSENT = -1  # no value: free text, or a chain that is not whole


def probe_slots(
    embedding: np.ndarray,
    slots: np.ndarray,
    groups: np.ndarray,
    train: np.ndarray,
    held_out: np.ndarray,
    names: Sequence[str],
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> list[dict[str, Any]]:
    """One row a slot.

    Args:
      embedding: [U, E] ẑ.
      slots: [U, N, S] value of each slot in each chain, :data:`ABSENT` for none.
      groups: [U].
      train, held_out: bool [U].
      names: [S].

    Returns:
      rows of slot, values (how many occur), accuracy, majority (always the most frequent value of the training profiles),
      agreement, and margin: accuracy minus majority with its interval by group. Slots without values, or with one, are left out.
    """
    x = np.asarray(embedding, np.float64)
    mean, std = x[train].mean(0), x[train].std(0)
    x = (x - mean) / np.where(std > 0, std, np.inf)
    gram = x[train] @ x[train].T / x.shape[1]
    values, vectors = np.linalg.eigh(gram)
    out = []
    for s, name in enumerate(names):
        said = slots[:, :, s]
        size = int(said.max()) + 1
        shares = np.stack([(said == value).mean(1) for value in range(size)], 1) if size > 0 else np.zeros((len(x), 0))
        if (shares[train].sum(0) > 0).sum() < 2 or not held_out.any():
            continue
        middle = shares[train].mean(0)
        centred = shares[train] - middle
        penalty = PENALTIES[int(group_errors(gram, centred, groups[train], PENALTIES).sum(1).argmin())]
        weights = vectors @ ((vectors.T @ centred) / (np.maximum(values, 0) + penalty)[:, None])
        guess = (middle + x[held_out] @ (x[train].T @ weights) / x.shape[1]).argmax(1)
        known = (said[held_out] != ABSENT).sum(1)
        hit = ((said[held_out] == guess[:, None]) & (said[held_out] != ABSENT)).sum(1)
        usual = (said[held_out] == int(middle.argmax())).sum(1)
        agreed = np.max([(said[held_out] == value).sum(1) for value in range(size)], axis=0)
        total = max(int(known.sum()), 1)

        def margin(w: np.ndarray, hit=hit, usual=usual, known=known) -> np.ndarray:
            return (w @ (hit - usual)) / np.maximum(w @ known, 1)

        samples = bootstrap({"margin": margin}, groups[held_out], resamples=resamples, seed=seed)["margin"]
        point = float((hit - usual).sum() / total)
        out.append(
            {
                "slot": name,
                "values": int((shares[train].sum(0) > 0).sum()),
                "accuracy": float(hit.sum() / total),
                "majority": float(usual.sum() / total),
                "agreement": float(agreed.sum() / total),
                "margin": percentile_interval(point, samples, level).to_dict(),
            }
        )
    return out
