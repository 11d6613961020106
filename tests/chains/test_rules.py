"""Rules: every kind on present, missing and unused fields; built-in rules on any record."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from scaletot_jax.chains.rules import RuleSpec, evaluate, is_missing
from scaletot_jax.chains.spec import load_spec
from scaletot_jax.errors import DataError

NAN = float("nan")


def rule(**content):
    return TypeAdapter(RuleSpec).validate_python(content)


THRESHOLDS = rule(kind="thresholds", field="x", cuts=[2, 5.5], names=["few", "some", "many"])
MAPPING = rule(kind="mapping", field="x", map={"Yes": "a", 1: "b", "two words": "c"}, default="other")
KEYWORDS = rule(kind="keywords", field="x", words={"meat": "fresh", "can": "tins"}, default="other")
PRESENCE = rule(kind="presence", field="x", present="here", absent="gone")
GRID = rule(
    kind="grid",
    rows={"field": "x", "cuts": [1]},
    columns={"field": "y", "cuts": [10, 20], "when_missing": 2},
    names=[["a", "b", "c"], ["d", "e", "f"]],
)
FIRST = rule(
    kind="first",
    of=[
        {"kind": "mapping", "field": "y", "map": {"k": "K"}},
        {"kind": "thresholds", "field": "x", "cuts": [1], "names": ["lo", "hi"]},
    ],
)


@pytest.mark.parametrize(
    "which, record, expected",
    [
        (THRESHOLDS, {"x": 1.99}, "few"),
        (THRESHOLDS, {"x": 2}, "some"),
        (THRESHOLDS, {"x": 5.5}, "many"),
        (THRESHOLDS, {"x": "3"}, "some"),
        (THRESHOLDS, {"x": float("inf")}, "many"),
        (THRESHOLDS, {"x": NAN}, "unknown"),
        (THRESHOLDS, {"x": None}, "unknown"),
        (THRESHOLDS, {}, "unknown"),
        (MAPPING, {"x": " YES "}, "a"),
        (MAPPING, {"x": 1}, "b"),
        (MAPPING, {"x": 1.0}, "b"),
        (MAPPING, {"x": ["zzz", "two words", "yes"]}, "c"),
        (MAPPING, {"x": "zzz"}, "other"),
        (MAPPING, {"x": []}, "unknown"),
        (MAPPING, {"x": ""}, "unknown"),
        (KEYWORDS, {"x": "Canned meat"}, "fresh"),
        (KEYWORDS, {"x": ["canned beans", "meat"]}, "tins"),
        (KEYWORDS, {"x": "vatican"}, "other"),
        (KEYWORDS, {"x": None}, "unknown"),
        (PRESENCE, {"x": 0}, "here"),
        (PRESENCE, {"x": None}, "gone"),
        (PRESENCE, {}, "unknown"),
        (GRID, {"x": 0, "y": 9}, "a"),
        (GRID, {"x": 1, "y": 10}, "e"),
        (GRID, {"x": 1, "y": None}, "f"),
        (GRID, {"x": 1}, "unknown"),
        (GRID, {"x": None, "y": 3}, "unknown"),
        (FIRST, {"x": 1, "y": "k"}, "K"),
        (FIRST, {"x": 1, "y": "other"}, "hi"),
        (FIRST, {"x": None, "y": None}, "unknown"),
    ],
)
def test_values(which, record, expected):
    assert evaluate(which, record) == expected
    assert evaluate(which, record, fields=["x", "y", "unrelated"]) == expected
    assert evaluate(which, record, fields=[]) == "unknown"


def test_a_field_that_is_not_in_use_is_not_looked_at():
    assert evaluate(FIRST, {"x": 1, "y": "k"}, fields=["x"]) == "hi"
    assert evaluate(GRID, {"x": 1, "y": None}, fields=["x"]) == "unknown"


@pytest.mark.parametrize("value", ["many", 10**400, (1, 2)])
def test_another_value_where_a_number_is_needed_names_the_field(value):
    with pytest.raises(DataError, match="'x'"):
        evaluate(THRESHOLDS, {"x": value})


@pytest.mark.parametrize(
    "record, expected",
    [
        (
            {
                "household_comp": "2 Adults Kids", "tenure_days": 300, "top_categories": ["frozen meat", "beer"], "private_label_share": 0.1,
                "coupon_use": 0, "shopping_days_30": 2, "days_since_last_visit": 3,
            },
            {"household": "family", "tenure": "established", "focus": "meat", "price": "brands", "habit": "active"},
        ),
        (
            {
                "household_comp": None, "household_size": "1", "tenure_days": 20, "top_categories": ["dog foods"], "private_label_share": 0.1,
                "coupon_use": 3, "shopping_days_30": 0, "days_since_last_visit": None,
            },
            {"household": "alone", "tenure": "new", "focus": "other", "price": "budget", "habit": "dormant"},
        ),
        (
            {"marital_status": "Married", "shopping_days_30": 0, "days_since_last_visit": 40},
            {"household": "couple", "tenure": "unknown", "focus": "unknown", "price": "unknown", "habit": "fading"},
        ),
    ],
)  # fmt: skip
def test_grocery_households(record, expected):
    slots = [slot for slot in load_spec("complete_journey").slots if slot.source == "rule"]
    assert {slot.name: slot.fixed_value(record) for slot in slots} == expected


def test_static_profiles_have_an_unknown_habit():
    early = {"shopping_days_30": 2, "days_since_last_visit": 3, "tenure_days": 300}
    slots = {slot.name: slot for slot in load_spec("complete_journey").slots}
    assert slots["habit"].fixed_value(early, fields=["tenure_days", "age"]) == "unknown"
    assert slots["tenure"].fixed_value(early, fields=["tenure_days", "age"]) == "established"


ANY_VALUE = st.one_of(
    st.none(), st.floats(), st.integers(), st.booleans(), st.text(max_size=8), st.lists(st.text(max_size=4), max_size=3)
)


@pytest.mark.parametrize("name", ["complete_journey", "kuairand_pure", "oulad", "synthetic"])
@given(data=st.data())
def test_built_in_rules_give_a_value_of_the_slot_or_a_clear_error(name, data):
    spec = load_spec(name)
    record = data.draw(st.fixed_dictionaries({}, optional=dict.fromkeys(spec.fields, ANY_VALUE)))
    for slot in spec.slots:
        try:
            value = slot.fixed_value(record)
        except DataError as error:
            assert "profile field" in error.where
        else:
            assert value in slot.values or (value is None and slot.source == "scored")
    for slot in spec.slots:
        if slot.source == "rule" and all(is_missing(record.get(field)) for field in slot.rule.fields()):
            assert slot.fixed_value({}) == "unknown"
