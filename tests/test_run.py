"""The run directory: fingerprints, refusal, locks, discarding."""

import errno
import fcntl
import os
import subprocess
import sys

import pytest

from scaletot_jax import run as run_module
from scaletot_jax.errors import ConfigError, DataError, OutdatedStageError, ResourceError, StaleRunError
from scaletot_jax.files import write_json
from scaletot_jax.run import Run, flatten

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


@pytest.mark.parametrize(
    "old, new",
    [
        ('"rows": 2', '"rows": 3'),
        ('"artifacts"', '"artefacts"'),
        (
            "{",
            "[[",
        ),
    ],
)
def test_a_changed_record_means_not_done_and_is_no_evidence(tmp_path, old, new):
    with Run(tmp_path, CONFIG) as run:
        finish_prepare(run)
    record = tmp_path / "prepare" / "stage.json"
    record.write_text(record.read_text().replace(old, new, 1))
    with Run(tmp_path, CONFIG) as run:
        with pytest.raises(DataError, match="scaletot prepare"):
            run.stage("sft", sections=("sft",), needs=("prepare",))
        assert not run.stage("prepare", sections=("seed", "data")).done
        finish_prepare(run)
        assert run.stage("sft", sections=("sft",), needs=("prepare",)).identity["needs"]


def test_the_digest_of_a_record_survives_json(tmp_path):
    """Keys that are numbers sort in another order once they are text."""
    with Run(tmp_path, CONFIG) as run:
        run.stage("prepare", sections=("seed",)).finish([], {"of": {10: 0.1, 9: (1, 2)}, "share": 1 / 3})
    with Run(tmp_path, CONFIG) as run:
        assert run.stage("prepare", sections=("seed",)).summary() == {"of": {"10": 0.1, "9": [1, 2]}, "share": 1 / 3}


@pytest.mark.parametrize("content", ["", "[]", '{"config": '])
def test_work_of_nobody_knows_what_is_refused_and_finished_work_is_known_by_its_record(tmp_path, content):
    with Run(tmp_path, CONFIG) as run:
        finish_prepare(run)
        run.stage("sft", sections=("sft",), needs=("prepare",))
    for name in ("prepare", "sft"):
        (tmp_path / name / "owner.json").write_text(content)
    with Run(tmp_path, CONFIG) as run:
        assert run.stage("prepare", sections=("seed", "data")).done
        with pytest.raises(StaleRunError, match="nobody knows"):
            run.stage("sft", sections=("sft",), needs=("prepare",))
    with Run(tmp_path, CONFIG, on_change="redo") as run:
        assert not run.stage("sft", sections=("sft",), needs=("prepare",)).done


def test_unfinished_work_of_another_version_is_refused_and_finished_work_is_not(tmp_path, monkeypatch):
    with Run(tmp_path, CONFIG) as run:
        finish_prepare(run)
        half = run.stage("sft", sections=("sft",), needs=("prepare",))
        write_json(half.path("half.json"), 1)
    monkeypatch.setattr(run_module, "__version__", "99.0")
    with Run(tmp_path, CONFIG) as run:
        assert run.stage("prepare", sections=("seed", "data")).done
        with pytest.raises(StaleRunError, match=r"another version[\s\S]*this is 99\.0"):
            run.stage("sft", sections=("sft",), needs=("prepare",))
    with Run(tmp_path, CONFIG, on_change="redo") as run:
        assert not run.stage("sft", sections=("sft",), needs=("prepare",)).done
        assert not half.path("half.json").exists()
    monkeypatch.setattr(run_module, "FORMAT", run_module.FORMAT + 1)  # what it means has changed
    with Run(tmp_path, CONFIG) as run, pytest.raises(StaleRunError, match="format: 1 -> 2"):
        run.stage("prepare", sections=("seed", "data"))


def test_a_run_directory_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match="is a file"):
            Run(place, CONFIG)


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


def refuse_locks(monkeypatch, number, times=None):
    """flock fails with this errno, ``times`` times or always; returns the list of its calls."""
    tries, lock = [], fcntl.flock

    def flock(handle, operation):
        tries.append(operation)
        if times is None or len(tries) <= times:
            raise OSError(number, os.strerror(number))
        lock(handle, operation)

    monkeypatch.setattr(run_module.fcntl, "flock", flock)
    return tries


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_disk_without_locks_is_not_called_in_use(tmp_path, monkeypatch, number, processes):
    tries = refuse_locks(monkeypatch, number)
    monkeypatch.setattr(run_module, "count", lambda: processes)
    with pytest.raises(ResourceError, match=r"(?s)no locks.*-o flock"):
        Run(tmp_path, CONFIG)
    assert len(tries) == 1  # to wait would not help


@pytest.mark.parametrize("number", [errno.EWOULDBLOCK, errno.EACCES])
def test_a_single_process_does_not_wait_for_the_lock(tmp_path, monkeypatch, number, capsys):
    tries = refuse_locks(monkeypatch, number)
    with pytest.raises(StaleRunError, match="another process"):
        Run(tmp_path, CONFIG)
    assert len(tries) == 1 and capsys.readouterr().err == ""


def test_several_processes_wait_for_a_lost_one_to_drop_the_lock(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_module, "count", lambda: 2)
    monkeypatch.setattr(run_module, "_LOCK_LOOK_S", 0.001)
    tries = refuse_locks(monkeypatch, errno.EWOULDBLOCK, times=3)
    Run(tmp_path, CONFIG).close()
    assert len(tries) == 4 and capsys.readouterr().err.count("waiting up to 180 s") == 1


def test_several_processes_do_not_wait_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "count", lambda: 2)
    monkeypatch.setattr(run_module, "_LOCK_LOOK_S", 0.001)
    monkeypatch.setattr(run_module, "_LOCK_WAIT_S", 0.05)
    tries = refuse_locks(monkeypatch, errno.EWOULDBLOCK)
    with pytest.raises(StaleRunError, match="another process"):
        Run(tmp_path, CONFIG)
    assert len(tries) > 2


def test_flatten_names_every_leaf():
    assert flatten({"a": {"b": 1, "c": {"d": (2, 3)}}, "e": None}) == {"a.b": 1, "a.c.d": [2, 3], "e": None}
