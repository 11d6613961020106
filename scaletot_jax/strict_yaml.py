"""YAML without surprises: safe types only, and a key given twice is an error (plain YAML keeps the last, silently)."""

from __future__ import annotations

from typing import Any

import yaml

DEEPEST = 100
MOST_VALUES = 100_000  # an alias counts as much as what it stands for: a few lines may stand for gigabytes


def load_yaml(text: str) -> Any:
    """Parses one YAML document.

    Raises:
      yaml.YAMLError: it is not YAML, a mapping has a key twice, a key is a list or mapping, a scalar is not of the type that
        it looks like or states (``2024-99-99``), or it is too large or too deep; with line and column where there are any.
    """
    try:
        return yaml.load(text, Loader=_UniqueKeys)  # a SafeLoader
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:  # of PyYAML's constructors
        raise yaml.YAMLError(f"a value cannot be read: {error}") from error


class _UniqueKeys(yaml.SafeLoader):
    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth += 1
        if self._depth > DEEPEST:
            raise yaml.YAMLError(f"it is nested more than {DEEPEST} deep")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None and _size(node, {}) > MOST_VALUES:
            raise yaml.YAMLError(f"it holds more than {MOST_VALUES} values")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (list, dict, set)):
                raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", key_node.start_mark)  # fmt: skip
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Values below a node, those behind an alias as often as they are referred to."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = MOST_VALUES + 1  # where a node holds itself
        parts = (part for entry in node.value for part in (entry if isinstance(entry, tuple) else (entry,)))
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]
