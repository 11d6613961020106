"""The gate's measures: closed forms, and what they must refuse."""

import math

import numpy as np
import pytest
from export import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from scaletot_jax.encoder import model as encoder_model
from scaletot_jax.errors import DataError
from scaletot_jax.export.levels import level_error
from scaletot_jax.export.parity import random_inputs, worst_error
from scaletot_jax.population.forward import LEVELS, TargetSpec
from scaletot_jax.profiles.features import FeatureSpace

DAYS = TargetSpec("lt", "days", 4, 4.0, ())
MONEY = TargetSpec("ltv", "value", 0, 50.0, ())


@pytest.fixture(scope="module")
def spec():
    rows, schema = tiny_model.table(), tiny_model.schema()
    space = FeatureSpace.fit(rows, schema, schema.profile_fields())
    return encoder_model.describe(space, encoder_model.Inputs(*space.encode(rows)), segments=(), target_dims=())


@settings(max_examples=10)
@given(rows=st.integers(1, 40), seed=st.integers(0, 99))
def test_made_up_rows_are_rows_of_the_encoder(spec, rows, seed):
    inputs = random_inputs(spec, 3, rows, seed)
    encoder_model.check_inputs(spec, inputs)
    assert len(inputs.cat) == rows and (inputs.num[inputs.missing] == 0).all()
    for a, b in zip(inputs, random_inputs(spec, 3, rows, seed)):
        np.testing.assert_array_equal(a, b)


def test_made_up_rows_meet_every_id_and_both_sides_of_every_edge(spec):
    inputs = random_inputs(spec, 3, 2000, 0)
    for j, size in enumerate(spec.cat_sizes):
        assert set(inputs.cat[:, j]) == set(range(1, size))
    for j, size in enumerate(spec.multi_sizes):
        assert set(inputs.multi[:, j].ravel()) == set(range(size))
    for j, edges in enumerate(spec.knots):
        known = inputs.num[~inputs.missing[:, j], j]
        assert known.min() < edges[0] and known.max() > edges[-1]
        assert np.isin(np.float32(edges), known).all()


def test_the_error_is_absolute_below_one_and_relative_above():
    small, large = np.array([0.5, 0.0]), np.array([1000.0, -1000.0])
    assert worst_error({"a": small, "b": large}, {"a": small + 1e-3, "b": large + 1.0}) == pytest.approx(
        {"a": 1e-3, "b": 1e-3}
    )
    assert worst_error({"a": small}, {"a": small}) == {"a": 0.0}


def test_shapes_numbers_and_names_that_cannot_be_compared():
    one = np.ones(2)
    assert worst_error({"a": one}, {"a": np.array([1.0, np.nan])}) == {"a": np.inf}
    assert worst_error({"a": np.array([1.0, np.inf])}, {"a": np.array([1.0, np.inf])}) == {"a": np.inf}
    assert worst_error({"a": one}, {"a": np.ones((2, 1))}) == {"a": np.inf}
    with pytest.raises(DataError, match="other outputs"):
        worst_error({"a": one}, {"b": one})


def test_another_measure_counts_only_where_it_is_smaller():
    want, got = {"q": np.array([0.0, 5.0])}, {"q": np.array([1.0, 5.0])}
    assert worst_error(want, got) == {"q": 1.0}
    assert worst_error(want, got, {"q": lambda v: np.array([1e-8, 0.5])}) == {"q": 1e-8}
    assert worst_error(want, got, {"other": lambda v: np.zeros(2)}) == {"q": 1.0}


def _hurdle(positive: float, hazards: list[float]) -> np.ndarray:
    """Logits [1, 1, H] of a hurdle and hazards."""
    p = np.array([positive, *hazards])
    return np.log(p / (1 - p))[None, None].astype(np.float32)


def test_level_error_of_days_is_that_of_the_distribution_function():
    """P(y = 0..4) = .5, .25, .125, .0625, .0625 reaches .5, .75, .875, .9375, 1."""
    logits = _hurdle(0.5, [0.5, 0.5, 0.5])
    assert LEVELS == (0.1, 0.5, 0.9)
    want = {
        (0, 0, 3): (0, 0, 0),  # the exact quantiles
        (0, 1, 3): (0, 0, 0),  # P(y < 1) = .5: as good a median
        (1, 2, 4): (0.4, 0.25, 0.0375),
        (0, 0, 2): (0, 0, 0.025),
    }
    for values, errors in want.items():
        got = [level_error(DAYS, logits, level, np.array([day], float))[0] for level, day in zip(LEVELS, values)]
        np.testing.assert_allclose(got, errors, atol=1e-6)
    bad = np.array([-1, 0.5, 5])
    assert np.isinf(level_error(DAYS, np.repeat(logits, 3, 0), 0.5, bad)).all()


@given(p=st.floats(0.05, 0.95), mu=st.floats(-2, 3), sigma=st.floats(0.2, 2), amount=st.floats(0.01, 49))
def test_level_error_of_money_is_that_of_the_distribution_function(p, mu, sigma, amount):
    logits = np.array([[[math.log(p / (1 - p)), mu, math.log(math.expm1(sigma))]]])
    reached = 1 - p + p * 0.5 * math.erfc(-(math.log(amount) - mu) / sigma / 2**0.5)
    below_cap = 1 - p + p * 0.5 * math.erfc(-(math.log(50) - mu) / sigma / 2**0.5)
    for level in LEVELS:
        got = level_error(MONEY, np.repeat(logits, 5, 0), level, np.array([amount, 0, 50, -1, 51]))
        want = [abs(reached - level), max(level - (1 - p), 0), max(below_cap - level, 0), np.inf, np.inf]
        np.testing.assert_allclose(got, want, atol=1e-9)
