"""Arithmetic of the plan that needs no run directory."""

from scaletot_jax.plan import Rates, osipo_seconds


def test_rollouts_that_serve_several_updates_are_sampled_and_judged_once():
    rates = Rates(teacher=1.0, student=100.0, training=10.0, decode=1.0, seconds=0.0)
    tokens = {"packed": 200, "replayed": 50, "decoded": 80}
    once = osipo_seconds({"updates": 7, "epochs": 1}, rates=rates, **tokens)
    assert once == (7, 7 * (20 + 2 + 80 + 20 + 5))
    assert osipo_seconds({"updates": 7, "epochs": 3}, rates=rates, **tokens) == (3, 3 * (20 + 2 + 80) + 7 * (20 + 5))
