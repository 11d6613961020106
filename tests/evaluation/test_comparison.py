"""Positive and negative controls: the comparison says yes to the true latent state, and never to noise."""

import numpy as np
import pytest

from scaletot_jax.evaluation import comparison
from scaletot_jax.evaluation.comparison import METRICS, PLACEBOS, WITH, WITHOUT, Rows, Target
from scaletot_jax.evaluation.verdict import HELPED, HURT, UNDECIDED, verdict

SURE = (
    "spearman",
    "auc",
    "auc_3",
    "normalised_gini",
    "rmse",
    "mae",
    "r2",
    "rps",
)  # metrics that the true state must move
HEAD = {"seeds": 2, "width": 16, "steps": 300, "batch_size": 128, "learning_rate": 3e-3, "penalties": (1e-3, 1e-2)}
USERS = 2400
ROWS = Rows(np.arange(1200), np.arange(1200, 1600), np.arange(1600, USERS))


def world(seed=0):
    """A profile that shows a latent state poorly, the state itself, and labels that follow it."""
    rng = np.random.default_rng(seed)
    state = rng.normal(size=USERS)
    dense = np.c_[state + 2 * rng.normal(size=USERS), rng.normal(size=(USERS, 4))].astype(np.float32)
    days = np.minimum(rng.poisson(np.exp(0.3 + 0.8 * state)), 30).astype(float)
    value = np.where(days > 0, days * rng.lognormal(1.0, 0.5, USERS), 0.0)
    noise = rng.normal(size=(USERS, 4)).astype(np.float32)
    true = np.concatenate([state[:, None], noise[:, :3]], 1).astype(np.float32)
    untrained = np.tanh(dense[:, :4] @ rng.normal(size=(4, 4))).astype(np.float32)
    return dense, true, noise, untrained, days, value


def run(z, kind="days", seed=0):
    dense, *_, untrained, days, value = world(seed)
    target = Target("lt30", "days", 30, days) if kind == "days" else Target("ltv30", "value", 0, value)
    inputs = comparison.variants(dense, z, untrained, ROWS, seed)
    systems, *_ = comparison.predict(target, inputs, dense, ROWS, HEAD, seed)
    groups = np.array([f"g{i // 2}" for i in range(USERS)], object)
    table, differences, gains = comparison.score_systems(
        target, systems, ROWS, groups, resamples=300, level=0.95, seed=0
    )
    say = verdict(
        {name: row["spearman"] for name, row in gains.items()}, required=(WITHOUT, *PLACEBOS),
        target=target.column, metric="spearman", features="all", rows=800, groups=400, level=0.95,
    )  # fmt: skip
    return table, differences, gains, say


@pytest.fixture(scope="module")
def positive():
    return run(world()[1])


@pytest.fixture(scope="module")
def negative():
    return run(world()[2])


def test_the_true_state_helps_and_is_attributed(positive):
    table, differences, gains, say = positive
    assert say["word"] == HELPED and say["attributable"]
    assert all(differences[f"{WITH} - {WITHOUT}"][metric]["word"] == HELPED for metric in SURE)
    assert table[WITH]["spearman"]["estimate"] > table[WITHOUT]["spearman"]["estimate"] + 0.1
    assert gains[WITHOUT]["rmse"].interval.estimate > 0 > differences[f"{WITH} - {WITHOUT}"]["rmse"]["estimate"]


def test_noise_does_not_help(negative):
    _, differences, _, say = negative
    assert say["word"] != HELPED and not say["attributable"]
    assert [row["word"] for row in differences[f"{WITH} - {WITHOUT}"].values()].count(HELPED) == 0


def test_a_placebo_that_knows_as_much_withdraws_the_attribution():
    """ẑ is the state, but so is the untrained encoder's output: the gain stands, the reasoning does not."""
    dense, true, *_, days, _ = world()
    target = Target("lt30", "days", 30, days)
    inputs = comparison.variants(dense, true, true + 1e-3 * world()[2], ROWS, 0)
    systems, everyone, _ = comparison.predict(target, inputs, dense, ROWS, HEAD, 0)
    assert len(everyone.mean) == USERS  # what is served to everybody is what was judged on the test rows
    np.testing.assert_allclose(everyone.mean[ROWS.test], comparison.average(systems[WITH]).mean, rtol=1e-5)
    *_, gains = comparison.score_systems(target, systems, ROWS, np.arange(USERS), resamples=200, level=0.95, seed=0)
    say = verdict(
        {name: row["spearman"] for name, row in gains.items()}, required=(WITHOUT, *PLACEBOS),
        target="lt30", metric="spearman", features="all", rows=800, groups=800, level=0.95,
    )  # fmt: skip
    assert (
        say["word"] == UNDECIDED
        and WITHOUT in say["beaten"]
        and PLACEBOS[1] in say["tied"]
        and "not attributed" in say["sentence"]
    )


