"""Every recipe of docs/recipes.md, run from the page, against references written from the publications."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from losses import reference
from losses.cases import QUICK, finite, float64, make_batch
from losses.test_tree import expected

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"


def code_of(name):
    """The page's imports and the code under one of its headings."""
    text = PAGE.read_text(encoding="utf-8")
    imports = re.search(r"```python\n(.*?)```", text, re.S)[1]
    block = re.search(rf"^## {re.escape(name)}\n.*?```python\n(.*?)```", text, re.S | re.M)[1]
    return imports, block


def recipe(name):
    """The code under a heading of the page, as a function of the arrays that the page lists."""
    code = compile("".join(code_of(name)), f"{PAGE.name}: {name}", "exec")

    def loss(logps, arrays):
        scope = {"K": arrays["rewards"].shape[1], "logps": logps} | arrays
        exec(code, scope)
        return scope["loss"], scope["advantages"]

    return jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICK)


def batch_of(seed, *, typed=False):
    """Four rollouts a prompt; one group with equal outcomes."""
    shape = (8, 14, 2) if typed else (8, 12, 1)
    batch = make_batch(seed, shape, typed=typed, group_size=4)
    outcomes = np.round(batch.outcomes, 1)
    if seed % 2:
        outcomes[batch.groups == batch.groups[0]] = 0.5
    return batch._replace(outcomes=outcomes)


def run(name, batch):
    rewards, valid = batch.rewards
    arrays = dict(
        old_logps=batch.old, ref_logps=batch.ref, prm_logps=batch.prm, segment_ids=batch.ids, outcomes=batch.outcomes,
        group_ids=batch.groups, rewards=rewards, valid=valid,
    )  # fmt: skip
    with float64():
        (loss, advantages), gradient = recipe(name)(batch.logps, arrays)
        return float(loss), np.asarray(advantages), np.asarray(gradient)


def group_advantages(batch, *, std):
    out = np.zeros(len(batch.outcomes))
    for label in np.unique(batch.groups):
        mine = batch.groups == label
        out[mine] = batch.outcomes[mine] - batch.outcomes[mine].mean()
        if std:
            out[mine] /= batch.outcomes[mine].std(ddof=1) + 1e-6
    return out


def check(name, batch, per_chain, objective):
    """Advantages token by token, then value and gradient of ``objective(logps)``, a torch function written by hand."""
    torch = pytest.importorskip("torch")
    loss, advantages, gradient = run(name, batch)
    np.testing.assert_allclose(advantages, np.where(batch.ids == 0, per_chain[:, None], 0), atol=1e-9)
    logps = torch.tensor(finite(batch.logps), dtype=torch.float64, requires_grad=True)
    expected = objective(torch, logps, torch.tensor(finite(batch.old)), torch.tensor(per_chain)[:, None])
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), atol=1e-10)
    np.testing.assert_allclose(gradient, logps.grad.numpy(), atol=1e-10)


SEEDS = pytest.mark.parametrize("seed", [0, 1, 2])


@SEEDS
def test_rloo(seed):
    batch = batch_of(seed)
    n = 4
    mean = np.array([batch.outcomes[batch.groups == g].mean() for g in batch.groups])
    per_chain = n / (n - 1) * (batch.outcomes - mean)

    def objective(torch, logps, old, advantages):
        """−(1/N) Σ_i A_i π(y_i)/π_old(y_i), token by token; on-policy this is REINFORCE with a baseline."""
        mask = torch.tensor(batch.ids == 0)
        return -(torch.exp(logps - old) * advantages * mask).sum(1).mean()

    check("RLOO", batch, per_chain, objective)
    on_policy = batch._replace(old=batch.logps)
    _, _, gradient = run("RLOO", on_policy)
    np.testing.assert_allclose(gradient, np.where(batch.ids == 0, -per_chain[:, None] / 8, 0), atol=1e-10)


