"""An experiment's table: one row a unit of assignment, an arm, outcomes, and covariates known before it began."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scaletot_jax.errors import DataError

LEAST_UNITS = 30  # an arm; the intervals are those of large samples


class Outcome(NamedTuple):
    """A metric, and what may sharpen it.

    Attributes:
      column: the outcome.
      before: the same quantity in a period before assignment (CUPED, Deng et al. 2013); "" for none.
      prediction: a model's prediction of it from what was known before assignment (CUPAC, Tang et al. 2020); "" for none.
    """

    column: str
    before: str = ""
    prediction: str = ""


def check_table(
    table: pa.Table, arm: str, outcomes: Sequence[Outcome], *, unit: str = "", control: str = "", where: str = "table"
) -> tuple[pa.Table, str, list[str]]:
    """Checks the columns and returns them as text and float64.

    Returns:
      The table with the arm, the outcomes and the covariates; the control's name (the first in sorted order where none
      is named); the other arms, sorted.

    Raises:
      DataError: a column is missing, a value is missing or not finite, a unit occurs twice, there are fewer than two
        arms, or an arm is small.
    """
    numbers = [name for outcome in outcomes for name in outcome if name]
    for name in [arm, *([unit] if unit else []), *numbers]:
        if name not in table.column_names:
            raise DataError(
                "a table lacks a column", where=f"{where}, column '{name}'", do=f"it has {table.column_names}"
            )
    if not outcomes:
        raise DataError("an experiment needs an outcome", where=where)
    if unit:
        units = table[unit].cast(pa.string())
        _first_bad(pc.is_null(units), where, unit, "the unit is missing")
        if (repeated := table.num_rows - len(pc.unique(units))) > 0:
            raise DataError(
                "a unit occurs twice",
                where=f"{where}, column '{unit}'",
                why=f"{repeated} of {table.num_rows} rows repeat one",
                do="aggregate to one row a unit of assignment: intervals need independent rows",
            )
    arms = table[arm].cast(pa.string())
    _first_bad(pc.is_null(arms), where, arm, "the arm is missing")
    columns = {arm: arms}
    for name in dict.fromkeys(numbers):
        try:
            values = table[name].cast(pa.float64(), safe=False)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError("a column is not a number", where=f"{where}, column '{name}'", why=str(error)) from error
        _first_bad(pc.invert(pc.fill_null(pc.is_finite(values), False)), where, name, "missing, NaN or infinite")
        columns[name] = values
    counts = {item["values"]: item["counts"] for item in arms.value_counts().to_pylist()}
    names = sorted(counts)
    control = control or names[0]
    if control not in counts:
        raise DataError("there is no such arm", where=f"{where}, column '{arm}'", why=f"'{control}' is not in {names}")
    if len(counts) < 2:
        raise DataError(
            "an experiment needs two arms", where=f"{where}, column '{arm}'", why=f"all rows are '{control}'"
        )
    small = min(names, key=lambda name: counts[name])
    if counts[small] < LEAST_UNITS:
        raise DataError(
            "an arm is too small", where=f"{where}, arm '{small}'", why=f"{counts[small]} units, at least {LEAST_UNITS}"
        )
    return pa.table(columns), control, [name for name in names if name != control]


def with_scores(
    table: pa.Table, scores: pa.Table, unit: str, outcomes: Sequence[Outcome], *, where: str = "scores"
) -> tuple[pa.Table, list[Outcome]]:
    """Adds the model's own predictions as covariates: ``expected_L`` of ``scaletot score`` for each outcome L without one.

    Args:
      table: of the experiment; ``unit`` is its column of unit ids.
      scores: ``user_id`` and columns ``expected_L``, one row a user, made before the experiment.

    Returns:
      The table with the columns it lacked, and the outcomes with their prediction named.

    Raises:
      DataError: a user occurs twice in the scores, or a unit has none; or no outcome has a prediction there.
    """
    ids = scores["user_id"].cast(pa.string())
    if len(pc.unique(ids)) < len(ids):
        raise DataError(
            "a user occurs twice in the scores",
            where=f"{where}, column 'user_id'",
            do="score one snapshot, taken before the experiment began",
        )
    place = pc.index_in(table[unit].cast(pa.string()), value_set=ids.combine_chunks())
    if place.null_count:
        first = pc.is_null(place).to_numpy(zero_copy_only=False).argmax()
        raise DataError(
            "a unit has no score",
            where=f"{where}, unit {table[unit][int(first)].as_py()!r}",
            why=f"{place.null_count} of {table.num_rows} units have none",
            do="score every unit that was assigned: scaletot score --model",
        )
    found = []
    for outcome in outcomes:
        name = f"expected_{outcome.column}"
        if not outcome.prediction and name in scores.column_names:
            table = table.append_column(f"{name} (score)", pc.take(scores[name], place).cast(pa.float64()))
            outcome = outcome._replace(prediction=f"{name} (score)")
        found.append(outcome)
    if found == list(outcomes):
        raise DataError(
            "the scores predict none of the outcomes",
            where=where,
            why=f"outcomes {[o.column for o in outcomes]}, columns {scores.column_names}",
        )
    return table, found


def winsorised(values: np.ndarray, quantile: float) -> tuple[np.ndarray, float]:
    """Values above their quantile over all arms set to it, and that quantile: the same bound for every arm, no bias from the arm."""
    bound = float(np.quantile(values, quantile))
    return np.minimum(values, bound), bound


def _first_bad(bad: pa.ChunkedArray, where: str, name: str, why: str) -> None:
    mask = bad.to_numpy(zero_copy_only=False) if isinstance(bad, pa.Array) else bad.to_numpy()
    if mask.any():
        raise DataError(
            "a value is missing or cannot be used",
            where=f"{where}, row {int(mask.argmax())}, column '{name}'",
            why=f"{why}; {int(mask.sum())} such rows",
            do="an experiment is analysed with every assigned unit: fill zeros in where nothing happened, drop nobody",
        )
