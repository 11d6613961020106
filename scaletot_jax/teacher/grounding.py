"""Is a written text backed by the profile? Pure.

A small model that explains itself invents facts. Two kinds can be found without a second model: numbers, and values of the
profile's own enums. A text is rejected when it holds a number that the profile does not hold ("34", "twelve"), or a value
that the schema or the data know for some field ("tablet", "North West Region") and this profile does not hold. What passes
is not thereby true; what fails is not backed by any field, even where it follows from the task or from the chain.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence
from functools import cache
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from scaletot_jax.profiles import columns
from scaletot_jax.profiles.fields import REDACTED, Field

NUMBER, VALUE = "number", "value"  # what an objection is about

_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_NAMED = {word: i for i, word in enumerate(_UNITS.split())}
_NAMED |= {word: 10 * i for i, word in enumerate(_TENS.split(), 2)}
_NAMED |= {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 1000000}
_DIGITS = re.compile(r"\d+(?:[.,]\d+)*")
_WORDS = re.compile(
    rf"(?<!\w)({'|'.join(_NAMED)})s?(?:[ -](one|two|three|four|five|six|seven|eight|nine)(?!\w))?(?!\w)"
)
LEAST_HOLDERS = 5  # groups that hold a value of an open list
_COMMON = frozenset({"yes", "no", "true", "false", "none", "unknown", "other"})  # of every profile and of every text


class Objection(NamedTuple):
    """Why a text is not backed: ``kind`` is ``number`` or ``value``, ``what`` the offending words."""

    kind: str
    what: str


def objection(text: str, facts: str, vocabulary: Collection[str]) -> Objection | None:
    """The first thing in ``text`` that the profile does not hold, or None.

    Args:
      text: what was written.
      facts: everything the profile holds, as text.
      vocabulary: from :func:`vocabulary`.
    """
    text, facts = _plain(text), _plain(facts)
    held = set(_numbers(facts).values())
    for shown, number in _numbers(text).items():
        if number not in held:
            return Objection(NUMBER, shown)
    for value in vocabulary:
        pattern = _pattern(value)
        if pattern.search(text) and not pattern.search(facts):
            return Objection(VALUE, value)
    return None


def facts_of(record: Any, text: str, fields: Collection[str]) -> str:
    """What a profile holds: its whole prompt text, and its raw values where the prompt words them differently.

    Args:
      record: field name -> value.
      text: the rendered profile, before any shortening.
      fields: the profile fields in use.
    """
    held = [record[name] for name in sorted(fields) if record.get(name) is not None]
    items = [item for value in held for item in (value if isinstance(value, (list, tuple)) else [value])]
    return "\n".join([text, *(str(item) for item in items if not isinstance(item, bool))])


def vocabulary(fields: Sequence[Field], table: pa.Table) -> tuple[str, ...]:
    """The values that enum, ordered and multi-value fields can have, in plain form, ascending.

    Those that the schema lists, what the prompt calls them, and for fields whose list is open those that at least
    :data:`LEAST_HOLDERS` groups of ``table`` hold: a word that one person enters must not decide about the texts of others.
    Left out is what says nothing by itself: values of fewer than two letters (numbers are checked as numbers) and words such
    as "yes".
    """
    values: set[str] = set()
    for field in fields:
        if field.kind not in ("enum", "ordered", "multi"):
            continue
        values.update(field.values, field.words.values())
        if not field.values and field.name in table.column_names:
            values.update(_held_by_many(columns.array(table, field.name), columns.array(table, "group")))
    plain = {_plain(value) for value in values - {REDACTED}}
    return tuple(sorted(value for value in plain if sum(map(str.isalpha, value)) > 1 and value not in _COMMON))


def _held_by_many(value: pa.Array, group: pa.Array) -> list[str]:
    """The strings in a column, or in its lists, that at least :data:`LEAST_HOLDERS` groups hold."""
    if pa.types.is_list(value.type) or pa.types.is_large_list(value.type):
        value, group = pc.list_flatten(value), group.take(pc.list_parent_indices(value))
    if not pa.types.is_string(value.type):
        return []
    pairs = pa.table({"value": value, "group": group}).group_by("value").aggregate([("group", "count_distinct")])
    many = pairs.filter(pc.greater_equal(pairs["group_count_distinct"], LEAST_HOLDERS))
    return [found for found in many["value"].to_pylist() if found is not None]


def _plain(text: str) -> str:
    """Lower case, compatibility forms ("½", full-width digits) resolved, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _numbers(text: str) -> dict[str, float]:
    """As written -> value. "1,000" is one number, "3,4" two, "1.5" one, "1.2.3" three; "one" alone is mostly a pronoun."""
    found: dict[str, float] = {}
    for match in _DIGITS.finditer(text):
        shown = match[0]
        if re.fullmatch(r"\d{1,3}(,\d{3})+(\.\d+)?", shown):
            found[shown] = float(shown.replace(",", ""))
            continue
        for part in shown.split(","):
            parts = [part] if part.count(".") < 2 else part.split(".")
            found.update((piece, float(piece)) for piece in parts)
    for match in _WORDS.finditer(text):
        word, unit = match[1], match[2]
        if word == "one" and not unit:
            continue
        tens = 20 <= _NAMED[word] < 100
        found[word] = _NAMED[word] + (_NAMED[unit] if unit and tens else 0)
        if unit and not tens and unit != "one":
            found[unit] = _NAMED[unit]
    return found


@cache  # every text asks for all values of a list in turn: a bound below their number keeps none
def _pattern(value: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(value)}(?:e?s)?(?!\w)")
