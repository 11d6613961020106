"""Policy-gradient training on the toy of ``credit_toy.py``, one compiled program an estimator, mapped over many runs."""

from __future__ import annotations

from typing import NamedTuple

import credit_toy as toy
import jax
import jax.numpy as jnp
import optax

from scaletot_jax.losses import (
    expected_rps_outcome,
    implicit_reward_loss,
    osipo_advantages,
    osipo_loss,
    pooled_targets,
    prefix_critic_advantages,
    prime_advantages,
    segment_means,
    segment_rewards,
    tree_advantages,
)

CHAIN = (8, 1, 1, 1)  # eight chains a user that share nothing
MEMORY, WARM_UP = 32, 5  # batches the reward model is replayed from; updates before its signal is used
# Where every chain is whole, opening tokens get next to no gradient; with Adam's usual 1e-8 that would be blown up to full
# steps, and the form lost, the sooner the less noise an estimator has.
EPSILON = 1e-3


class Hyper(NamedTuple):
    """What may differ between runs of one compiled program."""

    rate: float = 2e-2  # Adam, policy
    reward_rate: float = 3e-3  # Adam, reward model
    beta: float = 0.2
    process: float = 0.1  # λ_p
    gamma: float = 0.0
    trace: float = 0.9  # λ of the critic
    residual: float = 1.0  # κ of the critic
    taught: float = 0.0  # 1: the reward model starts from the teacher's chains and their outcomes


class Setting(NamedTuple):
    """What is compiled in."""

    estimator: str = "rloo"
    branches: tuple[int, ...] = CHAIN
    users: int = 8  # a batch
    updates: int = 100
    taught_chains: int = 4  # a user
    taught_steps: int = 80
    reward_steps: int = 2  # Adam steps of the reward model an update: the fresh batch, then replayed ones


