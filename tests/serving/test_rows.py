"""Rows of requests, well formed and not: a table, or a refusal with its place, and never anything else."""

import json
import math

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaletot_jax.profiles.schema import load_schema
from scaletot_jax.serving.failures import RequestError
from scaletot_jax.serving.rows import read_arrow_rows, read_json_rows
from scaletot_jax.serving.rows_schema import cell_schema

EVERY = [
    {"name": "city", "kind": "enum", "role": "static", "column": "town"},
    {"name": "since", "kind": "date", "role": "static"},
    {"name": "loyal", "kind": "boolean", "role": "static"},
]
SCHEMA = load_schema("synthetic")
FIELDS = {f.source: f for f in SCHEMA.profile_fields() if f.name != "city"}
FIELDS |= {
    f.source: f for f in type(SCHEMA).from_dict(SCHEMA.to_dict() | {"fields": EVERY, "low_activity": None}).fields
}
ROW = {
    "age": 31, "plan": "free", "interests": ["music"], "device": None, "visits_30": 2.5, "days_since_last_visit": None,
    "town": " Paris ", "since": "2020-02-29", "loyal": True,
}  # fmt: skip


def body(*rows):
    return json.dumps({"rows": rows}).encode()


def stream(table, **options):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def refusal(function, *arguments):
    with pytest.raises(RequestError) as caught:
        function(*arguments)
    error = caught.value
    assert error.what and error.do and set(error.body()["error"]) == {"what", "where", "why", "do"}
    return error


def test_json_and_arrow_give_the_same_table():
    found = read_json_rows(body(ROW, dict.fromkeys(ROW)), FIELDS, 10)
    assert found.column_names == list(FIELDS)
    again = read_arrow_rows(stream(found.select(sorted(FIELDS))), FIELDS, 10)
    assert again.equals(found)
    coded = found.set_column(0, found.column_names[0], found.column(0))
    town = coded.column_names.index("town")
    coded = coded.set_column(town, "town", coded["town"].combine_chunks().dictionary_encode())
    assert read_arrow_rows(stream(coded), FIELDS, 10)["town"].cast(pa.string()).equals(found["town"])


def test_integers_beyond_doubles_become_fractions_and_beyond_float64_are_refused():
    found = read_json_rows(body(ROW | {"age": 2**60}, ROW), FIELDS, 10)
    assert found["age"].type == pa.float64() and found["age"][0].as_py() == float(2**60)
    error = refusal(read_json_rows, body(ROW, ROW | {"age": 10**400}), FIELDS, 10)
    assert (error.row, error.field) == (1, "age")


@pytest.mark.parametrize(
    ("row", "field", "value"),
    [
        (1, "age", "31"), (0, "age", True), (1, "plan", 3), (0, "interests", "music"), (1, "interests", ["music", None]),
        (1, "loyal", 1), (0, "since", "2021-02-29"), (1, "since", "20210228"), (0, "since", 12), (1, "town", ["Paris"]),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_named(row, field, value):
    rows = [ROW, ROW]
    rows[row] = ROW | {field: value}
    error = refusal(read_json_rows, body(*rows), FIELDS, 10)
    assert (error.status, error.row, error.field) == (422, row, field)


def test_other_columns_are_named():
    missing = {name: value for name, value in ROW.items() if name != "visits_30"}
    assert refusal(read_json_rows, body(ROW, missing), FIELDS, 10).field == "visits_30"
    error = refusal(read_json_rows, body(missing | {"visits30": 1}), FIELDS, 10)
    assert (error.row, error.field) == (0, "visits30") and "did you mean 'visits_30'" in error.do
    assert "nothing that names a user" in refusal(read_json_rows, body(ROW | {"user_id": "u1"}), FIELDS, 10).do
    table = read_json_rows(body(ROW), FIELDS, 10)
    assert refusal(read_arrow_rows, stream(table.drop_columns(["age"])), FIELDS, 10).field == "age"
    twice = pa.table([*table.columns, table["age"]], [*table.column_names, "age"])
    refusal(read_arrow_rows, stream(twice), FIELDS, 10)
    error = refusal(read_arrow_rows, stream(table.set_column(0, table.column_names[0], [["x"]])), FIELDS, 10)
    assert error.field == table.column_names[0] and "wrong type" in error.what


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400), (b"{", 400), (b"[]", 422), (b'{"rows": {}}', 422), (b'{"rows": []}', 422), (b'{"rows": [1]}', 422),
        (b'{"rows": [NaN]}', 400), (b'{"rows": ["\xff"]}', 400), (b'{"rows":[], "more": 1}', 422), (b"[" * 100_000, 400),
        (b'{"rows": ["\\ud800"]}', 400), (b"null", 422),
    ],
)  # fmt: skip
def test_bodies_of_another_form(content, status):
    assert refusal(read_json_rows, content, FIELDS, 10).status == status


def test_too_many_rows():
    assert refusal(read_json_rows, body(*[ROW] * 11), FIELDS, 10).status == 413
    table = read_json_rows(body(*[ROW] * 11), FIELDS, 11)
    assert refusal(read_arrow_rows, stream(table), FIELDS, 10).status == 413
    assert refusal(read_arrow_rows, stream(table.slice(0, 0)), FIELDS, 10).status == 422
    blank = pa.table(
        {name: pa.Array.from_buffers(pa.null(), 2**31 - 1, [None]) for name in FIELDS}
    )  # says 2³¹ rows in a few bytes
    assert refusal(read_arrow_rows, stream(blank), FIELDS, 10).status == 413


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_a_compressed_stream_is_refused_before_it_expands(codec):
    table = read_json_rows(body(*[ROW] * 50), FIELDS, 50)
    for one in (table, table.select(["town"]), _coded(table)):
        error = refusal(read_arrow_rows, stream(one, compression=codec), FIELDS, 50)
        assert error.status == 400 and "compressed" in error.why


