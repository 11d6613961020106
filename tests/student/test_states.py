"""Reasoning states do not depend on the program that computes attention; what they hold is tested with the stages."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest
from student import toy

from scaletot_jax.student.constrained import segment_ids
from scaletot_jax.student.rollout import Rollouts
from scaletot_jax.student.states import read_states

STUDENT, DATA = toy.student(), toy.examples(2).arrays


def states(attention):
    shape = DATA.chains.shape
    blank = np.zeros(shape, np.float32)
    chains = Rollouts(
        DATA.chains, DATA.chain_valid, DATA.states, blank, blank, blank,
        segment_ids(STUDENT.grammar, DATA.states, DATA.chains, DATA.chain_valid),
        np.zeros((*shape[:2], 4), np.float32), DATA.chain_valid.any(-1),
    )  # fmt: skip
    config = dataclasses.replace(STUDENT.config, attention=attention)
    read = partial(read_states, config=config, lora_scale=2.0, num_segments=2, layers=(1, 2))
    quick = jax.jit(read, compiler_options={"xla_backend_optimization_level": 0})
    found = quick(STUDENT.params, STUDENT.lora, STUDENT.grammar, DATA.prompts, DATA.prompt_valid, chains)
    return [np.asarray(layer)[chains.complete] for layer in found.states]


@pytest.mark.parametrize("attention", ["dot_product", "splash"])
def test_every_program_of_attention_reads_the_same_states(attention):
    for found, expected in zip(states(attention), states("einsum"), strict=True):
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(found, expected, atol=1e-5)
