"""Content keys: equal exactly where the canonical values are equal, whatever the order of rows, fields or chunks."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st
from profiles.cases import schema, table

from scaletot_jax.profiles.keys import coarse_keys, exact_keys, share_of_repeats
from scaletot_jax.profiles.table import validate

FIELDS = schema().profile_fields()
COLUMNS = {
    "age": st.sampled_from(["young", "middle", "old", None]),
    "city": st.sampled_from(["Arden", "Brook", "Cove", None]),
    "likes": st.none() | st.lists(st.sampled_from("ab"), max_size=2),
    "visits": st.none() | st.integers(0, 5),
    "spend": st.none() | st.sampled_from([0.0, 1.0, 2.5]),
}


@st.composite
def tables(draw):
    rows = draw(st.integers(1, 12))
    drawn = {name: draw(st.lists(values, min_size=rows, max_size=rows)) for name, values in COLUMNS.items()}
    types = {
        "likes": pa.list_(pa.string()),
        "age": pa.string(),
        "city": pa.string(),
        "visits": pa.int64(),
        "spend": pa.float64(),
    }
    return validate(table(rows, **{name: pa.array(values, types[name]) for name, values in drawn.items()}), schema())


@given(tables())
def test_keys_are_equal_exactly_where_the_profiles_are(population):
    names = [field.name for field in FIELDS]
    records = [repr(row) for row in population.select(names).to_pylist()]
    found = exact_keys(population, FIELDS)
    for i, key in enumerate(found):
        for j in range(i):
            assert (key == found[j]) == (records[i] == records[j])


@given(tables(), st.randoms(use_true_random=False))
def test_a_key_depends_on_the_row_alone(population, random):
    order = list(range(population.num_rows))
    random.shuffle(order)
    fields = list(FIELDS)
    random.shuffle(fields)
    for keys in (exact_keys, coarse_keys):
        whole = keys(population, FIELDS)
        assert list(keys(population.take(order), fields)) == list(whole[order])
        parts = pa.concat_tables([population.slice(0, 1), population.slice(1)])
        assert list(keys(parts, FIELDS)) == list(whole)


def bin_of(visits):
    return None if visits is None else sum(visits >= edge for edge in (1, 3))


@given(tables())
def test_coarse_keys_see_only_the_stated_fields_and_bins(population):
    """The schema marks age, plan (as classes) and visits (bins at 1 and 3)."""
    rows = population.select(["age", "plan", "visits"]).to_pylist()
    classes = [(row["age"], row["plan"], bin_of(row["visits"])) for row in rows]
    found = coarse_keys(population, FIELDS)
    for i in range(len(rows)):
        for j in range(i):
            assert (found[i] == found[j]) == (classes[i] == classes[j])


@given(tables())
def test_the_exact_key_is_finer_than_the_coarse_key(population):
    exact, coarse = exact_keys(population, FIELDS), coarse_keys(population, FIELDS)
    of = {}
    for one, other in zip(exact, coarse):
        assert of.setdefault(one, other) == other
    assert share_of_repeats(exact) <= share_of_repeats(coarse)


def test_fields_outside_the_profile_do_not_count():
    static = schema().profile_fields("static")
    one, other = table(visits=[1] * 6), table(visits=[2] * 6)
    assert list(exact_keys(validate(one, schema()), static)) == list(exact_keys(validate(other, schema()), static))
    assert exact_keys(validate(one, schema()), FIELDS)[0] != exact_keys(validate(other, schema()), FIELDS)[0]


def test_number_types_and_missing_values():
    whole = validate(table(spend=[3.0] * 6), schema())
    integer = whole.set_column(whole.column_names.index("spend"), "spend", pa.array([3] * 6))
    assert list(exact_keys(whole, FIELDS)) == list(exact_keys(integer, FIELDS))
    zero = validate(table(spend=[0.0] * 6), schema())
    none = validate(table(spend=pa.nulls(6, pa.float64())), schema())
    assert exact_keys(zero, FIELDS)[0] != exact_keys(none, FIELDS)[0]


def test_keys_are_stable():
    """A change of the canonical form would orphan every cached chain; it must be made on purpose."""
    population = validate(table(), schema())
    assert exact_keys(population, FIELDS)[0] == "577e53cb5dc388954004e8c508e38ed7"
    assert coarse_keys(population, FIELDS)[0] == "bb0101994d1d720641248cb52b10a183"


def test_share_of_repeats():
    assert share_of_repeats(np.array(["a", "b", "a", "c"], object)) == 0.5
    assert share_of_repeats(np.array([], object)) == 0.0
