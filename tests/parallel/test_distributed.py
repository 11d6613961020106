"""Who belongs to a group of processes, and what they tell each other; two real ones over loopback."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parallel import processes

from scaletot_jax import cli, pipeline
from scaletot_jax.errors import ConfigError, PreemptedError
from scaletot_jax.parallel import distributed
from scaletot_jax.parallel.distributed import Group, find_group

OURS = {"SCALETOT_COORDINATOR": "10.0.0.1:1234", "SCALETOT_PROCESSES": "4", "SCALETOT_PROCESS": "2"}
AUTO = Group(None, None, None)


@pytest.mark.parametrize(
    ("environ", "flags", "group"),
    [
        ({}, {}, None),
        (OURS, {}, Group("10.0.0.1:1234", 4, 2)),
        (OURS, {"coordinator": "[::1]:99", "process": 0}, Group("[::1]:99", 4, 0)),  # flags go before the environment
        ({}, {"coordinator": "host:1", "processes": 2, "process": 1}, Group("host:1", 2, 1)),
        ({}, {"coordinator": "host:1", "processes": 1, "process": 0}, None),
        ({}, {"coordinator": "auto"}, AUTO),
        ({"SCALETOT_COORDINATOR": "auto"}, {}, AUTO),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "3"}, {}, AUTO),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, {}, None),
        ({"SLURM_NTASKS": "8", "SLURM_JOB_ID": "1"}, {}, None),  # a shell in an allocation, not a step
        ({"TPU_WORKER_HOSTNAMES": "t1k-0,t1k-1", "TPU_WORKER_ID": "1"}, {}, AUTO),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, {}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_SKIP_MDS_QUERY": "1"}, {}, None),  # an ahead-of-time compile
    ],
)
def test_the_environment_says_which_group(environ, flags, group):
    assert find_group(environ, **flags) == group


@pytest.mark.parametrize(
    ("environ", "flags", "message"),
    [
        ({"SCALETOT_PROCESS": "1"}, {}, "missing: coordinator, processes"),
        ({}, {"processes": 2}, "missing: coordinator, process"),
        ({}, {"process": 0}, "missing: coordinator, processes"),
        (OURS | {"SCALETOT_PROCESS": "4"}, {}, "not numbered 0 to N"),
        (OURS | {"SCALETOT_PROCESSES": "two"}, {}, "'two'"),
        (OURS | {"SCALETOT_COORDINATOR": "10.0.0.1"}, {}, "no HOST:PORT"),
        (OURS | {"SCALETOT_COORDINATOR": "10.0.0.1:0"}, {}, "no HOST:PORT"),
        (OURS | {"SCALETOT_COORDINATOR": ":1234"}, {}, "no HOST:PORT"),
    ],
)
def test_a_group_that_cannot_be_is_refused(environ, flags, message):
    with pytest.raises(ConfigError, match=message):
        find_group(environ, **flags)


@given(st.dictionaries(st.sampled_from(sorted(OURS)), st.text(max_size=12)))
def test_any_environment_gives_a_possible_group_or_a_named_error(environ):
    try:
        group = find_group(environ)
    except ConfigError:
        return
    assert group in (None, AUTO) or (group.processes > 1 and 0 <= group.process < group.processes)


def test_a_single_process_is_left_alone():
    assert (distributed.count(), distributed.index(), distributed.leads()) == (1, 0, True)
    assert distributed.members() is None
    distributed.barrier("nobody else")
    np.testing.assert_array_equal(distributed.exchange(np.arange(3)), [[0, 1, 2]])
    assert distributed.agree(True) and not distributed.agree(False)
    distributed.check_shared("/nowhere")
    distributed.check_same("x", "anything")


PAIR = """
import sys, time
from pathlib import Path
import numpy as np
from scaletot_jax import cli
from scaletot_jax.errors import ConfigError, ResourceError
from scaletot_jax.files import write_json
from scaletot_jax.parallel import checkpoint, distributed
from scaletot_jax.parallel.digest import digest

