"""What an experiment showed: every outcome of every arm against the control, in the forms a careful reader asks for.

    plain        difference of means and relative lift (delta method), and Fieller's interval beside it
    cuped        adjusted by the outcome before assignment
    cupac        adjusted by a model's prediction from what was known before assignment
    winsorised   values above a pooled quantile set to it: is it the few heavy users?
    active       the share with a positive outcome
    if_active    the mean among those: not causal, for who is active is an outcome too

Means, covariates and ratios are by ``tea-tasting``, Holm's correction by :mod:`scaletot_jax.evaluation.family`. The family that is corrected is the
outcomes × arms, each in its own primary form: cupac where there is a prediction, else cuped, else plain.

A covariate from before the assignment is alike in both arms. One that differs (Welch's t, p < :data:`MISMATCH`) was measured
afterwards, and would adjust the effect away, or the assignment is broken: the form that uses it is withheld. A relative lift is
undefined where the control's mean is not above zero with its interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from scaletot_jax.ab.intervals import fieller, sequential_p, sequential_radius
from scaletot_jax.ab.power import detectable_lift
from scaletot_jax.ab.table import Outcome, winsorised
from scaletot_jax.errors import ConfigError, DataError
from scaletot_jax.evaluation.family import holm

ARM, FORMS = "arm", ("plain", "cuped", "cupac", "winsorised", "active", "if_active")
MOST_CORRELATED = 1 - 1e-9
MISMATCH = 0.001  # p-value of the sample ratio, or of a covariate's balance, below which no figure is to be believed


class Effect(NamedTuple):
    """One form of one outcome: means, absolute and relative effect with intervals, p-value, and variance left; NaN: unknown.

    ``sequential`` is the interval of the absolute effect that holds at every look, ``p_sequential`` the p-value that does;
    None unless it was asked for.
    ``variance_left`` is the squared width of the interval against the plain one's: .5 means half as many users would do.
    ``lift`` is NaN where it is undefined; ``note`` says why figures are missing.
    """

    form: str
    control: float
    treatment: float
    effect: float
    low: float
    high: float
    lift: float
    lift_low: float
    lift_high: float
    p_value: float
    variance_left: float
    sequential: tuple[float, float] | None
    p_sequential: float | None
    note: str = ""

    @property
    def deciding_p(self) -> float:
        """Of an experiment that is looked at while it runs the one that holds at every look."""
        return self.p_value if self.p_sequential is None else self.p_sequential


class Comparison(NamedTuple):
    """One outcome in one arm against the control.

    Attributes:
      primary: the form that decides.
      p_holm: its deciding p-value, corrected for all outcomes and arms.
      fieller: interval of the plain relative lift.
      bound: of the winsorised form.
      cv: coefficient of variation of the outcome in the control, and after the covariate of the primary form.
      detectable: least relative lift that so many units find with 80 % power in the primary form.
      balance: form → p-value of its covariate's means being the same in both arms; below :data:`MISMATCH` it is withheld.
    """

    outcome: str
    arm: str
    primary: str
    effects: tuple[Effect, ...]
    p_holm: float
    fieller: tuple[float, float]
    bound: float
    cv: float
    cv_adjusted: float
    detectable: float
    balance: dict[str, float]

    @property
    def withheld(self) -> bool:
        """Whether the primary form's covariate differs between the arms."""
        return self.balance.get(self.primary, 1.0) < MISMATCH


class Analysis(NamedTuple):
    """The whole experiment; ``mismatch`` is the p-value of the assignment against the stated ratio."""

    control: str
    units: dict[str, int]
    mismatch: float
    level: float
    comparisons: tuple[Comparison, ...]

    @property
    def believable(self) -> bool:
        return self.mismatch >= MISMATCH


