"""Where the numbers of a training step go beside ``steps.jsonl``: TensorBoard always, other trackers where asked for.

    metrics.sinks = ("wandb", "mlflow", "trackio")        any of them, none by default

TensorBoard's event files lie in ``RUN/tensorboard/STAGE/`` (``tensorboard --logdir RUN/tensorboard``). A sink that fails, or
whose package is not installed, is named once on stderr and left out from then on: it changes no number and ends no run. Of
several processes the first alone reports. A tracker's own settings (server, key, offline mode) come from its environment.
Sinks are a context: when an error or a notice to stop ends the stage they are closed all the same, as failed where a tracker
knows the difference.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from scaletot_jax.parallel.distributed import leads

OPTIONAL = ("wandb", "mlflow", "trackio")


class Sink(Protocol):
    """Takes the numbers of one step after the other; may raise anything."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self, *, failed: bool) -> None: ...


class Sinks:
    """All sinks of a stage, opened by the first step that is written.

    Args:
      makers: name → function of the first step that opens the sink.
    """

    def __init__(self, makers: Mapping[str, Callable[[int], Sink]]):
        self._makers = dict(makers)
        self._open: dict[str, Sink] = {}

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        """Hands on the numbers that are finite."""
        known = {name: value for name, value in values.items() if value is not None}
        for name in list(self._makers):
            self._try(name, lambda name=name: self._sink(name, step).write(step, dict(known)))  # type: ignore[misc]

    def close(self, *, failed: bool = False) -> None:
        """Closes all; ``failed``: the stage did not reach its end."""
        for name, sink in list(self._open.items()):
            self._try(name, lambda sink=sink: sink.close(failed=failed))  # type: ignore[misc]
        self._makers, self._open = {}, {}

    def __enter__(self) -> Sinks:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(failed=kind is not None)

    def _sink(self, name: str, step: int) -> Sink:
        if name not in self._open:
            self._open[name] = self._makers[name](step)
        return self._open[name]

    def _try(self, name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except (Exception, SystemExit) as error:  # a tracker's fault is no fault of the run
            self._makers.pop(name, None)
            self._open.pop(name, None)
            print(
                f"metrics: '{name}' is left out from now on: {type(error).__name__}: {' '.join(str(error).split())[:300]}",
                file=sys.stderr,
            )


def open_sinks(workdir: Path, stage: str, config: Mapping[str, Any]) -> Sinks:
    """The sinks of a stage.

    Args:
      workdir: of the run.
      stage: its name.
      config: of the run; ``metrics.sinks`` names them, the whole of it is what trackers show.
    """
    if not leads():
        return Sinks({})
    makers: dict[str, Callable[[int], Sink]] = {
        "tensorboard": lambda first: TensorBoard(workdir / "tensorboard" / stage, first)
    }
    kinds = {"wandb": WandB, "mlflow": MLflow, "trackio": Trackio}
    for name in config.get("metrics", {}).get("sinks", ()):  # a run of an earlier version has no such section
        makers[name] = lambda first, kind=kinds[name]: kind(workdir, stage, config)  # type: ignore[misc]
    return Sinks(makers)


class TensorBoard:
    """Event files without TensorFlow. Steps of an earlier process from ``first`` on are void, as its checkpoint was older."""

    def __init__(self, folder: Path, first: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}.{time.time_ns()}")
        self._send(Event(step=first, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        shown = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._send(Event(step=step, summary=Summary(value=shown)))

    def _send(self, event: Any) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)
        self._writer.flush()

    def close(self, *, failed: bool) -> None:
        self._writer.close()


class WandB:
    """Weights & Biases: one run a stage, of the project ``scaletot``."""

    def __init__(self, workdir: Path, stage: str, config: Mapping[str, Any]):
        import wandb

        self._run = wandb.init(
            project="scaletot",
            group=workdir.name,
            name=f"{workdir.name}/{stage}",
            dir=str(workdir),
            config=_flat(config),
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class MLflow:
    """MLflow: one run a stage, of the experiment ``scaletot``."""

    def __init__(self, workdir: Path, stage: str, config: Mapping[str, Any]):
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        found = self._client.get_experiment_by_name("scaletot")
        experiment = self._client.create_experiment("scaletot") if found is None else found.experiment_id
        self._run = self._client.create_run(experiment, run_name=f"{workdir.name}/{stage}").info.run_id
        for name, value in _flat(config).items():
            self._client.log_param(self._run, name, value)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._client.log_metric(self._run, name.replace(" ", "_"), value, step=step)

    def close(self, *, failed: bool) -> None:
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")


class Trackio:
    """Trackio: one run a stage, of the project ``scaletot``."""

    def __init__(self, workdir: Path, stage: str, config: Mapping[str, Any]):
        import trackio

        self._module = trackio
        trackio.init(project="scaletot", name=f"{workdir.name}-{stage}", config=_flat(config))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._module.log(dict(values), step=step)

    def close(self, *, failed: bool) -> None:
        self._module.finish()


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    from scaletot_jax.run import flatten

    return flatten(config)