folder = Path(sys.argv[1])

def refused(check, *arguments):
    try:
        check(*arguments)
    except ConfigError as error:
        return error.what
    return ""

def work(_):
    assert distributed.initialize()
    import jax
    from jax.sharding import NamedSharding, PartitionSpec
    from scaletot_jax.parallel.mesh import make_mesh
    me = distributed.index()
    assert distributed.count() == 2 and distributed.leads() == (me == 0) and distributed.members() == {0, 1}
    np.testing.assert_array_equal(distributed.exchange(np.asarray([me, 7.5])), [[0, 7.5], [1, 7.5]])
    assert distributed.agree(True) and not distributed.agree(me == 0)
    distributed.check_shared(folder)
    assert "do not share" in refused(distributed.check_shared, folder / str(me))
    distributed.check_same("one text", "text")
    assert "different configurations" in refused(distributed.check_same, str(me), "text")
    write_json(folder / f"by{me}.json", me)  # the first writes, the other does not

    split = NamedSharding(make_mesh(fsdp=2), PartitionSpec("fsdp"))
    host = np.arange(12, dtype=np.float32).reshape(4, 3)
    array = distributed.place(host, split)
    assert not array.is_fully_addressable and array.addressable_shards[0].data.shape == (2, 3)
    np.testing.assert_array_equal(distributed.gather(array), host)
    distributed._PART = 20  # a row at a time
    np.testing.assert_array_equal(distributed.gather(array), host)
    whole = digest({"x": array})
    with distributed.alone():
        assert distributed.count() == 1 and distributed.leads() and distributed.members() == {me}
        assert digest({"x": host}) == whole  # it does not depend on who holds what
        if me == 0:  # a stage that is not divided keeps checkpoints, too
            own = {"x": jax.numpy.asarray(host)}  # on its own device, as a stage's state is
            checkpoint.save(folder / "alone", 1, own, {})
            found = checkpoint.restore(folder / "alone", own)
            assert found.step == 1 and found.arrays["x"].devices() == own["x"].devices()
    distributed.barrier("saved")
    found = checkpoint.restore(folder / "alone", {"x": array})
    assert found.arrays["x"].sharding == split and digest(found.arrays) == whole
    for step in (2, 3):
        checkpoint.save(folder / "alone", step, found.arrays, {})
    if me == 0:
        data = max((folder / "alone" / "3").rglob("d/*"), key=lambda path: path.stat().st_size)
        data.write_bytes(b"")
    distributed.barrier("damaged")
    assert checkpoint.restore(folder / "alone", {"x": array}).step == 2  # both set the damaged one aside, once
    print("whole", flush=True)
    distributed.barrier("whole")
    if me == 0:
        time.sleep(1)  # the other waits by now
        raise ResourceError("the disk is full")
    distributed.barrier("never")

cli._execute = work
sys.exit(cli.main([]))
"""


def test_two_processes_talk_and_the_end_of_one_ends_the_other(tmp_path):
    done = processes.run(PAIR, str(tmp_path), processes=2, environ=processes.environment())
    assert ["whole" in out for _, out, _ in done] == [True, True], done
    assert done[0][0] == 5 and "the disk is full" in done[0][2]
    # The other learns of it where it waits, or JAX's own watch ends it before that.
    assert done[1][0] < 0 or (done[1][0] == 75 and "another process of this run has ended" in done[1][2])
    assert [(tmp_path / f"by{i}.json").exists() for i in (0, 1)] == [True, False]
    assert "3 is damaged" in done[0][2] and "is damaged" not in done[1][2]


LOOP = """
import sys, time
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from scaletot_jax import cli
from scaletot_jax.parallel import distributed
from scaletot_jax.parallel.mesh import make_mesh

