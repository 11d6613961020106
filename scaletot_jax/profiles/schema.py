"""The profile schema: what a table's columns mean, which of them a model may read, and which are labels.

A schema is a YAML file. Unknown keys, duplicate fields, values of the wrong type and a label declared as a feature are
refused before any data is read, with the path of the offending key.

    name: shop                          # of the data set
    id: user_id                         # unique per row (per snapshot, where there is one)
    group: household                    # optional; rows of one group never lie in two splits
    snapshot: day                       # optional date column; the label window is (day, day + horizon]
    labels:
      days: {column: lt30, horizon: 30} # active days, an integer 0..horizon
      value: {column: ltv30, unit: dollars}
    low_activity: {field: visits_30, at_most: 2}
    fields:
      - {name: age, kind: ordered, role: static, values: [18-24, 25-34, 35+]}
      - {name: spend_30, kind: number, role: early, unit: dollars, range: [0, null], coarse: [1, 50, 200]}
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError, field_validator, model_validator

from scaletot_jax.errors import ConfigError, DataError
from scaletot_jax.profiles.fields import Field, Group, Labels, LowActivity, Strict
from scaletot_jax.strict_yaml import load_yaml

PROFILE_FIELDS = ("static", "static+early")
RESERVED = frozenset({"row", "user_id", "group", "snapshot", "split", "exact_key", "coarse_key"})


def _same(name: str) -> str:
    """Column names that differ only in case, spaces or punctuation are the same column under another spelling."""
    return re.sub(r"[^a-z0-9]", "", name.casefold())


class Schema(Strict):
    """See the module's example."""

    name: str
    title: str = ""
    id: str
    group: Group | None = None
    snapshot: str | None = None
    labels: Labels
    low_activity: LowActivity | None = None
    fields: tuple[Field, ...]

    @field_validator("group", mode="before")
    @classmethod
    def _short_group(cls, value: Any) -> Any:
        return {"column": value} if isinstance(value, str) else value

    @field_validator("fields", mode="before")
    @classmethod
    def _field_tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _consistent(self) -> Schema:
        if not self.fields:
            raise ValueError("a schema needs at least one field")
        seen: dict[str, str] = {}
        labels = {_same(column): column for column in self.labels.columns}
        if len(labels) != len(self.labels.columns):
            raise ValueError("two labels are one column")
        keys = {_same(c): c for c in (self.id, self.snapshot, self.group and self.group.column) if c}
        for field in self.fields:
            for name in {field.name, field.source}:
                if _same(name) in labels:
                    raise ValueError(
                        f"field '{field.name}' reads the label column '{labels[_same(name)]}': a label cannot be a feature"
                    )
                if _same(name) in keys:
                    raise ValueError(
                        f"field '{field.name}' reads the id, group or snapshot column '{keys[_same(name)]}'"
                    )
            if field.name in RESERVED:
                raise ValueError(f"field name '{field.name}' is reserved; give another name and 'column: {field.name}'")
            for name in {_same(field.name), _same(field.source)}:
                if name in seen:
                    raise ValueError(f"field '{field.name}' and field '{seen[name]}' are one column")
                seen[name] = field.name
        for column in self.labels.columns:
            if column in RESERVED:
                raise ValueError(f"label column name '{column}' is reserved")
        if self.low_activity is not None:
            target = self._find(self.low_activity.field)
            if target is None or target.kind != "number":
                raise ValueError(f"low_activity.field '{self.low_activity.field}' is not a number field")
        return self

    def _find(self, name: str) -> Field | None:
        return next((field for field in self.fields if field.name == name), None)

    def field(self, name: str) -> Field:
        """The field ``name``; ConfigError where there is none."""
        found = self._find(name)
        if found is None:
            raise ConfigError(
                f"schema '{self.name}' has no field '{name}'", do=f"fields: {', '.join(f.name for f in self.fields)}"
            )
        return found

    def profile_fields(self, which: str = "static+early") -> list[Field]:
        """Fields a model may read: ``static``, or ``static+early``; static ones first, each in the schema's order."""
        if which not in PROFILE_FIELDS:
            raise ConfigError(
                "unknown choice of profile fields",
                where="data.profile_fields",
                why=repr(which),
                do=f"one of {PROFILE_FIELDS}",
            )
        roles = which.split("+")
        return [field for role in roles for field in self.fields if field.role == role]

    def to_dict(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude_defaults=True)

    @classmethod
    def from_dict(cls, value: Any, *, where: str = "schema") -> Schema:
        """Validates a plain mapping (parsed YAML or JSON); DataError with the path of every fault."""
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            faults = [
                f"{_path(item['loc'], value)}: {item['msg'].removeprefix('Value error, ')}" for item in error.errors()
            ]
            raise DataError("a profile schema is invalid", where=where, why="; ".join(faults)) from error


def _path(loc: Iterable[Any], value: Any) -> str:
    """A pydantic location as a dotted path; list members that have a name are called by it."""
    parts: list[str] = []
    for part in loc:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            value = None
        if isinstance(part, int):
            name = value.get("name") if isinstance(value, dict) else None
            parts.append(f"[{part}]" + (f"({name})" if name else ""))
        else:
            parts.append(f".{part}" if parts else str(part))
    return "".join(parts) or "schema"


def builtin_schemas() -> list[str]:
    """Names of the schemas that come with the package."""
    folder = resources.files("scaletot_jax") / "schemas"
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def load_schema(name_or_path: str | Path) -> Schema:
    """Reads a schema: the name of a built-in one, or a YAML file.

    Raises:
      DataError: the file is missing, is not YAML, or states an invalid schema (every fault with its path).
    """
    text = str(name_or_path)
    if text in builtin_schemas():
        where = f"schemas/{text}.yaml"
        content = (resources.files("scaletot_jax") / "schemas" / f"{text}.yaml").read_text(encoding="utf-8")
    else:
        where, path = text, Path(text)
        if not path.is_file():
            raise DataError(
                "a profile schema is missing",
                where=where,
                do=f"give a YAML file or one of: {', '.join(builtin_schemas())}",
            )
        try:
            content = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise DataError("a profile schema is not a text file", where=where, why=str(error)) from error
    try:
        value = load_yaml(content)
    except yaml.YAMLError as error:
        raise DataError("a profile schema is not YAML", where=where, why=" ".join(str(error).split())) from error
    return Schema.from_dict(value, where=where)
