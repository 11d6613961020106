"""Scores of the student's answers, and the calibration of a shorter student."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from student import toy

from scaletot_jax.lm.exit import truncate
from scaletot_jax.lm.head import logits
from scaletot_jax.lm.model import forward
from scaletot_jax.student.calibrate import exit_map
from scaletot_jax.student.evaluate import answer_distributions, score_answers
from scaletot_jax.student.labelled import base_rate
from scaletot_jax.student.policy import encode_prompts


def test_scores_against_hand_values():
    values = np.asarray([0.0, 2.0, 7.0])
    truth = np.asarray([0, 1, 2, 2])
    sure = np.eye(3)[truth]
    scores = score_answers(sure, truth, base_rate(truth, 3), values)
    assert scores["rps"] == 0 and scores["skill"] == 1 and scores["spearman"] == pytest.approx(1)
    # base rate (1/4, 1/4, 1/2): cumulative (1/4, 1/2)
    by_hand = np.mean([(0.75**2 + 0.5**2) / 2, (0.25**2 + 0.5**2) / 2] + [(0.25**2 + 0.5**2) / 2] * 2)
    assert scores["base_rate_rps"] == pytest.approx(by_hand)
    constant = score_answers(np.tile([0.2, 0.3, 0.5], (4, 1)), truth, base_rate(truth, 3), values)
    assert constant["spearman"] is None and constant["skill"] < 0


def test_answers_do_not_depend_on_the_batch_size():
    student = toy.student()
    prompts, valid, _ = encode_prompts(student.tokenizer, toy.texts(5), 40)
    key, seen = jax.random.key(2), []
    whole, complete = answer_distributions(
        student, prompts, valid, chains=2, key=key, batch_size=5, advance=seen.append
    )
    part, _ = answer_distributions(student, prompts, valid, chains=2, key=key, batch_size=2)
    np.testing.assert_allclose(whole, part, atol=1e-5)
    assert complete == 1 and sum(seen) == 5
    np.testing.assert_allclose(whole.sum(1), 1, rtol=1e-5)


def test_the_exit_map_brings_a_shorter_model_near_the_whole_one():
    """Divergence from the whole model's next-token distribution on texts that were not in the fit."""
    student = toy.student(layers=4)
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, 500, (80, 20)).astype(np.int32)
    valid = np.arange(20)[None] < rng.integers(10, 21, (80, 1))
    fitted = exit_map(student.params, student.config, 2, tokens[8:], valid[8:], batch_size=72)
    predict = jax.jit(
        lambda params, config: logits(params, config, forward(params, config, tokens[:8], valid=valid[:8]).hidden),
        static_argnums=1,
    )
    target = jax.nn.log_softmax(predict(student.params, student.config))

    def divergence(exit):
        own = jax.nn.log_softmax(predict(*truncate(student.params, student.config, 2, exit)))
        return float(jnp.mean(jnp.sum(jnp.exp(target) * (target - own), -1)[valid[:8]]))

    assert divergence(fitted) < 0.7 * divergence(None)


def test_the_last_partial_batch_is_not_counted_twice():
    student = toy.student()
    rng = np.random.default_rng(1)
    tokens = rng.integers(5, 500, (5, 12)).astype(np.int32)
    valid = np.ones((5, 12), bool)
    fits = [exit_map(student.params, student.config, 1, tokens, valid, batch_size=size) for size in (5, 4)]
    np.testing.assert_allclose(fits[0]["weight"], fits[1]["weight"], atol=1e-3)
