"""Features by remembered values against those of the encoder, byte for byte, over requests in any order."""

import datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaletot_jax.errors import DataError
from scaletot_jax.population.rows import Layout, RowEncoder
from scaletot_jax.profiles.features import FeatureSpace
from scaletot_jax.profiles.schema import Schema
from scaletot_jax.profiles.table import validate
from scaletot_jax.serving.remembered import RememberingEncoder

SCHEMA = Schema.from_dict(
    {
        "name": "odd",
        "id": "who",
        "labels": {"days": {"column": "lt", "horizon": 7}},
        "fields": [
            {"name": "word", "kind": "enum", "role": "static"},
            {"name": "yes", "kind": "boolean", "role": "static"},
            {"name": "born", "kind": "date", "role": "static", "column": "birthday"},
            {"name": "tags", "kind": "multi", "role": "early", "ranked": True, "max_values": 2},
            {"name": "money", "kind": "number", "role": "early", "digits": 1},
            {"name": "size", "kind": "ordered", "role": "static", "values": ["S", "M", "L"]},
        ],
    }
)
TYPES = {
    "word": pa.string(),
    "yes": pa.bool_(),
    "birthday": pa.date32(),
    "tags": pa.list_(pa.string()),
    "money": pa.float64(),
    "size": pa.string(),
}
words = st.none() | st.sampled_from(["a", "b ", " b", "é", "", "new", "x\ty", "long " * 40])
rows = st.lists(
    st.fixed_dictionaries(
        {
            "word": words,
            "yes": st.none() | st.booleans(),
            "birthday": st.none() | st.dates(datetime.date(1940, 1, 1), datetime.date(2020, 1, 1)),
            "tags": st.none() | st.lists(words, max_size=3),
            "money": st.none() | st.sampled_from([0.0, 1.0, 2.5, -3.25, 1e9]) | st.floats(-50, 1e6),
            "size": st.none() | st.sampled_from(["S", "M", "L"]),
        }
    ),
    min_size=1,
    max_size=6,
)


def table_of(found, types=TYPES):
    return pa.table({name: pa.array([row[name] for row in found], kind) for name, kind in types.items()})


@pytest.fixture(scope="module")
def encoder():
    known = table_of(
        [
            {
                "word": w,
                "yes": i % 2 == 0,
                "birthday": datetime.date(1980 + i, 1, 1),
                "tags": t,
                "money": 3.0 * i,
                "size": s,
            }
            for i, (w, t, s) in enumerate([("a", ["a", "é"], "S"), ("b", [], "M"), ("é", None, "L")] * 3)
        ]
    )
    whole = known.append_column("who", pa.array([f"u{i}" for i in range(9)])).append_column("lt", pa.array([3] * 9))
    space = FeatureSpace.fit(validate(whole, SCHEMA), SCHEMA, SCHEMA.profile_fields())
    return RowEncoder(space, Layout({}, {field.name: field.source for field in SCHEMA.fields}))


def same(got, want):
    for name in want._fields:
        a, b = getattr(got, name), getattr(want, name)
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes(), name


@given(requests=st.lists(rows, min_size=1, max_size=4))
def test_byte_for_byte_also_when_stores_run_over(encoder, requests):
    kept = RememberingEncoder(encoder, rows=5, values=7)
    for found in [*requests, *requests]:
        table = table_of([row | {"money": None if row["money"] is None else row["money"] + 0.0} for row in found])
        got = outcome(kept, table)
        want = outcome(lambda given: encoder(given, first=0, where="request")[1], table)
        if isinstance(want, str):
            assert got == want
        else:
            same(got, want)


def outcome(of, table):
    try:
        return of(table)
    except DataError as error:
        return str(error)


def test_a_whole_number_is_not_taken_for_the_fraction_of_its_value_nor_true_for_one(encoder):
    row = {"word": "1", "yes": True, "birthday": None, "tags": ["1"], "money": 1, "size": "S"}
    kept = RememberingEncoder(encoder)
    for kind in (pa.float64(), pa.int64(), pa.float64(), pa.int32(), pa.decimal128(8, 2)):
        table = table_of([row], TYPES | {"money": kind})
        same(kept(table), encoder(table, first=0, where="request")[1])


def test_a_date_that_python_has_no_name_for_is_encoded_all_the_same(encoder):
    row = {"word": "a", "yes": True, "birthday": None, "tags": [], "money": 1.0, "size": "S"}
    far = table_of([row]).set_column(2, "birthday", pa.array([3_000_000], pa.int32()).cast(pa.date32()))
    same(RememberingEncoder(encoder)(far), encoder(far, first=0, where="request")[1])


@pytest.mark.parametrize("coded", [False, True])
def test_a_value_that_is_not_allowed_is_named_with_its_row_each_time(encoder, coded):
    row = {"word": "a", "yes": True, "birthday": None, "tags": [], "money": 1.0, "size": "S"}
    bad = table_of([row, row, row | {"size": "XL"}])
    if coded:
        bad = bad.set_column(0, "word", bad["word"].dictionary_encode())
    kept = RememberingEncoder(encoder)
    for _ in range(2):
        with pytest.raises(DataError, match="row 2"):
            kept(bad)
        same(kept(bad.slice(0, 2)), encoder(bad.slice(0, 2), first=0, where="request")[1])


def test_what_is_known_is_not_encoded_again(encoder, monkeypatch):
    row = {"word": "a", "yes": True, "birthday": datetime.date(2000, 2, 29), "tags": ["a"], "money": 2.5, "size": "M"}
    other = row | {"word": "b", "yes": None}
    kept, asked = RememberingEncoder(encoder), []
    real = encoder.encode_field
    monkeypatch.setattr(encoder, "encode_field", lambda *a: asked.append((a[1].name, len(a[0]))) or real(*a))
    want = kept(table_of([row, row]))
    assert asked == [(name, 1) for name in ("word", "yes", "born", "tags", "money", "size")]
    same(kept(table_of([row, row])), want)
    assert len(asked) == 6
    kept(table_of([other, row, other]))
    assert asked[6:] == [("word", 1), ("yes", 1)]
    assert np.isfinite(want.num).all()
