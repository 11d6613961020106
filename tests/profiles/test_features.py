"""Feature ids and numbers: four different special ids, a reference in plain Python, and a round trip through JSON."""

import json
import math

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st
from profiles.cases import field_changed, schema, table

from scaletot_jax.profiles.features import (
    FIRST_VALUE,
    MISSING,
    PADDING,
    REDACTED_ID,
    UNKNOWN,
    FeatureSpace,
    NumberScale,
)
from scaletot_jax.profiles.fields import REDACTED
from scaletot_jax.profiles.table import validate


def fitted(rows=24, spec=None, **columns):
    spec = spec or schema()
    population = validate(table(rows, **columns), spec)
    return FeatureSpace.fit(population, spec, spec.profile_fields()), population


def test_the_four_special_ids_are_different():
    assert sorted([PADDING, MISSING, UNKNOWN, REDACTED_ID]) == [0, 1, 2, 3] and FIRST_VALUE == 4
    space, _ = fitted()
    new = validate(
        table(
            age=["young", None, REDACTED, "middle", "old", "old"],
            city=["Arden", "Zoo", None, REDACTED, "Brook", "Cove"],
        ),
        schema(),
    )
    cat = space.encode(new).cat
    age, city = (cat[:, space.cat_fields.index(name)] for name in ("age", "city"))
    assert age.tolist() == [4, MISSING, REDACTED_ID, 5, 6, 6]
    assert city.tolist() == [4, UNKNOWN, MISSING, REDACTED_ID, 5, UNKNOWN]  # Cove is not in the schema's closed list


def test_multi_ids_are_padded_and_tell_empty_from_missing():
    space, _ = fitted()
    new = validate(table(likes=[["a"], [], None, ["z"], ["b", "a"], [REDACTED, "c"]]), schema())
    found = space.encode(new).multi[:, 0]
    assert space.vocabulary["likes"] == ("a", "b", "c")
    assert found.tolist() == [[4, 0], [0, 0], [1, 0], [2, 0], [4, 5], [3, 6]]


def test_a_listed_value_that_training_never_had_is_unknown():
    space, _ = fitted(age=["young", "old"] * 12)
    new = validate(table(age=["middle"] * 6), schema())
    assert set(space.encode(new).cat[:, space.cat_fields.index("age")]) == {UNKNOWN}
    assert space.sizes["age"] == FIRST_VALUE + 2


def test_rare_values_of_open_lists_train_the_unknown_id():
    space, population = fitted(likes=[["a"]] * 23 + [["rare"]])
    assert space.vocabulary["likes"] == ("a",)
    assert space.encode(population).multi[-1, 0, 0] == UNKNOWN
    assert UNKNOWN in space.active["likes"]


def test_numbers_are_standardised_logs_and_ranks():
    values = [0.0, 0.0, 1.0, 3.0, 10.0, 1000.0] * 4
    space, population = fitted(spend=values, visits=[None] * 24)
    features = space.encode(population)
    log, rank = (features.num[:, space.num_columns.index(f"spend:{part}")] for part in ("log", "rank"))
    logs = np.array([math.log1p(v) for v in values])
    np.testing.assert_allclose(log, (logs - logs.mean()) / logs.std(), rtol=1e-5)
    middle = [(sum(v < x for v in values) + sum(v == x for v in values) / 2) / 24 for x in values]
    np.testing.assert_allclose(rank, np.array(middle) * 2 - 1, rtol=1e-5)
    absent = features.missing[:, space.num_columns.index("visits:log")]
    assert absent.all() and not features.num[:, space.num_columns.index("visits:log")].any()


def test_ordered_values_have_their_place():
    space, _ = fitted()
    new = validate(table(age=["young", "middle", "old", None, REDACTED, "old"]), schema())
    features = space.encode(new)
    place = space.num_columns.index("age:order")
    assert features.num[:, place].tolist() == [-1, 0, 1, 0, 0, 1]
    assert features.missing[:, place].tolist() == [False, False, False, True, True, False]


