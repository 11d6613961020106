"""What a baseline may read, and how it says that it cannot be run. Plain records.

A baseline is a function of :class:`Known` and a target that returns predictions for the test rows. It learns from the labels of
``rows.head``, chooses by those of ``rows.val``, and never looks at a label of ``rows.test``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from scaletot_jax.evaluation.predictions import Rows


class Missing(Exception):
    """An optional package is not there, or (``note`` "not run") the run did not ask for it. ``why`` and ``do`` go into the table in place of numbers."""

    def __init__(self, why: str, do: str = "", note: str = "missing"):
        super().__init__(f"{why}; {do}" if do else why)
        self.why, self.do, self.note = why, do, note


class NotApplicable(Exception):
    """The data gives this baseline nothing to work on."""


class Answers(NamedTuple):
    """Bucket distributions of a language model for some profiles."""

    coarse: np.ndarray  # [N] coarse key of the profile
    probabilities: np.ndarray  # [N, Kb]
    edges: np.ndarray  # [Kb] lowest label of each bucket, ascending
    column: str  # the label they speak of


class Known(NamedTuple):
    """Of U rows; everything but labels is known for every row."""

    rows: Rows
    dense: np.ndarray  # [U, P] profile features, not standardised
    codes: np.ndarray  # [U, F] int64, for each field the number of its value or bin; missing is a value
    fields: tuple[str, ...]  # [F]
    coarse: np.ndarray  # [U] coarse key
    groups: np.ndarray  # [U] group ids
    seed: int
    head: Mapping[str, Any]  # the configuration's ``head`` section
    z: np.ndarray | None = None  # [U, E] ẑ
    text: np.ndarray | None = None  # [U, D] sentence embedding; rows outside head, val and test may be NaN
    no_text: Missing | None = None  # why there is none
    teacher: Answers | None = None
    student: Answers | None = None
    latent_rows: np.ndarray | None = None  # [N] rows whose reasoning states are known, all of training users
    latent: np.ndarray | None = None  # [N, d] those states, whitened
