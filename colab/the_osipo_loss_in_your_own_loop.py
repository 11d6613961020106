# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     notebook_metadata_filter: kernelspec,jupytext
#     cell_metadata_filter: tags
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The OSIPO loss in your own loop
#
# `scaletot_jax.losses` are pure functions of arrays: they need jax and NumPy, and no trainer, model class or tokenizer of ours.
# This notebook puts them into a loop of thirty lines around the smallest policy there is, a table of logits, on a bandit of
# *typed segments* where we know which segment deserves which credit. So you can see what each estimator gives to whom, and
# whether that makes it learn faster.
#
# **Hardware.** Any: a CPU is enough, and it was run on a CPU only. The TPU compiler's figure for a v5e-1 (`benchmarks/RESULTS.md`): each of the
# four estimators' whole training, all seeds and rates side by side, needs 61 MiB of 15.75 GiB.

# %% [markdown]
# ## Install
#
# Only on Colab. The package is installed with `--no-deps`, so that Colab's own `jax` stays as it is.

# %%
import importlib.metadata
import importlib.util
import os
import subprocess
import sys

SOURCE = os.environ.get("SCALETOT_SOURCE", "")  # the folder of a checkout, or a wheel; no index is asked by name
OLDEST_JAX = (0, 10, 2)


def present(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def jax_versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}


def install_on_colab() -> list[str]:
    """Installs this package if it is missing, never jax; returns what it installed."""
    before = jax_versions()
    if tuple(int(part) for part in before["jax"].split(".")[:3]) < OLDEST_JAX:
        oldest = ".".join(map(str, OLDEST_JAX))
        raise RuntimeError(
            f"this runtime has jax {before['jax']}; scaletot_jax needs {oldest} or newer: choose a newer runtime"
        )
    if present("scaletot_jax"):
        return []
    if not SOURCE:
        raise RuntimeError(
            "scaletot_jax is not here: upload a checkout or a wheel of it to this runtime and set SCALETOT_SOURCE to its path"
        )
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", SOURCE], check=True)
    importlib.invalidate_caches()
    if jax_versions() != before:
        raise RuntimeError(f"the installation changed jax from {before} to {jax_versions()}; restart the runtime")
    return [SOURCE]


if present("google.colab"):
    print("installed:", install_on_colab() or "nothing, all is there")

# %% tags=["parameters"]
UPDATES, SEEDS = 120, 8
USERS, ROLLOUTS = 8, 8  # prompts a batch, chains a prompt
SHOWN = ("RLOO", "GRPO", "PRIME", "OSIPO")
RATES = (32.0, 64.0, 128.0, 256.0, 512.0)  # of the policy, to choose from; each batch touches a quarter of the table

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from scaletot_jax.losses import (
    implicit_reward_loss,
    osipo_advantages,
    osipo_loss,
    prime_advantages,
    segment_means,
    segment_rewards,
)

# %% [markdown]
# ## A world with known credit
#
# A chain has four segments, each one of five values. For every user there is one right value in *context* and one in *need*:
# both right give outcome 1, one of them 0.5. *Interest* decides nothing. In *habit* one value looks harmless and costs 0.3.
# The outcome that we are shown is the true one plus noise.

# %%
NAMES = ("context", "interest", "need", "habit")
K, VALUES, NOISE = len(NAMES), 5, 0.3


def true_outcome(world, users, chains):
    """True outcome [B] of chains [B, K]."""
    right = world["right"][users]  # [B, K]
    hits = (chains == right).astype(jnp.float32)
    return 0.5 * hits[:, 0] + 0.5 * hits[:, 2] - 0.3 * hits[:, 3]


def true_credit(world, logits, users, chains):
    """What segment k's value added [B, K]: the outcome minus its mean over the values that the policy could have chosen there."""
    probabilities = jax.nn.softmax(logits[users])  # [B, K, V]
    chosen = chains == world["right"][users]
    weight = jnp.array([0.5, 0.0, 0.5, -0.3])
    expected = jnp.take_along_axis(probabilities, world["right"][users][..., None], axis=2)[..., 0]
    return weight * (chosen - expected)


