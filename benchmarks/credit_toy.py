"""The toy of ``credit.py``: users, typed chains whose worth is known segment by segment, and a small policy.

A user has a profile of three facts with four values each (64 canonical profiles, a few common, most rare) and a label in
0..4. A chain has four typed segments, each an opening token and two words, and a closing token: 13 tokens. Segments 0 and
2 are decisive: each of their four words states one number, and a reader who adds the numbers up forecasts the label.
Stating the right ones for the profile gives the true distribution of the label, the best forecast in expectation (the
ranked probability score is proper). Segment 1 is irrelevant. Segment 3 misleads: in the supervised data its hopeful words
go with right chains, but they only make the forecast too high. Nothing stops the policy from breaking the form; such a
chain is invalid and worth −0.1. What a segment is worth is therefore known exactly (:func:`true_credit`).

The policy is autoregressive with one hidden layer, h_t = tanh(W x + Σ_{s<t} E[s, y_s] + p_t), logits H_t h_t + c_t:
small enough that every comparison has many seeds.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scaletot_jax.losses import PADDING, STRUCTURAL, expected_rps_outcome, mean_loss, token_cross_entropy

SEGMENTS, WORDS, BUCKETS = 4, 6, 5
CLOSE = WORDS + SEGMENTS
VOCABULARY = CLOSE + 1
LAYOUT = np.array([STRUCTURAL, 0, 0, STRUCTURAL, 1, 1, STRUCTURAL, 2, 2, STRUCTURAL, 3, 3, STRUCTURAL])
FORM = np.array([WORDS, -1, -1, WORDS + 1, -1, -1, WORDS + 2, -1, -1, WORDS + 3, -1, -1, CLOSE])  # −1: any word
LENGTH, HIDDEN, USERS, INVALID = len(LAYOUT), 48, 512, -0.1
CONTENT = np.flatnonzero(LAYOUT >= 0)  # the eight places of words

FACTS = np.stack(np.unravel_index(np.arange(64), (4, 4, 4)), axis=1)  # [64, 3] profiles
PROFILES = np.eye(4, dtype=np.float32)[FACTS].reshape(64, 12)
POPULARITY = 1 / np.arange(1, 65) ** 0.8
# Which word is right at the four decisive places: the fact itself, or the fact in another order of words.
RIGHT = np.stack(
    [FACTS[:, 0], FACTS[:, 1], np.array([2, 0, 3, 1])[FACTS[:, 2]], np.array([1, 3, 2, 0])[FACTS[:, 0]]], 1
)
# What a word states there, in log-odds a bucket: words 4 and 5 say nothing.
NUMBERS = np.array([[-0.6, -0.2, 0.2, 0.6, 0, 0], [0.6, -0.2, 0.2, -0.6, 0, 0]], np.float32)[[0, 1, 0, 1]]
HOPE = np.array([0.9, 0.9, 0.9, 0, 0, 0], np.float32)  # first word of segment 3
DECISIVE = np.array([0, 1, 4, 5])  # among the content places
HOPEFUL = 6


class Variant(NamedTuple):
    """How the labels and outcomes of a world come about."""

    zeros: float  # share of users whose label is 0 whatever their profile
    leaf_noise: float  # standard deviation added to the outcome of every rollout
    labelled: float  # 1: one label a user, shared by his rollouts; 0: the true distribution


VARIANTS = {
    "clean": Variant(0.0, 0.0, 0.0),
    "noise per leaf": Variant(0.0, 0.2, 0.0),
    "noise per user": Variant(0.0, 0.0, 1.0),
    "zero-inflated": Variant(0.6, 0.0, 1.0),
}


def forecast(number: jax.Array, zeros: jax.Array) -> jax.Array:
    """Distribution of the label [..., K_b] that goes with a sum of stated numbers [...]."""
    slope = jnp.arange(BUCKETS) - (BUCKETS - 1) / 2
    inflated = zeros * jax.nn.one_hot(0, BUCKETS)
    return inflated + (1 - zeros) * jax.nn.softmax(number[..., None] * slope)


def true_number(profiles: jax.Array) -> jax.Array:
    """Sum of the right numbers of each profile, [...]."""
    return jnp.asarray(NUMBERS)[jnp.arange(4), jnp.asarray(RIGHT)[profiles]].sum(-1)


def parse(tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Segment ids [B, T] and whole chains bool [B]; from the first token out of form on, nothing is parsed."""
    fits = jnp.where(FORM < 0, tokens < WORDS, tokens == FORM)
    reached = jnp.cumprod(fits, axis=1) > 0
    done = jnp.stack([jnp.where(np.equal(LAYOUT, k), reached, True).all(axis=1) for k in range(SEGMENTS)], axis=1)
    ids = jnp.where(jnp.asarray(LAYOUT) >= 0, jnp.where(done[:, LAYOUT.clip(0)], LAYOUT, STRUCTURAL), STRUCTURAL)
    return ids, reached[:, -1]


def stated(tokens: jax.Array) -> jax.Array:
    """Number that each of the four segments states, [B, K]."""
    words = jnp.clip(tokens[:, CONTENT], 0, WORDS - 1)
    numbers = jnp.asarray(NUMBERS)[jnp.arange(4), words[:, DECISIVE]]
    zero = jnp.zeros(len(words))
    return jnp.stack([numbers[:, :2].sum(1), zero, numbers[:, 2:].sum(1), jnp.asarray(HOPE)[words[:, HOPEFUL]]], 1)


def worth(number: jax.Array, targets: jax.Array, zeros: jax.Array) -> jax.Array:
    """Expected outcome [...] of forecasting from ``number`` [...] where the label has distribution ``targets``."""
    return expected_rps_outcome(jnp.log(forecast(number, zeros)), jnp.broadcast_to(targets, (*number.shape, BUCKETS)))


