"""Schedules, against their closed forms, and clipping by the global norm."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scaletot_jax.student.adapter import SCHEDULES, adamw, apply_gradients, rates, start


def closed_form(schedule, step, peak, steps, warmup):
    if step < warmup:
        first = peak / (warmup + 1)
        return first + (peak - first) * step / warmup
    done = min(1.0, (step - warmup) / (steps - warmup))
    return {
        "constant": peak,
        "linear": peak + (peak / 10 - peak) * done,
        "cosine": peak / 10 + (peak - peak / 10) * 0.5 * (1 + np.cos(np.pi * done)),
    }[schedule]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 3])
def test_rates(schedule, warmup):
    found = rates(0.5, steps=11, warmup=warmup, schedule=schedule)
    for step in range(14):
        np.testing.assert_allclose(found(step), closed_form(schedule, step, 0.5, 11, warmup), rtol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_warmup_longer_than_the_run_still_reaches_the_peak(schedule):
    found = rates(0.5, steps=3, warmup=50, schedule=schedule)
    np.testing.assert_allclose(found(2), 0.5, rtol=1e-6)
    assert float(found(0)) < 0.5


def test_an_unknown_schedule_is_named():
    with pytest.raises(ValueError, match="constant, linear, cosine"):
        rates(0.5, steps=3, warmup=0, schedule="step")


def test_gradients_are_clipped_together():
    """Adam forgets the scale of a gradient, so the moments are read: they hold the clipped one."""
    optimizer = adamw(0.1, steps=5, warmup=0, weight_decay=0.0, clip_norm=1.0)
    weights = {"q_a": jnp.zeros((1, 2, 1)), "q_b": jnp.zeros((1, 1, 2))}
    gradients = {"q_a": jnp.full((1, 2, 1), 3.0), "q_b": jnp.full((1, 1, 2), 4.0)}
    state = apply_gradients(start(weights, optimizer), gradients, optimizer)
    moments = optax.tree.get(state.opt_state, "mu")
    norm = np.sqrt(2 * 9 + 2 * 16)
    np.testing.assert_allclose(moments["q_a"], 0.1 * 3 / norm, rtol=1e-5)
    np.testing.assert_allclose(moments["q_b"], 0.1 * 4 / norm, rtol=1e-5)