@SEEDS
def test_grpo(seed):
    batch = batch_of(seed)

    def objective(torch, logps, old, advantages):
        """GRPO, equation 3 of arXiv:2402.03300, with the estimator of its equation 4."""
        mask, ref = torch.tensor(batch.ids == 0), torch.tensor(finite(batch.ref))
        ratio = torch.exp(logps - old)
        surrogate = torch.minimum(ratio * advantages, torch.clamp(ratio, 0.8, 1.2) * advantages)
        kl = torch.exp(ref - logps) - (ref - logps) - 1
        return -(((surrogate - 0.04 * kl) * mask).sum(1) / mask.sum(1)).mean()

    check("GRPO", batch, group_advantages(batch, std=True), objective)


@SEEDS
def test_dr_grpo(seed):
    batch = batch_of(seed)

    def objective(torch, logps, old, advantages):
        mask = torch.tensor(batch.ids == 0)
        ratio = torch.exp(logps - old)
        surrogate = torch.minimum(ratio * advantages, torch.clamp(ratio, 0.8, 1.2) * advantages)
        return -((surrogate * mask).sum(1) / 32).mean()

    check("Dr.GRPO", batch, group_advantages(batch, std=False), objective)


@SEEDS
def test_dapo(seed):
    batch = batch_of(seed)
    kept = np.array([np.ptp(batch.outcomes[batch.groups == g]) > 0 for g in batch.groups])
    assert seed % 2 == 0 or not kept.all()

    def objective(torch, logps, old, advantages):
        """DAPO, equation 8 of arXiv:2503.14476, over the groups that its dynamic sampling keeps."""
        mask = torch.tensor((batch.ids == 0) & kept[:, None])
        ratio = torch.exp(logps - old)
        surrogate = torch.minimum(ratio * advantages, torch.clamp(ratio, 0.8, 1.28) * advantages)
        return -(surrogate * mask).sum() / mask.sum()

    check("DAPO", batch, group_advantages(batch, std=True), objective)


@SEEDS
def test_gspo(seed):
    batch = batch_of(seed)
    if seed:  # ratios near the narrow clip range, so that some chains are clipped and some are not
        batch = batch._replace(old=finite(batch.logps) + 0.002 * (finite(batch.old) - finite(batch.logps)))

    def objective(torch, logps, old, advantages):
        """GSPO, equations 5 and 7 of arXiv:2507.18071, differentiated as printed."""
        mask = torch.tensor(batch.ids == 0)
        ratio = torch.exp(((logps - old) * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True))
        surrogate = torch.minimum(ratio * advantages, torch.clamp(ratio, 1 - 3e-4, 1 + 4e-4) * advantages)
        return -surrogate.mean()

    check("GSPO", batch, group_advantages(batch, std=True), objective)


@SEEDS
def test_prime(seed):
    batch = batch_of(seed)
    loss, advantages, gradient = run("PRIME", batch)
    expected = reference.prime(
        batch.prm, batch.ref, batch.ids == 0, batch.outcomes, batch.groups,
        beta=0.05, formula="code", outcome_weight=5.0, process_weight=5.0, scale="batch_max", whiten=True,
    )  # fmt: skip
    np.testing.assert_allclose(advantages, expected, atol=1e-9)
    value = reference.osipo_loss(
        batch.logps,
        batch.old,
        expected,
        batch.ids,
        aggregation="token_mean",
        num_segments=1,
        ratio="token",
        clip_high=0.2,
    )
    np.testing.assert_allclose(loss, value, atol=1e-9)
    assert np.isfinite(gradient).all()


@SEEDS
def test_osipo(seed):
    batch = batch_of(seed, typed=True)
    loss, advantages, gradient = run("OSIPO", batch)
    rewards, valid = batch.rewards
    expected = reference.advantages(rewards, valid, batch.outcomes, batch.groups, batch.ids)
    np.testing.assert_allclose(advantages, expected, atol=1e-9)
    value = reference.osipo_loss(
        batch.logps,
        batch.old,
        expected,
        batch.ids,
        aggregation="segment_mean",
        num_segments=2,
        ref=batch.ref,
        kl_weight=1e-3,
    )
    np.testing.assert_allclose(loss, value, atol=1e-9)
    assert np.isfinite(gradient).all()


