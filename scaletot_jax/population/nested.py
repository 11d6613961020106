"""Served labels of several horizons agree, as the evaluated ones do: who is active on y days within 30 was not on more within 7.

What :mod:`scaletot_jax.evaluation.monotone` does to predictions is done here to P(y > j) of the seed-averaged heads, within the
compiled program, so that expectations, P(y > 0) and quantiles all come from distributions that rise with the horizon.
Source: Barlow et al. (1972) for isotonic regression.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import jax
import jax.numpy as jnp

from scaletot_jax.profiles.fields import Labels


def nested_columns(labels: Labels) -> list[str]:
    """The labels whose days include one another's, horizons ascending; none where there is one alone."""
    days = sorted([labels.days, *labels.horizons], key=lambda label: label.horizon)
    return [label.column for label in days] if len(days) > 1 else []


def ordered(survivals: Sequence[jax.Array]) -> list[jax.Array]:
    """The nearest survivals in least squares that rise with the horizon, row by row and day by day (the min-max formula).

        x_i = max_{a≤i} min_{b≥i} mean(s_a..s_b)

    Args:
      survivals: P(y_h > 0..h−1) [B, h] of each horizon h, ascending; 0 beyond it.

    Returns:
      the same, of the same shapes.
    """
    longest = survivals[-1].shape[1]
    s = [jnp.pad(one, ((0, 0), (0, longest - one.shape[1]))) for one in survivals]
    means = {
        (a, b): reduce(jnp.add, s[a : b + 1]) / (b + 1 - a) for a in range(len(s)) for b in range(a, len(s))
    }  # fmt: skip
    return [
        reduce(jnp.maximum, [reduce(jnp.minimum, [means[a, b] for b in range(i, len(s))]) for a in range(i + 1)])[
            :, : one.shape[1]
        ]
        for i, one in enumerate(survivals)
    ]
