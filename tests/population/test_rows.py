"""Fast encoding against the plain one: every row through ``canonical`` and ``FeatureSpace.encode``."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaletot_jax.datasets.synthetic import build_table
from scaletot_jax.errors import DataError
from scaletot_jax.population.rows import Layout, RowEncoder, distinct_rows
from scaletot_jax.population.source import Source
from scaletot_jax.profiles.features import FeatureSpace
from scaletot_jax.profiles.schema import Schema, load_schema
from scaletot_jax.profiles.table import validate

SCHEMA = load_schema("synthetic")
LAYOUT = Layout({"user_id": "user_id"}, {field.name: field.source for field in SCHEMA.fields})
ODD = Schema.from_dict(
    {
        "name": "odd",
        "id": "who",
        "snapshot": "day",
        "labels": {"days": {"column": "lt", "horizon": 7}},
        "fields": [
            {"name": "word", "kind": "enum", "role": "static"},
            {"name": "yes", "kind": "boolean", "role": "static"},
            {"name": "born", "kind": "date", "role": "static", "column": "birthday"},
            {"name": "tags", "kind": "multi", "role": "early", "ranked": True, "max_values": 2},
            {"name": "money", "kind": "number", "role": "early", "digits": 1},
            {"name": "size", "kind": "ordered", "role": "static", "values": ["S", "M", "L"], "on_unknown": "unknown"},
        ],
    }
)
ODD_LAYOUT = Layout({"user_id": "who", "snapshot": "day"}, {field.name: field.source for field in ODD.fields})


def same(got, want):
    for name in want._fields:
        a, b = getattr(got, name), getattr(want, name)
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes(), name


@pytest.mark.parametrize("rows", [1, 300, 5000])
def test_the_synthetic_population(rows):
    table = build_table(rows, seed=rows)
    space = FeatureSpace.fit(validate(build_table(400, seed=0), SCHEMA), SCHEMA, SCHEMA.profile_fields())
    keys, got = RowEncoder(space, LAYOUT)(table, first=70, where="t")
    same(got, space.encode(validate(table, SCHEMA)))
    assert keys["row"].to_pylist() == list(range(70, 70 + rows)) and keys["user_id"].equals(table["user_id"])


words = st.sampled_from(["a", "b ", " b", "é", "é", "", "new", "x\ty"])
odd_rows = st.lists(
    st.tuples(
        st.none() | words,
        st.none() | st.booleans(),
        st.none() | st.integers(0, 20000),
        st.none() | st.lists(st.sampled_from(["p", "q", "r ", "r"]), max_size=15),
        st.none() | st.floats(-1e6, 1e6),
        st.none() | st.sampled_from(["S", "M", "XL"]),
    ),
    min_size=1,
    max_size=30,
)


def odd_table(rows, copies=1):
    rows = rows * copies
    word, yes, born, tags, money, size = zip(*rows)
    return pa.table(
        {
            "who": pa.array(range(len(rows))),
            "day": pa.array([19000] * len(rows), pa.date32()),
            "word": pa.array(word, pa.string()).dictionary_encode(),
            "yes": pa.array(yes, pa.bool_()),
            "birthday": pa.array(born, pa.date32()),
            "tags": pa.array(tags, pa.list_(pa.string())),
            "money": pa.array(money, pa.float64()),
            "size": pa.array(size, pa.string()),
            "lt": pa.array([0] * len(rows)),
        }
    )


FITTED = odd_table([("a", True, 100, ["p", "q"], 3.25, "S"), (None, None, None, None, None, None)], copies=3)
ODD_SPACE = FeatureSpace.fit(validate(FITTED, ODD), ODD, ODD.profile_fields())


@given(odd_rows, st.sampled_from([1, 200]))
def test_any_table(rows, copies):
    """Many copies make the numbers repeat, so that they are coded too."""
    table = odd_table(rows, copies)
    keys, got = RowEncoder(ODD_SPACE, ODD_LAYOUT)(table, first=0, where="t")
    same(got, ODD_SPACE.encode(validate(table, ODD)))
    assert keys.column_names == ["row", "user_id", "snapshot"]


def test_what_the_schema_does_not_allow_is_named_with_its_row():
    table = build_table(3000, seed=1)
    space = FeatureSpace.fit(validate(table, SCHEMA), SCHEMA, SCHEMA.profile_fields())
    plans = table["plan"].to_pylist()
    plans[2107] = "gold"
    bad = table.set_column(table.column_names.index("plan"), "plan", pa.array(plans))
    with pytest.raises(DataError, match=r"row 1002107, field 'plan', value 'gold'"):
        RowEncoder(space, LAYOUT)(bad, first=1_000_000, where="t")
    ids = table["user_id"].to_pylist()
    ids[5] = None
    with pytest.raises(DataError, match=r"row 5, field 'user_id'"):
        RowEncoder(space, LAYOUT)(table.set_column(0, "user_id", pa.array(ids)), first=0, where="t")


def test_a_value_of_a_dictionary_is_refused_once_decoded_never():
    """256 rows of one long value would be gigabytes; a value that no row has is no fault."""
    table = build_table(256, seed=1)
    space = FeatureSpace.fit(validate(table, SCHEMA), SCHEMA, SCHEMA.profile_fields())
    place = table.column_names.index("plan")
    words = pa.array([*sorted(set(table["plan"].to_pylist()) - {None}), "x" * 4_000_000])
    codes = pc.index_in(table["plan"].combine_chunks(), value_set=words)
    unused = pa.DictionaryArray.from_arrays(codes, words)
    _, got = RowEncoder(space, LAYOUT)(table.set_column(place, "plan", unused), first=0, where="t")
    same(got, RowEncoder(space, LAYOUT)(table, first=0, where="t")[1])
    bad = pa.DictionaryArray.from_arrays(pa.array([0] * 9 + [len(words) - 1] * 247, pa.int32()), words)
    before = pa.default_memory_pool().max_memory()
    with pytest.raises(DataError, match=r"(?s)247 values .*row 9, field 'plan', value 'xxx") as caught:
        RowEncoder(space, LAYOUT)(table.set_column(place, "plan", bad), first=0, where="t")
    assert len(str(caught.value)) < 3000
    assert pa.default_memory_pool().max_memory() - before < 200 << 20


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_distinct_rows_first_seen_first(values):
    codes, first = distinct_rows([np.array(values, np.int32)[:, None], np.array(values, bool)[:, None]])
    assert [values[i] for i in first] == list(dict.fromkeys(values))
    assert [values[first[code]] for code in codes] == values


@given(st.lists(st.tuples(st.integers(0, 999), st.integers(1, 300)), min_size=1, max_size=5))
def test_blocks_of_any_ranges_are_the_rows(users, pieces):
    source = Source(users, ["user_id", "plan", "interests"], coded=["plan", "interests"])
    whole = pa.concat_tables([pq.read_table(file, columns=source.columns) for file in sorted(users.glob("*.parquet"))])
    ranges, last = [], 0
    for begin, length in sorted(pieces):
        begin = max(begin, last)
        last = min(begin + length, source.rows)
        if begin < last:
            ranges.append((begin, last))
    for (begin, end), table in zip(ranges, source.blocks(ranges), strict=True):
        assert table.to_pylist() == whole.slice(begin, end - begin).to_pylist()
    assert source.place(431).endswith("b.parquet, row 1")


@pytest.mark.parametrize("column", ["user_id", "city"])
def test_words_that_are_no_utf8_are_refused(column):
    table = build_table(30)
    encoder = RowEncoder(FeatureSpace.fit(validate(table, SCHEMA), SCHEMA, SCHEMA.profile_fields()), LAYOUT)
    offsets = np.arange(table.num_rows + 1, dtype=np.int32)
    words = pa.Array.from_buffers(
        pa.string(), table.num_rows, [None, pa.py_buffer(offsets), pa.py_buffer(b"\xff" * table.num_rows)]
    )
    with pytest.raises(DataError, match="UTF"):
        encoder(table.set_column(table.column_names.index(column), column, words), first=0, where="users")


def test_tables_that_cannot_be_read_are_named(users, tmp_path):
    with pytest.raises(DataError, match="missing: nose"):
        Source(users, ["nose"])
    with pytest.raises(DataError, match="no file and no folder"):
        Source(tmp_path, ["user_id"])
    (tmp_path / "torn.parquet").write_bytes((users / "a.parquet").read_bytes()[:500])
    with pytest.raises(DataError, match=r"torn\.parquet"):
        Source(tmp_path, ["user_id"])
    pq.write_table(pa.table({"user_id": pa.array([], pa.string())}), tmp_path / "torn.parquet")
    with pytest.raises(DataError, match="no rows"):
        Source(tmp_path, ["user_id"])


@pytest.mark.parametrize("column", ["age", "city", "interests"])
def test_a_column_of_another_type_in_a_later_file_is_named(tmp_path, column):
    table = build_table(60, seed=1)
    other = pa.array([["x"]] * 30 if column == "age" else range(30))
    pq.write_table(table.slice(0, 30), tmp_path / "a.parquet")
    place = table.column_names.index(column)
    pq.write_table(table.slice(30).set_column(place, column, other), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=rf"another type than(.|\n)*b\.parquet, column '{column}'(.|\n)*a\.parquet"):
        Source(tmp_path, ["user_id", column], coded=["city"])
    Source(tmp_path, ["user_id"], coded=["city"])  # a column that is not read may be anything


def test_types_that_one_block_can_hold_may_differ(tmp_path):
    """As different writers make them: text plain, coded, large or all missing; whole numbers beside fractions."""
    cities = pa.array(["Lyon", None, "Rome"])
    kinds = [cities, cities.dictionary_encode(), cities.cast(pa.large_string()), pa.nulls(3)]
    ages = [pa.array([1, 2, None]), pa.array([1.5, None, 2.0]), pa.nulls(3), pa.array([3, 4, 5], pa.int16())]
    for i, (city, age) in enumerate(zip(kinds, ages)):
        pq.write_table(pa.table({"city": city, "age": age}), tmp_path / f"{i}.parquet")
    source = Source(tmp_path, ["city", "age"], coded=["city"])
    (block,) = source.blocks([(0, 12)])
    assert block["city"].to_pylist() == ["Lyon", None, "Rome"] * 3 + [None] * 3
    assert block["age"].to_pylist() == [1, 2, None, 1.5, None, 2, None, None, None, 3, 4, 5]


def test_the_identity_of_a_table_follows_its_content(users, tmp_path, monkeypatch):
    from scaletot_jax.population import source as module

    before = Source(users, ["user_id"]).identity()
    assert [entry["rows"] for entry in before] == [430, 570]
    table = pq.read_table(users / "a.parquet")
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=96)
    for limit in (1 << 20, 0):  # by content, by footers
        monkeypatch.setattr(module, "_HASHED_WHOLE", limit)
        assert Source(users / "a.parquet", ["age"]).identity() != Source(tmp_path / "a.parquet", ["age"]).identity()
        assert Source(users, ["user_id"]).identity() == Source(users, ["age"]).identity()
