"""Experiments with a known truth: lifts found, intervals that cover, broken ones refused or flagged."""

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from scaletot_jax.ab.analysis import analyse
from scaletot_jax.ab.card import markdown, to_json, verdict
from scaletot_jax.ab.table import Outcome, check_table, with_scores
from scaletot_jax.cli import main
from scaletot_jax.errors import ConfigError, DataError
from scaletot_jax.files import sha256_file

pytest.importorskip("tea_tasting")
pytest.importorskip("statsmodels")
OUTCOMES = [Outcome("lt30", "before", "expected"), Outcome("ltv30")]


def experiment(users=4000, lift=0.15, seed=0, share=0.5):
    """Active days that a latent rate drives; the same before, and a prediction of them; money is heavy-tailed."""
    rng = np.random.default_rng(seed)
    rate = rng.gamma(0.8, 4.0, users)
    treated = rng.random(users) < share
    days = np.minimum(rng.poisson(rate * (1 + lift * treated)), 30)
    return pa.table(
        {
            "user_id": [f"u{i}" for i in range(users)],
            "variant": np.where(treated, "new", "old"),
            "before": np.minimum(rng.poisson(rate), 30),
            "expected": rate * rng.lognormal(0, 0.3, users),
            "lt30": days,
            "ltv30": days * rng.lognormal(0, 1.5, users),
        }
    )


def run(table, **options):
    checked, control, _ = check_table(table, "variant", OUTCOMES, unit="user_id", control="old")
    return analyse(checked, "variant", OUTCOMES, control=control, **options)


def test_a_lift_is_found_and_the_plain_numbers_are_welchs():
    table = experiment()
    analysis = run(table)
    days = analysis.comparisons[0]
    plain = days.effects[0]
    y, treated = (
        np.array(table["lt30"].to_pylist(), float),
        np.array([v == "new" for v in table["variant"].to_pylist()]),
    )
    a, b = y[~treated], y[treated]
    welch = stats.ttest_ind(b, a, equal_var=False)
    low, high = welch.confidence_interval(0.95)
    assert (plain.control, plain.treatment) == pytest.approx((a.mean(), b.mean()))
    assert (plain.low, plain.high, plain.p_value) == pytest.approx((low, high, welch.pvalue), rel=1e-6)
    assert days.fieller == pytest.approx((plain.lift_low, plain.lift_high), abs=0.01)
    assert days.primary == "cupac" and days.p_holm < 0.001 and analysis.believable
    by_form = {effect.form: effect for effect in days.effects}
    assert list(by_form) == ["plain", "cuped", "cupac", "winsorised", "active", "if_active"]
    for form, column in (("cuped", "before"), ("cupac", "expected")):
        left = 1 - np.corrcoef(y, np.array(table[column].to_pylist(), float))[0, 1] ** 2
        assert by_form[form].variance_left == pytest.approx(left, abs=0.05)
    positive = [(part > 0).mean() for part in (a, b)]
    assert (by_form["active"].control, by_form["active"].treatment) == pytest.approx(tuple(positive))
    assert by_form["if_active"].control == pytest.approx(a[a > 0].mean())
    assert [e.form for e in analysis.comparisons[1].effects] == ["plain", "winsorised", "active", "if_active"]


def test_intervals_cover_and_a_prediction_narrows_them():
    """60 experiments with a lift of 15 %: cupac covers the true difference about as often as it says."""
    hits, widths = [], []
    for seed in range(60):
        checked, _, _ = check_table(experiment(800, seed=seed), "variant", OUTCOMES[:1], control="old")
        effects = {e.form: e for e in analyse(checked, "variant", OUTCOMES[:1], control="old").comparisons[0].effects}
        cupac = effects["cupac"]
        hits.append(cupac.low <= TRUE <= cupac.high)
        widths.append((cupac.high - cupac.low) / (effects["plain"].high - effects["plain"].low))
    assert np.mean(hits) == pytest.approx(0.95, abs=0.07) and np.median(widths) < 0.75


def _true_difference():
    rng = np.random.default_rng(99)
    rate = rng.gamma(0.8, 4.0, 2_000_000)
    return np.minimum(rng.poisson(rate * 1.15), 30).mean() - np.minimum(rng.poisson(rate), 30).mean()


TRUE = _true_difference()


def test_holm_over_outcomes_and_arms():
    rng = np.random.default_rng(5)
    table = experiment(lift=0.0)
    arms = pa.array(rng.choice(["a", "b", "old"], table.num_rows))
    analysis = run(table.set_column(1, "variant", arms))
    raw = sorted(next(e.p_value for e in c.effects if e.form == c.primary) for c in analysis.comparisons)
    holm = sorted(c.p_holm for c in analysis.comparisons)
    assert len(raw) == 4 and set(analysis.units) == {"old", "a", "b"}
    expected, running = [], 0.0
    for i, p in enumerate(raw):
        running = max(running, min(1.0, p * (4 - i)))
        expected.append(running)
    assert holm == pytest.approx(sorted(expected))


