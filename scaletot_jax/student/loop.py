"""What the training stages keep in a checkpoint, and how they go on from it."""

from __future__ import annotations

from typing import Any

from scaletot_jax.parallel import checkpoint
from scaletot_jax.run import Stage


def keep(stage: Stage, step: int, state: Any, iterators: dict[str, Any], **record: Any) -> None:
    """One checkpoint: arrays, data positions, and whatever else the loop remembers, in one atomic unit."""
    positions = {name: iterator.get_state() for name, iterator in iterators.items()}
    checkpoint.save(stage.path("checkpoints"), step, state, {"data": positions, **record})


def resume(stage: Stage, state: Any, iterators: dict[str, Any], extra: dict[str, Any] | None = None) -> tuple[Any, int]:
    """Restores state and data positions where a checkpoint lies; returns the state and the steps done.

    ``extra``, where given, is filled with the rest of the record.
    """
    found = checkpoint.restore(stage.path("checkpoints"), state)
    if found is None:
        return state, 0
    for name, iterator in iterators.items():
        iterator.set_state(found.record["data"][name])
    if extra is not None:
        extra.update({key: value for key, value in found.record.items() if key != "data"})
    return found.arrays, found.step
