"""Chains as explanations: only those that enough users share, the nearest one, and nothing that names anybody."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving.conftest import reasoned

from scaletot_jax.chains.spec import load_spec
from scaletot_jax.datasets.synthetic import build_table
from scaletot_jax.errors import DataError
from scaletot_jax.population.exemplars import (
    Exemplars,
    Reasoned,
    collect,
    read_exemplars,
    share_chains,
    show,
    write_exemplars,
)
from scaletot_jax.profiles.keys import exact_keys
from scaletot_jax.profiles.table import validate

PROFILE = st.tuples(st.sampled_from("abc"), st.sets(st.integers(0, 6), min_size=1))

pytestmark = pytest.mark.xdist_group("serve")


@given(st.lists(PROFILE, min_size=1, max_size=20), st.integers(2, 6))
def test_a_chain_is_kept_exactly_where_enough_users_share_it(profiles, least):
    rng = np.random.default_rng(len(profiles))
    made = Reasoned(
        [(word, None) for word, _ in profiles], rng.dirichlet([1, 1], len(profiles)),
        [{str(user) for user in users} for _, users in profiles], rng.normal(size=(len(profiles), 3)).astype(np.float32),
    )  # fmt: skip
    chains, embedding = share_chains(made, least)
    crowd = {word: set().union(*(users for other, users in profiles if other == word)) for word, _ in profiles}
    assert {chain["values"][0]: chain["users"] for chain in chains} == {
        word: len(users) for word, users in crowd.items() if len(users) >= least
    }
    for chain, mean in zip(chains, embedding):
        members = [i for i, (word, _) in enumerate(profiles) if word == chain["values"][0]]
        np.testing.assert_allclose(mean, made.embedding[members].mean(0), rtol=1e-5, atol=1e-6)
        assert sum(chain["answer"]) == pytest.approx(1, abs=1e-5)


def test_the_files_name_no_user_and_no_profile(models):
    found = read_exemplars(models[0])
    spec = load_spec("synthetic")
    assert len(found.record["chains"]) == found.embedding.shape[0] and found.record["left_out"] > 0
    assert all(chain["users"] >= 5 for chain in found.record["chains"])
    assert "user " not in (models[0].directory / "chains.json").read_text()
    shown = show(found.record, 0)
    assert list(shown["chain"]) == [segment.title for segment in spec.segments if not all(s.source == "free" for s in segment.slots)]  # fmt: skip
    assert sum(shown["answer"].values()) == pytest.approx(1, abs=1e-4) and len(shown["answer"]) == spec.num_buckets
    with pytest.raises(DataError, match="no chain is shared"):
        write_exemplars(models[0]._replace(directory=None), reasoned(spec, 8), spec, 100)


def test_the_nearest_chain_is_that_of_the_largest_cosine_about_the_center():
    rng = np.random.default_rng(1)
    chains, center, rows = rng.normal(size=(7, 4)), rng.normal(size=4), rng.normal(size=(20, 4))
    index, similarity = Exemplars({}, chains.astype(np.float32), center.astype(np.float32)).nearest(rows)
    for row, i, s in zip(rows, index, similarity):
        cosine = [np.dot(row - center, c - center) / np.linalg.norm(row - center) / np.linalg.norm(c - center) for c in chains]  # fmt: skip
        assert i == int(np.argmax(cosine)) and s == pytest.approx(max(cosine), abs=1e-5)


def test_collect_counts_the_users_of_a_profile_in_the_whole_population(models):
    """A profile's crowd is everybody who has it, not only those that the teacher's split holds."""
    model, spec = models[0], load_spec("synthetic")
    table = validate(build_table(30, seed=8), model.schema)
    keys = exact_keys(table, model.fields)
    population = pa.concat_tables([table, table.slice(0, 3)]).append_column("exact_key", pa.array([*keys, *keys[:3]]))
    index = population.column_names.index("group")
    population = population.set_column(index, "group", pa.array([f"g{i}" for i in range(33)]))
    values = [slot.values[0] if slot.values else "a free text" for slot in spec.slots]
    rows = [{"exact_key": keys[i], "rank": r, "values": values, "answer": [1.0] + [0.0] * (spec.num_buckets - 1), "accepted": i != 5} for i in (0, 4, 5) for r in (0, 1)]  # fmt: skip
    found = collect(model, pa.Table.from_pylist(rows), population, spec)
    assert found.users == [{"g0", "g30"}, {"g4"}] and found.embedding.shape == (2, 8)
    free = [i for i, slot in enumerate(spec.slots) if slot.source == "free"]
    assert all(found.values[0][i] is None for i in free) and "a free text" not in found.values[0]