def analyse(
    table: pa.Table,
    arm: str,
    outcomes: Sequence[Outcome],
    *,
    control: str,
    level: float = 0.95,
    ratio: dict[str, float] | None = None,
    quantile: float = 0.99,
    planned: int = 0,
) -> Analysis:
    """Analyses a table checked by :func:`scaletot_jax.ab.table.check_table`.

    Args:
      arm: its column. control: the arm compared against.
      level: of the intervals.
      ratio: arm → planned share of the assignment, up to a factor; equal where None.
      quantile: of the winsorised form.
      planned: units of an experiment that is looked at while it runs; 0: it is looked at once, at its end.

    Raises:
      ConfigError: the libraries are not installed, or the ratio does not name the arms or has a share of zero.
    """
    try:
        import statsmodels  # noqa: F401 (sample_ratio asks it)
        import tea_tasting as tt
    except ImportError as error:
        raise ConfigError(
            "the A/B kit is not installed", why=str(error), do="pip install 'scaletot_jax[ab]'"
        ) from error
    data = {name: np.asarray(table[name].to_numpy()) for name in table.column_names if name != arm}
    arms = np.asarray(table[arm].to_pylist(), object)
    units = {name: int((arms == name).sum()) for name in sorted(set(arms), key=lambda name: (name != control, name))}
    found = []
    for outcome in outcomes:
        for name in list(units)[1:]:
            found.append(_compare(tt, data, arms, control, name, outcome, level, quantile, planned))
    decisive = [next(e for e in c.effects if e.form == c.primary).deciding_p for c in found]
    corrected = holm({str(i): p for i, p in enumerate(decisive)})
    comparisons = tuple(c._replace(p_holm=corrected[str(i)]) for i, c in enumerate(found))
    return Analysis(control, units, sample_ratio(units, ratio), level, comparisons)


def sample_ratio(units: dict[str, int], ratio: dict[str, float] | None) -> float:
    """The p-value of the χ² test that the arms have the planned shares."""
    from statsmodels.stats.gof import chisquare

    if ratio is not None and set(ratio) != set(units):
        raise ConfigError(
            "the ratio names other arms", where="ratio", why=f"{sorted(ratio)}, the table has {sorted(units)}"
        )
    shares = np.array([1.0 if ratio is None else ratio[name] for name in units])
    if not (np.isfinite(shares).all() and (shares > 0).all()):
        raise ConfigError(
            "a planned share must be above zero",
            where="ratio",
            why=", ".join(f"'{name}' {share:g}" for name, share in zip(units, shares)),
            do="state how units were assigned, such as old=1 and new=1, and leave out arms that nobody was assigned to",
        )
    seen = np.array(list(units.values()), float)
    return float(chisquare(seen, shares / shares.sum() * seen.sum())[1])


