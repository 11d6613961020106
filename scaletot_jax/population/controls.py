"""The two controls of the verdict: a population with a fact that only a teacher knows, and teachers that do or do not say it.

A user has a few plain fields and a *town*; the label follows from m(x) as in :mod:`scaletot_jax.population.synthetic`, with

    m(x) = habit(plain fields) + κ w_town,      w ~ N(0, 1), one for each of T towns

so that the best score is known in closed form. A town's name says nothing by itself; T is larger than the number of
labels a head gets, so profile and label pairs cannot teach w. A teacher that knows the world can: for a profile it emits a
typed chain of three judgements, *place* (w), *habit* and *outlook* (m), each as one of five levels of equal
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

from scaletot_jax.population.synthetic import PLANS, draw_days

KINDS = ("positive", "negative")
SEGMENTS, LEVELS = ("place", "habit", "outlook"), 5
WIDTH = 48  # D of the simulated states
LABEL_NOISE = 2.0  # standard deviation of η: one user's label says little of a town


class World(NamedTuple):
    """U users of a control population.

    Attributes:
      table: of the schema ``control``.
      levels: [U, 3] int, the true level of each judgement.
      m: [U] float64, m(x).
    """

    table: pa.Table
    levels: np.ndarray
    m: np.ndarray


def draw_world(rows: int, *, towns: int, worth: float = 1.0, seed: int = 0) -> World:
    """``rows`` users in ``towns`` towns whose worth moves activity by κ = ``worth`` a standard deviation."""
    rng = np.random.default_rng([seed, 51])
    town, plan = rng.integers(0, towns, rows), rng.choice(len(PLANS), rows, p=[0.6, 0.25, 0.15])
    sessions, recency = np.minimum(rng.geometric(0.25, rows) - 1, 60), rng.integers(0, 31, rows)
    age = rng.integers(18, 80, rows)
    w = rng.normal(size=towns)[town]
    habit = 0.35 * (plan - 0.5) + 0.3 * np.log1p(sessions) - 0.9 * recency / 30 - 0.15 * (age - 48) / 30 + 0.4
    m = habit + worth * w
    table = pa.table(
        {
            "user_id": pa.array([f"u{i:07d}" for i in range(rows)]),
            "town": pa.array(np.char.add("town ", np.char.zfill(town.astype("U6"), 4))),
            "age": pa.array(age),
            "plan": pa.array(np.array(PLANS)[plan]),
            "sessions": pa.array(sessions),
            "recency": pa.array(recency),
            "lt30": pa.array(draw_days(rng, m, LABEL_NOISE)),
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
) -> tuple[np.ndarray, np.ndarray]:
    """States [U, N, K, D] float32 of the simulated student's chains and the levels [U, N, K] that these say.

    Those of a user follow from the seed and his id alone.

    Args:
      probabilities: the teacher's [U, K, L].
      ids: [U] a number for each user.
      chains: N.
      slip: δ. noise: σ.
    """
    mean, vectors = _frame(seed)
    mixed = (1 - slip) * probabilities + slip / LEVELS
    out = np.empty((len(ids), chains, len(SEGMENTS), WIDTH), np.float32)
    said = np.empty(out.shape[:3], np.int64)
    for i, name in enumerate(ids):
        rng = np.random.default_rng([seed, 53, int(name)])
        said[i] = draw_levels(np.broadcast_to(mixed[i], (chains, *mixed.shape[1:])), rng)
        out[i] = mean + vectors[np.arange(len(SEGMENTS)), said[i]] + noise * rng.normal(size=out.shape[1:])
    return out, said


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