def test_a_broken_assignment_is_told_before_anything_else():
    analysis = run(experiment(share=0.56))
    assert not analysis.believable and analysis.mismatch < 1e-6
    assert "Nothing can be said" in markdown(analysis) and "sample ratio mismatch" in markdown(analysis)
    assert run(experiment(share=0.56), ratio={"old": 0.44, "new": 0.56}).believable


@pytest.mark.parametrize("share", [0.0, -1.0, math.nan, math.inf])
def test_a_share_that_nobody_can_have_planned_is_refused(share):
    with pytest.raises(ConfigError, match="above zero"):
        run(experiment(400), ratio={"old": share, "new": 2.0})


def test_an_interval_that_nobody_knows_is_not_called_infinite():
    """Such as that of an outcome which its covariate repeats."""
    days = run(experiment(400)).comparisons[0]
    unknown = [e._replace(lift=0.0, lift_low=math.nan, lift_high=math.nan) for e in days.effects]
    said = verdict(days._replace(effects=tuple(unknown), p_holm=math.nan), 0.95, True)
    assert "cannot be told" in said and "[unknown, unknown]" in said


def test_looking_early_costs_width():
    effects = run(experiment(), planned=4000).comparisons[0].effects
    for effect in effects:
        assert effect.sequential[0] < effect.low and effect.high < effect.sequential[1]
    assert run(experiment()).comparisons[0].effects[0].sequential is None


def test_what_one_look_would_claim_is_not_claimed_at_any_look():
    """An experiment without an effect, of which one look in twenty sees one; this is such a look."""
    checked, _, _ = check_table(experiment(1000, lift=0.0, seed=34), "variant", OUTCOMES[1:], control="old")
    once, any_look = (
        analyse(checked, "variant", OUTCOMES[1:], control="old", planned=planned).comparisons[0]
        for planned in (0, 1000)
    )
    assert once.effects[0].p_value == any_look.effects[0].p_value == once.p_holm < 0.05 < any_look.p_holm
    assert "cannot be told" not in verdict(once, 0.95, True)
    assert "cannot be told" in verdict(any_look, 0.95, True) and "looked at once" in verdict(any_look, 0.95, True)


def test_the_sentence_and_holms_correction_are_of_any_look():
    for lift, seed in ((0.0, 0), (0.1, 1), (0.3, 2)):
        analysis = run(experiment(lift=lift, seed=seed), planned=8000)
        primary = [next(e for e in c.effects if e.form == c.primary) for c in analysis.comparisons]
        first, second = sorted(e.p_sequential for e in primary)
        assert sorted(c.p_holm for c in analysis.comparisons) == pytest.approx(
            [min(1, 2 * first), max(min(1, 2 * first), second)]
        )
        for comparison, effect in zip(analysis.comparisons, primary):
            low, high = effect.sequential
            told = verdict(comparison, 0.95, True)
            assert f"[{low:+.4g}, {high:+.4g}] at 95% and any look" in told
            assert (effect.p_sequential < 0.05) == (not low <= 0 <= high)
            assert ("cannot be told" in told) == (comparison.p_holm >= 0.05)
        assert "p-values of any look of the primary forms" in markdown(analysis)


@pytest.mark.parametrize("planned", [0, 4000])
def test_an_arm_where_nobody_is_active_and_a_covariate_of_one_value(planned):
    """What cannot be estimated is no number, and the correction of the others counts it as a comparison."""
    table = experiment()
    idle = [0.0 if arm == "new" else day for arm, day in zip(table["variant"].to_pylist(), table["lt30"].to_pylist())]
    table = table.set_column(4, "lt30", pa.array(idle, pa.float64()))
    table = table.set_column(2, "before", pa.array([1.0] * table.num_rows))
    checked, _, _ = check_table(table, "variant", [Outcome("lt30", "before"), Outcome("ltv30")], control="old")
    analysis = analyse(
        checked, "variant", [Outcome("lt30", "before"), Outcome("ltv30")], control="old", planned=planned
    )
    days, money = analysis.comparisons
    alone = next(e for e in money.effects if e.form == "plain").deciding_p
    assert math.isfinite(money.p_holm) and money.p_holm >= min(1, alone)
    json.dumps(to_json(analysis), allow_nan=False)
    assert "falls" in verdict(days, 0.95, True) and "nan" not in markdown(analysis)


