"""The data order: every example once an epoch, fixed shapes, and a state from which it goes on exactly."""

import json

import jax
import numpy as np
import pytest
from student import toy

from scaletot_jax.errors import DataError
from scaletot_jax.student.data import batches, steps_in
from scaletot_jax.student.examples import blank_example, build_examples, hold_out, states_of
from scaletot_jax.student.policy import encode_prompts
from scaletot_jax.student.sft_step import SFTBatch

ARRAYS = {"id": np.arange(10), "x": np.arange(30.0).reshape(10, 3)}
BLANK = {"id": np.int64(-1), "x": np.zeros(3)}


def test_every_example_once_an_epoch_and_the_last_batch_is_filled():
    found = list(batches(ARRAYS, batch_size=4, seed=3, epochs=1, blank=BLANK))
    assert len(found) == steps_in(10, 4, 1) == 3
    ids = np.concatenate([batch["id"] for batch in found])
    assert sorted(ids.tolist()) == [-1, -1, *range(10)] and ids[-2:].tolist() == [-1, -1]
    np.testing.assert_array_equal(found[0]["x"], ARRAYS["x"][found[0]["id"]])


def test_epochs_and_seeds_have_their_own_order():
    two = np.concatenate([batch["id"] for batch in batches(ARRAYS, batch_size=5, seed=3, epochs=2)])
    assert sorted(two[:10]) == sorted(two[10:]) == list(range(10)) and (two[:10] != two[10:]).any()
    other = np.concatenate([batch["id"] for batch in batches(ARRAYS, batch_size=5, seed=4, epochs=2)])
    assert (two != other).any()


def test_it_goes_on_from_its_state():
    iterator = batches(ARRAYS, batch_size=4, seed=3, epochs=None)
    for _ in range(3):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = [next(iterator)["id"].tolist() for _ in range(6)]
    resumed = batches(ARRAYS, batch_size=4, seed=3, epochs=None)
    resumed.set_state(state)
    assert [next(resumed)["id"].tolist() for _ in range(6)] == expected


def test_examples_hold_every_kept_chain():
    examples = toy.examples(6)
    student, arrays = toy.student(), examples.arrays
    assert (arrays.weights > 0).sum() == 9 and set(np.unique(arrays.weights)) == {0.0, 0.5, 1.0}
    rows = toy.chain_table(6).to_pylist()
    row = next(row for row in rows if row["exact_key"] == "key001" and row["rank"] == 1)
    ids = arrays.chains[1, 1][arrays.chain_valid[1, 1]]
    assert student.tokenizer.decode(ids).startswith(f"Context: {row['values'][0]}; {row['values'][1]}\n")
    np.testing.assert_array_equal(arrays.states[1, 1][: len(ids)], states_of(student.chain, ids))
    np.testing.assert_allclose(arrays.targets[arrays.chain_valid].sum(-1), 1, rtol=1e-5)
    assert (arrays.targets[~arrays.chain_valid] == 0).all()
    answer = arrays.states[1, 1] == student.chain.answer_state
    np.testing.assert_allclose(arrays.targets[1, 1][answer][0], row["answer"], rtol=1e-5)
    assert blank_example(arrays).weights.sum() == 0


def test_held_out_profiles_are_a_fixed_share():
    examples = toy.examples(8)
    assert hold_out(examples, 0.0, 1) == (examples, None)
    train, held = hold_out(examples, 0.25, 1)
    assert len(held.keys) == 2 and sorted(train.keys + held.keys) == examples.keys
    for part in (train, held):
        rows = [examples.keys.index(key) for key in part.keys]
        jax.tree.map(np.testing.assert_array_equal, part.arrays, SFTBatch(*(a[rows] for a in examples.arrays)))
    assert hold_out(examples, 0.25, 1)[1].keys == held.keys
    assert len({tuple(hold_out(examples, 0.25, seed)[1].keys) for seed in range(8)}) > 1
    assert len(hold_out(examples, 0.01, 1)[1].keys) == 1
    with pytest.raises(DataError, match=r"sft\.eval_fraction"):
        hold_out(toy.examples(1), 0.5, 1)


def test_rejected_chains_and_unknown_profiles():
    student = toy.student()
    table = toy.chain_table(2)
    rejected = table.set_column(table.column_names.index("accepted"), "accepted", [[False] * table.num_rows])
    texts = {f"key{u:03d}": text for u, text in enumerate(toy.texts(2))}
    with pytest.raises(DataError, match="accepted no chain"):
        build_examples(rejected, texts, student.chain, student.tokenizer, max_profile_tokens=40)
    with pytest.raises(DataError, match="belongs to no profile"):
        build_examples(table, {"key000": "a\n"}, student.chain, student.tokenizer, max_profile_tokens=40)


def test_a_line_that_alone_is_too_long_keeps_its_end_and_counts_as_cut():
    tokenizer = toy.student().tokenizer
    short, long = toy.texts(1)[0], "Age: 3" + "7" * 200 + "\n"
    tokens, valid, cut = encode_prompts(tokenizer, [short, long], 24)
    assert cut == 1 and tokens.shape == (2, 32) and valid[1].sum() == 24
    assert tokenizer.decode(tokens[1][valid[1]]).endswith("7\n")
    assert tokenizer.decode(tokens[0][valid[0]]) == short


def test_control_tokens_in_a_profile_are_text():
    tokenizer = toy.student().tokenizer
    tokens, valid, _ = encode_prompts(tokenizer, ["name: <|im_end|>\n"], 40)
    assert tokenizer.eos_id not in jax.device_get(tokens[valid])
