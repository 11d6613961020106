"""The mean label of the training rows with the same coarse profile, shrunk towards the mean of all.

The strength of the shrinking is chosen by leave-one-out means, in which a row's own household or person takes no part; a row
of the test split is never in its own mean. Only where coarse profiles repeat.
"""

from __future__ import annotations

import numpy as np

from scaletot_jax.evaluation.baselines.grouped import choose_strength, codes_of, shrunk_predictions
from scaletot_jax.evaluation.baselines.known import Known, NotApplicable
from scaletot_jax.evaluation.predictions import Predictions, Target
from scaletot_jax.profiles.keys import share_of_repeats

MIN_SHARE = 0.05


def profile_mean(known: Known, target: Target) -> list[Predictions]:
    """Leave-one-out mean of the coarse profile."""
    codes, rows = codes_of(known.coarse), known.rows
    repeated = share_of_repeats(known.coarse[rows.head].astype(str))
    seen = np.isin(codes[rows.test], codes[rows.head]).mean()
    if repeated < MIN_SHARE or seen < MIN_SHARE:
        raise NotApplicable(f"coarse profiles hardly repeat: {repeated:.1%} of the training rows share one")
    if len(np.unique(codes[rows.head])) == 1:
        raise NotApplicable("every row has the same coarse profile")
    strength = choose_strength(codes[rows.head], target.labels[rows.head], known.groups[rows.head])
    return [shrunk_predictions(target, codes, rows.head, rows.test, strength)]
