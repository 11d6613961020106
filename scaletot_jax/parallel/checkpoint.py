"""Checkpoints: everything a training loop needs to go on, in one atomic unit.

Two functions wrap Orbax, so that a change of its interface touches one file. A unit holds the arrays (parameters,
optimiser state, random-key data) and a JSON record (data-iterator state, counters). Orbax writes into a temporary folder
and renames it, so a kill leaves the earlier units whole. The record carries a digest of the arrays: a damaged newest
unit (zero-byte file, torn page) is noticed, named on stderr, set aside, and the one before is used.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from scaletot_jax.errors import ResourceError

_FULL = ("No space left", "Disk quota", "RESOURCE_EXHAUSTED")


class Restored(NamedTuple):
    """A unit read back: the step it was saved at, the arrays in the structure asked for, and the JSON record."""

    step: int
    arrays: Any
    record: dict[str, Any]


_NOT_ITS_FAULT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO)  # the unit may be whole: never set it aside


def save(directory: str | Path, step: int, arrays: Any, record: dict[str, Any], *, keep: int = 2) -> None:
    """Saves one unit and removes all but the newest ``keep``.

    Args:
      directory: holds one folder a step.
      step: not negative, above every step saved before.
      arrays: a pytree of arrays; random keys as ``jax.random.key_data``.
      record: JSON-able state, e.g. ``iterator.get_state()`` of grain.
      keep: units kept.

    Raises:
      ResourceError: the disk is full; earlier units are untouched.
    """
    import orbax.checkpoint as ocp

    full = {"record": record, "digest": _digest(arrays)}
    items = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), record=ocp.args.JsonSave(full))
    try:
        with _manager(directory, keep) as manager:
            manager.save(step, args=items, force=True)
            manager.wait_until_finished()
    except Exception as error:  # Orbax raises OSError, ValueError or XlaRuntimeError for the same full disk
        if any(text in str(error) for text in _FULL):
            raise ResourceError(
                "the disk is full",
                where=str(directory),
                why=str(error).splitlines()[0],
                do="free some space and run the same command again",
            ) from error
        raise


def restore(directory: str | Path, like: Any) -> Restored | None:
    """The newest whole unit, or None where there is none.

    Args:
      directory: as given to :func:`save`.
      like: a pytree with the shapes and dtypes expected; leaves with a ``sharding`` are placed accordingly, so a unit
        can be read on another number of devices.
    """
    import orbax.checkpoint as ocp

    directory = Path(directory)
    if not directory.is_dir():
        return None
    target = jax.tree.map(_struct, like)
    for step in sorted((int(path.name) for path in directory.iterdir() if path.name.isdigit()), reverse=True):
        try:
            with _manager(directory, None) as manager:
                items = ocp.args.Composite(arrays=ocp.args.StandardRestore(target), record=ocp.args.JsonRestore())
                out = manager.restore(step, args=items)
            if out["record"]["digest"] != _digest(out["arrays"]):
                raise ValueError("the arrays do not match their digest")
        except Exception as error:  # a damaged unit fails in as many ways as there are bytes
            if isinstance(error, MemoryError) or getattr(error, "errno", None) in _NOT_ITS_FAULT:
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            print(f"checkpoint {directory / str(step)} is damaged ({reason}); using the one before", file=sys.stderr)
            aside = directory / f"damaged-{step}"
            shutil.rmtree(aside, ignore_errors=True)
            (directory / str(step)).rename(aside)  # out of the way of the next save, kept for whoever looks
            continue
        return Restored(step, out["arrays"], out["record"]["record"])
    return None


def _manager(directory: str | Path, keep: int | None):
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        enable_async_checkpointing=False,
        cleanup_tmp_directories=keep is not None,
        create=keep is not None,
    )
    return ocp.CheckpointManager(Path(directory).absolute(), options=options)


def _struct(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=getattr(leaf, "sharding", None))


def _digest(tree: Any) -> str:
    """SHA-256 over paths, types, shapes and bytes of all leaves."""
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        value = np.ascontiguousarray(leaf)
        total.update(f"{jax.tree_util.keystr(path)}:{value.dtype}:{value.shape};".encode())
        total.update(value.reshape(-1).view(np.uint8).data if value.size else b"")
    return total.hexdigest()