def test_a_covariate_that_is_the_outcome_is_refused():
    with pytest.raises(DataError, match="'expected' for outcome 'lt30'"):
        run(experiment(400).set_column(3, "expected", experiment(400)["lt30"].cast(pa.float64())))


def test_a_covariate_that_the_treatment_moved_is_not_adjusted_by():
    """The outcome itself with a little noise: an adjustment by it would take a true lift for noise."""
    table = experiment(lift=0.13, seed=1)
    after = np.array(table["lt30"].to_pylist()) + np.random.default_rng(8).normal(size=table.num_rows)
    late = run(table.set_column(3, "expected", pa.array(after)))
    days, money = late.comparisons
    cupac = next(e for e in days.effects if e.form == "cupac")
    assert days.effects[0].p_value < 0.001 and days.balance["cupac"] < 0.001 < days.balance["cuped"]
    assert days.withheld and math.isnan(cupac.effect) and math.isnan(days.p_holm) and "'expected'" in cupac.note
    told, card = verdict(days, 0.95, True), markdown(late)
    assert "Nothing can be said about 'lt30'" in told and "'expected' differs" in told and "measured afterwards" in told
    assert "withheld: covariate 'expected'" in card and "nan" not in card and not money.withheld
    assert not any(c.withheld for c in run(table).comparisons)


def test_a_covariate_of_one_value_an_arm():
    flat = np.where(np.array(experiment(400)["variant"].to_pylist()) == "new", 2.0, 1.0)
    assert run(experiment(400).set_column(3, "expected", pa.array(flat))).comparisons[0].balance["cupac"] == 0


def test_winsorising_away_all_payers_is_not_applicable():
    """Half a percent pay, so the 99 % quantile is 0: a difference of exactly nothing is no finding."""
    rng = np.random.default_rng(2)
    table = experiment()
    paid = pa.array(np.where(rng.random(table.num_rows) < 0.005, rng.lognormal(3, 1, table.num_rows), 0.0))
    analysis = run(table.set_column(5, "ltv30", paid))
    effect = next(e for e in analysis.comparisons[1].effects if e.form == "winsorised")
    assert math.isnan(effect.effect) and math.isnan(effect.p_value) and "the 0.99 quantile" in effect.note
    line = next(row for row in markdown(analysis).split("## ltv30")[1].splitlines() if row.startswith("| winsorised"))
    assert "not applicable" in line and "+0 [" not in line and line.count("|") == 8


@pytest.mark.parametrize(("mean", "defined"), [(-1.0, False), (0.01, False), (1.0, True)])
def test_a_relative_lift_needs_a_control_above_zero(mean, defined):
    """Such as a balance: of −1 to +1 a lift of −200 % would be told, with the ends of its interval changed over."""
    rng = np.random.default_rng(3)
    table = experiment()
    treated = np.array(table["variant"].to_pylist()) == "new"
    change = pa.array(mean + 2.0 * treated + rng.normal(size=table.num_rows))
    comparison = run(table.set_column(5, "ltv30", change)).comparisons[1]
    plain = comparison.effects[0]
    assert plain.low < 2 < plain.high and math.isnan(plain.lift) != defined
    if defined:
        assert plain.lift_low < plain.lift < plain.lift_high
    told = verdict(comparison, 0.95, True)
    assert "rises" in told and ("undefined" in told) != defined and "nan" not in told


@pytest.mark.parametrize("bad", [["--sequential", "-5"], ["--plan-lift", "0.1", "--plan-cv", "nan"]])
def test_numbers_that_no_plan_can_have_are_refused(tmp_path, bad):
    pq.write_table(experiment(400), tmp_path / "t.parquet")
    table = ["--table", str(tmp_path / "t.parquet"), "--arm", "variant", "--control", "old", "--outcome", "lt30"]
    assert main(["ab", *table, *bad]) == 2


def test_the_card_names_what_is_not_stated():
    analysis = run(experiment(lift=0.0, seed=2))
    card = markdown(analysis, population="low-activity users of one week")
    assert "cannot be told" in card and "low-activity users of one week" in card and card.count("not stated") == 2
    told = to_json(analysis)
    json.dumps(told, allow_nan=False)
    assert len(told["verdicts"]) == 2 and told["comparisons"][0]["effects"][0]["variance_left"] is None
    assert all(line.count("|") == 8 for line in card.splitlines() if line.startswith(("| form", "| **", "| plain")))