# %% [markdown]
# ## What an estimator is here: one function from a batch to advantages
#
# `segment_ids` says to which typed segment a token belongs: 0 to K − 1; −1, −2, −3 are delimiters, the answer, padding. Here
# every segment is one token, so a row of them is simply 0, 1, 2, 3.

# %%
SEGMENT_IDS = jnp.tile(jnp.arange(K), (USERS * ROLLOUTS, 1))
GROUPS = jnp.repeat(jnp.arange(USERS), ROLLOUTS)
BETA = 0.5


def credit(batch, **options):
    rewards, valid = segment_rewards(batch["prm"], batch["ref"], SEGMENT_IDS, num_segments=K, beta=BETA)
    return osipo_advantages(rewards, valid, batch["outcomes"], GROUPS, SEGMENT_IDS, **options)


ESTIMATORS = {
    "RLOO": lambda batch: credit(batch, process_weight=0.0),
    "GRPO": lambda batch: credit(batch, process_weight=0.0, baseline="group_mean", scale="group_std", min_scale=1e-6),
    "PRIME": lambda batch: prime_advantages(
        batch["prm"], batch["ref"], SEGMENT_IDS, batch["outcomes"], GROUPS, num_segments=K, beta=BETA, scale="batch_max"
    ),
    "OSIPO": lambda batch: credit(batch, process_weight=0.1),
}

# %% [markdown]
# ## The loop
#
# Two tables of logits: the policy and the implicit reward model, both from the same start, which is the reference. An update
# samples chains, asks the world for outcomes, turns them into advantages, takes a gradient step on the policy, and one on the
# reward model. Everything that is OSIPO is in the two calls of losses.
#
# The rate of the policy is chosen for each estimator by itself, on seeds that are not used again. Look at the columns of the
# table below: at one small rate for all, the estimator with the larger advantages wins, and that says nothing about credit.

# %%
REWARD_RATE = 12.0


def log_probabilities(logits, users, chains):
    return jnp.take_along_axis(jax.nn.log_softmax(logits[users]), chains[..., None], axis=2)[..., 0]


def make_update(estimator, rate):
    def update(state, key):
        world, logits, reward, reference = state["world"], state["policy"], state["reward"], state["reference"]
        pick, draw, noise = jax.random.split(key, 3)
        users = jnp.repeat(jax.lax.top_k(jax.random.uniform(pick, logits.shape[:1]), USERS)[1], ROLLOUTS)
        chains = jax.random.categorical(draw, logits[users])
        true = true_outcome(world, users, chains)
        old = log_probabilities(logits, users, chains)
        ref = log_probabilities(reference, users, chains)
        outcomes = true + NOISE * jax.random.normal(noise, true.shape)
        batch = {"prm": log_probabilities(reward, users, chains), "ref": ref, "outcomes": outcomes}
        advantages = estimator(batch)

        def policy_loss(table):
            new = log_probabilities(table, users, chains)
            return osipo_loss(new, old, advantages, SEGMENT_IDS, aggregation="segment_mean", num_segments=K)[0]

        def reward_loss(table):
            prm = log_probabilities(table, users, chains)
            soft = jnp.clip(outcomes, 0.0, 1.0)  # a soft label: how good the chain was
            return implicit_reward_loss(prm, ref, SEGMENT_IDS, soft, GROUPS, num_segments=K, beta=BETA)[0]

        given = segment_means(advantages, SEGMENT_IDS, K)  # [B, K]
        deserved = true_credit(world, logits, users, chains)
        state |= {
            "policy": logits - rate * jax.grad(policy_loss)(logits),
            "reward": reward - REWARD_RATE * jax.grad(reward_loss)(reward),
        }
        return state, {"true": true.mean(), "given": given, "deserved": deserved}

    return update


def train(estimator, seed, rate, users=32):
    key = jax.random.key(seed)
    world = {"right": jax.random.randint(jax.random.fold_in(key, 1), (users, K), 0, VALUES)}
    start = jnp.zeros((users, K, VALUES))
    state = {"world": world, "policy": start, "reward": start, "reference": start}
    keys = jax.random.split(jax.random.fold_in(key, 2), UPDATES)
    return jax.lax.scan(make_update(estimator, rate), state, keys)[1]


