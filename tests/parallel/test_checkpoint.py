"""Checkpoints: what goes in comes out, the newest whole one wins, and only the last are kept."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from small_disk import needs_root, run_on_small_disk

from scaletot_jax.parallel import checkpoint
from scaletot_jax.parallel.mesh import make_mesh


def state(value):
    lora = {"q_a": jnp.full((2, 4, 3), value), "q_b": jnp.arange(6.0).reshape(1, 2, 3) + value}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return {
        "lora": lora,
        "optimiser": optimizer.init(lora),
        "step": jnp.int32(value),
        "key": jax.random.key_data(jax.random.key(5)),
    }


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_round_trip(tmp_path):
    assert checkpoint.restore(tmp_path / "none", state(0)) is None
    checkpoint.save(tmp_path, 3, state(3), {"data": {"next_index": 7}, "note": "ü"})
    found = checkpoint.restore(tmp_path, state(0))
    assert found.step == 3 and found.record == {"data": {"next_index": 7}, "note": "ü"}
    same(found.arrays, state(3))


def test_only_the_last_are_kept(tmp_path):
    for step in (1, 2, 3, 4):
        checkpoint.save(tmp_path, step, state(step), {"step": step}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.isdigit()) == ["3", "4"]
    assert checkpoint.restore(tmp_path, state(0)).step == 4


def files_of(path):
    return sorted(file for file in path.rglob("*") if file.is_file() and file.stat().st_size > 0)


def damage(kind, folder):
    files = files_of(folder)
    data = max(files, key=lambda file: file.stat().st_size)
    if kind == "zero-byte data":
        data.write_bytes(b"")
    elif kind == "flipped byte":
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 0xFF
        data.write_bytes(content)
    elif kind == "no record":
        for file in (folder / "record").iterdir():
            file.unlink()
    else:
        for file in files:
            file.write_bytes(b"")


@pytest.mark.parametrize("kind", ["zero-byte data", "flipped byte", "no record", "all files empty"])
def test_a_damaged_newest_is_set_aside(tmp_path, capfd, kind):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, state(step), {"step": step})
    damage(kind, tmp_path / "2")
    found = checkpoint.restore(tmp_path, state(0))
    assert found.step == 1 and found.record == {"step": 1}
    same(found.arrays, state(1))
    assert "2 is damaged" in capfd.readouterr().err
    checkpoint.save(tmp_path, 2, state(2), {"step": 2})  # the step can be saved again
    assert checkpoint.restore(tmp_path, state(0)).step == 2


def test_every_checkpoint_damaged_is_a_fresh_start(tmp_path):
    checkpoint.save(tmp_path, 1, state(1), {})
    damage("all files empty", tmp_path / "1")
    assert checkpoint.restore(tmp_path, state(0)) is None


def test_an_unfinished_save_is_ignored(tmp_path):
    checkpoint.save(tmp_path, 1, state(1), {})
    torn = tmp_path / "2.orbax-checkpoint-tmp"
    torn.mkdir()
    (torn / "x").write_bytes(b"torn")
    assert checkpoint.restore(tmp_path, state(0)).step == 1
    checkpoint.save(tmp_path, 2, state(2), {})
    assert checkpoint.restore(tmp_path, state(0)).step == 2


def test_restored_onto_another_number_of_devices(tmp_path):
    checkpoint.save(tmp_path, 1, state(1), {})
    sharding = NamedSharding(make_mesh(fsdp=2), PartitionSpec(None, "fsdp"))
    like = state(0)
    like["lora"]["q_a"] = jax.device_put(like["lora"]["q_a"], sharding)
    found = checkpoint.restore(tmp_path, like)
    assert found.arrays["lora"]["q_a"].sharding == sharding
    same(jax.device_get(found.arrays), jax.device_get(state(1)))


def names(folder):
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def test_the_best_are_kept_besides_the_newest(tmp_path):
    """Metrics 5, 2, 9, none, 2, 7, not a number: the lowest is 2, and of equals the later one."""
    values = [5.0, 2.0, 9.0, None, 2.0, 7.0, float("nan")]
    with checkpoint.Checkpoints(tmp_path, keep=1, keep_best=2) as units:
        for step, value in enumerate(values[:4], start=1):
            units.save(step, state(step), {}, metric=value)
    assert names(tmp_path) == [1, 2, 4]
    with checkpoint.Checkpoints(tmp_path, keep=1, keep_best=2) as units:  # another process knows the metrics, too
        for step, value in enumerate(values[4:], start=5):
            units.save(step, state(step), {}, metric=value)
    assert names(tmp_path) == [2, 5, 7]
    assert checkpoint.restore_best(tmp_path, state(0)).step == 5
    damage("zero-byte data", tmp_path / "5")
    assert checkpoint.restore_best(tmp_path, state(0)).step == 2
    assert checkpoint.restore(tmp_path, state(0)).step == 7
    assert checkpoint.restore_best(tmp_path / "none", state(0)) is None


def test_a_unit_in_flight_holds_the_values_of_its_step(tmp_path):
    """The loop goes on at once, and its donated buffers are overwritten while the unit is written."""
    bump = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    big = {"x": jnp.zeros((512, 512)), "n": jnp.int32(0)}
    with checkpoint.Checkpoints(tmp_path, keep=9) as units:
        for step in range(1, 4):
            big = bump(big)
            units.save(step, big, {"step": step})
            for _ in range(20):
                big = bump(big)
    for step in (3, 2, 1):
        found = checkpoint.restore(tmp_path, big)
        assert (found.step, found.record) == (step, {"step": step})
        np.testing.assert_array_equal(found.arrays["x"], 21.0 * (step - 1) + 1)
        (tmp_path / str(step)).rename(tmp_path / f"seen-{step}")


IN_FLIGHT = """
import os, sys, threading
import jax.numpy as jnp
import orbax.checkpoint._src.path.atomicity as atomicity
from scaletot_jax.parallel import checkpoint

