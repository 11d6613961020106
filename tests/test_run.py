"""The run directory: atomic files, fingerprints, refusal, locks, step logs, a full disk."""

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaletot_jax import run as run_module
from scaletot_jax.errors import DataError, OutdatedStageError, ResourceError, StaleRunError
from scaletot_jax.run import Run, StepLog, flatten, read_arrays, read_json, read_steps, write_arrays, write_json

CONFIG = {"seed": 0, "data": {"name": "synthetic", "limit": 5}, "sft": {"epochs": 1}}


def finish_prepare(run):
    stage = run.stage("prepare", sections=("seed", "data"))
    write_json(stage.path("rows.json"), [1, 2])
    stage.finish(["rows.json"], {"rows": 2})
    return stage


def test_a_finished_stage_is_found_again_and_its_summary_kept(tmp_path):
    with Run(tmp_path, CONFIG) as run:
        assert not run.stage("prepare", sections=("seed", "data")).done
        finish_prepare(run)
    with Run(tmp_path, CONFIG) as run:
        stage = run.stage("prepare", sections=("seed", "data"))
        assert stage.done
        assert stage.summary() == {"rows": 2}


def test_a_changed_configuration_is_refused_with_the_difference(tmp_path):
    with Run(tmp_path, CONFIG) as run:
        finish_prepare(run)
    changed = {**CONFIG, "data": {"name": "synthetic", "limit": 6}}
    with Run(tmp_path, changed) as run, pytest.raises(StaleRunError, match=r"config\.data\.limit: 5 -> 6"):
        run.stage("prepare", sections=("seed", "data"))
    with Run(tmp_path, changed, on_change="redo") as run:
        assert not run.stage("prepare", sections=("seed", "data")).done
        assert not (tmp_path / "prepare" / "rows.json").exists()


def test_a_section_a_stage_does_not_read_may_change(tmp_path):
    with Run(tmp_path, CONFIG) as run:
        finish_prepare(run)
    with Run(tmp_path, {**CONFIG, "sft": {"epochs": 9}}) as run:
        assert run.stage("prepare", sections=("seed", "data")).done


def test_a_stage_depends_on_the_fingerprint_of_those_before(tmp_path):
    with Run(tmp_path, CONFIG) as run:
        first = finish_prepare(run)
        stage = run.stage("sft", sections=("sft",), needs=("prepare",))
        assert stage.identity["needs"] == {"prepare": first.result}
        with pytest.raises(StaleRunError, match="'teach' is not finished"):
            run.stage("osipo", sections=("sft",), needs=("teach",))


def finish_sft(run, content):
    stage = run.stage("sft", sections=("sft",), needs=("prepare",))
    write_json(stage.path("adapter.json"), content)
    stage.finish(["adapter.json"])


def test_a_single_verb_sees_that_a_stage_before_it_was_done_with_another_configuration(tmp_path):
    with Run(tmp_path, CONFIG) as run:
        finish_prepare(run)
        finish_sft(run, 1)
    with (
        Run(tmp_path, {**CONFIG, "seed": 1}) as run,
        pytest.raises(StaleRunError, match=r"'prepare' was done .*another"),
    ):
        run.stage("osipo", sections=("sft",), needs=("sft",))


def test_a_stage_built_on_an_older_result_is_not_trusted(tmp_path):
    with Run(tmp_path, CONFIG) as run:
        finish_prepare(run)
        finish_sft(run, 1)
    with Run(tmp_path, CONFIG) as run:
        run.discard("prepare")
        stage = run.stage("prepare", sections=("seed", "data"))
        write_json(stage.path("rows.json"), ["other bytes, same configuration"])
        stage.finish(["rows.json"])
        with pytest.raises(OutdatedStageError, match="'sft' was built on another state of 'prepare'"):
            run.stage("osipo", sections=("sft",), needs=("sft",))
        with pytest.raises(StaleRunError, match=r"needs\.prepare"):
            run.stage("sft", sections=("sft",), needs=("prepare",))


def test_a_changed_artifact_of_an_earlier_stage_stops_a_single_verb(tmp_path):
    with Run(tmp_path, CONFIG) as run:
        finish_prepare(run)
    (tmp_path / "prepare" / "rows.json").write_text("[1, 3]")
    with Run(tmp_path, CONFIG) as run, pytest.raises(StaleRunError, match=r"rows\.json"):
        run.stage("sft", sections=("sft",), needs=("prepare",))


def test_a_stage_is_discarded_in_one_step(tmp_path, monkeypatch):
    """Killed while deleting: nothing is left under the stage's name, and the next process sweeps up."""
    with Run(tmp_path, CONFIG) as run:
        finish_prepare(run)
        monkeypatch.setattr(run_module.shutil, "rmtree", lambda *_, **__: None)  # as if killed here
        run.discard("prepare")
    assert not (tmp_path / "prepare").exists() and list(tmp_path.glob(".prepare.*.old"))
    monkeypatch.undo()
    (tmp_path / "score").mkdir()
    (tmp_path / "score" / ".part-00000.parquet.77.tmp").write_text("half")
    with Run(tmp_path, CONFIG):
        assert not list(tmp_path.glob(".*.old")) and not list(tmp_path.rglob(".*.tmp"))


