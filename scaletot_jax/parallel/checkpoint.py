"""Checkpoints: everything a training loop needs to go on, in one atomic unit.

This file wraps Orbax, so that a change of its interface touches one place. A unit holds the arrays (parameters, optimiser
state, random-key data), a JSON record (data-iterator state, counters) and, where it was given one, the metric by which
the best units are kept. Orbax writes into a temporary folder and renames it, so a kill leaves the earlier units whole. The
record carries a digest of the arrays (:mod:`scaletot_jax.parallel.digest`): a damaged newest unit (zero-byte file, torn
page) is noticed, named on stderr, set aside, and the one before is used.

In a run of several processes all of them save and restore together, each its own shards, in a folder that all see.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from scaletot_jax.errors import ResourceError
from scaletot_jax.parallel import distributed
from scaletot_jax.parallel.digest import digest

_FULL = ("No space left", "Disk quota", "RESOURCE_EXHAUSTED")
_GO_ON = "free some space and run the same command again; it continues from the last whole checkpoint"
_NOT_ITS_FAULT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO)  # the unit may be whole: never set it aside


class Restored(NamedTuple):
    """A unit read back: the step it was saved at, the arrays in the structure asked for, and the JSON record."""

    step: int
    arrays: Any
    record: dict[str, Any]


class Checkpoints:
    """Saves the units of one directory; use it as a context, which ends when everything is written.

    Args:
      directory: holds one folder a step; made where absent.
      keep: the newest units kept, at least 1.
      keep_best: besides them, the units with the lowest metric; a unit without a metric is never one of these.
      asynchronous: :meth:`save` returns when the arrays are copied, and the files are written while the loop goes on. A
        kill then costs the unit in flight at most. A failed write is raised by the next :meth:`check` or :meth:`save`.
    """

    def __init__(self, directory: str | Path, *, keep: int = 2, keep_best: int = 0, asynchronous: bool = True):
        self.directory = Path(directory)
        self._kept = _Kept(keep, keep_best, {})
        self._asynchronous = asynchronous
        self._manager: Any = None  # made at the first save: it remembers the folder as it finds it

    def save(self, step: int, arrays: Any, record: dict[str, Any], *, metric: float | None = None) -> None:
        """Saves one unit and removes those that are neither among the newest nor among the best.

        Args:
          step: not negative, above every step saved before.
          arrays: a pytree of arrays; random keys as ``jax.random.key_data``. They may be donated right after: from an
            accelerator they are copied before this returns, and on CPU JAX leaves memory alone that is still being read.
          record: JSON-able state, e.g. ``iterator.get_state()`` of grain.
          metric: lower is better.

        Raises:
          ResourceError: the disk is full, now or while the unit before was written, or this unit will not fit; earlier
            units are untouched.
        """
        import orbax.checkpoint as ocp

        self.check()
        if jax.process_count() > 1 and distributed.count() == 1:
            # Orbax takes arrays on one process's devices for a mistake where there are several processes.
            arrays = jax.device_get(arrays)
        metric = float(metric) if metric is not None and math.isfinite(metric) else None
        items = ocp.args.Composite(
            arrays=ocp.args.StandardSave(arrays),
            record=ocp.args.JsonSave({"record": record, "digest": digest(arrays), "metric": metric}),
        )
        try:
            if self._manager is None:
                if distributed.leads():
                    self.directory.mkdir(parents=True, exist_ok=True)
                distributed.barrier("checkpoints")
                self._kept.metrics.update(_metrics(self.directory))
                self._manager = _manager(self.directory, self._kept, self._asynchronous)
            _find_room(self.directory, arrays)
            self._kept.metrics[step] = metric
            self._manager.save(step, args=items, force=True)
            if not self._asynchronous:
                self._manager.wait_until_finished()
        except Exception as error:  # Orbax raises OSError, ValueError or XlaRuntimeError for the same full disk
            _explain(error, self.directory)
            raise

    def check(self) -> None:
        """Raises what went wrong in the background since the last look; does not wait.

        Raises:
          ResourceError: the disk is full.
        """
        if self._manager is not None and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Returns when the unit in flight is whole on the disk; raises as :meth:`check`."""
        if self._manager is None:
            return
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            _explain(error, self.directory)
            raise

    def close(self) -> None:
        """Waits for the unit in flight and lets go of the directory; raises as :meth:`check`."""
        manager, self._manager = self._manager, None
        if manager is None:
            return
        try:
            manager.close()
        except Exception as error:
            _explain(error, self.directory)
            raise

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except Exception:
            if kind is None:  # else the error that ended the loop is the one to show
                raise


def save(directory: str | Path, step: int, arrays: Any, record: dict[str, Any], *, keep: int = 2) -> None:
    """Saves one unit and waits until it is on the disk; see :meth:`Checkpoints.save`."""
    with Checkpoints(directory, keep=keep, asynchronous=False) as units:
        units.save(step, arrays, record)


def restore(directory: str | Path, like: Any) -> Restored | None:
    """The newest whole unit, or None where there is none.

    Args:
      directory: as given to :class:`Checkpoints`.
      like: a pytree with the shapes and dtypes expected; leaves with a ``sharding`` are placed accordingly, so a unit
        can be read on another number of devices or processes.
    """
    return _first_whole(Path(directory), sorted(_steps(directory), reverse=True), like)


def restore_best(directory: str | Path, like: Any) -> Restored | None:
    """The whole unit with the lowest metric, the newest of equals; None where no unit has one. See :func:`restore`."""
    known = {step: value for step, value in _metrics(Path(directory)).items() if value is not None}
    return _first_whole(Path(directory), sorted(known, key=lambda step: (known[step], -step)), like)