def test_dense_is_one_hot_of_what_training_had():
    space, population = fitted()
    dense = space.dense(space.encode(population))
    names = space.dense_columns()
    assert dense.shape == (24, len(names)) and dense.dtype == np.float32 and len(set(names)) == len(names)
    records = population.to_pylist()
    for i, name in enumerate(names):
        if name == "age=missing":
            assert dense[:, i].tolist() == [float(r["age"] is None) for r in records]
        if name == "plan=paid":
            assert dense[:, i].tolist() == [float(r["plan"] == "paid") for r in records]
        if name == "likes=a":
            assert dense[:, i].tolist() == [
                ("a" in (r["likes"] or [])) / max(1, len(r["likes"] or [])) for r in records
            ]
        if name == "spend:missing":
            assert dense[:, i].tolist() == [float(r["spend"] is None) for r in records]
    assert "age=unknown" not in names and "likes=missing" in names
    new = space.dense(space.encode(validate(table(age=[REDACTED] * 6), schema())))
    assert not new[:, [i for i, name in enumerate(names) if name.startswith("age=")]].any()


def test_no_constant_column_but_those_of_constant_fields():
    """A one-hot column that is never 1 in training would keep a random weight."""
    space, population = fitted()
    dense = space.dense(space.encode(population))
    for column, name in zip(dense.T, space.dense_columns()):
        if "=" in name:
            assert column.any(), name


@given(
    st.lists(st.floats(-1e9, 1e9, allow_nan=False, width=32), max_size=600),
    st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=20),
)
def test_scales_are_finite_bounded_and_monotone(train, new):
    scale = NumberScale.fit(np.array(train, float))
    log, rank = scale.columns(np.sort(np.array(new, float)))
    for column, bound in ((log, 5.0), (rank, 1.0)):
        assert np.isfinite(column).all() and (np.abs(column) <= bound).all() and (np.diff(column) >= -1e-12).all()
    assert len(scale.knots) <= 257


@given(
    st.lists(st.sampled_from(["Arden", "Brook", "Cove", "Zoo", REDACTED, None]), min_size=1, max_size=20),
    st.lists(st.none() | st.lists(st.sampled_from("abcd"), max_size=4), min_size=20, max_size=20),
)
def test_every_value_has_its_id(cities, likes):
    spec = field_changed("city", values=[])
    space, _ = fitted(24, spec)
    rows = len(cities)
    lists = pa.array(likes[:rows], pa.list_(pa.string()))
    population = validate(table(rows, city=pa.array(cities, pa.string()), likes=lists), spec)
    features = space.encode(population)

    def expected(value, field):
        vocabulary = space.vocabulary[field]
        if value is None:
            return MISSING
        if value == REDACTED:
            return REDACTED_ID
        return FIRST_VALUE + vocabulary.index(value) if value in vocabulary else UNKNOWN

    for i, row in enumerate(population.to_pylist()):
        assert features.cat[i, space.cat_fields.index("city")] == expected(row["city"], "city")
        want = [MISSING] if row["likes"] is None else [expected(v, "likes") for v in row["likes"][:2]]
        assert features.multi[i, 0].tolist() == (want + [0, 0])[:2]
    assert (features.cat < [space.sizes[name] for name in space.cat_fields]).all()


def test_json_round_trip():
    space, population = fitted(spend=np.linspace(0, 1, 24) ** 3)
    again = FeatureSpace.from_dict(json.loads(json.dumps(space.to_dict())))
    assert again == space
    for one, other in zip(space.encode(population), again.encode(population)):
        assert np.array_equal(one, other) and one.dtype == other.dtype


def test_labels_identifiers_and_text_are_not_features():
    space, _ = fitted()
    names = " ".join(space.dense_columns())
    for word in ("uid", "user_id", "house", "group", "lt30", "ltv30", "note"):
        assert word not in names
    one = fitted()[0]
    other = fitted(lt30=[1] * 24, ltv30=[2.0] * 24)[0]
    assert one == other


def test_static_fields_alone():
    population = validate(table(24), schema())
    space = FeatureSpace.fit(population, schema(), schema().profile_fields("static"))
    assert not any(name.startswith(("visits", "spend")) for name in space.dense_columns())