runs = {}
for name in SHOWN:
    estimator = ESTIMATORS[name]
    all_runs = jax.jit(
        jax.vmap(jax.vmap(lambda seed, rate, estimator=estimator: train(estimator, seed, rate), (None, 0)), (0, None))
    )  # [seeds, rates]
    found = all_runs(100 + jnp.arange(SEEDS), jnp.array(RATES))["true"].mean(axis=(0, 2))
    best = int(found.argmax())
    chosen = all_runs(jnp.arange(SEEDS), jnp.array(RATES))
    runs[name] = {part: np.asarray(values[:, best]) for part, values in chosen.items()}
    print(f"{name:6} rate {RATES[best]:g}   mean true outcome by rate:", " ".join(f"{value:.3f}" for value in found))

# %% [markdown]
# ## Learning curves
#
# The same worlds, users and random draws for all, so differences can be paired by seed.

# %%
figure, axis = plt.subplots(figsize=(7, 3.5))
for name, run in runs.items():
    curve = run["true"].mean(axis=0)
    axis.plot(np.convolve(curve, np.ones(10) / 10, mode="valid"), label=name)
axis.set_xlabel("update")
axis.set_ylabel("true outcome, mean of the last 10")
axis.legend()
plt.show()

# %% [markdown]
# Difference to RLOO of the mean of the whole curve, paired by seed, with a 95 % interval (Student's t).

# %%
from math import sqrt

T_975 = {4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 15: 2.131}.get(SEEDS - 1, 2.0)
whole = {name: run["true"].mean(axis=1) for name, run in runs.items()}
verdicts = {}
for name in runs:
    difference = whole[name] - whole["RLOO"]
    half = T_975 * difference.std(ddof=1) / sqrt(SEEDS) if SEEDS > 1 else float("inf")
    low, high = difference.mean() - half, difference.mean() + half
    verdicts[name] = "better" if low > 0 else "worse" if high < 0 else "cannot be told"
    print(
        f"{name:6} {whole[name].mean():.4f}   minus RLOO {difference.mean():+.4f} [{low:+.4f}, {high:+.4f}]  {verdicts[name]}"
    )

# %% [markdown]
# ## Who gets the credit?
#
# Correlation, segment by segment, between the advantage that a token was *given* and what its value *deserved*. RLOO and GRPO
# give one number to the whole chain, so *interest*, which decides nothing, is paid like the rest; its column has no deserved
# credit at all, so there the height is the mean size of what it was given, where 0 would be right.

# %%
figure, axis = plt.subplots(figsize=(7, 3.5))
width = 0.8 / len(runs)
credit_accuracy = {}
for number, (name, run) in enumerate(runs.items()):
    given, deserved = (run[part].reshape(-1, K) for part in ("given", "deserved"))
    heights = []
    for k in range(K):
        if deserved[:, k].std() > 0:
            heights.append(float(np.corrcoef(given[:, k], deserved[:, k])[0, 1]))
        else:
            heights.append(float(np.abs(given[:, k]).mean() / max(np.abs(given).mean(), 1e-9)))
    credit_accuracy[name] = heights
    axis.bar(np.arange(K) + width * number, heights, width, label=name)
axis.set_xticks(
    np.arange(K) + 0.4 - width / 2, [f"{name}\n{'(share given)' if name == 'interest' else ''}" for name in NAMES]
)
axis.set_ylabel("correlation with deserved credit")
axis.legend()
plt.show()
for name, heights in credit_accuracy.items():
    print(f"{name:6}", "  ".join(f"{segment} {height:+.2f}" for segment, height in zip(NAMES, heights)))

# %% [markdown]
# Better credit is not the same as faster learning: look at both figures before you choose. `docs/recipes.md` has the other
# estimators (Dr.GRPO, DAPO, GSPO, rollouts as a tree), `scaletot_jax.losses.prefix_critic_advantages` is one more, and
# `benchmarks/credit.py` asks the same question on an autoregressive policy, where nothing beat RLOO.
