"""Packed scoring against one plain forward pass a value, and the promise that nothing else changes a row."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaletot_jax.lm.head import logits
from scaletot_jax.lm.model import forward
from scaletot_jax.teacher.scoring import Job, Scorer, padded_length
from scaletot_jax.teacher.token_tree import Variant, read_values, token_tree

INSTRUCTION = "Below is what is known about one user.\n"
PROFILES = (
    "Age: 35-44\nActivity: 7 clicks on 2 days (low)\n",
    "Region: North West\nActivity: none\n",
    "Activity: daily\n",
)
CLOSE = "\n"


def ids(lm, *pieces):
    return tuple(token for piece in pieces for token in lm.tokenizer.encode(piece))


def variant(lm, stem, *values):
    return Variant(ids(lm, *stem), tuple(ids(lm, value) for value in values))


@pytest.fixture(scope="module")
def scorer(tiny_lm):
    return make(tiny_lm, 4)


def make(lm, batch_size):
    return Scorer(lm.params, lm.config, instruction=ids(lm, INSTRUCTION), max_profile_tokens=64, batch_size=batch_size)


def wordings(lm):
    """Three requests: single-token values; multi-token ones of which one begins another; three stems, two beginnings."""
    days = (" 0 days", " 1 day", " 1", " 12 days", " 2-3 days")
    weeks = (" 1", " 2", " none")
    return [
        [variant(lm, ["Habit:"], " daily", " weekly", " rare")],
        [variant(lm, ["Days:"], *days)],
        [
            variant(lm, ["Context:", " settled", CLOSE, "Active days:"], *days),
            variant(lm, ["Context:", " settled", CLOSE, "Active weeks:"], *weeks),
            variant(lm, ["Context:", " couple", CLOSE, "Active weeks:"], *weeks),
        ],
    ]


def requests(lm, full=True):
    return [token_tree(variants, close=ids(lm, CLOSE)[0], full=full) for variants in wordings(lm)]


@partial(jax.jit, static_argnums=1)
def _logits(params, config, tokens, valid):
    return logits(params, config, forward(params, config, tokens, valid=valid).hidden)


def plain(lm, prefix, wording, close):
    """Log-probabilities of each value by one forward pass a value, over the vocabulary and over the trie's alternatives."""
    sums: dict[str, list[float]] = {"full": [], "local": []}
    for value in wording.values:
        shadowed = any(o != value and o[: len(value)] == value for o in wording.values)
        path = (*value, close) if shadowed else value
        tokens = (*prefix, *wording.stem, *path)
        padded = jnp.zeros((1, 96), jnp.int32).at[0, : len(tokens)].set(jnp.asarray(tokens))  # one compiled program
        valid = jnp.arange(96)[None] < len(tokens)
        scores = np.asarray(_logits(lm.params, lm.config, padded, valid), np.float64)[0]
        start = len(tokens) - len(path)
        full = local = 0.0
        for t, token in enumerate(path):
            row = scores[start + t - 1]
            ended = {close} if any(o == path[:t] and o != path for o in wording.values) else set()
            allowed = sorted({o[t] for o in wording.values if len(o) > t and o[:t] == path[:t]} | ended | {token})
            full += row[token] - np.logaddexp.reduce(row)
            local += row[token] - np.logaddexp.reduce(row[allowed])
        sums["full"].append(full)
        sums["local"].append(local)
    return sums


def test_packed_scores_equal_one_forward_a_value(tiny_lm, scorer):
    close = ids(tiny_lm, CLOSE)[0]
    trees = requests(tiny_lm)
    cache = scorer.prefix([ids(tiny_lm, p) for p in PROFILES])
    jobs = [Job(row, tree) for row in range(3) for tree in trees]
    scored = scorer.score(cache, jobs)
    for i, job in enumerate(jobs):
        variants = wordings(tiny_lm)[i % 3]
        prefix = ids(tiny_lm, INSTRUCTION, PROFILES[job.row])
        for got, wording in zip(scored[i], variants, strict=True):
            want = plain(tiny_lm, prefix, wording, close)
            np.testing.assert_allclose(got.full, want["full"], atol=2e-4)
            np.testing.assert_allclose(got.local, want["local"], atol=2e-4)
            assert np.exp(got.local.astype(float)).sum() == pytest.approx(1, abs=1e-5)  # an exact distribution