def test_partial_work_of_another_configuration_is_refused(tmp_path):
    with Run(tmp_path, CONFIG) as run:
        stage = run.stage("prepare", sections=("seed",))
        write_json(stage.path("half.json"), 1)
    with Run(tmp_path, {**CONFIG, "seed": 1}) as run, pytest.raises(StaleRunError, match="seed: 0 -> 1"):
        run.stage("prepare", sections=("seed",))


@pytest.mark.parametrize(
    "damage", [lambda p: p.unlink(), lambda p: p.write_text(""), lambda p: p.write_text("[1, 3]\n")]
)
def test_a_changed_artifact_is_never_trusted(tmp_path, damage):
    with Run(tmp_path, CONFIG) as run:
        finish_prepare(run)
    damage(tmp_path / "prepare" / "rows.json")
    with Run(tmp_path, CONFIG) as run, pytest.raises(StaleRunError, match=r"rows\.json"):
        run.stage("prepare", sections=("seed", "data"))


def test_a_torn_stage_record_means_not_done(tmp_path):
    with Run(tmp_path, CONFIG) as run:
        finish_prepare(run)
    (tmp_path / "prepare" / "stage.json").write_text('{"stage": "prep')
    with Run(tmp_path, CONFIG) as run:
        assert not run.stage("prepare", sections=("seed", "data")).done


def test_two_processes_cannot_share_a_run_directory(tmp_path):
    script = "import sys; from scaletot_jax.run import Run; run = Run(sys.argv[1], {}); print('locked', flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(StaleRunError, match="another process"):
            Run(tmp_path, CONFIG)
    finally:
        holder.kill()
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()
    Run(tmp_path, CONFIG).close()  # the kernel dropped the lock of the killed process


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})
    with pytest.raises(RuntimeError, match="killed"), run_module.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("killed")
    assert read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["value.json"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_full_disk_is_named_and_nothing_old_is_lost(tmp_path):
    """Runs in a private mount namespace with a 64 KiB tmpfs as the run directory."""
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from scaletot_jax.errors import ResourceError
        from scaletot_jax.run import write_bytes
        folder = Path(sys.argv[1])
        write_bytes(folder / "kept", b"kept")
        try:
            write_bytes(folder / "big", bytes(1 << 20))
        except ResourceError as error:
            assert "disk is full" in str(error) and error.exit_code == 5
            assert (folder / "kept").read_bytes() == b"kept"
            assert sorted(p.name for p in folder.iterdir()) == ["kept"]
            print("named")
        """
    )
    command = f'mount -t tmpfs -o size=64k tmpfs "{tmp_path}" && "{sys.executable}" -c "$SCRIPT" "{tmp_path}"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", command],
        env={**os.environ, "SCRIPT": script},
        capture_output=True,
        text=True,
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no private tmpfs here: {done.stderr.strip()}")
    assert done.stdout == "named\n", done.stderr


def test_enospc_becomes_a_resource_error(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_module.os, "fsync", full)
    with pytest.raises(ResourceError, match="disk is full"):
        write_json(tmp_path / "value.json", 1)
    assert os.listdir(tmp_path) == []


def test_arrays_round_trip_with_equal_bytes(tmp_path):
    arrays = {"b": np.arange(6.0, dtype=np.float32).reshape(2, 3), "a": np.array([1, 2], np.int32)}
    write_arrays(tmp_path / "one", arrays)
    write_arrays(tmp_path / "two", dict(reversed(arrays.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    back = read_arrays(tmp_path / "one")
    assert all(np.array_equal(back[name], arrays[name]) for name in arrays)
    (tmp_path / "one").write_bytes((tmp_path / "one").read_bytes()[:-3])
    with pytest.raises(DataError, match="one"):
        read_arrays(tmp_path / "one")


@given(st.integers(0, 8), st.integers(0, 8), st.integers(0, 30))
def test_a_step_log_continues_without_doubled_or_torn_lines(tmp_path_factory, steps, checkpoint, torn):
    checkpoint = min(checkpoint, steps)
    path = tmp_path_factory.mktemp("log") / "steps.jsonl"
    log = StepLog(path, keep_through=-1)
    for step in range(1, steps + 1):
        log.append(step, loss=1 / step, bad=float("inf"))
    log.close()
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 99, "lo'[: torn % 16])
    log = StepLog(path, keep_through=checkpoint)
    for step in range(checkpoint + 1, steps + 1):
        log.append(step, loss=1 / step, bad=float("inf"))
    log.close()
    assert path.read_bytes() == whole
    assert [row["step"] for row in read_steps(path)] == list(range(1, steps + 1))
    assert all(row["bad"] is None for row in read_steps(path))


def test_flatten_names_every_leaf():
    assert flatten({"a": {"b": 1, "c": {"d": (2, 3)}}, "e": None}) == {"a.b": 1, "a.c.d": [2, 3], "e": None}


def test_json_is_sorted_and_plain(tmp_path):
    write_json(tmp_path / "x.json", {"b": np.float32(0.5), "a": np.arange(2)})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [0, 1], "b": 0.5}