units = checkpoint.Checkpoints(sys.argv[1])
units.save(1, {"x": jnp.arange(8.0)}, {"step": 1})
units.wait()
reached, never = threading.Event(), threading.Event()
def finalize(*_, **__):
    reached.set()
    never.wait()
for kind in vars(atomicity).values():
    if isinstance(kind, type) and "finalize" in vars(kind):
        kind.finalize = finalize
units.save(2, {"x": jnp.arange(8.0) + 1}, {"step": 2})
assert reached.wait(60), "the write never came to its commit"
print("in flight", flush=True)
os._exit(9)
"""


def test_a_kill_before_the_commit_costs_the_unit_in_flight_alone(tmp_path):
    """All bytes are written and the folder is not yet renamed: the worst moment."""
    environ = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", IN_FLIGHT, str(tmp_path)], env=environ, capture_output=True, text=True)
    assert done.returncode == 9 and "in flight" in done.stdout, done.stderr
    assert any("tmp" in path.name for path in tmp_path.iterdir())
    like = {"x": jnp.zeros(8)}
    found = checkpoint.restore(tmp_path, like)
    assert found.step == 1 and found.record == {"step": 1}
    with checkpoint.Checkpoints(tmp_path) as units:
        units.save(2, {"x": jnp.arange(8.0) + 1}, {"step": 2})
    assert checkpoint.restore(tmp_path, like).step == 2
    assert not [path for path in tmp_path.iterdir() if "tmp" in path.name]


FULL = """
import sys, time
import numpy as np
from scaletot_jax.errors import ResourceError
from scaletot_jax.parallel import checkpoint

folder, asynchronous, foreseen = sys.argv[1], ASYNCHRONOUS, FORESEEN
if not foreseen:  # as with a quota, or another writer
    checkpoint._find_room = lambda *_: None
rng = np.random.default_rng(0)
big = lambda: {"x": rng.integers(0, 2**32, 1_500_000, dtype=np.uint32)}  # 6 MB that no compression makes smaller
units = checkpoint.Checkpoints(folder + "/units", asynchronous=asynchronous)
first = big()
units.save(1, first, {})
units.wait()
said = None
try:
    units.save(2, big(), {})
    while said is None:  # the loop goes on, and looks at the end of every step
        time.sleep(0.01)
        units.check()
except ResourceError as error:
    said = str(error)
assert "the disk is full" in said and "same command" in said and ("MiB are free" in said) == foreseen, said
units.__exit__(ResourceError, None, None)
found = checkpoint.restore(folder + "/units", first)
assert found.step == 1 and (found.arrays["x"] == first["x"]).all()
print("said")
"""


@needs_root
@pytest.mark.parametrize("asynchronous,foreseen", [(True, False), (False, False), (True, True)])
def test_a_full_disk_is_said_at_the_next_step_and_keeps_the_earlier(tmp_path, asynchronous, foreseen):
    code = FULL.replace("ASYNCHRONOUS", str(asynchronous)).replace("FORESEEN", str(foreseen))
    done = run_on_small_disk(code, tmp_path, "10m")
    assert done.returncode == 0 and "said" in done.stdout, done.stderr
    assert not foreseen or "Traceback" not in done.stderr, done.stderr


def test_a_kill_during_the_restore_changes_nothing(tmp_path):
    """Reading writes nothing, unless a unit is damaged; that one is set aside by one rename, done or not done."""
    for step in (1, 2):
        checkpoint.save(tmp_path, step, state(step), {})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert checkpoint.restore(tmp_path, state(0)).step == 2
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    damage("zero-byte data", tmp_path / "2")
    (tmp_path / "damaged-2").mkdir()  # of a process that died between removing an older one and the rename
    assert checkpoint.restore(tmp_path, state(0)).step == 1
    assert names(tmp_path) == [1] and files_of(tmp_path / "damaged-2")