def test_other_rows_do_not_change_a_row(tiny_lm, scorer):
    """A profile's numbers are the same to the last bit alone, in company, in another row, and under another order."""
    trees = requests(tiny_lm)
    profiles = [ids(tiny_lm, p) for p in (PROFILES[0], "Region: South East\nActivity: 90 clicks\n", PROFILES[0][:-8])]
    assert len({padded_length(len(p)) for p in profiles}) == 1 and len({len(p) for p in profiles}) == 3
    together = scorer.score(scorer.prefix(profiles), [Job(row, tree) for row in range(3) for tree in trees])
    alone = scorer.score(scorer.prefix(profiles[1:2]), [Job(0, tree) for tree in trees])
    turned = scorer.score(scorer.prefix(profiles[::-1]), [Job(row, tree) for tree in trees for row in (1, 0, 2)])
    for t in range(len(trees)):
        for a, b, c in zip(together[3 + t], alone[t], turned[3 * t]):
            np.testing.assert_array_equal(a.local, b.local)
            np.testing.assert_array_equal(a.full, b.full)
            np.testing.assert_array_equal(a.local, c.local)


def test_trees_for_local_sums_alone_are_shorter_and_agree(tiny_lm, scorer):
    whole, short = requests(tiny_lm), requests(tiny_lm, full=False)
    cache = scorer.prefix([ids(tiny_lm, PROFILES[0])])
    both = scorer.score(cache, [Job(0, tree) for tree in whole])
    local = scorer.score(cache, [Job(0, tree) for tree in short])
    assert len(short[2].tokens) < len(whole[2].tokens)
    for a, b in zip(both, local):
        for x, y in zip(a, b):
            np.testing.assert_allclose(x.local, y.local, atol=1e-4)
            assert np.isnan(y.full).all()


def test_scoring_writes_nothing_to_the_cache(tiny_lm, scorer):
    cache = scorer.prefix([ids(tiny_lm, p) for p in PROFILES])
    before = jax.tree.map(np.asarray, cache)
    scorer.score(cache, [Job(0, tree) for tree in requests(tiny_lm)])
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, cache))


def test_equal_beginnings_are_run_once_and_leaves_never():
    tree = token_tree([Variant((1, 2, 3), ((7,), (8, 9))), Variant((1, 2, 4), ((7,), (8,)))], close=0, full=True)
    assert tree.tokens.tolist() == [1, 2, 3, 8, 4]  # no 7, no 9: they are read at their parents
    assert tree.depth.tolist() == [0, 1, 2, 3, 2]
    assert tree.ancestors[3].tolist() == [True, True, True, True, False]
    assert tree.candidates.tolist() == [[7, 8], [9, -1], [7, 8]]


def test_what_lies_below_the_last_choice_is_left_out_of_local_trees():
    values = ((7, 1, 1), (8, 2, 3), (8, 2, 4, 5))
    tree = token_tree([Variant((9,), values)], close=0, full=False)
    assert tree.tokens.tolist() == [9, 8, 2] and tree.nodes.tolist() == [0, 2]  # node 1 has one way to go
    assert tree.steps[0] == (((0, 0),), ((0, 1), (1, 0)), ((0, 1), (1, 1)))


def test_values_are_read_along_their_paths():
    tree = token_tree([Variant((5,), ((1,), (1, 2), (3,)))], close=0, full=True)
    full = np.log(np.array([[0.5, 0.1], [0.25, 0.75]]))
    first, second, third = read_values(tree, full, full)[0].full
    # "1" begins "1 2", so it must be closed: token 0 below the shared node.
    np.testing.assert_allclose([first, second, third], np.log([0.5 * 0.25, 0.5 * 0.75, 0.1]), rtol=1e-6)


def test_impossible_requests_are_refused(tiny_lm, scorer):
    with pytest.raises(ValueError, match="stem"):
        token_tree([Variant((), ((1,), (2,)))], close=0, full=True)
    with pytest.raises(ValueError, match="same ids"):
        token_tree([Variant((1,), ((1,), (1,)))], close=0, full=True)
    with pytest.raises(ValueError, match="batch"):
        scorer.prefix([(1,)] * 5)
    with pytest.raises(ValueError, match="announced"):
        scorer.prefix([(1,) * 65])


def test_few_programs_are_compiled(tiny_lm):
    from scaletot_jax.teacher import scoring

    scorer = make(tiny_lm, 9)  # a size no other test uses
    cache = scorer.prefix([ids(tiny_lm, p) for p in PROFILES])
    close = ids(tiny_lm, CLOSE)[0]
    before = scoring._score._cache_size()
    for length in range(1, 17):  # sixteen lengths, one padded shape
        tree = token_tree([Variant((5,) * length, ((6,), (7,)))], close=close, full=False)
        scorer.score(cache, [Job(0, tree)])
    assert scoring._score._cache_size() - before == 1
