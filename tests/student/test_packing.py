"""Packing a prompt with its N chains changes nothing but the cost."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from student import toy

from scaletot_jax.student.packing import gather, pack, predicting_states
from scaletot_jax.student.sft_step import SFTBatch, sft_loss

E = toy.examples(4).arrays


def test_packed_states_equal_single_rows():
    student = toy.student()
    lora = jax.tree.map(lambda leaf: leaf + 0.02, student.lora)  # an adapter that does something
    student = student.with_lora(lora)
    packed = pack(E.prompts, E.prompt_valid, E.chains, E.chain_valid)
    hidden = predicting_states(student.params, student.config, packed, lora=lora, lora_scale=student.lora_scale)
    compared = 0
    for b in range(4):
        for n in range(E.chains.shape[1]):
            chain = E.chains[b, n][E.chain_valid[b, n]]
            if not len(chain):
                continue
            prompt = E.prompts[b][E.prompt_valid[b]]
            expected = toy.plain_forward(student, np.concatenate([prompt, chain]))[len(prompt) - 1 : -1]
            np.testing.assert_allclose(hidden[b, n, : len(chain)], expected, atol=2e-5)
            compared += 1
    assert compared == 6


def test_packed_loss_and_gradient_equal_unpacked_ones():
    """N chains behind one prompt against each chain in a row of its own: the SFT loss and its gradient to 1e-6."""
    student = toy.student()
    lora = jax.tree.map(lambda leaf: leaf + 0.02, student.lora)
    packed = SFTBatch(*(jnp.asarray(array) for array in E))
    count = packed.chains.shape[1]
    alone = SFTBatch(
        *(jnp.repeat(leaf, count, axis=0) for leaf in packed[:2]),
        *(leaf.reshape(-1, 1, *leaf.shape[2:]) for leaf in packed[2:]),
    )
    loss = jax.jit(
        jax.value_and_grad(partial(sft_loss, config=student.config, lora_scale=2.0), has_aux=True),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    (one, _), gradient = loss(lora, student.params, student.grammar, packed)
    (other, _), expected = loss(lora, student.params, student.grammar, alone)
    np.testing.assert_allclose(one, other, rtol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), gradient, expected)
    assert count > 1 and max(float(np.abs(leaf).max()) for leaf in expected.values()) > 1e-2


def test_a_chain_does_not_see_another():
    student = toy.student()
    other = E.chains.copy()
    other[:, 1] = (other[:, 1] + 7) % 100
    before, after = (
        jax.jit(predicting_states, static_argnums=1)(
            student.params, student.config, pack(E.prompts, E.prompt_valid, chains, E.chain_valid)
        )
        for chains in (E.chains, other)
    )
    np.testing.assert_array_equal(before[:, 0], after[:, 0])
    assert np.abs(np.asarray(before[1, 1] - after[1, 1])).max() > 1e-3


def test_sources_point_at_the_token_before():
    packed = pack(E.prompts, E.prompt_valid, E.chains, E.chain_valid)
    before = gather(packed.tokens[..., None].astype(jnp.float32), packed.sources)[..., 0]
    for b in range(4):
        prompt = E.prompts[b][E.prompt_valid[b]]
        np.testing.assert_array_equal(before[b, 0, 0], prompt[-1])
        np.testing.assert_array_equal(before[b, 0, 1:], E.chains[b, 0, :-1])
