"""The two controls of the verdict: a population with a fact that only a teacher knows, and teachers that do or do not say it.

The population is that of :mod:`scaletot_jax.population.synthetic` with one more field, the user's *town*, and

    m(x) = activity(behaviour) + κ w_town,      w ~ N(0, 1), one for each of T towns

so that the best score stays known in closed form. A town's name says nothing by itself; T is larger than the number of
labels a head gets, so profile and label pairs cannot teach w. A teacher that knows the world can: for a profile it emits a
typed chain of three judgements, *place* (w), *habit* (activity) and *outlook* (m), each as one of five levels of equal
frequency:

    positive: the true level with probability 1 − ε, else any level          P(level | x) = (1 − ε) 1[level] + ε/5
    negative: the same for the levels of another profile, drawn at random: a chain with the right look and no knowledge

The student is simulated as well. It says of *any* profile what the teacher would say, with a slip probability δ of its own
in every sampled chain, and its state at the end of segment k is

    h_k = c + v_k(level) + σ ξ,      ξ ~ N(0, I_D)

with a common mean c and a fixed random vector v_k for each level. Its prompt end is a fixed random function of the profile's
fields, the town's name among them: it knows who the user is, and nothing of the towns. All that follows the states
(distillation, placebos, population pass, heads, intervals, verdict) is the real code; see ``benchmarks/controls.py``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from scaletot_jax.population.synthetic import activity, draw_days, draw_profiles, expected_days, profile_columns

KINDS = ("positive", "negative")
SEGMENTS, LEVELS = ("place", "habit", "outlook"), 5
WIDTH = 48  # D of the simulated states


class World(NamedTuple):
    """U users of a control population.

    Attributes:
      table: of the schema ``control``, with the best score ``best_lt30``.
      levels: [U, 3] int, the true level of each judgement.
      m: [U] float64, m(x).
    """

    table: pa.Table
    levels: np.ndarray
    m: np.ndarray


def draw_world(rows: int, *, towns: int, worth: float = 1.0, seed: int = 0) -> World:
    """``rows`` users in ``towns`` towns whose worth moves activity by κ = ``worth`` a standard deviation."""
    rng = np.random.default_rng([seed, 51])
    profiles = draw_profiles(rng, rows)
    town = rng.integers(0, towns, rows)
    w = rng.normal(size=towns)[town]
    habit = activity(profiles)
    m = habit + worth * w
    days = draw_days(rng, m)
    fields = {"town": pa.array(np.char.add("town ", np.char.zfill(town.astype("U6"), 4))), **profile_columns(profiles)}
    table = pa.table(
        {
            "user_id": pa.array([f"u{i:07d}" for i in range(rows)]),
            **fields,
            "lt30": pa.array(days),
            "ltv30": pa.array(np.round(days * np.exp(rng.normal(1.0, 0.6, rows)), 2)),
            "best_lt30": pa.array(expected_days(m)),
        }
    )
    return World(table, np.stack([_quintile(part) for part in (w, habit, m)], axis=1), m)


def said_levels(levels: np.ndarray, kind: str, seed: int) -> np.ndarray:
    """What a teacher without noise would say, [U, 3]: its own profile's levels, or those of another one."""
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, not {kind!r}")
    return levels if kind == "positive" else levels[np.random.default_rng([seed, 52]).permutation(len(levels))]


def distributions(said: np.ndarray, noise: float) -> np.ndarray:
    """P(level | x) [U, K, L] = (1 − ε) 1[level] + ε / L."""
    return (1 - noise) * np.eye(LEVELS)[said] + noise / LEVELS


def draw_levels(probabilities: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One level for each distribution [..., L]."""
    u = rng.random((*probabilities.shape[:-1], 1))
    return (u > np.cumsum(probabilities, axis=-1)[..., :-1]).sum(-1)


def states(
    probabilities: np.ndarray, ids: np.ndarray, *, chains: int, slip: float, noise: float, seed: int
) -> np.ndarray:
    """States of the simulated student's chains [U, N, K, D] float32; those of a user follow from the seed and his id alone.

    Args:
      probabilities: the teacher's [U, K, L].
      ids: [U] a number for each user.
      chains: N.
      slip: δ. noise: σ.
    """
    mean, vectors = _frame(seed)
    mixed = (1 - slip) * probabilities + slip / LEVELS
    out = np.empty((len(ids), chains, len(SEGMENTS), WIDTH), np.float32)
    for i, name in enumerate(ids):
        rng = np.random.default_rng([seed, 53, int(name)])
        level = draw_levels(np.broadcast_to(mixed[i], (chains, *mixed.shape[1:])), rng)  # [N, K]
        out[i] = mean + vectors[np.arange(len(SEGMENTS)), level] + noise * rng.normal(size=out.shape[1:])
    return out


def prompt_ends(features: np.ndarray, seed: int) -> np.ndarray:
    """[U, D] float32: tanh of a fixed random projection of the standardised profile features [U, P]."""
    x = (features - features.mean(0)) / np.maximum(features.std(0), 1e-6)
    projection = np.random.default_rng([seed, 54]).normal(size=(x.shape[1], WIDTH)) / np.sqrt(x.shape[1])
    return (50 + np.tanh(x @ projection)).astype(np.float32)


def _frame(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([seed, 55])
    return 50 + rng.normal(size=WIDTH), rng.normal(size=(len(SEGMENTS), LEVELS, WIDTH))


def _quintile(values: np.ndarray) -> np.ndarray:
    cuts = np.quantile(values, np.arange(1, LEVELS) / LEVELS)
    return np.searchsorted(cuts, values, side="right")