def work(arguments):
    distributed.initialize()
    split = NamedSharding(make_mesh(fsdp=2), PartitionSpec("fsdp"))
    array = distributed.place(np.ones((4, 3), np.float32), split)
    step = jax.jit(lambda x: x / x.sum(), out_shardings=split)
    for number in range(100_000):
        array = step(array)
        distributed.gather(array)
        if number == 3:
            print("stepping", flush=True)

cli._execute = work
sys.exit(cli.main([]))
"""


def test_a_process_that_is_killed_amid_a_step_ends_the_other_with_75():
    """The other meets the loss in a product of the devices, where no call of this package stands in between."""
    group = processes.start(LOOP, processes=2, environ=processes.environment())
    assert any("stepping" in line for line in group[1].stdout)
    group[1].kill()
    done = processes.finish(group)
    assert [code for code, _, _ in done] == [75, -9], done
    assert "another process of this run has ended" in done[0][2]


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        (ValueError("UNKNOWN: Gloo all-reduce failed: [pair.cc:538] Read error: Connection reset by peer"), True),
        (RuntimeError("UNAVAILABLE: failed to connect to all addresses"), True),
        (
            RuntimeError(
                "INTERNAL: NCCL operation ncclAllReduce failed: remote process exited or there was a network error"
            ),
            True,
        ),
        (RuntimeError("INTERNAL: unsupported layout"), False),
        (ValueError("shapes do not match"), False),
        (KeyError("UNAVAILABLE"), False),
    ],
)
def test_what_says_that_another_process_is_gone(error, is_lost, monkeypatch):
    assert distributed.lost(error) is None  # alone there is nobody to lose
    monkeypatch.setattr(distributed, "count", lambda: 2)
    monkeypatch.setattr(distributed, "index", lambda: 0)
    assert (distributed.lost(error) is not None) == is_lost
    outer = SystemError("from a thread")
    outer.__cause__ = error
    assert (distributed.lost(outer) is not None) == is_lost
    error.__cause__ = error  # raise error from error
    assert (distributed.lost(error) is not None) == is_lost


@pytest.fixture
def of_two(monkeypatch):
    """This process as the first of two, of which the other is never met."""
    monkeypatch.setattr(distributed, "_joined", lambda: True)
    monkeypatch.setattr(distributed, "initialize", lambda *_: True)
    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr("jax.process_index", lambda: 0)


def test_a_stage_that_one_process_does_is_not_left_by_all(of_two, monkeypatch):
    """Told to stop amid it, that process must not wait for the others, who wait for it."""

    def stopped(run):
        assert distributed.count() == 1
        raise PreemptedError("told to stop")

    monkeypatch.setattr("scaletot_jax.encoder.distill.distill", stopped)
    with pytest.raises(PreemptedError) as caught:
        pipeline.run_stage(None, "distill")
    assert not caught.value.together and PreemptedError("of a divided stage").together
    left = []
    monkeypatch.setattr(os, "_exit", left.append)
    monkeypatch.setattr(cli, "_guarded", lambda _: pipeline.run_stage(None, "distill"))
    assert cli.main(["distill"]) == 75 and left == [75]


@pytest.mark.parametrize(("verb", "refused"), [("run", True), ("osipo", True), ("teach", False)])
def test_a_mesh_that_does_not_fit_is_refused_before_anything_is_done(of_two, monkeypatch, capsys, verb, refused):
    begun, left = [], []
    monkeypatch.setattr(pipeline, "run_all", lambda *_, **__: begun.append(verb))
    monkeypatch.setattr(pipeline, "verdict", lambda _: "")
    monkeypatch.setattr(os, "_exit", left.append)
    code = cli.main([verb, "--config", "quickstart", "--config.mesh.fsdp=64"])
    assert (code == 2 and not begun and left == [2]) if refused else (code == 0 and begun)
    assert ("the mesh does not fit" in capsys.readouterr().err) == refused
