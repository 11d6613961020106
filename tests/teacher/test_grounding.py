"""What a written text may draw on."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaletot_jax.profiles.fields import REDACTED, Field
from scaletot_jax.teacher.grounding import Objection, facts_of, objection, vocabulary

FACTS = facts_of(
    {"age": 34.0, "plan": "basic", "interests": ["music", "food"], "share": 0.4567, "hidden": "Leeds"},
    "age: 34 years (typical)\nplan: basic\ninterests: music, food\nshare: 46%\nspend: 1,250 dollars\n",
    ("age", "plan", "interests", "share"),
)
WORDS = ("basic", "premium", "music", "sport", "north west region", "tablet")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "likes music and food",
        "A 34 year old; spent 1250 or 1,250.00 dollars",
        "thirty-four, with a BASIC plan",
        "about 46 %, that is 0.4567",
        "one of many, and no one knows",
        "a west region of the mind",  # not the whole value
        "musical, transported",  # inside longer words
        "３４ years",  # full-width digits
    ],
)
def test_backed(text):
    assert objection(text, FACTS, WORDS) is None


@pytest.mark.parametrize(
    "text, kind, what",
    [
        ("a 35 year old", "number", "35"),
        ("3,4 and 34", "number", "3"),
        ("comes 1.5 times", "number", "1.5"),
        ("twelve visits", "number", "twelve"),
        ("thirty-five years", "number", "thirty"),
        ("½ of the days", "number", "1"),
        ("hundreds of visits", "number", "hundred"),
        ("reads it on tablets", "value", "tablet"),
        ("a Premium customer", "value", "premium"),
        ("lives in the North  West\nRegion", "value", "north west region"),
        ("loves sport", "value", "sport"),
    ],
)
def test_not_backed(text, kind, what):
    assert objection(text, FACTS, WORDS) == Objection(kind, what)


@given(st.lists(st.sampled_from(FACTS.replace("\n", " ").split()), max_size=8).map(" ".join))
def test_the_profiles_own_words_are_always_backed(text):
    assert objection(text, FACTS, WORDS) is None


@given(st.integers(0, 10**7), st.sampled_from(["{} days", "in {}.", "({})", "x{}", "{:,} dollars"]))
def test_no_other_number_is(number, form):
    found = objection(form.format(number), FACTS, WORDS)
    assert (found is None) == (number in {34, 46, 1250, 0} - {0})


def test_the_vocabulary_is_what_schema_and_data_know():
    fields = [
        Field(name="plan", kind="ordered", role="static", values=("free", "Basic"), words={"free": "unpaid"}),
        Field(name="interests", kind="multi", role="static"),
        Field(name="sex", kind="enum", role="static", values=("F", "M")),
        Field(name="agrees", kind="enum", role="static", values=("yes", "no")),
        Field(name="rest", kind="text", role="static"),
        Field(name="age", kind="number", role="static"),
        Field(name="gone", kind="enum", role="static"),
    ]
    table = pa.table(
        {
            "group": ["a", "b", "c", "d", "e", "e", "f", "f", "f", "f", "f"],
            "interests": [["music", REDACTED], *[["Field  hockey", "music"]] * 4, None, *[["ruin this text"]] * 5],
            "rest": ["secret words"] * 11,
            "age": [1.0] * 11,
            "gone": ["Elsewhere"] * 4 + [None] * 7,
            "unused": ["elsewhere"] * 11,
        }
    )
    assert vocabulary(fields, table) == ("basic", "free", "music", "unpaid")
    table = table.set_column(0, "group", pa.array(list("abcdefghijk")))
    assert vocabulary(fields, table) == ("basic", "free", "music", "ruin this text", "unpaid")
