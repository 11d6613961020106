"""Sharding rules: what is stated is done, and what cannot be done is said."""

from collections import Counter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec
from student import toy

from scaletot_jax.errors import ConfigError
from scaletot_jax.parallel import distributed
from scaletot_jax.parallel.mesh import choose_devices, make_mesh
from scaletot_jax.parallel.sharding import ShardingRules, batch_shardings, constrain, parameter_shardings
from scaletot_jax.student.adapter import adamw, start

RULES = ShardingRules()


def test_mesh_sizes():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    assert mesh.shape == {"data": 2, "fsdp": 2, "tensor": 2}
    assert make_mesh(data=0, tensor=2).shape == {"data": 4, "fsdp": 1, "tensor": 2}
    assert make_mesh().shape == {"data": 1, "fsdp": 1, "tensor": 1}
    assert all(kind == jax.sharding.AxisType.Auto for kind in mesh.axis_types)
    for bad in (dict(data=9), dict(fsdp=0), dict(tensor=16), dict(data=-1), dict(data=0, fsdp=16)):
        with pytest.raises(ConfigError, match="mesh"):
            make_mesh(**bad)


class Chip(NamedTuple):
    """Stands in for a device of another process."""

    process_index: int
    id: int


@pytest.mark.parametrize("interleaved", [False, True])
def test_every_process_owns_an_equal_share_of_the_mesh(interleaved):
    slice_ = [Chip(process, 4 * process + i) for process in range(4) for i in range(4)]
    if interleaved:
        slice_.sort(key=lambda chip: chip.id % 4)
    for needed in (4, 8, 16):
        chosen = choose_devices(slice_, needed)
        assert Counter(chip.process_index for chip in chosen) == dict.fromkeys(range(4), needed // 4)
        assert [slice_.index(chip) for chip in chosen] == sorted(slice_.index(chip) for chip in chosen)
    assert choose_devices(slice_, 16) == slice_
    for needed in (1, 2, 6):  # 1 is the default mesh: it would be process 0's alone
        with pytest.raises(ConfigError, match=r"every process[\s\S]*mesh.data=0"):
            choose_devices(slice_, needed)
    with pytest.raises(ConfigError, match=r"mesh.data=0"):
        make_mesh(devices=slice_)


def test_unevenly_owned_devices_may_all_be_used_but_not_in_part():
    uneven = [Chip(0, 0), Chip(0, 1), Chip(0, 2), Chip(1, 3)]
    assert choose_devices(uneven, 4) == uneven
    assert choose_devices(uneven, 2) == [uneven[0], uneven[3]]
    with pytest.raises(ConfigError, match="every process"):
        choose_devices([*uneven, Chip(1, 4), Chip(0, 5)], 6 - 1)
    with pytest.raises(ConfigError, match="every process"):
        choose_devices([*uneven, Chip(0, 4)], 4)


def test_one_process_takes_its_first_devices():
    assert choose_devices(jax.devices(), 3) == jax.devices()[:3]
    assert make_mesh(data=2).devices.ravel().tolist() == jax.devices()[:2]


def test_a_process_that_works_alone_takes_its_own_devices(monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[4:6])
    monkeypatch.setattr(distributed, "_joined", lambda: True)
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    assert make_mesh(data=0).size == 8
    with distributed.alone():
        assert make_mesh(data=0).devices.ravel().tolist() == jax.devices()[4:6]


def test_unknown_axis_and_missing_mesh_raise():
    x = jnp.zeros((8, 4))
    with pytest.raises(ConfigError, match="without a mesh"):
        constrain(x, "batch", None, rules=RULES)
    with pytest.raises(ConfigError, match="unknown logical axis 'bach'"):
        constrain(x, "bach", None, rules=RULES)
    with jax.set_mesh(make_mesh(data=2)):
        with pytest.raises(ConfigError, match="a name for every dimension"):
            constrain(x, "batch", rules=RULES)
        with pytest.raises(ConfigError, match="evenly"):
            constrain(jnp.zeros((7, 4)), "batch", None, rules=RULES)
        with pytest.raises(ConfigError, match="no such axis"):
            constrain(x, "batch", None, rules=ShardingRules(batch="rows"))
    with pytest.raises(ConfigError, match="splits two dimensions"):
        ShardingRules(mlp="fsdp").spec("embed", "mlp")


def test_a_constraint_is_kept():
    mesh = make_mesh(data=4)
    with jax.set_mesh(mesh):
        out = jax.jit(lambda x: constrain(x * 2, "batch", None, rules=RULES))(jnp.ones((8, 4)))
    assert out.addressable_shards[0].data.shape == (2, 4)


def test_parameters_adapters_and_moments_are_split_alike():
    student = toy.student()
    mesh = make_mesh(fsdp=2, tensor=2)
    base = parameter_shardings(student.params, mesh, RULES)
    assert base["layers"]["q"].spec == PartitionSpec(None, "fsdp", "tensor")
    assert base["layers"]["down"].spec == PartitionSpec(None, "tensor", "fsdp")
    assert base["embed"].spec == PartitionSpec("tensor", "fsdp")
    state = parameter_shardings(
        start(student.lora, adamw(1e-3, steps=9, warmup=1, weight_decay=0, clip_norm=1)), mesh, RULES
    )
    assert state.lora["o_a"].spec == PartitionSpec(None, "tensor", None)
    assert state.lora["o_b"].spec == PartitionSpec(None, None, "fsdp")
    moments = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state) if "'gate_b'" in str(path)]
    assert len(moments) == 2 and all(m.spec == PartitionSpec(None, None, "tensor") for m in moments)
    assert state.step.spec == PartitionSpec()


def test_every_parameter_has_a_rule():
    """A new weight without a rule would be silently replicated."""
    student = toy.student()
    mesh = make_mesh(fsdp=2, tensor=2)
    for tree in (student.params, student.lora):
        for path, sharding in jax.tree_util.tree_leaves_with_path(parameter_shardings(tree, mesh, RULES)):
            name = str(path[-1].key)
            assert "norm" in name or sharding.spec != PartitionSpec(), name


def test_uneven_sizes_are_refused():
    with pytest.raises(ConfigError, match="evenly"):
        parameter_shardings({"embed": jnp.zeros((5, 4))}, make_mesh(tensor=2), RULES)
    with pytest.raises(ConfigError, match="evenly"):
        batch_shardings({"tokens": jnp.zeros((3, 4))}, make_mesh(data=2), RULES)
