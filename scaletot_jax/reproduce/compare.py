"""What came out of a run against what came out when it was done again. Pure.

Two runs of one configuration, by the same code and versions on the same kind of machine from the same inputs, end in the same
bytes: every value of ``metrics.json`` and every artifact's SHA-256 is compared exactly. Anywhere else a compiler may add up in
another order, and one other rounding can draw another token; there two fractional numbers agree where

    |a − b| ≤ FLOOR + tolerance · max(|a|, |b|),

counts and words must still be equal, and bytes of files are shown and not judged.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from scaletot_jax.run import flatten

SAME, DIFFERS, MISSING, NEW = "same", "differs", "missing", "new"
FLOOR = 1e-6
ELSEWHERE = 1e-3  # the tolerance where versions, machine or inputs are not the same
# Values that say how long something took, by the names under which clocks of this package write: two equal runs differ in them.
TIMES = re.compile(
    r"(?:seconds|minutes|seconds_of_last_process|tokens_per_second(?:_per_device)?|model_flops_utilisation)"
)


class Row(NamedTuple):
    """One value or file: ``kind`` is where it was looked at, ``detail`` how it differs; a row that is not judged only tells."""

    kind: str
    name: str
    status: str
    detail: str = ""
    judged: bool = True

    @property
    def fails(self) -> bool:
        return self.judged and self.status != SAME


class Comparison(NamedTuple):
    """Attributes:
    before: what differed before anything was run: of kind environment, inputs or configuration.
    rows: every value of ``metrics.json`` and every file.
    times: names of values that say how long something took; not compared.
    tolerance: relative, 0 where numbers were compared exactly.
    """

    before: list[Row]
    rows: list[Row]
    times: list[str]
    tolerance: float

    @property
    def agrees(self) -> bool:
        """Whether everything that is judged came out again, from the same inputs."""
        return not any(row.fails for row in (*self.before, *self.rows))


def differences(kind: str, before: Mapping[str, Any], after: Mapping[str, Any], *, judged: bool) -> list[Row]:
    """Rows for the leaves of two nested mappings that are not equal."""
    old, new = flatten(before), flatten(after)
    return [
        Row(kind, key, DIFFERS, f"{_text(old, key)} → {_text(new, key)}", judged)
        for key in sorted(old.keys() | new.keys())
        if key not in old or key not in new or old[key] != new[key]
    ]


def compare(
    metrics: tuple[Mapping[str, Any], Mapping[str, Any]],
    files: tuple[Mapping[str, str], Mapping[str, str]],
    before: list[Row],
    tolerance: float | None = None,
) -> Comparison:
    """Compares what came out.

    Args:
      metrics: ``metrics.json`` of the run and of its repetition.
      files: name → SHA-256 of the artifacts of both.
      before: rows of :func:`differences`. Without one of the environment or of the inputs the comparison is exact.
      tolerance: relative; None for 0 in an exact comparison and :data:`ELSEWHERE` in any other.
    """
    exact = not any(row.kind in ("environment", "inputs") for row in before)
    if tolerance is None:
        tolerance = 0.0 if exact else ELSEWHERE
    values, times = compare_metrics(*metrics, tolerance, new_fails=exact)
    moved = any(row.kind == "configuration" for row in before)  # the pages of the report show the configuration
    return Comparison(before, values + compare_files(*files, exact=exact, pages=not moved), times, tolerance)


def compare_metrics(
    before: Mapping[str, Any], after: Mapping[str, Any], tolerance: float, *, new_fails: bool = True
) -> tuple[list[Row], list[str]]:
    """A row for every value of either, in the order of the first, and the names of the times that were left out."""
    old, new = dict(leaves(before)), dict(leaves(after))
    rows, times = [], []
    for name in [*old, *(name for name in new if name not in old)]:
        if TIMES.fullmatch(re.split(r"[.\[]", name)[-1]):
            times.append(name)
        elif name not in new:
            rows.append(Row("metrics", name, MISSING, f"was {old[name]!r}"))
        elif name not in old:
            rows.append(Row("metrics", name, NEW, f"is {new[name]!r}", judged=new_fails))
        elif agree(old[name], new[name], tolerance):
            rows.append(Row("metrics", name, SAME))
        else:
            rows.append(Row("metrics", name, DIFFERS, _how_much(old[name], new[name])))
    return rows, times


def compare_files(before: Mapping[str, str], after: Mapping[str, str], *, exact: bool, pages: bool = True) -> list[Row]:
    """A row for every artifact of either. ``pages``: whether those of the report are judged, too."""
    rows = []
    for name in sorted(before.keys() | after.keys()):
        judged = exact and (pages or not name.startswith("report/"))
        if name not in after:
            rows.append(Row("files", name, MISSING))
        elif name not in before:
            rows.append(Row("files", name, NEW, judged=judged))
        elif before[name] == after[name]:
            rows.append(Row("files", name, SAME))
        else:
            rows.append(Row("files", name, DIFFERS, f"SHA-256 {before[name][:12]} → {after[name][:12]}", judged))
    return rows


def agree(before: Any, after: Any, tolerance: float) -> bool:
    """Whether two values of a JSON file are equal; two numbers of which one is fractional within the tolerance."""
    numbers = isinstance(before, (int, float)) and isinstance(after, (int, float))
    truths = isinstance(before, bool) or isinstance(after, bool)
    if tolerance and numbers and not truths and (isinstance(before, float) or isinstance(after, float)):
        return abs(before - after) <= FLOOR + tolerance * max(abs(before), abs(after))
    return type(before) is type(after) and repr(before) == repr(after)  # 0.0 and -0.0 are other bits


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Name → value of everything in nested mappings and lists; an empty one is a value, so that its filling is seen."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from leaves(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and value:
        for i, item in enumerate(value):
            yield from leaves(item, f"{name}[{i}]")
    else:
        yield name, value


def _how_much(before: Any, after: Any) -> str:
    text = f"{before!r} → {after!r}"
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in (before, after)):
        away = abs(before - after)
        text += f" (by {away:.3g}, relative {away / max(abs(before), abs(after), 1e-300):.2g})"
    return text


def _text(values: Mapping[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "absent"
