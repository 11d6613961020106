"""Bad input is refused with file, row, field, value and reason; good input comes out canonical."""

import datetime
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from profiles.cases import SCHEMA, changed, columns, field_changed, schema, table

from scaletot_jax.errors import DataError
from scaletot_jax.profiles.fields import REDACTED
from scaletot_jax.profiles.table import read_parquet, surplus_columns, validate


def refused(raw, *words, spec=None):
    with pytest.raises(DataError) as caught:
        validate(raw, spec or schema(), where="users.parquet")
    for word in ("users.parquet", *words):
        assert word in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("age", "ancient", "unknown value; the schema allows young, middle, old"),
        ("visits", math.nan, "not a number; a missing value is null"),
        ("spend", math.inf, "infinite"),
        ("visits", 31, "outside 0..30"),
        ("visits", 2**60, "outside 0..30"),
        ("spend", -0.5, "outside 0..∞"),
        ("lt30", 31, "label outside 0..30"),
        ("lt30", -1, "label outside 0..30"),
        ("lt30", None, "the label is missing"),
        ("lt30", 2.5, "an integer"),
        ("lt30", math.nan, "not a number"),
        ("ltv30", math.inf, "infinite"),
        ("ltv30", None, "the label is missing"),
        ("ltv30", -1.0, "label below 0"),
        ("uid", "u1", "the user id occurs twice in one snapshot"),
        ("uid", None, "the identifier is missing"),
        ("uid", "", "the identifier is missing"),
        ("house", None, "the identifier is missing"),
        ("day", None, "the snapshot date is missing"),
        ("likes", ["a", None], "missing or empty"),
        ("likes", [None, None], "missing or empty"),
        ("likes", [""], "missing or empty"),
    ],
)
def test_a_bad_cell_is_named(field, value, reason):
    raw = changed(field, 4, value)  # row 4 has the snapshot of row 1
    shown = float(value) if value == 2**60 else value  # beyond 2^53 a number is a float
    if field in ("uid", "house"):  # an identifier is not for a log
        refused(raw, "row 4", f"field '{field}': {reason}")
    else:
        refused(raw, "row 4", f"field '{field}'", f"value {shown!r}", reason)


def test_without_a_snapshot_an_id_may_occur_once():
    spec = schema(snapshot=None)
    refused(changed("uid", 3, "u1"), "row 3", "field 'uid': the user id occurs twice", spec=spec)


def test_a_user_has_one_group():
    """Rows of a user in two groups could lie in two splits."""
    users = ["u0", "u1", "u2", "u0", "u1", "u2"]
    house, day = ["h0", "h0", "h1", "h0", "h0", "h1"], [datetime.date(2024, 1, 1 + i) for i in range(6)]
    validate(table(uid=users, house=house, day=day), schema())
    validate(table(uid=users, house=None, day=day), schema(group=None))
    told = "field 'house': not the group of this user's first row"
    refused(table(uid=users, house=[*house[:4], "h1", "h1"], day=day), "1 value", "row 4", told)
    refused(table(uid=users, house=["h0", None, *house[2:]], day=day), "1 value", "row 1", "missing")


def test_a_closed_multi_field_refuses_unknown_values():
    raw = changed("likes", 5, ["a", "z"])
    refused(raw, "row 5", "field 'likes'", "'z'", "unknown value", spec=field_changed("likes", values=["a", "b", "c"]))


def test_the_first_rows_are_listed_and_the_rest_counted():
    data = columns(20)
    data["visits"] = [50] * 20
    data["age"][0] = "ancient"
    with pytest.raises(DataError) as caught:
        validate(pa.table(data), schema(), where="users.parquet")
    text = str(caught.value)
    assert "21 values" in text and text.count("row ") == 5 and "and 16 more" in text
    assert text.index("row 0") < text.index("row 3") and "row 4" not in text