def true_credit(numbers: jax.Array, profiles: jax.Array, zeros: jax.Array) -> jax.Array:
    """What each segment adds [B, K]: worth of the chain − its mean worth over all contents of that segment."""
    first, second = (jnp.asarray(n)[:, None] + jnp.asarray(m)[None] for n, m in (NUMBERS[:2], NUMBERS[2:]))
    still = jnp.zeros(WORDS * WORDS)
    contents = jnp.stack([first.ravel(), still, second.ravel(), jnp.repeat(jnp.asarray(HOPE), WORDS)])  # [K, 36]
    total = numbers.sum(1)
    targets = forecast(true_number(profiles), zeros)
    others = total[:, None, None] - numbers[..., None] + contents[None]  # [B, K, 36]
    mean = worth(others, targets[:, None, None], zeros).mean(-1)
    return worth(total, targets, zeros)[:, None] - mean


def initial(key: jax.Array) -> dict[str, jax.Array]:
    """Random parameters of the policy."""
    keys = jax.random.split(key, 4)
    return {
        "profile": jax.random.normal(keys[0], (12, HIDDEN)) * 0.5,
        "place": jax.random.normal(keys[1], (LENGTH, HIDDEN)) * 0.5,
        "token": jax.random.normal(keys[2], (LENGTH, VOCABULARY, HIDDEN)) * 0.2,
        "head": jax.random.normal(keys[3], (LENGTH, HIDDEN, VOCABULARY)) * 0.2,
        "bias": jnp.zeros((LENGTH, VOCABULARY)),
    }


def token_logps(params: dict[str, jax.Array], profiles: jax.Array, tokens: jax.Array) -> jax.Array:
    """log π of the tokens that were drawn, nats [B, T]."""
    embedded = params["token"][jnp.arange(LENGTH), tokens]
    before = jnp.cumsum(embedded, axis=1) - embedded
    start = jnp.asarray(PROFILES)[profiles] @ params["profile"]
    hidden = jnp.tanh(start[:, None] + before + params["place"])
    logits = jnp.einsum("bth,thv->btv", hidden, params["head"]) + params["bias"]
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def draw(params: dict[str, jax.Array], key: jax.Array, profiles: jax.Array, branches: tuple[int, ...]):
    """Chains for each profile, as a tree that branches ``branches[k]`` ways before segment k.

    Returns:
      tokens [n · leaves, T], the rows of one profile adjacent, and node labels [n · leaves, K].
    """
    state = jnp.asarray(PROFILES)[profiles] @ params["profile"]
    tokens = jnp.zeros((len(profiles), 0), jnp.int32)
    labels = jnp.zeros((len(profiles), 0), jnp.int32)
    for t in range(LENGTH):
        if t % 3 == 0 and t < LENGTH - 1:
            width = branches[t // 3]
            state, tokens, labels = (jnp.repeat(x, width, axis=0) for x in (state, tokens, labels))
            labels = jnp.concatenate([labels, jnp.tile(jnp.arange(width), len(state) // width)[:, None]], axis=1)
        logits = jnp.tanh(state + params["place"][t]) @ params["head"][t] + params["bias"][t]
        token = jax.random.categorical(jax.random.fold_in(key, t), logits)
        state = state + params["token"][t, token]
        tokens = jnp.concatenate([tokens, token[:, None]], axis=1)
    return tokens, labels


def decoded_tokens(users: int, branches: tuple[int, ...]) -> int:
    """Tokens a batch of trees takes: a shared segment is decoded once."""
    nodes = users * np.cumprod(branches)
    return int((3 * nodes).sum() + nodes[-1])


def taught(key: jax.Array, profiles: jax.Array) -> jax.Array:
    """The teacher's chains [B, T]: each of the four decisive words is right with probability 0.45, else any word."""
    rows = len(profiles)
    keys = jax.random.split(key, 4)
    words = jax.random.randint(keys[0], (rows, 2 * SEGMENTS), 0, WORDS)
    right = jax.random.bernoulli(keys[1], 0.45, (rows, 4))
    words = words.at[:, DECISIVE].set(jnp.where(right, jnp.asarray(RIGHT)[profiles], words[:, DECISIVE]))
    hopeful = jax.random.bernoulli(keys[2], 0.1 + 0.2 * right.sum(1))
    words = words.at[:, HOPEFUL].set(words[:, HOPEFUL] % 3 + jnp.where(hopeful, 0, 3))
    tokens = jnp.tile(jnp.asarray(FORM), (rows, 1)).at[:, CONTENT].set(words)
    slip = jax.random.bernoulli(keys[3], 0.002, tokens.shape)  # a policy imitates the form well, not perfectly
    return jnp.where(slip, (tokens + 1) % VOCABULARY, tokens)


def supervised(key: jax.Array, steps: int = 400, rows: int = 128) -> dict[str, jax.Array]:
    """The policy after imitating the teacher's chains."""
    import optax

    optimizer = optax.adam(1e-2)

    def step(carry, key):
        params, state = carry
        who, what = jax.random.split(key)
        profiles = jax.random.choice(who, 64, (rows,), p=jnp.asarray(POPULARITY / POPULARITY.sum()))
        tokens = taught(what, profiles)

        def loss(params):
            return mean_loss(*token_cross_entropy(token_logps(params, profiles, tokens), jnp.ones(tokens.shape)))

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    params = initial(jax.random.fold_in(key, 1))
    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key, steps))
    return params


def padded(ids: jax.Array, whole: jax.Array) -> jax.Array:
    """Segment ids with broken chains turned into padding, for a reward model that learns from whole chains only."""
    return jnp.where(whole[:, None], ids, PADDING)
