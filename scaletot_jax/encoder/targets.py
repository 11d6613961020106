"""What an encoder is asked to reproduce: the reasoning states, or one of the placebos that a gain must be told from. Pure.

    states      the student's states at the segments' closing tokens: the method
    pooled      baseline: their mean over each segment's content tokens
    prompt_end  baseline: the student's state at the end of the prompt, without reasoning
    labels      placebo: labels of the same users and no language model at all
    shuffled    placebo: another profile's states
    random      placebo: a random linear map of the profile's own features

Each is a list of targets [U, d], as a rule one a segment, in whitened coordinates of the training profiles; encoder, training
and embedding are the same for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from scaletot_jax.encoder.whiten import Whitening, fit_whitening, whiten
from scaletot_jax.errors import DataError

THRESHOLDS = (0.25, 0.5, 0.75)  # quantiles of a label among the training profiles whose indicators are targets too


class Targets(NamedTuple):
    """What is reproduced. One entry a segment."""

    names: tuple[str, ...]
    values: tuple[np.ndarray, ...]  # [U, d] float64 whitened, mean over the chains; NaN rows where nothing is known
    whitening: tuple[Whitening, ...]
    chains: tuple[np.ndarray, ...]  # [U, N, D] before whitening; N = 1 where there are no chains


def whitened_targets(names: Sequence[str], chains: Sequence[np.ndarray], train: np.ndarray, dim: int) -> Targets:
    """Targets from states.

    Args:
      names: of the segments.
      chains: for each segment [U, N, D].
      train: bool [U], profiles whose statistics whiten.
      dim: most directions kept.
    """
    chains = tuple(np.asarray(chain, np.float64) for chain in chains)
    statistics = tuple(fit_whitening(chain[train].mean(1), dim) for chain in chains)
    values = tuple(whiten(w, chain.mean(1)) for w, chain in zip(statistics, chains))
    return Targets(tuple(names), values, statistics, chains)


def shuffled_targets(targets: Targets, part: np.ndarray, seed: int) -> Targets:
    """The same targets dealt to other profiles of the same part (``train``, ``select``, ``held_out``)."""
    order = np.arange(len(part))
    rng = np.random.default_rng([seed, 11])
    for name in np.unique(part.astype(str)):
        members = np.flatnonzero(part == name)
        order[members] = members[rng.permutation(len(members))]
    return targets._replace(
        values=tuple(value[order] for value in targets.values), chains=tuple(chain[order] for chain in targets.chains)
    )


def random_targets(names: Sequence[str], dense: np.ndarray, train: np.ndarray, dim: int, seed: int) -> Targets:
    """Z_k = X G_k with Gaussian G_k [P, dim], for the standardised dense features X [U, P] of the profiles."""
    x = np.asarray(dense, np.float64)
    std = x[train].std(0)
    x = np.where(std > 0, (x - x[train].mean(0)) / np.where(std > 0, std, 1.0), 0.0)
    rng = np.random.default_rng([seed, 13])
    maps = [rng.normal(size=(x.shape[1], dim)) / np.sqrt(x.shape[1]) for _ in names]
    return whitened_targets(names, [(x @ one)[:, None] for one in maps], train, dim)


def label_targets(labels: dict[str, np.ndarray], train: np.ndarray) -> Targets:
    """For each label log1p(y), 1[y > 0] and 1[y > q] at its quantiles :data:`THRESHOLDS`, each standardised.

    A label that does not vary among the training profiles teaches nothing and is left out.

    Args:
      labels: column → [U], NaN where unknown.
      train: bool [U].

    Raises:
      DataError: none of them varies.
    """
    names, values, statistics, chains = [], [], [], []
    for name, y in labels.items():
        known = train & np.isfinite(y)
        edges = np.unique(np.r_[0.0, np.quantile(y[known], THRESHOLDS)]) if known.any() else np.zeros(1)
        columns = np.stack(
            [np.log1p(np.maximum(y, 0.0)), *(np.where(np.isfinite(y), y > edge, np.nan) for edge in edges)], 1
        )
        mean, std = columns[known].mean(0), columns[known].std(0)
        kept = std > 0
        if not kept.any():
            continue
        names.append(name)
        columns, mean, std = columns[:, kept], mean[kept], std[kept]
        whitening = Whitening(mean, np.diag(1 / std), std**2)
        statistics.append(whitening)
        values.append(whiten(whitening, columns))
        chains.append(columns[:, None])
    if not names:
        raise DataError(
            "an encoder cannot learn from labels that are all the same", where=f"labels {', '.join(labels)}",
            why=f"{int(train.sum())} training profiles", do="leave `labels` out of distill.placebos, or distil more profiles",
        )  # fmt: skip
    return Targets(tuple(names), tuple(values), tuple(statistics), tuple(chains))