@pytest.mark.parametrize(
    ("field", "values", "wanted"),
    [
        ("age", [1, 2, 3, 4, 5, 6], "a string"),
        ("visits", list("abcdef"), "a number"),
        ("visits", [True] * 6, "a number"),
        ("member", list("abcdef"), "a boolean"),
        ("joined", list("abcdef"), "a date"),
        ("likes", list("abcdef"), "a list of strings"),
        ("uid", [0.5] * 6, "a string or an integer"),
        ("lt30", list("abcdef"), "a number"),
        ("day", [1] * 6, "a date"),
    ],
)
def test_a_wrong_type_is_named(field, values, wanted):
    refused(table(**{field: values}), "wrong type", f"field '{field}'", wanted)


def test_missing_and_surplus_columns_are_listed():
    raw = table(plan=None, lt30=None, hobby=["x"] * 6)
    refused(raw, "missing: plan, lt30", "surplus: hobby")
    assert surplus_columns(table(hobby=["x"] * 6), schema()) == ["hobby"]
    assert "hobby" not in validate(table(hobby=["x"] * 6), schema()).column_names


def test_empty_table_and_repeated_column():
    refused(table().slice(0, 0), "no rows")
    raw = table()
    refused(raw.append_column("age", raw["age"]), "two columns of one name", "age")


def test_a_copy_of_the_label_is_refused():
    """A label exported a second time under another name passes every check of names."""
    data = columns(20)
    data["visits"] = [value if i % 4 else None for i, value in enumerate(data["lt30"])]
    refused(pa.table(data), "copy of the label", "field 'visits'", "equals 'lt30' in all 15 rows")
    data["visits"][3] += 1
    validate(pa.table(data), schema())
    data["lt30"], data["visits"] = [0] * 15 + [1] * 5, [0] * 15 + [None] * 5  # equal, but only where both are constant
    validate(pa.table(data), schema())


def test_files_that_are_not_parquet(tmp_path):
    with pytest.raises(DataError, match="missing"):
        read_parquet(tmp_path / "none.parquet")
    (tmp_path / "users.parquet").write_text("uid,age\n1,2\n")
    with pytest.raises(DataError, match=r"cannot be read as Parquet[\s\S]*users.parquet"):
        read_parquet(tmp_path / "users.parquet")
    pq.write_table(table(), tmp_path / "whole.parquet")
    whole = (tmp_path / "whole.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut.parquet"):
        read_parquet(tmp_path / "cut.parquet")
    assert read_parquet(tmp_path / "whole.parquet").equals(table())
    words = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(bytes([0, 0, 0, 0, 1, 0, 0, 0])), pa.py_buffer(b"\xff")]
    )
    pq.write_table(pa.table({"city": words}), tmp_path / "words.parquet")
    with pytest.raises(DataError, match=r"words.parquet[\s\S]*UTF"):
        read_parquet(tmp_path / "words.parquet")


def test_canonical_form():
    raw = table(
        age=["young ", " old", "", None, "middle", REDACTED],
        city=["Cafe\u0301", "a\nb", "Arden", None, "Brook", "x"],
        likes=[["b", "a", "b"], [], None, ["c "], ["a"], ["b", "a"]],
        spend=[0.04, 12.55, None, 80.0, 1.0, 2.0],
        joined=[datetime.datetime(2024, 5, 1, 23, 59)] * 6,
        uid=[10, 11, 12, 13, 14, 15],
    )
    found = validate(raw, schema())
    assert found["age"].to_pylist() == ["young", "old", None, None, "middle", REDACTED]
    assert found["city"].to_pylist()[:2] == ["Caf\u00e9", "a b"]
    assert found["likes"].to_pylist() == [["a", "b"], [], None, ["c"], ["a"], ["a", "b"]]
    assert found["spend"].to_pylist()[0] == 0.0 and found["spend"].to_pylist()[2] is None
    assert found["joined"].to_pylist()[0] == datetime.date(2024, 5, 1)
    assert found["user_id"].to_pylist()[0] == "10"
    assert found["group"].to_pylist() == ["h0", "h0", "h1", "h1", "h2", "h2"]
    assert found.column_names[:3] == ["user_id", "group", "snapshot"]


