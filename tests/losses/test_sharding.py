"""Under ``jax.shard_map`` on eight emulated devices everything equals one device, with groups that lie across devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from losses.cases import compiled, compiled_gradient, float64, make_batch

from scaletot_jax.losses import (
    implicit_reward_loss,
    mean_loss,
    osipo_advantages,
    osipo_loss,
    prefix_critic_advantages,
    prime_advantages,
    soft_cross_entropy,
)

ROWS = P("data")


def batch_of_sixteen():
    assert jax.device_count() == 8, "tests/conftest.py asks for eight CPU devices"
    return make_batch(21, (16, 12, 2))


def mesh_of(axes=("data",), shape=(8,)):
    return jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * len(axes))


def sharded(function, arguments, out_specs, axes=("data",), shape=(8,)):
    mesh = mesh_of(axes, shape)
    rows = P(axes)
    return jax.jit(
        jax.shard_map(
            function,
            mesh=mesh,
            in_specs=tuple(rows for _ in arguments),
            out_specs=rows if out_specs is None else out_specs,
        )
    )


@pytest.mark.parametrize(
    "options", [dict(), dict(baseline="group_mean", scale="group_std", gamma=0.5, process_weight=1.0)]
)
def test_advantages(options):
    batch = batch_of_sixteen()
    arguments = *batch.rewards, batch.outcomes, batch.groups, batch.ids
    with float64():
        one = compiled(osipo_advantages, **options)(*arguments)
        many = sharded(functools.partial(osipo_advantages, axis_name="data", **options), arguments, None)(*arguments)
        np.testing.assert_allclose(many, one, atol=1e-12)


def test_advantages_over_two_mesh_axes():
    batch = batch_of_sixteen()
    arguments = *batch.rewards, batch.outcomes, batch.groups, batch.ids
    axes = ("data", "fsdp")
    function = functools.partial(osipo_advantages, axis_name=axes)
    many = sharded(function, arguments, None, axes, (4, 2))(*arguments)
    np.testing.assert_allclose(many, compiled(osipo_advantages)(*arguments), atol=1e-6)


def test_critic_and_prime_advantages():
    batch = batch_of_sixteen()
    critic = *batch.rewards, batch.outcomes, batch.groups, batch.ids
    tokens = batch.prm, batch.ref, batch.ids, batch.outcomes, batch.groups
    options = dict(num_segments=2, beta=0.5, scale="batch_max", whiten=True)
    with float64():
        many = sharded(functools.partial(prefix_critic_advantages, axis_name="data"), critic, None)(*critic)
        np.testing.assert_allclose(many, compiled(prefix_critic_advantages)(*critic), atol=1e-12)
        many = sharded(functools.partial(prime_advantages, axis_name="data", **options), tokens, None)(*tokens)
        np.testing.assert_allclose(many, compiled(prime_advantages, **options)(*tokens), atol=1e-10)


@pytest.mark.parametrize("aggregation", ["segment_mean", "token_mean"])
def test_policy_loss_and_its_gradient_inside_and_outside(aggregation):
    batch = batch_of_sixteen()
    arguments = batch.logps, batch.old, batch.advantages, batch.ids
    options = dict(aggregation=aggregation, num_segments=2)
    with float64():
        (loss, metrics), gradient = compiled_gradient(osipo_loss, **options)(*arguments)
        parallel = functools.partial(osipo_loss, axis_name="data", **options)
        inside = jax.value_and_grad(parallel, has_aux=True)
        many = sharded(inside, arguments, ((P(), P()), ROWS))(*arguments)
        np.testing.assert_allclose(many[0][0], loss, atol=1e-13)
        np.testing.assert_allclose(many[1], gradient, atol=1e-13)
        for name, value in metrics.items():
            np.testing.assert_allclose(many[0][1][name], value, atol=1e-13)
        outside = jax.value_and_grad(sharded(parallel, arguments, (P(), P())), has_aux=True)(*arguments)
        np.testing.assert_allclose(outside[1], gradient, atol=1e-13)


def test_gradient_of_replicated_parameters_is_that_of_one_device():
    """The case of a real step: every device has all parameters and its own rows."""
    batch = batch_of_sixteen()
    arguments = batch.logps, batch.old, batch.advantages, batch.ids
    weight = np.linspace(0.9, 1.1, batch.ids.shape[1])

    def loss(weight, logps, old, advantages, ids, axis_name=None):
        options = dict(aggregation="segment_mean", num_segments=2, axis_name=axis_name)
        return osipo_loss(logps * weight, old, advantages, ids, **options)[0]

    mesh = mesh_of()
    inside = jax.grad(functools.partial(loss, axis_name="data"))
    parallel = jax.shard_map(inside, mesh=mesh, in_specs=(P(), *[ROWS] * 4), out_specs=P())
    with float64():
        clean = jnp.where(jnp.isfinite(batch.logps), batch.logps, 0)
        one = jax.jit(jax.grad(loss))(weight, clean, *arguments[1:])
        many = jax.jit(parallel)(weight, clean, *arguments[1:])
        np.testing.assert_allclose(many, one, atol=1e-12)


def test_implicit_reward_loss_and_its_gradient():
    batch = batch_of_sixteen()
    arguments = batch.prm, batch.ref, batch.ids, batch.outcomes, batch.groups
    options = dict(num_segments=2, beta=0.5)
    with float64():
        (loss, metrics), gradient = compiled_gradient(implicit_reward_loss, **options)(*arguments)
        inside = jax.value_and_grad(functools.partial(implicit_reward_loss, axis_name="data", **options), has_aux=True)
        many = sharded(inside, arguments, ((P(), P()), ROWS))(*arguments)
        np.testing.assert_allclose(many[0][0], loss, atol=1e-12)
        np.testing.assert_allclose(many[1], gradient, atol=1e-12)
        for name, value in metrics.items():
            np.testing.assert_allclose(many[0][1][name], value, atol=1e-12)


def test_supervised_loss_is_divided_once():
    rng = np.random.default_rng(0)
    log_probs, targets = np.log(rng.dirichlet(np.ones(3), (8, 5))), rng.dirichlet(np.ones(3), (8, 5))
    mask = rng.random((8, 5)) < np.linspace(0, 1, 8)[:, None]  # uneven lengths, one device with nothing
    arguments = log_probs, targets, mask
    many = sharded(lambda *x: mean_loss(*soft_cross_entropy(*x), axis_name="data"), arguments, P())(*arguments)
    np.testing.assert_allclose(many, mean_loss(*soft_cross_entropy(*arguments)), rtol=1e-6)


def test_automatic_sharding_needs_no_axis_name():
    batch = batch_of_sixteen()
    mesh = mesh_of()
    arguments = *batch.rewards, batch.outcomes, batch.groups, batch.ids
    placed = [jax.device_put(x, jax.NamedSharding(mesh, ROWS)) for x in arguments]
    function = compiled(osipo_advantages)
    np.testing.assert_allclose(function(*placed), function(*arguments), atol=1e-6)