def _first_whole(directory: Path, steps: list[int], like: Any) -> Restored | None:
    target = jax.tree.map(_struct, like)
    for step in steps:
        reason, arrays = "", None
        record: dict[str, Any] = {}
        try:
            arrays, record = _read(directory / str(step), target)
        except Exception as error:  # a damaged unit fails in as many ways as there are bytes
            if isinstance(error, MemoryError) or getattr(error, "errno", None) in _NOT_ITS_FAULT:
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        # Every process reads by itself and none waits for another within; they judge the unit together.
        if distributed.agree(not reason):
            if record.get("digest") == digest(arrays):
                return Restored(step, arrays, record["record"])
            reason = "the arrays do not match their digest"
        if distributed.leads():
            print(
                f"checkpoint {directory / str(step)} is damaged ({reason or 'another process cannot read it'}); "
                "using the one before",
                file=sys.stderr,
            )
            aside = directory / f"damaged-{step}"
            shutil.rmtree(aside, ignore_errors=True)
            (directory / str(step)).rename(aside)  # out of the way of the next save, kept for whoever looks
        distributed.barrier("damaged")
    return None


def _read(unit: Path, target: Any) -> tuple[Any, dict[str, Any]]:
    """Arrays and record of one unit, as this process alone sees it."""
    import orbax.checkpoint as ocp

    mine = jax.process_index()
    options = ocp.options.MultiprocessingOptions(primary_host=mine, active_processes={mine})
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=options),
        arrays=ocp.StandardCheckpointHandler(multiprocessing_options=options),
        record=ocp.JsonCheckpointHandler(multiprocessing_options=options),
    )
    with ocp.Checkpointer(handler, multiprocessing_options=options) as reader:
        items = ocp.args.Composite(arrays=ocp.args.StandardRestore(target), record=ocp.args.JsonRestore())
        out = reader.restore(unit.absolute(), args=items)
    return out["arrays"], out["record"]


def _steps(directory: str | Path) -> list[int]:
    """Steps that have a unit, as the first process sees them."""
    directory = Path(directory)
    found = [int(path.name) for path in directory.iterdir() if path.name.isdigit()] if directory.is_dir() else []
    if distributed.count() == 1:
        return found
    length = int(distributed.exchange(np.asarray([len(found)]))[0, 0])
    return distributed.exchange(np.resize(np.asarray(found or [0]), length))[0].tolist() if length else []


def _metrics(directory: Path) -> dict[int, float | None]:
    """The metric of every unit, as the first process reads it; None for one without, or one that cannot be read."""
    steps = _steps(directory)
    values = np.full(len(steps), np.nan)
    for place, step in enumerate(steps):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            values[place] = json.loads((directory / str(step) / "record" / "metadata").read_text())["metric"]
    values = distributed.exchange(values)[0]
    return {step: None if math.isnan(value) else float(value) for step, value in zip(steps, values)}


@dataclasses.dataclass
class _Kept:
    """Orbax's preservation policy: the ``newest`` units and the ``best``, those with the lowest of the ``metrics``.

    Not Orbax's own BestN: with it a unit without a metric is a warning on every user's terminal.
    """

    newest: int
    best: int
    metrics: dict[int, float | None]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = sorted(info.step for info in checkpoints)
        ranked = [(value, -step) for step in steps if (value := self.metrics.get(step)) is not None]
        kept = {*steps[-self.newest :], *(-step for _, step in sorted(ranked)[: self.best])}
        return [info.step in kept for info in checkpoints]


def _manager(directory: Path, kept: _Kept, asynchronous: bool) -> Any:
    import orbax.checkpoint as ocp

    class Manager(ocp.CheckpointManager):
        def reached_preemption(self, step: int) -> bool:
            # The loop asks at every step. An answer for an earlier step, asked for by the thread that writes, would
            # turn JAX's count of steps back, and with it the step at which all processes stop together.
            return False

    options = ocp.CheckpointManagerOptions(
        preservation_policy=kept,
        enable_async_checkpointing=asynchronous,
        cleanup_tmp_directories=True,
        create=False,  # Orbax refuses to where processes are named
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            # Named, the processes meet through their coordinator; else through the devices, amid the training step.
            active_processes=distributed.members(),
        ),
    )
    return Manager(directory.absolute(), options=options)


def _find_room(directory: Path, arrays: Any) -> None:
    """Refuses a unit that the disk has no room for, before Orbax's threads meet that and print their tracebacks.

    Room: the bytes of the arrays, which compression may make fewer, 1 KiB an array and 96 KiB for what Orbax writes
    about them (measured: 72 KiB + .9 KiB an array). A quota, or another writer meanwhile, is met by the threads still.
    """
    sizes = [leaf.nbytes for leaf in jax.tree.leaves(arrays)]
    need, free = sum(sizes) + 1024 * len(sizes) + 96 * 1024, shutil.disk_usage(directory).free
    if not distributed.agree(need <= free):
        raise ResourceError(
            "the disk is full",
            where=str(directory),
            why=f"the next checkpoint takes up to {need / 2**20:.1f} MiB and {free / 2**20:.1f} MiB are free",
            do=_GO_ON,
        )


def _explain(error: Exception, directory: Path) -> None:
    """Raises a full disk as a ResourceError; returns where the error is another."""
    if isinstance(error, ResourceError) or not any(text in str(error) for text in _FULL):
        return
    raise ResourceError(
        "the disk is full",
        where=str(directory),
        why=next(line for line in str(error).splitlines() if any(text in line for text in _FULL)),
        do=_GO_ON,
    ) from error


def _struct(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=getattr(leaf, "sharding", None))
