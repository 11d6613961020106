"""Out-of-fold students: states of a user whose chain or label trained the student come from a student that never saw them.

A student lays down more in the states of people it was trained on than it will for others, so states of the teacher split
that come from the one student are over-optimistic. With ``distill.student_folds = K`` the profiles of the teacher split are
dealt to K folds by the hash of their group, and for each fold a student is trained, by the stages ``sft`` and ``osipo``
themselves, in ``distill/student_folds/F/``: a run directory in which the rows of the fold do not belong to the teacher split.
The fold's states come from that student, those of the distill split from the run's own. :func:`check_folds` reads back whom each
student was trained on. Students of other folds see the same base model, seed and settings; their states still differ by what
their users taught them, which a reader of the states cannot tell from a difference between users: a price, paid where the teacher
split is most of what is distilled (below some 2,000 reasoned profiles) and its over-optimism matters more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scaletot_jax.encoder.selection import Profiles
from scaletot_jax.errors import DataError
from scaletot_jax.files import copy_file, read_table, write_table
from scaletot_jax.profiles.prepare import ARTIFACTS
from scaletot_jax.profiles.split import UNUSED, unit_hash
from scaletot_jax.run import Run, Stage
from scaletot_jax.student.osipo import osipo
from scaletot_jax.student.policy import Student, load_student
from scaletot_jax.student.sft import sft
from scaletot_jax.teacher.identity import identity_of_model
from scaletot_jax.teacher.served.settings import stage_sections

FOLDER = "student_folds"
OWN = -1  # the run's own student


def deal(profiles: Profiles, folds: int, seed: int) -> np.ndarray:
    """Fold of each distilled profile [U]: :data:`OWN` for the distill split, 0..folds−1 by group for the teacher's."""
    if not folds:
        return np.full(len(profiles.rows), OWN)
    place = np.floor(unit_hash([str(group) for group in profiles.groups], seed, "student folds") * folds).astype(int)
    return np.where(profiles.source == "teacher", np.minimum(place, folds - 1), OWN)


def withheld_rows(table: pa.Table, profiles: Profiles, members: np.ndarray) -> np.ndarray:
    """Rows [rows] bool that a student of the others must not see: the groups of the members, and their exact profiles."""
    groups = pc.is_in(table["group"], value_set=pa.array(sorted(set(profiles.groups[members])), pa.string()))
    keys = pc.is_in(table["exact_key"], value_set=pa.array(sorted(set(profiles.keys[members])), pa.string()))
    return pc.or_(groups, keys).to_numpy()


def fold_student(run: Run, stage: Stage, profiles: Profiles, members: np.ndarray, fold: int) -> Student:
    """Trains, or finds trained, the student that never saw the members of a fold.

    Args:
      run: the run whose stages prepare, teach, sft and osipo are finished.
      stage: ``distill``; the student lives in its folder.
      profiles: the distilled profiles.
      members: bool [U], those of the fold.
      fold: its number.

    Raises:
      DataError: nothing is left to train on, or the student was trained on a member after all.
    """
    config = {**run.config, "mesh": own_mesh(run.config["mesh"], jax.local_device_count())}
    with Run(stage.path(FOLDER) / str(fold), config, on_change="redo", lock=False) as inner:
        table = _prepare(run, inner, profiles, members)
        _teach(run, inner, table)
        sft(inner)
        osipo(inner)
        check_folds(inner, profiles, members)
        return load_student(inner, run.config["distill"]["student"])


def own_mesh(mesh: Mapping[str, int], devices: int) -> dict[str, int]:
    """The configured mesh where this process's own ``devices`` are enough, else one whose axes divide the configured ones.

    A fold is trained by one process, whatever the mesh of the run spans. What divides by an axis divides by its divisors: batches,
    widths and heads. On another number of devices a fold that was begun or done is trained again.
    """
    found, left = dict(mesh), devices
    if max(mesh["data"], 1) * mesh["fsdp"] * mesh["tensor"] > devices:
        for name in ("tensor", "fsdp", "data"):
            found[name] = math.gcd(max(mesh[name], 1), left)
            left //= found[name]
    return found


def check_folds(inner: Run, profiles: Profiles, members: np.ndarray) -> None:
    """Raises DataError where the stages of ``inner`` say that they used a group or an exact profile of the members."""
    groups, keys = set(profiles.groups[members]), set(profiles.keys[members])
    population = read_table(inner.finished("prepare").path("population.parquet"), columns=["group", "exact_key"])
    for name, file in (("teach", "profiles.parquet"), ("osipo", "users.parquet")):
        rows = read_table(inner.finished(name).path(file), columns=["row"])["row"]
        used = population.take(rows)
        if groups & set(used["group"].to_pylist()) or keys & set(used["exact_key"].to_pylist()):
            raise DataError(
                "a student was trained on users whose states it gives",
                where=str(inner.finished(name).path(file)),
                why="a group or a profile of its fold is among them",
                do="delete distill/student_folds and run 'scaletot distill' again",
            )
    taught = set(
        read_table(inner.finished("teach").path("chains.parquet"), columns=["exact_key"])["exact_key"].to_pylist()
    )
    if keys & taught:
        raise DataError("a student was taught chains of profiles whose states it gives", where=str(inner.workdir))


def _prepare(run: Run, inner: Run, profiles: Profiles, members: np.ndarray) -> pa.Table:
    """The population with the fold's rows out of the teacher split."""
    outer = run.finished("prepare")
    stage = inner.stage(
        "prepare", sections=("seed", "data", "split"), extra={"of": outer.result, "fold": _name(members)}
    )
    table = read_table(outer.path("population.parquet"))
    if not stage.done:
        gone = withheld_rows(table, profiles, members) & pc.equal(table["split"], "teacher").to_numpy()
        split = pc.if_else(pa.array(gone), UNUSED, table["split"])
        table = table.set_column(table.column_names.index("split"), "split", split)
        for name in ARTIFACTS:
            if name != "population.parquet":
                copy_file(outer.path(name), stage.path(name))
        write_table(stage.path("population.parquet"), table)
        stage.finish(ARTIFACTS)
    return read_table(stage.path("population.parquet"))


def _teach(run: Run, inner: Run, table: pa.Table) -> None:
    """The teacher's chains of those who are left."""
    outer = run.finished("teach")
    sections = ("lm", *stage_sections(run.config["teacher"]))
    stage = inner.stage("teach", sections=sections, needs=("prepare",), extra=identity_of_model(run.config))
    if stage.done:
        return
    left = table.filter(pc.equal(table["split"], "teacher"))
    files: Sequence[str] = ("chains.parquet", "profiles.parquet")
    for name in files:
        found = read_table(outer.path(name))
        kept = found.filter(pc.is_in(found["exact_key"], value_set=pc.unique(left["exact_key"])))
        if not kept.num_rows:
            raise DataError(
                "no chain is left for the student of a fold",
                where=str(stage.directory),
                do="lower distill.student_folds, or reason about more profiles",
            )
        write_table(stage.path(name), kept)
    stage.finish(files)


def _name(members: np.ndarray) -> str:
    return "".join("1" if member else "0" for member in members)
