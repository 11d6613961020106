"""Intervals that the libraries lack: Fieller's for a ratio of means, and one that may be looked at any time. Pure.

Fieller's interval for the relative lift θ = μ_t / μ_c − 1 is the set of θ that the test of μ_t − (1 + θ) μ_c = 0 keeps,
exact for normal means, where the delta method is one more approximation. With g = z² s_c² / m_c² < 1, r = m_t / m_c:

    1 + θ  ∈  [ r ∓ (z / m_c) √( s_t² (1 − g) + r² s_c² ) ] / (1 − g)

Source: Fieller, J. R. Stat. Soc. B 16 (1954) 175. The asymptotic confidence sequence is that of Waudby-Smith, Arbour,
Sinha, Kennedy and Ramdas (arXiv:2103.06476), equation 7: an interval for every n at once.
"""

from __future__ import annotations

import math
from statistics import NormalDist


def fieller(
    control: float, treatment: float, se_control: float, se_treatment: float, level: float = 0.95
) -> tuple[float, float]:
    """The interval of μ_t / μ_c − 1; infinite where the control's mean is not clear of zero (g ≥ 1).

    Args:
      control, treatment: sample means m_c, m_t of independent arms.
      se_control, se_treatment: their standard errors s_c, s_t.
    """
    z = NormalDist().inv_cdf(0.5 + level / 2)
    g = math.inf if control == 0 else (z * se_control / control) ** 2
    if g >= 1:
        return -math.inf, math.inf
    ratio = treatment / control
    half = z / abs(control) * math.sqrt(se_treatment**2 * (1 - g) + ratio**2 * se_control**2)
    return (ratio - half) / (1 - g) - 1, (ratio + half) / (1 - g) - 1


def sequential_radius(standard_error: float, units: int, planned: int, level: float = 0.95) -> float:
    """Half the width of an interval that holds at every look, whenever one stops.

        s √( 2 (n ρ² + 1) / (n ρ²) · ln( √(n ρ² + 1) / α ) ),   ρ² = (−2 ln α + ln(−2 ln α) + 1) / n*

    Args:
      standard_error: s of the estimate at this look.
      units: n, units seen so far.
      planned: n*, units at which the interval is tightest.
    """
    spread = _spread(units, planned, 1 - level)
    return standard_error * math.sqrt(2 * (spread + 1) / spread * math.log(math.sqrt(spread + 1) / (1 - level)))


def sequential_p(effect: float, standard_error: float, units: int, planned: int, level: float = 0.95) -> float:
    """The p-value that holds at every look: the least α' at which the interval of this α' leaves 0 out.

        p = min( 1, √(n ρ² + 1) · exp( −t² n ρ² / (2 (n ρ² + 1)) ) ),   t = effect / s

    ρ is that of ``level``, fixed beforehand, so p < 1 − level exactly where ``effect`` exceeds :func:`sequential_radius`; being
    a p-value of every look it may be corrected for several comparisons as any other.

    Args:
      effect: the estimate. The others as of :func:`sequential_radius`.
    """
    if standard_error == 0:
        return 1.0 if effect == 0 else 0.0
    spread = _spread(units, planned, 1 - level)
    exponent = (effect / standard_error) ** 2 * spread / (2 * (spread + 1))
    return min(1.0, math.sqrt(spread + 1) * math.exp(-exponent))


def _spread(units: int, planned: int, alpha: float) -> float:
    """n ρ²."""
    scale = -2 * math.log(alpha)
    return units * (scale + math.log(scale) + 1) / planned
