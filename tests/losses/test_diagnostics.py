"""Within-group diagnostics against pairs counted by hand."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from losses.cases import compiled

from scaletot_jax.losses import informative_rollouts, within_group_auc, within_group_variance


@given(st.integers(0, 2**32 - 1))
def test_auc_counts_pairs_of_one_group(seed):
    rng = np.random.default_rng(seed)
    values, outcomes = rng.integers(0, 4, 9).astype(float), rng.integers(0, 3, 9).astype(float)
    groups, valid = rng.choice([5, -3, 8], 9), rng.random(9) < 0.8
    values[~valid] = np.nan
    right, pairs = 0.0, 0
    for i in range(9):
        for j in range(9):
            if valid[i] and valid[j] and groups[i] == groups[j] and outcomes[i] > outcomes[j]:
                pairs += 1
                right += 1.0 if values[i] > values[j] else 0.5 if values[i] == values[j] else 0.0
    auc, count = compiled(within_group_auc)(values, outcomes, groups, valid)
    assert count == pairs
    np.testing.assert_allclose(auc, right / pairs if pairs else 0.5, rtol=1e-6)


@given(st.integers(0, 2**32 - 1))
def test_variance_and_informative_groups(seed):
    rng = np.random.default_rng(seed)
    outcomes, groups = rng.integers(0, 2, 8) / 10, rng.choice([1, 2, 3], 8)
    deviation = [outcomes[i] - outcomes[groups == groups[i]].mean() for i in range(8)]
    np.testing.assert_allclose(
        compiled(within_group_variance)(outcomes, groups), np.mean(np.square(deviation)), atol=1e-8
    )
    informative = [len(set(outcomes[groups == g])) > 1 for g in groups]
    np.testing.assert_array_equal(compiled(informative_rollouts)(outcomes, groups), informative)


def test_equal_outcomes_have_exactly_no_variance():
    outcomes = np.full(7, 0.1, np.float32)
    assert compiled(within_group_variance)(outcomes, np.zeros(7, int)) == 0
    assert not np.asarray(compiled(informative_rollouts)(outcomes, np.zeros(7, int))).any()
