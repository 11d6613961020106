"""What encoders are asked to reproduce, method and placebos."""

import numpy as np
import pytest

from scaletot_jax.encoder.targets import label_targets, random_targets, shuffled_targets, whitened_targets
from scaletot_jax.errors import DataError

PART = np.array(["train"] * 60 + ["select"] * 20 + ["held_out"] * 20, object)
TRAIN = PART == "train"


def chains(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(100, 1, 5)) * np.arange(1, 6) + 0.1 * rng.normal(size=(100, 3, 5)) + 7


def test_states_are_whitened_by_training_profiles_and_averaged_over_chains():
    found = whitened_targets(["a"], [chains()], TRAIN, 64)
    (value,) = found.values
    np.testing.assert_allclose(value[TRAIN].T @ value[TRAIN] / 60, np.eye(5), atol=1e-9)
    np.testing.assert_allclose(found.chains[0], chains())


def test_shuffled_states_stay_in_their_part_and_belong_to_another():
    found = whitened_targets(["a", "b"], [chains(0), chains(1)], TRAIN, 5)
    dealt = shuffled_targets(found, PART, 3)
    for before, after in zip(found.values, dealt.values):
        same = (before[:, None] == after[None]).all(2)
        place = same.argmax(0)  # whose state each profile got
        assert sorted(place) == list(range(100)) and (PART[place] == PART).all()
        assert (place == np.arange(100)).mean() < 0.1
    first, second = ((b[:, None] == a[None]).all(2).argmax(0) for b, a in zip(found.values, dealt.values))
    np.testing.assert_array_equal(first, second)  # whole profiles, not segment by segment


def test_random_targets_are_linear_in_the_profile():
    dense = np.random.default_rng(0).normal(size=(100, 7))
    dense[:, 3] = 2.0
    found = random_targets(["a", "b"], dense, TRAIN, 4, 0)
    design = np.c_[dense, np.ones(100)]
    for value in found.values:
        assert value.shape == (100, 4)
        fitted = design @ np.linalg.lstsq(design, value, rcond=None)[0]
        np.testing.assert_allclose(fitted, value, atol=1e-8)
    assert np.abs(found.values[0] - found.values[1]).max() > 0.1


def test_label_targets():
    days = np.r_[np.zeros(50), np.arange(1, 51)].astype(float)[np.random.default_rng(0).permutation(100)]
    days[3] = np.nan
    found = label_targets({"days": days, "money": 2 * np.nan_to_num(days)}, TRAIN)
    assert found.names == ("days", "money")
    value = found.values[0]
    known = np.isfinite(days)
    assert np.isnan(value[3]).all() and np.isfinite(value[known]).all()
    np.testing.assert_allclose(value[TRAIN & known].mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(value[TRAIN & known].std(0), 1, atol=1e-12)
    np.testing.assert_allclose(np.corrcoef(value[known, 0], np.log1p(days[known]))[0, 1], 1)
    assert np.unique(value[known, 1]).size == 2


def test_a_label_that_does_not_vary_is_left_out_and_only_such_labels_are_refused():
    days, never = np.arange(100) % 7.0, np.zeros(100)
    never[~TRAIN] = 1  # what the others have is not looked at
    assert label_targets({"paid": never, "days": days}, TRAIN).names == ("days",)
    with pytest.raises(DataError, match=r"(?s)all the same.*paid.*distill\.placebos"):
        label_targets({"paid": never}, TRAIN)