def test_value_target_with_the_true_state():
    table, _, _, say = run(world()[1], kind="value")
    assert say["word"] == HELPED
    assert set(table[WITH]) == {*METRICS["value"], "by_seed"}
    assert set(METRICS["value"]) - set(table["ridge"]) == {"crps", "ece"}  # it says no distribution and no probability
    assert table[WITH]["rmse"]["estimate"] < table["constant"]["rmse"]["estimate"]


def test_every_system_and_metric_has_an_interval(positive):
    table = positive[0]
    assert set(table) == {"constant", "ridge", WITHOUT, WITH, *PLACEBOS}
    for name, row in table.items():
        for metric, found in row.items():
            if metric == "by_seed":
                assert all(len(values) == 2 for values in found.values())
            elif found["low"] is None:  # of a constant, rare labels, predictions below 0
                assert (name == "constant" and metric.startswith("spearman")) or metric in ("auc_14", "mutual_gini"), (
                    name,
                    metric,
                )
            else:
                assert found["low"] <= found["high"], (name, metric)
                if metric in SURE:  # an error of calibration is larger in a resample than in the sample: biased upwards
                    assert found["low"] <= found["estimate"] <= found["high"], (name, metric)
    assert table["constant"]["auc"]["estimate"] == 0.5 and table["constant"]["normalised_gini"]["estimate"] == 0
    assert "rps" not in table["ridge"] and "rps_skill" not in table["ridge"]
    base = table["constant"]["rps"]["estimate"]  # the constant says the base rate
    for name in (WITHOUT, WITH):
        assert table[name]["rps_skill"]["estimate"] == pytest.approx(1 - table[name]["rps"]["estimate"] / base)
    assert table["constant"]["rps_skill"] == pytest.approx({"estimate": 0, "low": 0, "high": 0})


def test_deterministic(positive):
    again = run(world()[1])
    assert again[0] == positive[0] and again[1] == positive[1] and again[3] == positive[3]


def test_variants_differ_in_z_only_and_shuffle_within_splits():
    dense, true, _, untrained, *_ = world()
    inputs = comparison.variants(dense, true, untrained, ROWS, 0)
    for x in inputs.values():
        np.testing.assert_array_equal(x[:, :5], inputs[WITH][:, :5])
    assert (inputs[WITHOUT][:, 5:] == 0).all()
    for part in ROWS:
        np.testing.assert_allclose(np.sort(inputs[PLACEBOS[0]][part, 5]), np.sort(inputs[WITH][part, 5]), atol=1e-6)
        assert (inputs[PLACEBOS[0]][part, 5] != inputs[WITH][part, 5]).mean() > 0.9


def test_test_labels_reach_no_fit():
    """Other labels on the test rows leave every prediction as it was."""
    dense, true, _, untrained, days, _ = world()
    inputs = comparison.variants(dense, true, untrained, ROWS, 0)
    other = days.copy()
    other[ROWS.test] = other[ROWS.test][::-1]
    a, b = (comparison.predict(Target("lt30", "days", 30, y), inputs, dense, ROWS, HEAD, 0)[0] for y in (days, other))
    for name in a:
        np.testing.assert_array_equal(comparison.average(a[name]).mean, comparison.average(b[name]).mean)


def test_hurt_can_be_said():
    """A ẑ that is right on head and val rows and wrong on test rows must be called harmful."""
    dense, true, _, untrained, days, _ = world()
    z = true.copy()
    z[ROWS.test, 0] *= -1
    target = Target("lt30", "days", 30, days)
    systems, *_ = comparison.predict(target, comparison.variants(dense, z, untrained, ROWS, 0), dense, ROWS, HEAD, 0)
    _, differences, _ = comparison.score_systems(
        target, systems, ROWS, np.arange(USERS), resamples=200, level=0.95, seed=0
    )
    assert differences[f"{WITH} - {WITHOUT}"]["spearman"]["word"] == HURT


def test_a_binary_outcome_has_a_head_of_its_own():
    dense, true, _, untrained, days, _ = world()
    target = Target("active", "binary", 1, (days > 2).astype(float))
    inputs = {
        name: x for name, x in comparison.variants(dense, true, untrained, ROWS, 0).items() if name in (WITH, WITHOUT)
    }
    systems, everyone, kept = comparison.predict(target, inputs, dense, ROWS, {**HEAD, "steps": 100}, 0)
    assert (kept.kind, kept.horizon) == ("days", 1) and everyone.distribution.shape == (USERS, 2)
    table, _, gains = comparison.score_systems(
        target, systems, ROWS, np.arange(USERS), resamples=100, level=0.95, seed=0
    )
    assert set(table[WITH]) == {*METRICS["binary"], "by_seed"}
    assert gains[WITHOUT]["auc"].interval.low > 0 and table["constant"]["auc"]["estimate"] == 0.5
    brier = np.mean((comparison.average(systems[WITH]).positive - target.labels[ROWS.test]) ** 2)
    assert table[WITH]["rps"]["estimate"] == pytest.approx(brier)
