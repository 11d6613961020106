"""What the training stages keep in a checkpoint, how they go on from it, and when they leave early."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from scaletot_jax.errors import ConfigError, PreemptedError
from scaletot_jax.parallel import checkpoint, distributed
from scaletot_jax.parallel.preemption import Notice
from scaletot_jax.run import Stage
from scaletot_jax.sinks import Sinks
from scaletot_jax.step_log import StepLog


def check_finite(stage: Stage, step: int, values: Mapping[str, float]) -> None:
    """Refuses to go on from a step that left no numbers; to be called before its checkpoint is saved.

    Raises:
      ConfigError: a loss or a gradient, the reward model's among them, is not finite. The checkpoints before it stand.
    """
    rates = {"loss": "learning_rate", "grad_norm": "learning_rate"}
    rates |= {"reward_loss": "reward_learning_rate", "reward_grad_norm": "reward_learning_rate"}
    for name, rate in rates.items():
        if name in values and not math.isfinite(values[name]):
            raise ConfigError(
                f"stage '{stage.name}' diverged",
                where=f"{stage.path('steps.jsonl')}, step {step}",
                why=f"{name} is {values[name]}",
                do=f"lower {stage.name}.{rate}, or set student.compute_dtype=float32 where it is not, with --on-change=redo",
            )


class Keeper:
    """The checkpoints of one training loop; open it around the loop.

    Args:
      stage: whose folder holds them.
      settings: the configuration's section ``checkpoint``: ``keep``, ``keep_best``, ``asynchronous``.
    """

    def __init__(self, stage: Stage, settings: Mapping[str, Any]):
        self._stage = stage
        self._units = checkpoint.Checkpoints(stage.path("checkpoints"), **settings)
        self._notice = Notice()
        self._done = 0  # the step of the checkpoint that was restored
        self._stated: str | None = None  # its log's digest
        self._log: StepLog | None = None

    def resume(self, state: Any, iterators: dict[str, Any], extra: dict[str, Any] | None = None) -> tuple[Any, int]:
        """Restores state and data positions where a checkpoint lies; returns the state and the steps done.

        ``extra``, where given, is filled with the rest of the record.
        """
        found = checkpoint.restore(self._units.directory, state)
        if found is None:
            return state, 0
        for name, iterator in iterators.items():
            iterator.set_state(found.record["data"][name])
        if extra is not None:
            extra.update({key: value for key, value in found.record.items() if key not in ("data", "log")})
        self._done, self._stated = found.step, found.record.get("log")
        return found.arrays, found.step

    def log(self, sinks: Sinks | None = None) -> StepLog:
        """Opens the loop's ``steps.jsonl`` where the restored checkpoint left it; later checkpoints speak for its lines.

        Raises:
          DataError: the lines are not those of that checkpoint.
        """
        path = self._stage.path("steps.jsonl")
        self._log = StepLog(path, keep_through=self._done, stated=self._stated, sinks=sinks)
        return self._log

    def best(self, state: Any) -> tuple[Any, int] | None:
        """The kept state with the lowest metric, like ``state``, and its step; None where no unit has a metric.

        To be called after the loop: until then a unit may be under way.
        """
        found = checkpoint.restore_best(self._units.directory, state)
        return None if found is None else (found.arrays, found.step)

    def after(
        self,
        step: int,
        state: Any,
        iterators: dict[str, Any],
        *,
        due: bool,
        metric: float | None = None,
        record: Mapping[str, Any] | None = None,
    ) -> None:
        """To be called at the end of every step.

        Args:
          step: its number, from 1.
          state: the arrays; their buffers may be donated afterwards.
          iterators: whose positions are kept: the next batch of each is the next step's.
          due: whether a checkpoint is to be saved now.
          metric: by which the best checkpoints are kept, lower is better.
          record: whatever else the loop remembers, JSON-able.

        Raises:
          ResourceError: the disk is full, perhaps since an earlier checkpoint began to be written.
          PreemptedError: the machine is to be taken away; the state is saved.
        """
        self._units.check()
        preempted = self._notice.reached()
        if not (due or preempted):
            return
        positions = {name: iterator.get_state() for name, iterator in iterators.items()}
        kept = {"data": positions, **(record or {})} | ({"log": self._log.sync()} if self._log else {})
        self._units.save(step, state, kept, metric=metric)
        if preempted:
            self._units.wait()
            raise PreemptedError(
                f"stage '{self._stage.name}' was told to stop and did so after step {step}",
                where=str(self._stage.directory),
                why="SIGTERM, with which machines announce that they will be taken away",
                do="run the same command again; it continues after that step",
            )

    def __enter__(self) -> Keeper:
        self._notice.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._notice.__exit__()
        self._units.__exit__(kind, *rest)
        if kind is None:
            distributed.barrier("trained")  # what the first process has logged, the others may read now
