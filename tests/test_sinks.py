"""Trackers beside the step log: TensorBoard's files, the others by stand-ins, and faults that must cost nothing."""

import struct
import sys
from types import ModuleType, SimpleNamespace

import pytest

from scaletot_jax.config import default_config, override, validate
from scaletot_jax.errors import ConfigError
from scaletot_jax.sinks import Sinks, TensorBoard, open_sinks
from scaletot_jax.step_log import StepLog, read_steps


def events(folder):
    """Steps and values of all event files, by the TFRecord format: length, its checksum, content, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    for file in sorted(folder.glob("*.out.tfevents.*")):
        data, place = file.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            yield Event.FromString(data[place + 12 : place + 12 + length])
            place += 16 + length


def config(*names):
    made = default_config()
    override(made, "metrics.sinks", str(list(names)))
    validate(made)
    return made.to_dict()


def test_tensorboard_gets_every_finite_number_and_voids_what_a_kill_took_back(tmp_path):
    for first, steps in ((1, (1, 2, 3)), (3, (3, 4))):  # killed after step 3, continued from the checkpoint of step 2
        sinks = open_sinks(tmp_path, "sft", config())
        log = StepLog(tmp_path / "steps.jsonl", keep_through=first - 1, sinks=sinks)
        timing = StepLog(tmp_path / "timing.jsonl", keep_through=first - 1, sinks=sinks, prefix="timing/")
        for step in steps:
            log.append(step, loss=step / 8, bad=float("nan"))
            timing.append(step, seconds=2.0)
        log.close()
        sinks.close()
    shown, started = {}, []
    for event in events(tmp_path / "tensorboard" / "sft"):
        if event.HasField("session_log"):
            started.append(event.step)
            shown = {key: value for key, value in shown.items() if key[0] < event.step}
        for value in event.summary.value:
            shown[event.step, value.tag] = value.simple_value
    assert started == [1, 3]
    assert shown == {
        (s, name): value for s in (1, 2, 3, 4) for name, value in (("loss", s / 8), ("timing/seconds", 2.0))
    }
    assert [row["loss"] for row in read_steps(tmp_path / "steps.jsonl")] == [0.125, 0.25, 0.375, 0.5]


class Recorder(ModuleType):
    """Stands for a tracker's package; ``calls`` is what it was told."""

    def __init__(self, name):
        super().__init__(name)
        self.calls = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **options: self._take(name, args, options)

    def _take(self, name, args, options):
        self.calls.append((name, args, options))
        return SimpleNamespace(
            info=SimpleNamespace(run_id="r"), experiment_id="e", log=self.log, finish=self.finish
        )  # fmt: skip


@pytest.fixture
def made(monkeypatch):
    """Stand-ins for the optional trackers."""
    made = {name: Recorder(name) for name in ("wandb", "mlflow", "trackio")}
    tracking = ModuleType("mlflow.tracking")
    tracking.MlflowClient = lambda: made["mlflow"]
    for name, module in [*made.items(), ("mlflow.tracking", tracking)]:
        monkeypatch.setitem(sys.modules, name, module)
    return made


def test_the_optional_trackers_are_told_once_a_step(tmp_path, made):
    sinks = open_sinks(tmp_path / "shop", "osipo", config(*made))
    for step in (1, 2):
        sinks.write(step, {"kl": 0.5 * step, "auc": None})
    sinks.close()
    for name in ("wandb", "trackio"):
        told = made[name].calls
        assert [call[0] for call in told] == ["init", "log", "log", "finish"]
        assert told[0][2]["config"]["osipo.updates"] == 100 and "shop" in told[0][2]["name"]
        assert told[2][1:] == (({"kl": 1.0},), {"step": 2})
    told = [call for call in made["mlflow"].calls if call[0] == "log_metric"]
    assert told == [("log_metric", ("r", "kl", 0.5), {"step": 1}), ("log_metric", ("r", "kl", 1.0), {"step": 2})]
    assert made["mlflow"].calls[-1] == ("set_terminated", ("r", "FINISHED"), {})


def test_an_error_closes_the_trackers_as_failed(tmp_path, made):
    with (
        pytest.raises(KeyboardInterrupt),
        open_sinks(tmp_path / "shop", "sft", config(*made)) as sinks,
    ):
        sinks.write(1, {"loss": 1.0})
        raise KeyboardInterrupt
    assert made["wandb"].calls[-1] == ("finish", (), {"exit_code": 1})
    assert made["mlflow"].calls[-1] == ("set_terminated", ("r", "FAILED"), {})
    assert made["trackio"].calls[-1][0] == "finish"
    assert sum(len(event.summary.value) for event in events(tmp_path / "shop" / "tensorboard" / "sft")) == 1


@pytest.mark.parametrize("fault", ["opening", "writing", "closing"])
def test_a_fault_is_said_once_and_costs_the_run_nothing(tmp_path, capsys, fault):
    written = []

    class Bad:
        def write(self, step, values):
            if fault == "writing":
                raise SystemExit("no\nserver")
            written.append(step)
            values.clear()  # not the caller's

        def close(self, *, failed):
            raise OSError("no server")

    def bad(first):
        if fault == "opening":
            raise ImportError("no server")
        return Bad()

    sinks = Sinks({"bad": bad, "good": lambda first: TensorBoard(tmp_path, first)})
    log = StepLog(tmp_path / "steps.jsonl", keep_through=0, sinks=sinks)
    for step in (1, 2, 3):
        log.append(step, loss=1.0)
    sinks.close()
    said = capsys.readouterr().err
    assert said.count("'bad' is left out") == 1 and "no server" in said and "good" not in said
    assert written == ([1, 2, 3] if fault == "closing" else [])
    assert sum(len(event.summary.value) for event in events(tmp_path)) == 3
    assert [row["loss"] for row in read_steps(tmp_path / "steps.jsonl")] == [1.0] * 3


def test_a_package_that_is_not_installed_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "trackio", None)
    sinks = open_sinks(tmp_path, "sft", config("trackio"))
    sinks.write(1, {"loss": 1.0})
    sinks.write(2, {"loss": 1.0})
    assert capsys.readouterr().err.count("'trackio' is left out from now on: ModuleNotFoundError") == 1


def test_an_unknown_sink_is_refused():
    with pytest.raises(ConfigError, match=r"metrics\.sinks"):
        config("comet")
