"""YAML without surprises: safe types only, and a key given twice is an error (plain YAML keeps the last, silently)."""

from __future__ import annotations

from typing import Any

import yaml


def load_yaml(text: str) -> Any:
    """Parses one YAML document.

    Raises:
      yaml.YAMLError: it is not YAML, a mapping has a key twice, or a key is a list or mapping; with line and column.
    """
    return yaml.load(text, Loader=_UniqueKeys)  # a SafeLoader


class _UniqueKeys(yaml.SafeLoader):
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
