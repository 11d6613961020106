"""Checkpoints: what goes in comes out, the newest whole one wins, and only the last are kept."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from scaletot_jax.errors import ResourceError
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


def test_a_full_disk_is_said_and_keeps_the_earlier(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, state(1), {})
    manager = checkpoint._manager

    def full(directory, keep):
        made = manager(directory, keep)

        def save(*_, **__):
            raise OSError(28, "No space left on device")

        made.save = save
        return made

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "_manager", full)
        with pytest.raises(ResourceError, match="disk is full"):
            checkpoint.save(tmp_path, 2, state(2), {})
    assert checkpoint.restore(tmp_path, state(0)).step == 1