@SEEDS
def test_tree_rollouts(seed):
    batch = batch_of(seed, typed=True)
    labels = np.tile(np.arange(8) // 2, (2, 1)).T  # pairs of chains share both segments
    arrays = dict(
        old_logps=batch.old, segment_ids=batch.ids, outcomes=batch.outcomes, group_ids=batch.groups,
        rewards=batch.rewards[0], valid=np.ones((8, 2), bool), node_ids=labels,
    )  # fmt: skip
    with float64():
        (loss, advantages), gradient = recipe("Tree rollouts")(batch.logps, arrays)
    unscaled = expected(batch, labels, arrays["valid"])
    alive = reference.alive_rows(batch.ids, 2)
    rms = np.sqrt(np.mean(reference.centred(batch.outcomes, alive, batch.groups, "loo")[alive] ** 2))
    unscaled = np.clip(unscaled / max(rms, 1e-3), -5, 5)
    np.testing.assert_allclose(advantages, unscaled, atol=1e-9)
    value = reference.osipo_loss(
        batch.logps, batch.old, unscaled, batch.ids, aggregation="segment_mean", num_segments=2
    )
    np.testing.assert_allclose(loss, value, atol=1e-9)
    assert np.isfinite(gradient).all()


class Net(nnx.Module):
    """Somebody's model: the next token from the last one and the first."""

    def __init__(self, rngs):
        self.last, self.first = (nnx.Embed(6, 16, rngs=rngs) for _ in range(2))
        self.head = nnx.Linear(16, 6, rngs=rngs)

    def __call__(self, tokens):
        return self.head(jnp.tanh(self.last(tokens) + self.first(tokens[:, :1])))


def test_a_flax_nnx_loop_learns_with_the_step_of_the_page():
    """Prompt p of 0..3, answer two words, a close and two more: worth the share of words 0, 1 that equal p."""
    imports, block = code_of("In a Flax NNX loop of your own")
    assert len(block.partition("@nnx.jit")[2].splitlines()) < 25
    scope = {"K": 2}
    exec(compile(imports + block, f"{PAGE.name}: nnx", "exec"), scope)
    model, prm, reference_model = (Net(nnx.Rngs(0)) for _ in range(3))
    optimizers = [nnx.Optimizer(net, optax.adam(5e-2), wrt=nnx.Param) for net in (model, prm)]
    ids = jnp.tile(jnp.array([-3, 0, 0, -1, 1, 1]), (64, 1))
    prompts = jnp.repeat(jnp.arange(16) % 4, 4)

    @nnx.jit
    def rollout(model, reference_model, key):
        tokens = jnp.zeros((64, 6), jnp.int32).at[:, 0].set(prompts).at[:, 3].set(5)
        for t in (1, 2, 4, 5):
            tokens = tokens.at[:, t].set(jax.random.categorical(jax.random.fold_in(key, t), model(tokens)[:, t - 1]))
        logps = jax.nn.log_softmax(reference_model(tokens[:, :-1]))
        ref_logps = jnp.take_along_axis(logps, tokens[:, 1:, None], axis=-1)[..., 0]
        return tokens, jnp.pad(ref_logps, ((0, 0), (1, 0))), (tokens[:, 1:3] == prompts[:, None]).mean(1)

    curve = []
    for n in range(40):
        tokens, ref_logps, outcomes = rollout(model, reference_model, jax.random.key(n))
        arguments = tokens, ids, ref_logps, outcomes, jnp.repeat(jnp.arange(16), 4)
        curve.append(float(scope["train_step"](model, prm, *optimizers, *arguments)))
    assert np.mean(curve[:3]) < 0.35 and np.mean(curve[-5:]) > 0.8


OURS = ["Tree rollouts", "In a Flax NNX loop of your own", "Accumulation and devices"]


def test_the_page_has_no_recipe_without_a_test():
    headings = re.findall(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), re.M)
    assert headings == ["RLOO", "GRPO", "Dr.GRPO", "DAPO", "GSPO", "PRIME", "OSIPO", *OURS]
