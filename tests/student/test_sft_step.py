"""The SFT step: its loss is the stated one, it learns, and no array of tokens × vocabulary exists."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from student import toy

from scaletot_jax.lm.head import ROWS
from scaletot_jax.student.adapter import adamw, start
from scaletot_jax.student.sft_step import SFTBatch, sft_loss, sft_step


def batch(count=4):
    return SFTBatch(*(jnp.asarray(array[:count]) for array in toy.examples(8).arrays))


def test_loss_equals_a_plain_loop():
    """Independent NumPy loop over unpadded sequences with materialised logits."""
    student = toy.student()
    lora = jax.tree.map(lambda leaf: leaf + 0.03, student.lora)
    data = jax.tree.map(np.asarray, batch())
    total = weights = 0.0
    for b in range(4):
        for n in range(data.chains.shape[1]):
            prompt, chain = data.prompts[b][data.prompt_valid[b]], data.chains[b, n][data.chain_valid[b, n]]
            if not len(chain):
                continue
            hidden = toy.plain_forward(student.with_lora(lora), np.concatenate([prompt, chain]))
            logits = np.asarray(hidden @ student.params["embed"].T, np.float64)
            log_probs = (
                logits
                - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
                - logits.max(-1, keepdims=True)
            )
            for t, state in enumerate(data.states[b, n, : len(chain)]):
                ids = student.chain.grammar.token[state]
                q = data.targets[b, n, t]
                ce = -sum(q[a] * log_probs[len(prompt) - 1 + t, ids[a]] for a in range(len(ids)) if ids[a] >= 0)
                w = data.weights[b, n] * (3.0 if state == student.chain.answer_state else 1.0)
                total, weights = total + w * ce, weights + w
    loss, metrics = sft_loss(
        lora, student.params, student.grammar, batch(), config=student.config, lora_scale=2.0, answer_weight=3.0
    )
    np.testing.assert_allclose(loss, total / weights, rtol=1e-5)
    np.testing.assert_allclose(metrics["weight"], weights, rtol=1e-6)


def test_blank_rows_change_nothing():
    student = toy.student()
    data = batch(4)
    blank = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf[:2]]), data)
    blank = blank._replace(weights=blank.weights.at[4:].set(0.0))
    grads = jax.jit(jax.grad(partial(sft_loss, config=student.config, lora_scale=2.0), has_aux=True))
    expected, _ = grads(student.lora, student.params, student.grammar, data)
    found, _ = grads(student.lora, student.params, student.grammar, blank)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), found, expected)


def test_it_learns():
    student = toy.student()
    optimizer = adamw(1e-2, steps=40, warmup=2, weight_decay=0.0, clip_norm=1.0)
    step = jax.jit(partial(sft_step, config=student.config, optimizer=optimizer, lora_scale=2.0, remat="dots"))
    state, data, losses = start(student.lora, optimizer), batch(8), []
    for _ in range(40):
        state, metrics = step(state, student.params, student.grammar, data)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0]
    assert int(state.step) == 40
    floor = -np.sum(np.where(data.targets > 0, data.targets * np.log(np.maximum(data.targets, 1e-30)), 0))
    assert losses[-1] > 0 and floor > 0  # soft targets: the loss cannot reach 0


def largest_array(size, function, *arguments):
    """Elements of the largest intermediate array that has a dimension of ``size``, inner jaxprs included."""

    def visit(jaxpr):
        sizes = [0]
        for equation in jaxpr.eqns:
            sizes += [int(np.prod(v.aval.shape)) for v in equation.outvars if size in v.aval.shape]
            for value in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")):
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    sizes.append(visit(inner))
        return max(sizes)

    return visit(jax.make_jaxpr(function)(*arguments).jaxpr)


def test_no_array_of_tokens_by_vocabulary():
    """Forward and backward of a batch whose chains have more than one chunk of tokens."""
    student = toy.student()
    data = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * 40), batch(8))
    tokens = int(np.prod(data.chains.shape))
    loss = partial(sft_loss, config=student.config, lora_scale=2.0)
    function = jax.value_and_grad(lambda lora: loss(lora, student.params, student.grammar, data)[0])
    assert tokens > 4 * ROWS
    vocabulary = student.config.vocab_size
    assert largest_array(vocabulary, function, student.lora) < tokens * vocabulary // 4
