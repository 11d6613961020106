"""How many users an experiment needs, by ``statsmodels``' normal two-sample test.

A relative lift r of a mean with coefficient of variation CV is a standardised effect r / CV, so

    n per arm ≈ 2 (z_{1−α/2} + z_{1−β})² CV² / r²

(for r = 6.738 %, 80 % power and α = 5 %: 3,458 CV²). A covariate with correlation ρ to the outcome leaves CV² (1 − ρ²).
"""

from __future__ import annotations

import math


def units_needed(
    cv: float, lift: float, *, power: float = 0.8, alpha: float = 0.05, share: float = 0.5
) -> tuple[int, int]:
    """Units in control and treatment that find a relative lift with the given power.

    Args:
      cv: coefficient of variation of the outcome (standard deviation / mean), after any covariate.
      lift: relative, ≠ 0.
      share: of all units that are treated, in (0, 1).
    """
    from statsmodels.stats.power import NormalIndPower

    ratio = share / (1 - share)
    control = NormalIndPower().solve_power(effect_size=abs(lift) / cv, power=power, alpha=alpha, ratio=ratio)
    return math.ceil(control), math.ceil(control * ratio)


def detectable_lift(cv: float, control: int, treatment: int, *, power: float = 0.8, alpha: float = 0.05) -> float:
    """The least relative lift that so many units find with the given power."""
    from statsmodels.stats.power import NormalIndPower

    effect = NormalIndPower().solve_power(nobs1=control, ratio=treatment / control, power=power, alpha=alpha)
    return float(effect) * cv


def power_of(cv: float, lift: float, control: int, treatment: int, *, alpha: float = 0.05) -> float:
    """The probability that so many units find this relative lift."""
    from statsmodels.stats.power import NormalIndPower

    return float(NormalIndPower().power(abs(lift) / cv, control, alpha, ratio=treatment / control))
