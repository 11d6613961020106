"""YAML in: plain documents are what PyYAML says, a repeated key is refused wherever it stands."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from scaletot_jax.strict_yaml import load_yaml

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("abc: -#'", max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=3),
)  # fmt: skip


@given(VALUES)
def test_what_was_written_is_read(value):
    assert load_yaml(yaml.safe_dump(value)) == value


@pytest.mark.parametrize(
    ("text", "line"),
    [("a: 1\na: 1", 2), ("x: [{b: 1, b: 2}]", 1), ("x:\n  y:\n    c: 1\n    d: 2\n    c: 3", 5), ("1: a\n1: b", 2)],
)
def test_a_repeated_key_is_refused_with_its_line(text, line):
    with pytest.raises(yaml.YAMLError, match=rf"is given twice[\s\S]*line {line}"):
        load_yaml(text)


def test_keys_are_plain_and_types_are_safe():
    with pytest.raises(yaml.YAMLError, match="plain text"):
        load_yaml("? [1, 2]\n: x")
    with pytest.raises(yaml.YAMLError):
        load_yaml("!!python/object/apply:os.getcwd []")
    assert load_yaml("a: {b: 1}\nc: {b: 1}") == {"a": {"b": 1}, "c": {"b": 1}}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: 2024-99-99", "cannot be read"), ("a: 0x_", "cannot be read"), ("!!int x", "cannot be read"),
        ("!!timestamp x", "cannot be read"), ("!!bool x", "cannot be read"), ("a: " + "9" * 5000, "cannot be read"),
        ("[" * 2000, "100 deep"), ("- " * 2000, "100 deep"), ("{a: " * 2000, "100 deep"), ("&a [*a]", "more than"),
        ("a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdef", "bcdefg")), "more than"),
    ],
)  # fmt: skip
def test_what_yaml_stumbles_over_and_what_grows_is_refused(text, why):
    with pytest.raises(yaml.YAMLError, match=why):
        load_yaml(text)