BAD = {
    "missing column": (lambda t: t.drop_columns(["expected"]), "column 'expected'"),
    "one unit twice": (lambda t: pa.concat_tables([t, t.slice(0, 1)]), "occurs twice"),
    "no arm": (lambda t: t.set_column(1, "variant", pa.array([None, *t["variant"].to_pylist()[1:]])), "row 0, column 'variant'"),
    "an outcome is missing": (
        lambda t: t.set_column(4, "lt30", pa.array([1.0, None, *map(float, t["lt30"].to_pylist()[2:])])), "row 1, column 'lt30'",
    ),
    "words": (lambda t: t.set_column(4, "lt30", pa.array(["many"] * t.num_rows)), "column 'lt30'"),
    "one arm": (lambda t: t.set_column(1, "variant", pa.array(["old"] * t.num_rows)), "two arms"),
    "a small arm": (lambda t: t.set_column(1, "variant", pa.array(["new"] * 9 + ["old"] * (t.num_rows - 9))), "arm 'new'"),
    "no such control": (lambda t: t.set_column(1, "variant", pa.array(["x", "y"] * (t.num_rows // 2))), "'old'"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_table_that_cannot_be_analysed(what):
    change, told = BAD[what]
    with pytest.raises(DataError, match=told):
        run(change(experiment(400)))


def test_a_constant_outcome_is_no_crash():
    table = experiment(400)
    analysis = run(table.set_column(4, "lt30", pa.array([3.0] * 400)))
    plain = analysis.comparisons[0].effects[0]
    assert plain.effect == 0 and math.isnan(plain.low) and math.isnan(plain.p_value)
    assert "lt30" in markdown(analysis) and "no interval can be told" in verdict(analysis.comparisons[0], 0.95, True)


def test_the_models_own_predictions_sharpen_it(tmp_path):
    """Scores joined by the unit's id, in another order, are the column that the user could have joined himself."""
    table = experiment(400)
    scores = pa.table({"user_id": table["user_id"], "expected_lt30": table["expected"]}).take(
        pa.array(np.random.default_rng(0).permutation(400))
    )
    joined, outcomes = with_scores(table, scores, "user_id", [Outcome("lt30"), Outcome("ltv30")])
    assert [o.prediction for o in outcomes] == ["expected_lt30 (score)", ""]
    assert joined["expected_lt30 (score)"].to_pylist() == table["expected"].to_pylist()
    for broken, told in (
        (scores.slice(1), "1 of 400 units have none"),
        (pa.concat_tables([scores, scores.slice(0, 1)]), "occurs twice"),
        (scores.rename_columns(["user_id", "expected_other"]), "predict none of the outcomes"),
    ):
        with pytest.raises(DataError, match=told):
            with_scores(table, broken, "user_id", [Outcome("lt30")])
    pq.write_table(table, tmp_path / "t.parquet")
    (tmp_path / "scores").mkdir()
    for i, part in enumerate((scores.slice(0, 150), scores.slice(150))):
        pq.write_table(part, tmp_path / "scores" / f"part-{i}.parquet")
    shards = [{"file": p.name, "sha256": sha256_file(p)} for p in sorted((tmp_path / "scores").iterdir())]
    (tmp_path / "scores" / "manifest.json").write_text(json.dumps({"shards": shards}))
    command = [
        "ab",
        "--table",
        str(tmp_path / "t.parquet"),
        "--arm",
        "variant",
        "--control",
        "old",
        "--outcome",
        "lt30",
    ]
    more = ["--scores", str(tmp_path / "scores"), "--out", str(tmp_path / "card")]
    assert main([*command, *more, "--unit", "user_id"]) == 0
    assert json.loads((tmp_path / "card" / "card.json").read_text())["comparisons"][0]["primary"] == "cupac"
    assert main([*command, *more]) == 2


def test_from_the_command_line(tmp_path, capsys):
    pq.write_table(experiment(), tmp_path / "t.parquet")
    command = [
        "ab",
        "--table",
        str(tmp_path / "t.parquet"),
        "--arm",
        "variant",
        "--control",
        "old",
        "--unit",
        "user_id",
    ]
    more = ["--outcome", "lt30", "--before", "lt30=before", "--outcome", "ltv30", "--out", str(tmp_path / "card")]
    assert main([*command, *more]) == 0
    assert "'lt30' in arm 'new' rises" in capsys.readouterr().out
    assert json.loads((tmp_path / "card" / "card.json").read_text())["comparisons"][0]["primary"] == "cuped"
    assert main([*command, "--outcome", "lt30", "--before", "spend=before"]) == 2
    assert main([*command, "--outcome", "nothing"]) == 3
    assert main(["ab"]) == 2
    assert main(["ab", "--plan-lift", "0.06738"]) == 0
    assert "3,458" in capsys.readouterr().out
    assert main(["ab", "--plan-lift", "0.06738", "--plan-users", "3458"]) == 0
    assert "80.0%   with a covariate of correlation 0.0" in capsys.readouterr().out
    assert math.isfinite(TRUE)
