"""The verdict can say yes, no and "cannot be told"; the audit refuses shared users."""

import numpy as np
import pytest

from scaletot_jax.errors import DataError
from scaletot_jax.evaluation.bootstrap import Interval
from scaletot_jax.evaluation.family import bootstrap_p, least_p
from scaletot_jax.evaluation.split_audit import audit_splits, audit_time, audit_training
from scaletot_jax.evaluation.verdict import (
    CAVEAT,
    HELPED,
    HURT,
    REQUIRED,
    UNDECIDED,
    WITHOUT,
    Gain,
    decide,
    verdict,
    word,
)

ABOVE, BELOW, ACROSS = Interval(0.02, 0.01, 0.03), Interval(-0.02, -0.03, -0.01), Interval(0.01, -0.01, 0.03)
NONE = Interval(float("nan"), float("nan"), float("nan"))
P = {ABOVE: 0.004, BELOW: 0.004, ACROSS: 0.3, NONE: float("nan")}
RIVALS = REQUIRED[1:]


def gains(without, **others):
    intervals = {WITHOUT: without, **dict.fromkeys(RIVALS, ABOVE), **others}
    return {name: Gain(interval, P[interval], 0.014) for name, interval in intervals.items() if interval is not None}


def say(without, **others):
    made = gains(without, **others)
    return verdict(made, target="lt30", metric="spearman", features="static", rows=10, groups=8, level=0.95, seeds=5)


def test_words():
    assert [word(i) for i in (ABOVE, BELOW, ACROSS, NONE)] == [HELPED, HURT, UNDECIDED, UNDECIDED]
    assert word(Interval(0.0, 0.0, 0.0)) == UNDECIDED


def test_it_helped_only_where_every_required_rival_is_beaten():
    every = say(ABOVE)
    assert every["word"] == HELPED and every["attributable"] and "also beats" in every["sentence"]
    for rival in RIVALS:
        for worse in (ACROSS, BELOW, NONE):
            one = say(ABOVE, **{rival: worse})
            assert one["word"] == UNDECIDED and not one["attributable"] and "not attributed" in one["sentence"]
            assert rival not in one["beaten"] and one["comparisons"][rival]["word"] != HELPED
        absent = say(ABOVE, **{rival: None})
        assert absent["word"] == UNDECIDED and absent["not_run"] == [rival] and "Not run" in absent["sentence"]


@pytest.mark.parametrize(("without", "word_"), [(BELOW, HURT), (ACROSS, UNDECIDED), (NONE, UNDECIDED)])
def test_a_verdict_of_hurt_is_against_the_head_without_it_alone(without, word_):
    assert say(without)["word"] == word_ and not say(without)["attributable"]
    assert say(without, **dict.fromkeys(RIVALS, BELOW))["word"] == word_
    assert say(ABOVE, **dict.fromkeys(RIVALS, BELOW))["word"] == UNDECIDED


def test_an_interval_above_zero_that_does_not_stand_holms_correction_is_no_gain():
    made = gains(ABOVE)
    made[RIVALS[0]] = made[RIVALS[0]]._replace(p=0.04)
    assert decide(made, level=0.95)["word"] == HELPED  # the largest p of a family is not multiplied
    made[RIVALS[1]] = made[RIVALS[1]]._replace(p=0.04)
    found = decide(made, level=0.95)
    assert found["word"] == UNDECIDED and found["tied"] == list(RIVALS[:2]) and found["p_holm"][RIVALS[0]] == 0.08


@pytest.mark.parametrize(("rivals", "least"), [(5, 199), (2, 79), (1, 39)])
def test_so_few_resamples_that_nothing_can_be_found_are_the_reason(rivals, least):
    """The smallest p-value that so many resamples can give, for every rival, decides from ``least`` on and never below."""
    required = REQUIRED[:rivals]
    for resamples in (least - 1, least, 1000):
        p = bootstrap_p(np.ones(resamples))
        made = {name: Gain(ABOVE, p, 0.014) for name in required}
        said = verdict(
            made, target="lt30", metric="rps", features="static", rows=10, groups=8, level=0.95, resamples=resamples,
            required=required,
        )  # fmt: skip
        assert max(one["p_holm"] for one in said["comparisons"].values()) == pytest.approx(least_p(resamples, rivals))
        if resamples < least:
            assert said["word"] == UNDECIDED and f"Set evaluate.bootstrap to {least} or more" in said["sentence"]
            assert "at this size" not in said["sentence"] and "of samples of this size" not in said["sentence"]
        else:
            assert said["word"] == HELPED and "resamples" not in said["sentence"]


@pytest.mark.parametrize("gain", [ABOVE, BELOW, ACROSS, NONE])
def test_text_has_interval_size_and_caveat(gain):
    result = say(gain)
    text = result["sentence"]
    assert "10 test rows of 8 groups" in text and result["caveat"] == CAVEAT and "nan" not in text
    if gain is not NONE:
        assert f"[{gain.low:+.4f}, {gain.high:+.4f}] at 95 %" in text
    if gain is ACROSS:
        least = 0.014 * (2.575829 + 0.841621) / (1.959964 + 0.841621)  # at .05 / 5 in place of .05
        assert f"difference of {least:.4f} from the head without ẑ would have been found" in text
        assert "over 5 rivals (0.0140 without it)" in text
        assert result["minimal_detectable"] == 0.014 and result["minimal_detectable_holm"] == pytest.approx(least)


def test_what_one_rival_alone_could_have_shown_is_not_corrected():
    made = {WITHOUT: gains(ACROSS)[WITHOUT]}
    said = verdict(made, target="lt30", metric="rps", features="static", rows=10, groups=8, level=0.95)
    assert said["minimal_detectable_holm"] == 0.014 and "0.0140 from the head" in said["sentence"]
    assert "Holm" not in said["sentence"]


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
    with pytest.raises(DataError, match="val, test have no rows"):
        audit_time(days, ["teacher", "head", "unused", "unused"], 30)
