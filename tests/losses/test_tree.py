"""Tree baselines against loops over an explicit tree, and what they become where the tree is flat or bushy."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from losses import reference
from losses.cases import compiled, float64, make_batch
from losses.test_sharding import ROWS, mesh_of

from scaletot_jax.losses import osipo_advantages, tree_advantages

SHAPE = (8, 12, 3)
BARE = dict(scale=None, clip=None)


def labels_of(seed, rows=SHAPE[0], num_segments=SHAPE[2]):
    """Few labels, so that many leaves share prefixes of every length."""
    return np.random.default_rng(seed).choice([-3, 11, 40], (rows, num_segments), p=[0.5, 0.3, 0.2])


def mixed(outcomes, member, labels, groups):
    """V_n − the mix of siblings and cousins, from an explicit dictionary of nodes at each depth."""
    rows, depth = labels.shape
    out = np.zeros((rows, depth))
    for k in range(depth):
        nodes = {}  # (group, parent, own label) -> leaves
        for i in np.flatnonzero(member[:, k]):
            nodes.setdefault((groups[i], tuple(labels[i, :k]), labels[i, k]), []).append(i)
        value = {node: np.mean(outcomes[leaves]) for node, leaves in nodes.items()}
        families = {}
        for node in nodes:
            families.setdefault(node[:2], []).append(node)

        within, between, free, weight = 0.0, 0.0, 0, 0.0
        for group in {node[0] for node in nodes}:
            mine = [family for family in families.values() if family[0][0] == group]
            total = sum(len(family) for family in mine)
            centre = np.mean([value[node] for family in mine for node in family])
            for family in mine:
                mean = np.mean([value[node] for node in family])
                within += sum((value[node] - mean) ** 2 for node in family)
                between += len(family) * (mean - centre) ** 2
            free += len(mine) - 1
            weight += total - sum(len(family) ** 2 for family in mine) / total
        inner_free = len(nodes) - len(families)
        child = within / inner_free if inner_free else 0.0
        parent = max(0.0, (between - free * child) / weight) if weight > 1e-9 else 0.0

        for node, leaves in nodes.items():
            siblings = [other for other in families[node[:2]] if other != node]
            cousins = [f for f in families.values() if f[0][0] == node[0] and f[0][:2] != node[:2]]
            flat = list(itertools.chain(*cousins))
            if not siblings and not flat:
                continue
            if not flat:
                trust = 1.0
            elif not siblings:
                trust = 0.0
            else:
                near = child / len(siblings)
                far = parent * (1 + sum(len(f) ** 2 for f in cousins) / len(flat) ** 2) + child / len(flat)
                trust = far / (near + far) if near + far > 0 else len(siblings) / (len(siblings) + len(flat))
            near, far = (np.mean([value[n] for n in some]) if some else 0.0 for some in (siblings, flat))
            out[leaves, k] = value[node] - trust * near - (1 - trust) * far
    return out


def expected(batch, labels, valid):
    alive = reference.alive_rows(batch.ids, batch.num_segments)
    per_segment = mixed(np.where(alive, batch.outcomes, 0), valid & alive[:, None], labels, batch.groups)
    outcome = reference.centred(batch.outcomes, alive, batch.groups, "loo")
    out = np.zeros(batch.ids.shape)
    for i, t in zip(*np.nonzero(reference.real_tokens(batch.ids, batch.num_segments)), strict=True):
        out[i, t] = per_segment[i, batch.ids[i, t]] if batch.ids[i, t] >= 0 else outcome[i]
    return out


@given(st.integers(0, 2**32 - 1))
def test_equals_loops_over_an_explicit_tree(seed):
    batch, labels = make_batch(seed, SHAPE), labels_of(seed)
    valid = batch.rewards[1]
    with float64():
        actual = compiled(tree_advantages, **BARE)(batch.outcomes, valid, labels, batch.groups, batch.ids)
        assert actual.dtype == np.float64
    np.testing.assert_allclose(actual, expected(batch, labels, valid), atol=1e-10)


@pytest.mark.parametrize("options", [dict(), dict(scale="group_std", answer="outcome"), BARE])
@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_chains_that_share_nothing_are_rloo(options, seed):
    batch = make_batch(seed, SHAPE)
    rewards, _ = batch.rewards
    everywhere = np.ones(rewards.shape, bool)
    labels = np.tile(np.arange(len(batch.ids))[:, None], 3)
    with float64():
        common = batch.outcomes, batch.groups, batch.ids
        actual = compiled(tree_advantages, **options)(common[0], everywhere, labels, *common[1:])
        rloo = compiled(osipo_advantages, **options)(np.zeros_like(rewards), everywhere, *common, process_weight=0.0)
    np.testing.assert_allclose(actual, rloo, atol=1e-10)


def bushy(parents, children, spread, seed, groups=40):
    """Trees of two depths, the values of whose parents differ by ``spread``, of whose children by 1."""
    rng = np.random.default_rng(seed)
    shape = groups, parents, children
    outcomes = spread * rng.normal(size=(groups, parents, 1)) + rng.normal(size=shape)
    group, parent, child = (x.ravel() for x in np.indices(shape))
    ids = np.tile(np.array([0, -1, 1]), (outcomes.size, 1))
    return outcomes.reshape(-1), np.stack([parent, child], 1), group, ids


@pytest.mark.parametrize(("spread", "family"), [(0.0, False), (50.0, True)])
def test_the_baseline_follows_whether_parents_differ(spread, family):
    """Very different parents: siblings alone. Equal parents: all other nodes, so nearly the leave-one-out outcome."""
    outcomes, labels, groups, ids = bushy(4, 4, spread, 3)
    with float64():
        arguments = outcomes, np.ones(labels.shape, bool), labels, groups, ids
        actual = np.asarray(compiled(tree_advantages, **BARE)(*arguments))[:, 2]
    whole = outcomes.reshape(40, 16)
    peers = ((16 * whole - whole.sum(1, keepdims=True)) / 15).ravel()
    brothers = outcomes.reshape(40, 4, 4)
    siblings = ((4 * brothers - brothers.sum(2, keepdims=True)) / 3).ravel()
    near, far = (siblings, peers) if family else (peers, siblings)
    assert np.abs(actual - near).mean() < 0.25 * np.abs(actual - far).mean()


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_order_names_constants_and_padding_change_nothing(seed):
    batch, labels = make_batch(seed, SHAPE), labels_of(seed)
    valid = batch.rewards[1]
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    with float64():
        function = compiled(tree_advantages, **BARE)
        actual = np.asarray(function(batch.outcomes, valid, labels, batch.groups, batch.ids))
        arguments = batch.outcomes + 3.0, valid, 7 - 2 * labels, batch.groups * 5 + 1, batch.ids
        again = np.asarray(function(*[x[order] for x in arguments]))
        equal = np.asarray(function(np.full(len(labels), 0.3), valid, labels, batch.groups, batch.ids))
    np.testing.assert_allclose(again, actual[order], atol=1e-10)
    np.testing.assert_array_equal(equal, 0)
    assert not actual[batch.ids == -3].any()


def test_a_group_may_lie_across_devices():
    batch, labels = make_batch(21, (16, 12, 2)), labels_of(4, 16, 2)
    arguments = batch.outcomes, batch.rewards[1], labels, batch.groups, batch.ids
    parallel = jax.shard_map(
        lambda *x: tree_advantages(*x, axis_name="data"), mesh=mesh_of(), in_specs=(ROWS,) * 5, out_specs=ROWS
    )
    with float64():
        many, one = jax.jit(parallel)(*arguments), compiled(tree_advantages)(*arguments)
    np.testing.assert_allclose(many, one, atol=1e-12)
    assert np.asarray(one).any()


def test_misuse_is_refused():
    batch, labels = make_batch(0, SHAPE), labels_of(0)
    valid = batch.rewards[1]
    with pytest.raises(ValueError, match=r"node_ids must have shape \[8, K\]"):
        tree_advantages(batch.outcomes, valid, labels[:4], batch.groups, batch.ids)
    with pytest.raises(ValueError, match=r"valid must have shape \[8, 3\]"):
        tree_advantages(batch.outcomes, valid[:, :2], labels, batch.groups, batch.ids)
    with pytest.raises(ValueError, match="scale must be one of"):
        tree_advantages(batch.outcomes, valid, labels, batch.groups, batch.ids, scale="std")
    with pytest.raises(ValueError, match="at least one segment"):
        tree_advantages(batch.outcomes, valid[:, :0], labels[:, :0], batch.groups, batch.ids)
