"""The generated population: the same by shard and seed, its best scores against the labels it draws and against integrals."""

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import norm

from scaletot_jax.population import synthetic
from scaletot_jax.population.synthetic import build_shard
from scaletot_jax.profiles.keys import exact_keys
from scaletot_jax.profiles.schema import load_schema
from scaletot_jax.profiles.table import validate

SCHEMA = load_schema("population")


def test_a_shard_follows_from_its_seed_and_number():
    assert build_shard(3, 200, seed=1).equals(build_shard(3, 200, seed=1))
    ages = [build_shard(number, 200, seed=seed)["age"] for seed, number in ((1, 3), (1, 4), (2, 3))]
    assert not ages[0].equals(ages[1]) and not ages[0].equals(ages[2])
    assert build_shard(0, 3, first=41)["user_id"].to_pylist() == ["u000000000041", "u000000000042", "u000000000043"]


def test_the_table_is_one_of_its_schema_with_twelve_fields():
    table = validate(build_shard(0, 500), SCHEMA)
    assert len(SCHEMA.fields) == 12 and all(table[field.name].null_count < 500 for field in SCHEMA.fields)
    for column in ("lt30", "ltv30"):
        values = table[column].cast(pa.float64()).to_numpy()
        assert values.std() > 0 and 0.1 < (values == 0).mean() < 0.9


def test_repetition_is_as_stated():
    rare, often = (build_shard(0, 4000, profiles=profiles) for profiles in (0, 50))
    fields = SCHEMA.profile_fields()
    assert len(set(exact_keys(validate(often, SCHEMA), fields))) <= 50
    assert len(set(exact_keys(validate(rare, SCHEMA), fields))) > 3900


def test_the_best_scores_against_integrals_over_the_state():
    """Oracle: Gauss–Hermite quadrature over ε with the noise of the labels summed out."""
    m = np.linspace(-2, 3, 11)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    a = m[:, None] + synthetic._SPREAD * nodes
    mean = lambda f: (f * weights).sum(1) / weights.sum()  # noqa: E731
    cuts = synthetic._CUTS
    np.testing.assert_allclose(synthetic.expected_days(m), mean(norm.cdf(a[..., None] - cuts).sum(-1)), rtol=1e-9)
    np.testing.assert_allclose(synthetic.probability_positive(m), mean(norm.cdf(a - cuts[0])), rtol=1e-9)
    spend = np.exp(synthetic._MU + synthetic._BETA * a + synthetic._SIGMA**2 / 2) * norm.cdf(a - cuts[0])
    np.testing.assert_allclose(synthetic.expected_value(m), mean(spend), rtol=1e-9)


@pytest.mark.parametrize(("label", "best"), [("lt30", "best_lt30"), ("ltv30", "best_ltv30")])
def test_labels_average_to_the_best_score_in_every_tenth_of_it(label, best):
    table = build_shard(7, 60_000)
    y, score = (table[name].cast(pa.float64()).to_numpy() for name in (label, best))
    for part in np.array_split(np.argsort(score), 10):
        error = y[part].std() / len(part) ** 0.5
        assert abs(y[part].mean() - score[part].mean()) < 5 * error
    assert np.mean((y - score) ** 2) < np.mean((y - y.mean()) ** 2) * 0.95


def test_the_state_is_the_class_of_the_activity():
    table = build_shard(1, 1000)
    a, state = table["activity"].to_numpy(), np.array(table["state"].to_pylist())
    assert (state[a < 0] == "low").all() and (state[a >= 1.2] == "high").all() and set(state) == set(synthetic.STATES)
