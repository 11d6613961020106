"""Labels of several horizons agree: who is active on y days within 30 days was not active on more within 7.

The labels nest, y_7 ≤ y_14 ≤ y_30 for every row, so their distributions are ordered: P(y_h > j) rises with h for every j.
Separate heads need not obey. Their probabilities are projected on the nearest ones that do, row by row and day by day, by
isotonic regression (the min-max formula); a head that obeyed already is not changed.
Source: Barlow et al. (1972) for isotonic regression.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from scaletot_jax.evaluation.predictions import Predictions, Target


def isotonic(values: np.ndarray) -> np.ndarray:
    """The nearest rising sequence in least squares along axis 0: x_i = max_{a≤i} min_{b≥i} mean(v_a..v_b).

    >>> isotonic(np.array([[3.0], [1.0], [4.0]]))[:, 0].tolist()
    [2.0, 2.0, 4.0]
    """
    values = np.asarray(values, np.float64)
    sums = np.concatenate([np.zeros_like(values[:1]), np.cumsum(values, axis=0)])
    count = len(values)
    return np.stack([
        np.max([np.min([(sums[b + 1] - sums[a]) / (b + 1 - a) for b in range(i, count)], axis=0) for a in range(i + 1)], axis=0)
        for i in range(count)
    ])  # fmt: skip


def order_horizons(predictions: Sequence[Predictions]) -> list[Predictions]:
    """Predictions of the same rows for nested labels, horizons ascending, made to agree.

    Distributions are ordered where every one is there; else means and probabilities.
    """
    if len(predictions) < 2:
        return list(predictions)
    if all(p.distribution is not None for p in predictions):
        longest = max(p.distribution.shape[1] for p in predictions if p.distribution is not None)
        above = np.stack([_survival(p, longest) for p in predictions])  # [h, T, longest − 1], P(y > j)
        above = isotonic(above)
        out = []
        for p, one in zip(predictions, above):
            assert p.distribution is not None
            kept = one[
                :, : p.distribution.shape[1] - 1
            ]  # P(y > j) = 0 beyond a horizon, which no pooling with a lower one raises
            steps = np.concatenate([np.ones((len(kept), 1)), kept, np.zeros((len(kept), 1))], axis=1)
            distribution = steps[:, :-1] - steps[:, 1:]
            out.append(p._replace(mean=kept.sum(1), positive=kept[:, 0], distribution=distribution))
        return out
    means = isotonic(np.stack([p.mean for p in predictions]))
    positives = [p.positive for p in predictions]
    if all(p.probability for p in predictions):
        positives = list(isotonic(np.stack(positives)))
    return [p._replace(mean=mean, positive=positive) for p, mean, positive in zip(predictions, means, positives)]


def raise_to_monotone(
    targets: Sequence[Target], said: Mapping[str, Mapping[str, Sequence[Predictions]]]
) -> dict[str, dict[str, list[Predictions]]]:
    """Every system's predictions for the days labels, made to agree seed by seed; other labels are left as they are.

    Args:
      targets: the labels. said: label → system → predictions of each seed.
    """
    out = {column: {system: list(found) for system, found in systems.items()} for column, systems in said.items()}
    days = sorted((target for target in targets if target.kind == "days"), key=lambda target: target.horizon)
    if len(days) < 2:
        return out
    for system in set.intersection(*(set(out[target.column]) for target in days)):
        seeds = [out[target.column][system] for target in days]
        if len({len(found) for found in seeds}) == 1:
            for seed, ordered in enumerate(zip(*seeds)):
                for target, p in zip(days, order_horizons(ordered)):
                    out[target.column][system][seed] = p
    return out


def _survival(p: Predictions, length: int) -> np.ndarray:
    """P(y > j) for j = 0..length − 2; 0 beyond the label's own horizon."""
    assert p.distribution is not None
    above = 1 - np.cumsum(p.distribution, axis=1)[:, :-1]
    return np.pad(np.clip(above, 0, 1), ((0, 0), (0, length - 1 - above.shape[1])))