@pytest.mark.parametrize("size", [pa.list_, pa.large_list])
def test_lists_of_nulls_are_refused_whatever_they_say_they_hold(size):
    """Such a body has some hundred bytes and any number of elements; 3e7 of them once took seconds and a gigabyte."""
    few, many = (0, 3), (0, 30_000_000)
    for offsets in (few, many):
        kind = pa.int32() if size is pa.list_ else pa.int64()
        maker = pa.ListArray if size is pa.list_ else pa.LargeListArray
        lists = maker.from_arrays(pa.array(offsets, kind), pa.nulls(offsets[1]))
        error = refusal(read_arrow_rows, stream(_with("interests", lists)), FIELDS, 10)
        assert (error.status, error.field) == (422, "interests") and "null" in error.why
    blank = pa.DictionaryArray.from_arrays(pa.array([0], pa.int8()), pa.nulls(30_000_000))
    assert refusal(read_arrow_rows, stream(_with("town", blank)), FIELDS, 10).field == "town"


def _with(column, values):
    table = read_json_rows(body(*[ROW] * len(values)), FIELDS, len(values))
    return table.set_column(table.column_names.index(column), column, [values])


LONG = "x" * 1_000_000


@pytest.mark.parametrize(
    "values",
    [
        pa.DictionaryArray.from_arrays(pa.array([0] * 256, pa.int16()), pa.array([LONG])),
        pa.DictionaryArray.from_arrays(pa.array([0] * 256, pa.int16()), pa.array([LONG], pa.string_view())),
        pa.Array.from_buffers(  # 256 views of one buffer
            pa.string_view(), 256,
            [None, pa.py_buffer((len(LONG).to_bytes(4, "little") + b"xxxx" + bytes(8)) * 256), pa.py_buffer(LONG.encode())],
        ),
        pa.DictionaryArray.from_arrays(pa.array([0] * 256, pa.int16()), pa.array([""] * 2_500_000)),
    ],
    ids=["dictionary", "dictionary of views", "views", "many words"],
)  # fmt: skip
def test_rows_that_share_a_long_value_are_refused_before_each_gets_its_copy(values):
    table = _with("town", values)
    before = pa.total_allocated_bytes()
    content = stream(table)
    error = refusal(read_arrow_rows, content, FIELDS, 256)
    assert error.status == 413 and "written out" in error.why
    assert pa.total_allocated_bytes() - before < 32 << 20
    few = _with("town", values.slice(0, 2))
    if len(content) < 4 << 20:
        assert read_arrow_rows(stream(few), FIELDS, 256)["town"].num_chunks == 1


def test_a_plain_body_may_be_as_large_as_a_body_may_be():
    table = _with("town", pa.array([LONG] * 8))
    content = stream(table)
    assert read_arrow_rows(content, FIELDS, 8, len(content))["town"].equals(table["town"])


def test_batches_with_one_dictionary_are_counted_each():
    words = pa.DictionaryArray.from_arrays(pa.array([0] * 64, pa.int16()), pa.array([LONG]))
    table = _with("town", words)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        for row in range(table.num_rows):
            writer.write_table(table.slice(row, 1))
    assert refusal(read_arrow_rows, sink.getvalue().to_pybytes(), FIELDS, 64).status == 413


def _coded(table):
    return pa.table({"town": table["town"].combine_chunks().dictionary_encode()})


WHOLE = stream(read_json_rows(body(*[ROW] * 3), FIELDS, 3).set_column(6, "town", [["a", "b", "a"]]))


@settings(max_examples=400)
@given(st.data())
def test_a_damaged_arrow_stream_is_read_or_refused(data):
    damaged = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([len(damaged), data.draw(st.integers(0, len(damaged)))]))
    try:
        table = read_arrow_rows(bytes(damaged[:cut]), FIELDS, 10)
        assert 1 <= table.num_rows <= 10 and table.column_names == list(FIELDS)
    except RequestError as error:
        assert error.status in (400, 413, 422) and error.what


LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("free")
VALUE = st.recursive(LEAF, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2), max_leaves=4)  # fmt: skip


@settings(max_examples=200)
@given(st.lists(st.dictionaries(st.sampled_from(list(FIELDS)), VALUE).map(lambda some: ROW | some) | VALUE, max_size=3))
def test_any_json_is_read_or_refused(rows):
    try:
        found = read_json_rows(body(*rows), FIELDS, 10)
    except RequestError as error:
        assert error.status in (400, 422)
        return
    for name, field in FIELDS.items():
        for row, value in zip(rows, found[name].to_pylist()):
            stated = row[name]
            if field.kind == "number" and stated is not None:
                assert math.isclose(value, stated)
            elif field.kind != "date":
                assert value == stated


@given(st.binary(max_size=200))
def test_noise_is_refused(content):
    refusal(read_json_rows, content, FIELDS, 10)
    refusal(read_arrow_rows, content, FIELDS, 10)


def test_the_schema_says_the_range_and_the_closed_list():
    assert cell_schema(FIELDS["age"])["minimum"] == 18 and None in cell_schema(FIELDS["plan"])["enum"]
    assert "enum" not in cell_schema(FIELDS["town"])