def _compare(
    tt: Any,
    data: dict[str, np.ndarray],
    arms: np.ndarray,
    control: str,
    treatment: str,
    outcome: Outcome,
    level: float,
    quantile: float,
    planned: int,
) -> Comparison:
    rows = (arms == control) | (arms == treatment)
    y = data[outcome.column][rows]
    clipped, bound = winsorised(y, quantile)
    columns: dict[str, np.ndarray] = {
        ARM: (arms[rows] == treatment).astype(int), "y": y, "clipped": clipped, "active": (y > 0).astype(float)
    }  # fmt: skip
    treated = columns[ARM] == 1
    metrics = {"plain": tt.Mean("y", confidence_level=level)}
    balance: dict[str, float] = {}
    for form, name in (("cuped", outcome.before), ("cupac", outcome.prediction)):
        if name:
            columns[form] = data[name][rows]
            if min(y.std(), columns[form].std()) > 0 and abs(np.corrcoef(columns[form], y)[0, 1]) > MOST_CORRELATED:
                raise DataError(
                    "a covariate is the outcome itself",
                    where=f"column '{name}' for outcome '{outcome.column}'",
                    why="their correlation is one; an adjustment by it would adjust the effect away",
                    do="name a column that was known before the assignment",
                )
            metrics[form] = tt.Mean("y", form, confidence_level=level)
            balance[form] = _balance(columns[form][~treated], columns[form][treated])
    metrics |= {
        "winsorised": tt.Mean("clipped", confidence_level=level),
        "active": tt.Mean("active", confidence_level=level),
        "if_active": tt.RatioOfMeans("y", "active", confidence_level=level),
    }
    flat = {name for name in ("y", "clipped", "active") if columns[name].std() == 0}
    told = (
        tt.Experiment({form: m for form, m in metrics.items() if _numerator(form) not in flat}, ARM).analyze(
            pa.table(columns), control=0
        )
        if len(flat) < 3
        else {}
    )
    z = NormalDist().inv_cdf(0.5 + level / 2)
    above = {name: _lowest_mean(columns[name][~treated], z) > 0 for name in ("y", "clipped", "active")}
    effects = []
    for form in metrics:
        if balance.get(form, 1.0) < MISMATCH:
            name = outcome.before if form == "cuped" else outcome.prediction
            why = f"withheld: covariate '{name}' differs between the arms (p = {balance[form]:.2g})"
            effects.append(_unknown(form, why))
            continue
        if form == "winsorised" and "clipped" in flat and "y" not in flat:
            why = f"not applicable: the {quantile:g} quantile is the smallest value, {bound:.5g}"
            effects.append(_unknown(form, why))
            continue
        if form not in told:  # no difference was seen, and nothing says how large one could be
            value, why = float(columns[_numerator(form)][0]), "every unit has this value: no interval can be told"
            effects.append(_unknown(form, why)._replace(control=value, treatment=value, effect=0.0))
            continue
        r, plain = told[form], told["plain"]
        error = _width(r) / 2 / z
        sequence = p_sequence = None
        if planned:
            radius = sequential_radius(error, len(y), planned, level)
            sequence = (r.effect_size - radius, r.effect_size + radius)
            p_sequence = sequential_p(r.effect_size, error, len(y), planned, level)
        adjusted = form in balance
        lift = (r.rel_effect_size, r.rel_effect_size_ci_lower, r.rel_effect_size_ci_upper)
        if not (above[_numerator(form)] and r.control > 0):
            lift = 3 * (math.nan,)
        effects.append(
            Effect(
                form, r.control, r.treatment, r.effect_size, r.effect_size_ci_lower, r.effect_size_ci_upper,
                *lift, r.pvalue,
                (_width(r) / _width(plain)) ** 2 if adjusted else math.nan, sequence, p_sequence,
            )
        )  # fmt: skip
    primary = "cupac" if outcome.prediction else "cuped" if outcome.before else "plain"
    a, b = y[~treated], y[treated]
    errors = [part.std(ddof=1) / math.sqrt(len(part)) for part in (a, b)]
    cv = float(a.std(ddof=1) / a.mean()) if a.mean() > 0 else math.inf
    left = next(e.variance_left for e in effects if e.form == primary)
    left = 1.0 if math.isnan(left) else left
    cv_left = cv * math.sqrt(left)
    known = math.isfinite(cv_left) and cv_left > 0
    detectable = detectable_lift(cv_left, len(a), len(b), alpha=1 - level) if known else math.inf
    ratio = fieller(a.mean(), b.mean(), errors[0], errors[1], level) if a.mean() > 0 else (math.nan, math.nan)
    return Comparison(
        outcome.column, treatment, primary, tuple(effects), math.nan, ratio, bound, cv, cv_left, detectable, balance
    )


def _unknown(form: str, why: str) -> Effect:
    return Effect(form, *(10 * (math.nan,)), None, None, why)


def _balance(control: np.ndarray, treatment: np.ndarray) -> float:
    """Welch's p-value of a covariate's two means; of one that does not vary within the arms 1 where they agree, else 0."""
    if max(np.ptp(control), np.ptp(treatment)) == 0:  # a standard deviation of equal numbers may be 1e-17
        return float(control[0] == treatment[0])
    from scipy.stats import ttest_ind

    return float(ttest_ind(control, treatment, equal_var=False).pvalue)


def _lowest_mean(values: np.ndarray, z: float) -> float:
    """The lower end of the interval of a mean."""
    return float(values.mean() - z * values.std(ddof=1) / math.sqrt(len(values)))


def _numerator(form: str) -> str:
    return {"winsorised": "clipped", "active": "active"}.get(form, "y")


def _width(result: Any) -> float:
    return result.effect_size_ci_upper - result.effect_size_ci_lower