def targets_of(key: jax.Array, variant: toy.Variant, pooled: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Profiles [U] and label distributions [U, K_b] that the outcomes of the training users are computed from."""
    who, what = jax.random.split(key)
    profiles = jax.random.choice(who, 64, (toy.USERS,), p=jnp.asarray(toy.POPULARITY / toy.POPULARITY.sum()))
    truth = toy.forecast(toy.true_number(profiles), variant.zeros)
    labels = jax.random.categorical(what, jnp.log(truth))
    shared, _ = pooled_targets(labels, profiles, num_buckets=toy.BUCKETS, num_profiles=64)
    noisy = jnp.where(pooled > 0, shared, jax.nn.one_hot(labels, toy.BUCKETS))
    return profiles, jnp.where(variant.labelled > 0, noisy, truth)


def learn(setting: Setting, key, reference, variant, pooled, hyper):
    """One run: curves [updates] of true reward, validity, KL to the start (nats a chain) and credit accuracy.

    ``setting`` is static; ``variant`` and ``hyper`` hold scalars, so that runs may be stacked and mapped.
    """
    groups = jnp.repeat(jnp.arange(setting.users), each := leaves(setting.branches))
    rows = setting.users * each
    user_profiles, user_targets = targets_of(jax.random.fold_in(key, 0), variant, pooled)
    optimizer = optax.scale_by_adam(eps=EPSILON)
    reward_optimizer = optax.scale_by_adam()
    uses_rewards = setting.estimator in ("osipo", "critic", "prime")

    def stepped(params, state, gradient, rate, optimizer=optimizer):
        updates, state = optimizer.update(gradient, state)
        return jax.tree.map(lambda p, u: p - rate * u, params, updates), state

    def outcomes_of(key, tokens, targets):
        seen = expected_rps_outcome(jnp.log(toy.forecast(toy.stated(tokens).sum(1), variant.zeros)), targets)
        return jnp.where(
            toy.parse(tokens)[1], seen + variant.leaf_noise * jax.random.normal(key, seen.shape), toy.INVALID
        )

    def reward_loss(params, batch, groups=groups):
        profiles, tokens, outcomes = batch
        ids, whole = toy.parse(tokens)
        last = setting.estimator == "prime"
        loss, _ = implicit_reward_loss(
            toy.token_logps(params, profiles, tokens), toy.token_logps(reference, profiles, tokens),
            toy.padded(ids, whole), outcomes, groups, num_segments=toy.SEGMENTS, beta=hyper.beta,
            boundary_weights="last" if last else "uniform", shift=not last,
        )  # fmt: skip
        return loss

    def advantages_of(scored, ref_logps, ids, outcomes, labels, number, whole, numbers, profiles):
        if setting.estimator == "tree":
            # Every leaf is a member of every node above it, broken or not: its outcome belongs to its prefix.
            return tree_advantages(outcomes, jnp.ones(labels.shape, bool), labels, groups, ids)
        if setting.estimator == "prime":
            return prime_advantages(
                scored, ref_logps, ids, outcomes, groups, num_segments=toy.SEGMENTS, beta=hyper.beta,
                process_weight=hyper.process, formula="code", scale="batch_max", whiten=True,
            )  # fmt: skip
        options = dict(num_segments=toy.SEGMENTS, beta=hyper.beta)
        rewards, valid = segment_rewards(scored, ref_logps, ids, **options)
        common = rewards, valid, outcomes, groups, ids
        plain = osipo_advantages(*common, process_weight=0.0)
        if setting.estimator == "oracle":
            # The true credit as segment rewards; the outcome says no more than whether the form was kept.
            unscaled = dict(process_weight=1.0, scale=None, clip=None)
            credit = toy.true_credit(numbers, profiles, variant.zeros)
            form = jnp.where(whole, jnp.where(whole, outcomes, 0).sum() / jnp.maximum(whole.sum(), 1), toy.INVALID)
            exact = osipo_advantages(credit, valid & whole[:, None], form, groups, ids, **unscaled)
            return exact / jnp.maximum(jnp.sqrt((exact**2).mean()), 1e-3)
        if setting.estimator == "grpo":
            return osipo_advantages(*common, process_weight=0.0, baseline="group_mean", scale="group_std")
        if setting.estimator == "osipo":
            credited = osipo_advantages(*common, process_weight=hyper.process, gamma=hyper.gamma)
        elif setting.estimator == "critic":
            credited = prefix_critic_advantages(*common, trace=hyper.trace, residual_weight=hyper.residual)
        else:
            return plain
        return jnp.where((number >= WARM_UP) | (hyper.taught > 0), credited, plain)

    def update(carry, number):
        params, state, reward_params, reward_state, memory = carry
        keys = jax.random.split(jax.random.fold_in(key, number + 1), 4)
        chosen = jax.random.choice(keys[0], toy.USERS, (setting.users,), replace=False)
        tokens, labels = toy.draw(params, keys[1], user_profiles[chosen], setting.branches)
        profiles, targets = (jnp.repeat(x[chosen], each, axis=0) for x in (user_profiles, user_targets))
        ids, whole = toy.parse(tokens)
        numbers = toy.stated(tokens)
        outcomes = outcomes_of(keys[2], tokens, targets)
        old_logps, ref_logps = (toy.token_logps(p, profiles, tokens) for p in (params, reference))
        scored = toy.token_logps(reward_params, profiles, tokens) if uses_rewards else ref_logps
        advantages = advantages_of(scored, ref_logps, ids, outcomes, labels, number, whole, numbers, profiles)

        def policy_loss(params):
            logps = toy.token_logps(params, profiles, tokens)
            loss, _ = osipo_loss(
                logps, old_logps, advantages, ids, aggregation="token_mean", num_segments=toy.SEGMENTS,
                ref_logps=ref_logps, kl_weight=1e-3,
            )  # fmt: skip
            return loss

        params, state = stepped(params, state, jax.grad(policy_loss)(params), hyper.rate)
        if uses_rewards:
            batch = profiles, tokens, outcomes
            memory = jax.tree.map(lambda old, new: old.at[number % MEMORY].set(new), memory, batch)
            replayed = jax.random.randint(keys[3], (setting.reward_steps,), 0, jnp.minimum(number + 1, MEMORY))
            replayed = replayed.at[0].set(number % MEMORY)

            def reward_step(carry, place):
                gradient = jax.grad(reward_loss)(carry[0], jax.tree.map(lambda x: x[place], memory))
                return stepped(*carry, gradient, hyper.reward_rate, reward_optimizer), None

            (reward_params, reward_state), _ = jax.lax.scan(reward_step, (reward_params, reward_state), replayed)

        truth = toy.forecast(toy.true_number(profiles), variant.zeros)
        reward = jnp.where(whole, toy.worth(numbers.sum(1), truth, variant.zeros), toy.INVALID)
        metrics = {
            "reward": reward.mean(),
            "valid": whole.mean(),
            "kl": (old_logps - ref_logps).sum(1).mean(),
            "credit": credit_accuracy(advantages, ids, whole, numbers, profiles, variant, setting.users),
        }
        return (params, state, reward_params, reward_state, memory), metrics

    def taught_rewards():
        """The reward model after the teacher's chains: labels and outcomes, but nothing sampled from the policy."""
        keys = jax.random.split(jax.random.fold_in(key, 10_000), 3)
        many = setting.taught_chains
        profiles, targets = (jnp.repeat(x, many, axis=0) for x in (user_profiles, user_targets))
        tokens = toy.taught(keys[0], profiles)
        data = profiles, tokens, outcomes_of(keys[1], tokens, targets)
        data = jax.tree.map(lambda x: x.reshape(toy.USERS, many, *x.shape[1:]), data)
        few = max(rows // many, 1)

        def step(carry, key):
            who = jax.random.choice(key, toy.USERS, (few,), replace=False)
            batch = jax.tree.map(lambda x: x[who].reshape(few * many, *x.shape[2:]), data)
            gradient = jax.grad(reward_loss)(carry[0], batch, jnp.repeat(jnp.arange(few), many))
            return stepped(*carry, gradient, hyper.taught * hyper.reward_rate, reward_optimizer), None

        keys = jax.random.split(keys[2], setting.taught_steps)
        return jax.lax.scan(step, (reference, reward_optimizer.init(reference)), keys)[0]

    memory = (
        jnp.zeros((MEMORY, rows), jnp.int32), jnp.zeros((MEMORY, rows, toy.LENGTH), jnp.int32), jnp.zeros((MEMORY, rows))
    )  # fmt: skip
    rewards_start = taught_rewards() if uses_rewards else (reference, optimizer.init(reference))
    start = reference, optimizer.init(reference), *rewards_start, memory
    return jax.lax.scan(update, start, jnp.arange(setting.updates))[1]


def leaves(branches: tuple[int, ...]) -> int:
    """Chains a user."""
    number = 1
    for width in branches:
        number *= width
    return number


def credit_accuracy(advantages, ids, whole, numbers, profiles, variant, users):
    """Correlation of a segment's advantage with what it truly adds, both centred over the whole chains of a user."""
    given = segment_means(advantages, ids, toy.SEGMENTS)
    true = toy.true_credit(numbers, profiles, variant.zeros)
    weights = whole.reshape(users, -1, 1)

    def contrast(values):
        values = values.reshape(users, -1, toy.SEGMENTS)
        mean = (values * weights).sum(1, keepdims=True) / jnp.maximum(weights.sum(1, keepdims=True), 1)
        return (values - mean) * weights

    given, true = contrast(given), contrast(true)
    return (given * true).sum() / jnp.maximum(jnp.sqrt((given**2).sum() * (true**2).sum()), 1e-12)
