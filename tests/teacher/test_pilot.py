"""The pilot's decisions on scores whose right answer is known."""

import numpy as np
import pytest

from scaletot_jax.chains.spec import load_spec
from scaletot_jax.teacher import pilot
from scaletot_jax.teacher.questions import CHAIN, DIRECT
from scaletot_jax.teacher.token_tree import Scores

USERS = 60


def scores_of(signal, noise, seed=0, stems=3):
    """Raw scores [users, stems, V]: a shared signal, each wording's own bias, and each wording's own noise."""
    rng = np.random.default_rng(seed)
    bias = rng.normal(size=(1, stems, signal.shape[-1])) * 5
    own = rng.normal(size=(len(signal), stems, signal.shape[-1])) * np.reshape(noise, (1, -1, 1))
    return signal[:, None] + bias + own


def pilot_scores(spec, stem_noise=(1, 1, 1)):
    rng = np.random.default_rng(5)
    out = pilot.PilotScores("trie")
    sizes = {slot.name: len(slot.scored_values) for slot in spec.slots if slot.source == "scored"}
    for n, (item, size) in enumerate({DIRECT: spec.num_buckets, CHAIN: spec.num_buckets, **sizes}.items()):
        local = scores_of(rng.normal(size=(USERS, size)), 0.1 * np.asarray(stem_noise), seed=n).astype("f4")
        for row in range(USERS):
            out.add(item, row, [Scores(np.full_like(x, np.nan), x) for x in local[row]])
    return out


@pytest.fixture(scope="module")
def spec():
    return load_spec("synthetic")


def decide(spec, scores, **changes):
    settings = {"paraphrases": 2, "quantile": 0.7, "base_rate": None, **changes}
    return pilot.decide(spec, scores, **settings)


@pytest.mark.parametrize("better", ["trie", "full"])
def test_the_mode_whose_wordings_agree_is_chosen(better):
    signal = np.random.default_rng(3).normal(size=(USERS, 7))
    noise = {"trie": 3.0, "full": 3.0, better: 0.1}
    raw = {mode: scores_of(signal, [noise[mode]], seed=4) for mode in pilot.MODES}
    direct = [[Scores(f, t) for f, t in zip(raw["full"][u], raw["trie"][u])] for u in range(USERS)]
    chosen, evidence = pilot.choose_mode(direct, "auto")
    assert chosen == better and evidence["agreement"][better] > 0.9 and evidence["profiles"] == USERS
    close = {"trie": raw["full"], "full": raw["full"] + 0.01 * raw["trie"]}
    direct = [[Scores(f, t) for f, t in zip(close["full"][u], close["trie"][u])] for u in range(USERS)]
    assert pilot.choose_mode(direct, "auto")[0] == "trie"  # no clear winner: the cheaper one
    assert pilot.choose_mode([], "full") == ("full", {"chosen": "full", "by": "configuration"})


def test_the_odd_wording_is_left_out(spec):
    calibration, evidence = decide(spec, pilot_scores(spec, stem_noise=(1, 40, 1)))
    assert set(calibration.stems.values()) == {(0, 2)}
    assert calibration.means["outlook"].shape == (2, 3)
    assert np.argmin(evidence["wordings"]["outlook"]["agreement_with_others"]) == 1
    assert calibration.stems[CHAIN] == calibration.stems[DIRECT]


def test_thresholds_are_quantiles_of_the_pilots_own_uncertainty(spec):
    for quantile in (0.5, 0.7, 0.9):
        calibration, evidence = decide(spec, pilot_scores(spec), quantile=quantile)
        for name in ("interests", "need", "outlook"):
            assert evidence["thresholds"][name]["above_threshold"] == pytest.approx(1 - quantile, abs=1.5 / USERS)
        assert calibration.thresholds["habit"] == 1.0  # a fact has no uncertainty to exceed


def test_the_base_rate_becomes_the_answers_prior(spec):
    base = np.array([0.3, 0.2, 0.2, 0.1, 0.1, 0.06, 0.04])
    np.testing.assert_allclose(np.exp(decide(spec, pilot_scores(spec), base_rate=base)[0].prior), base)
    assert not decide(spec, pilot_scores(spec))[0].prior.any()


def test_polarity_passes_only_what_moves_the_right_way():
    mean = np.zeros((1, 3))
    low = np.tile(np.log([0.6, 0.3, 0.1]), (10, 1, 1))
    high = np.tile(np.log([0.1, 0.3, 0.6]), (10, 1, 1))
    up = pilot.polarity_effect(low, high, mean, "up")
    assert up["passed"] and up["effect"] == pytest.approx(1.0) and up["share"] == 1
    assert not pilot.polarity_effect(low, high, mean, "down")["passed"]
    assert pilot.polarity_effect(high, low, mean, "down")["passed"]
    assert not pilot.polarity_effect(low, low, mean, "up")["passed"]  # blind is not enough


def test_a_slot_that_fails_is_dropped_and_counts_no_more(spec):
    calibration, evidence = decide(spec, pilot_scores(spec), dropped={"outlook": {"passed": False}})
    assert calibration.dropped == {"outlook"}
    assert "outlook" not in evidence["thresholds"] and calibration.thresholds["outlook"] == 1.0


def test_polarity_is_skipped_where_its_field_is_not_in_use(spec):
    assert pilot.polarity_slots(spec, spec.fields) == {"outlook": ""}
    assert "visits_30" in pilot.polarity_slots(spec, ("age",))["outlook"]
