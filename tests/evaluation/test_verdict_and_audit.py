"""The verdict can say yes, no and "cannot be told"; the audit refuses shared users."""

import numpy as np
import pytest

from scaletot_jax.errors import DataError
from scaletot_jax.evaluation.bootstrap import Interval
from scaletot_jax.evaluation.split_audit import audit_splits, audit_time, audit_training
from scaletot_jax.evaluation.verdict import CAVEAT, HELPED, HURT, UNDECIDED, verdict, word

ABOVE, BELOW, ACROSS = Interval(0.02, 0.01, 0.03), Interval(-0.02, -0.03, -0.01), Interval(0.01, -0.01, 0.03)
NONE = Interval(float("nan"), float("nan"), float("nan"))


def say(gain, **placebos):
    return verdict(gain, placebos, target="lt30", metric="spearman", features="static", rows=10, groups=8, level=0.95)


def test_words():
    assert [word(i) for i in (ABOVE, BELOW, ACROSS, NONE)] == [HELPED, HURT, UNDECIDED, UNDECIDED]
    assert word(Interval(0.0, 0.0, 0.0)) == UNDECIDED


def test_a_gain_is_attributed_only_over_every_placebo():
    both = say(ABOVE, shuffled=ABOVE, untrained=ABOVE)
    assert both["attributable"] and "also beats" in both["sentence"]
    one = say(ABOVE, shuffled=ABOVE, untrained=ACROSS)
    assert one["word"] == HELPED and not one["attributable"]
    assert (
        "placebo does as well" in one["sentence"]
        and "untrained" in one["sentence"]
        and "shuffled" not in one["sentence"]
    )
    assert not say(ABOVE)["attributable"] and "No placebo" in say(ABOVE)["sentence"]


@pytest.mark.parametrize("gain", [BELOW, ACROSS, NONE])
def test_no_gain_is_never_attributed(gain):
    result = say(gain, shuffled=ABOVE)
    assert not result["attributable"] and result["word"] != HELPED


@pytest.mark.parametrize("gain", [ABOVE, BELOW, ACROSS, NONE])
def test_text_has_interval_size_and_caveat(gain):
    result = say(gain)
    text = result["sentence"]
    assert "10 test rows of 8 groups" in text and result["caveat"] == CAVEAT and "nan" not in text
    if gain is not NONE:
        assert f"[{gain.low:+.4f}, {gain.high:+.4f}] at 95 %" in text


GROUPS = ["a", "a", "b", "c", "d", "e", "e"]
SPLITS = ["teacher", "teacher", "distill", "head", "val", "test", "unused"]


def test_clean_splits_pass_and_are_counted():
    assert audit_splits(GROUPS, SPLITS) == {"teacher": 1, "distill": 1, "head": 1, "val": 1, "test": 1}
    assert audit_training(["a", "b"], GROUPS, SPLITS) == 2


def test_a_shared_group_is_refused_and_named():
    with pytest.raises(DataError, match=r"'teacher' and 'test'[\s\S]*'e'"):
        audit_splits(GROUPS, [*SPLITS[:-1], "teacher"])


def test_an_empty_split_is_refused():
    with pytest.raises(DataError, match="'val' has no rows"):
        audit_splits(GROUPS, ["head" if split == "val" else split for split in SPLITS])


@pytest.mark.parametrize("trained", ["c", "d", "e"])
def test_training_on_an_evaluation_user_is_refused(trained):
    with pytest.raises(DataError, match=f"'{trained}'"):
        audit_training(["a", trained], GROUPS, SPLITS)


def test_time_order():
    days = np.array(["2017-01-01", "2017-02-01", "2017-03-03", "2017-04-01"], "datetime64[D]")
    splits = ["teacher", "head", "val", "test"]
    assert audit_time(days, splits, 30) == 0
    with pytest.raises(DataError, match="reaches into"):
        audit_time(days, splits, 31)
    assert audit_time(days, ["teacher", "unused", "val", "test"], 60) == 1
