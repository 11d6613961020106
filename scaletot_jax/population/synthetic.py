"""A population of any size, made shard by shard from a seed, whose best possible scores are known in closed form.

    profile x ─► m(x), fixed       a = m(x) + s ε, ε ~ N(0, 1)       latent state: a, and its class low / middle / high
    days  y = #{ j : a + η > c_j },  η ~ N(0, 1),  c_1 < … < c_30
    value v = 1[y > 0] exp(μ + β a + σ ξ),  ξ ~ N(0, 1)

so that no score can know more of a user than

    P(y ≥ j | x) = Φ( (m(x) − c_j) / √(1 + s²) )            E[y | x] = Σ_j P(y ≥ j | x)
    E[v | x] = exp(μ + σ²/2 + β m(x) + β² s²/2) Φ( (m(x) + β s² − c_1) / √(1 + s²) )

A shard's rows follow from the seed and the shard's number alone. ``profiles`` says how often profiles repeat: 0 draws each
user's fields anew; P draws them from a catalogue of P profiles with the frequencies of Zipf's law, 1/rank.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from scipy.special import ndtr

HORIZON = 30
REGIONS = tuple(f"region {i:02d}" for i in range(40))
CHANNELS = ("organic", "search", "social", "friend", "store")
DEVICES = ("phone", "tablet", "laptop")
PLANS = ("free", "basic", "premium")
LANGUAGES = tuple(f"language {i}" for i in range(12))
INTERESTS = ("music", "sports", "cooking", "travel", "games", "news", "fashion", "science")
STATES = ("low", "middle", "high")
_CUTS = np.linspace(0.2, 2.6, HORIZON)  # c_j
_SPREAD = 0.8  # s
_MU, _BETA, _SIGMA = 1.0, 0.5, 0.6
_MISSING = 0.1  # of ages, languages and recencies


class Profiles(NamedTuple):
    """Codes of the twelve fields, [U] each but ``interests`` [U, 8] bool; −1 is missing."""

    age: np.ndarray
    region: np.ndarray
    channel: np.ndarray
    device: np.ndarray
    plan: np.ndarray
    language: np.ndarray
    trial: np.ndarray
    interests: np.ndarray
    sessions: np.ndarray
    minutes: np.ndarray
    purchases: np.ndarray
    recency: np.ndarray


def draw_profiles(rng: np.random.Generator, rows: int) -> Profiles:
    """``rows`` profiles, fields independent of each other."""

    def gaps(values: np.ndarray) -> np.ndarray:
        return np.where(rng.random(rows) < _MISSING, -1, values)

    sessions = np.minimum(rng.geometric(0.25, rows) - 1, 60)
    return Profiles(
        age=gaps(rng.integers(18, 80, rows)),
        region=rng.integers(0, len(REGIONS), rows),
        channel=rng.integers(0, len(CHANNELS), rows),
        device=rng.integers(0, len(DEVICES), rows),
        plan=rng.choice(len(PLANS), rows, p=[0.6, 0.25, 0.15]),
        language=gaps(rng.integers(0, len(LANGUAGES), rows)),
        trial=rng.random(rows) < 0.3,
        interests=rng.random((rows, len(INTERESTS))) < 0.2,
        sessions=sessions,
        minutes=sessions * rng.integers(1, 30, rows),
        purchases=rng.binomial(np.minimum(sessions, 8), 0.15),
        recency=gaps(rng.integers(0, 31, rows)),
    )


def activity(profiles: Profiles) -> np.ndarray:
    """m(x) [U] float64: additive but for two interactions, so that a linear score is not the best one."""
    x = profiles
    age = np.where(x.age < 0, 0.0, (x.age - 48) / 30)
    recency = np.where(x.recency < 0, 0.4, x.recency / 30)
    region = np.sin(1.7 * np.arange(len(REGIONS)))[x.region]
    m = 0.35 * (x.plan - 0.5) + 0.3 * np.log1p(x.sessions) - 0.9 * recency + 0.25 * region - 0.15 * age
    m += 0.1 * x.interests.sum(1) + 0.2 * x.purchases + 0.15 * x.trial
    return m + 0.5 * (x.plan == 0) * (x.channel == 3) - 0.6 * x.trial * recency - 0.2


def draw_days(rng: np.random.Generator, m: np.ndarray, noise: float = 1.0) -> np.ndarray:
    """One draw of the days label y [U] int for each m; ``noise`` is the standard deviation of η."""
    a = m + _SPREAD * rng.normal(size=len(m))
    return np.searchsorted(_CUTS, a + noise * rng.normal(size=len(m)), side="left")


def expected_days(m: np.ndarray) -> np.ndarray:
    """E[y | x] [U], the Bayes-optimal score of the days label."""
    return ndtr((m[:, None] - _CUTS) / np.hypot(1, _SPREAD)).sum(1)


def days_distribution(m: np.ndarray, noise: float = 1.0) -> np.ndarray:
    """P(y = j | x) [U, 31], the Bayes-optimal distribution of the days label; ``noise`` as in :func:`draw_days`."""
    reached = ndtr((m[:, None] - _CUTS) / np.hypot(noise, _SPREAD))  # P(y ≥ j | x), j = 1..30
    ends = np.ones((len(m), 1)), np.zeros((len(m), 1))
    return -np.diff(np.concatenate([ends[0], reached, ends[1]], axis=1), axis=1)


def probability_positive(m: np.ndarray) -> np.ndarray:
    """P(y > 0 | x) [U]."""
    return ndtr((m - _CUTS[0]) / np.hypot(1, _SPREAD))


def expected_value(m: np.ndarray) -> np.ndarray:
    """E[v | x] [U], the Bayes-optimal score of the value label."""
    scale = np.exp(_MU + _SIGMA**2 / 2 + _BETA * m + (_BETA * _SPREAD) ** 2 / 2)
    return scale * ndtr((m + _BETA * _SPREAD**2 - _CUTS[0]) / np.hypot(1, _SPREAD))


def build_shard(number: int, rows: int, *, seed: int = 0, first: int = 0, profiles: int = 0) -> pa.Table:
    """One shard.

    Args:
      number: of the shard; with the seed it fixes everything drawn.
      rows: how many users.
      seed: of the population.
      first: number of the first user, for the ids.
      profiles: size of the catalogue that profiles are drawn from; 0: none, each user has a profile of his own.

    Returns:
      user_id, the twelve fields of the schema ``population``, labels lt30 and ltv30, and what no model may see: ``activity``
      a, ``state`` (its class), and the best scores ``best_lt30``, ``best_p_lt30``, ``best_ltv30``.
    """
    rng = np.random.default_rng([seed, 41, number])
    if profiles:
        catalogue, cumulative = _catalogue(seed, profiles)
        picked = np.searchsorted(cumulative, rng.random(rows), side="right").clip(max=profiles - 1)
        drawn = Profiles(*(part[picked] for part in catalogue))
    else:
        drawn = draw_profiles(rng, rows)
    m = activity(drawn)
    a = m + _SPREAD * rng.normal(size=rows)
    days = np.searchsorted(_CUTS, a + rng.normal(size=rows), side="left")
    value = np.where(days > 0, np.exp(_MU + _BETA * a + _SIGMA * rng.normal(size=rows)), 0.0)
    ids = np.char.add("u", np.char.zfill(np.arange(first, first + rows).astype("U12"), 12))
    hidden = {
        "activity": pa.array(a),
        "state": _words(np.digitize(a, [0.0, 1.2]), STATES),
        "best_lt30": pa.array(expected_days(m)),
        "best_p_lt30": pa.array(probability_positive(m)),
        "best_ltv30": pa.array(expected_value(m)),
    }
    labels = {"lt30": pa.array(days), "ltv30": pa.array(value)}
    return pa.table({"user_id": pa.array(ids), **_fields(drawn), **labels, **hidden})


@functools.lru_cache(maxsize=2)
def _catalogue(seed: int, profiles: int) -> tuple[Profiles, np.ndarray]:
    frequencies = 1 / np.arange(1, profiles + 1)
    return draw_profiles(np.random.default_rng([seed, 42]), profiles), np.cumsum(frequencies / frequencies.sum())


def _fields(x: Profiles) -> dict[str, pa.Array]:
    ends = np.concatenate([[0], np.cumsum(x.interests.sum(1))]).astype(np.int32)
    return {
        "age": pa.array(x.age, mask=x.age < 0),
        "region": _words(x.region, REGIONS),
        "channel": _words(x.channel, CHANNELS),
        "device": _words(x.device, DEVICES),
        "plan": _words(x.plan, PLANS),
        "language": _words(x.language, LANGUAGES),
        "trial": pa.array(x.trial),
        "interests": pa.ListArray.from_arrays(
            pa.array(ends), pa.array(np.array(INTERESTS, object)[np.nonzero(x.interests)[1]], pa.string())
        ),
        "sessions": pa.array(x.sessions),
        "minutes": pa.array(x.minutes),
        "purchases": pa.array(x.purchases),
        "recency": pa.array(x.recency, mask=x.recency < 0),
    }


def _words(codes: np.ndarray, words: tuple[str, ...]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32), mask=codes < 0), pa.array(words)).cast(
        pa.string()
    )