def test_ranked_lists_keep_their_order():
    raw = table(likes=[["b", "a", "b"], [], None, ["c"], ["a"], ["b", "a"]])
    found = validate(raw, field_changed("likes", ranked=True))
    assert found["likes"].to_pylist() == [["b", "a"], [], None, ["c"], ["a"], ["b", "a"]]


def test_types_that_hold_the_same_values_are_equal():
    """Dictionary, large and chunked columns, and columns of nulls alone."""
    raw = table(age=[None] * 6, spend=[None] * 6, likes=[None] * 6, joined=[None] * 6, member=[None] * 6)
    plain = validate(raw, schema())
    other = raw.set_column(raw.column_names.index("city"), "city", raw["city"].dictionary_encode())
    other = other.set_column(other.column_names.index("uid"), "uid", other["uid"].cast(pa.large_string()))
    other = pa.concat_tables([other.slice(0, 2), other.slice(2)])
    assert validate(other, schema()).combine_chunks().equals(plain.combine_chunks())


def test_group_by_a_part_of_the_id():
    spec = schema(group={"column": "uid", "pattern": "(?P<group>[0-9]+)$"})
    raw = table(uid=["a_1", "b_1", "a_2", "a_3", "a_4", "a_5"])
    assert validate(raw, spec)["group"].to_pylist() == ["1", "1", "2", "3", "4", "5"]
    raw = table(uid=["a_1", "b_1", "a_2", "a_3", "a_x", "a_5"])
    refused(raw, "row 4", "field 'uid'", "does not match", spec=spec)


@given(
    st.lists(st.none() | st.lists(st.sampled_from(["x", "y", "z", "w w"]), max_size=5), min_size=1, max_size=12),
    st.booleans(),
)
def test_multi_values_against_plain_python(lists, ranked):
    spec = field_changed("likes", ranked=ranked)
    found = validate(table(len(lists), likes=pa.array(lists, pa.list_(pa.string()))), spec)["likes"].to_pylist()
    for before, after in zip(lists, found):
        if before is None:
            assert after is None
        else:
            unique = list(dict.fromkeys(before))
            assert after == (unique if ranked else sorted(unique))


@given(st.integers(0, 39), st.sampled_from([-1.0, 31.0, math.nan, math.inf, -math.inf]))
def test_a_bad_number_is_found_in_any_row(row, value):
    values = np.array(columns(40)["visits"], float)
    values[row] = value
    refused(table(40, visits=values), f"row {row},", "field 'visits'")


def test_the_example_schema_matches_the_example_table():
    assert {field["name"] for field in SCHEMA["fields"]} <= set(columns())
    assert validate(table(), schema()).num_rows == 6


def test_further_horizons_nest_and_outcomes_are_zero_or_one():
    labels = {**SCHEMA["labels"], "horizons": [{"column": "lt7", "horizon": 7}], "binary": [{"column": "paid"}]}
    wide = schema(labels=labels)
    good = table(lt7=[0, 1, 1, 2, 0, 5], paid=[True, False, True, True, False, False])
    checked = validate(good, wide)
    assert checked["lt7"].to_pylist() == [0, 1, 1, 2, 0, 5] and checked["paid"].to_pylist() == [1, 0, 1, 1, 0, 0]
    for changes, reason in (
        ({"lt7": [1, 1, 1, 2, 0, 5]}, "more than lt30, whose days include these"),
        ({"lt7": [0, 1, 1, 8, 0, 5]}, "label outside 0..7"),
        ({"paid": [0, 1, 2, 0, 0, 0]}, "label outside 0..1"),
    ):
        with pytest.raises(DataError, match=reason):
            validate(table(**{"lt7": [0, 1, 1, 2, 0, 5], "paid": [0] * 6, **changes}), wide)
