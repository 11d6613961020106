"""The user-overlap audit: an evaluation that shares a user with training is refused, not reported."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np

from scaletot_jax.errors import DataError, OverlapError
from scaletot_jax.profiles.split import EVALUATION, SPLITS, TRAIN

Strings = Sequence[str] | np.ndarray
UNSEEN = ("head", "val", "test")  # users that no language-model training and no distillation may have touched


def audit_splits(groups: Strings, splits: Strings, what: str = "group") -> dict[str, int]:
    """Checks that the groups of every pair of splits are disjoint.

    Args:
      groups: group (household, person) of each row, or its user.
      splits: its split; names outside :data:`SPLITS`, e.g. ``unused``, are not looked at.
      what: what errors call a group.

    Returns:
      the number of groups of each split.

    Raises:
      OverlapError: a group lies in two splits (both named).
      DataError: a split that evaluation needs is empty.
    """
    members = {name: _members(groups, splits, name) for name in SPLITS}
    for a, b in combinations(SPLITS, 2):
        shared = members[a] & members[b]
        if shared:
            raise OverlapError(
                f"splits '{a}' and '{b}' share {len(shared)} {what}(s)",
                where=f"population.parquet, {what} {min(map(str, shared))!r}",
                why="a user on both sides of a split makes every figure too good",
                do="run 'scaletot prepare' again; report it if the table came from there",
            )
    for name in UNSEEN:
        if not members[name]:
            raise DataError(f"split '{name}' has no rows", do="use more rows, or raise its fraction in config.split")
    return {name: len(found) for name, found in members.items()}


def audit_training(trained_groups: Iterable[str], groups: Strings, splits: Strings) -> int:
    """Checks that no group of head, val or test took part in language-model training or distillation.

    Args:
      trained_groups: groups whose chains, labels or states were trained on.
      groups, splits: as in :func:`audit_splits`.

    Returns:
      the number of trained groups.

    Raises:
      OverlapError: a trained group lies in head, val or test.
    """
    trained = set(trained_groups)
    for name in UNSEEN:
        shared = trained & _members(groups, splits, name)
        if shared:
            raise OverlapError(
                f"{len(shared)} group(s) of split '{name}' were used to train the language model or the encoder",
                where=f"group {min(map(str, shared))!r}",
                why="their states are over-optimistic: the student has seen their labels",
                do="run the line again from 'scaletot prepare' in a new --workdir",
            )
    return len(trained)


def audit_time(snapshots: np.ndarray, splits: Strings, horizon: int) -> int:
    """Checks that label windows of training rows end before any val or test snapshot.

    Args:
      snapshots: datetime64[D] [U].
      splits: split of each row.
      horizon: days of the label window (snapshot, snapshot + horizon].

    Returns:
      days between the end of the last training label and the first val or test snapshot, ≥ 0.

    Raises:
      OverlapError: a window reaches beyond one.
      DataError: there is no training row, or none of val and test.
    """
    names = np.asarray(splits, object)
    early = np.isin(names, TRAIN)
    late = np.isin(names, EVALUATION)
    for rows, wanted in ((early, TRAIN), (late, EVALUATION)):
        if not rows.any():
            raise DataError(
                f"splits {', '.join(wanted)} have no rows", do="use more rows, or raise their fractions in config.split"
            )
    gap = int((snapshots[late].min() - snapshots[early].max()).astype(int)) - horizon
    if gap < 0:
        raise OverlapError(
            "a training label window reaches into the evaluation period",
            where=f"last training snapshot {snapshots[early].max()}, first evaluation snapshot {snapshots[late].min()}",
            why=f"the label takes {horizon} days",
            do="run 'scaletot prepare' again with split.time_forward=true",
        )
    return gap


def _members(groups: Strings, splits: Strings, name: str) -> set[str]:
    return {group for group, split in zip(groups, splits) if split == name}
