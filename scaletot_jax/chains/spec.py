"""The chain specification: which typed segments and slots a user-state chain has, and where each value comes from.

A specification is data (YAML), so the same code serves another population or a larger teacher. The chain it describes::

    Context: couple; established      one line a segment; slot values are separated by ";"
    ...
    Outlook: occasional
    Days: few                         the answer: one code word for a bucket of the label

A slot's value comes by ``rule`` (a fact read off the profile fields), is ``scored`` (a judgement: the teacher's
distribution over the listed values), or is ``free`` text of at most ``max_tokens`` tokens. Every enum contains
"unknown", which is always decided by rule from missing fields and never scored. The form follows the typed chains of
ScaleToT (arXiv:2606.24605); the paper leaves segments, slots and values open, so these are this project's choices.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from pydantic import Field, ValidationError, model_validator

from scaletot_jax.chains.rules import UNKNOWN, Record, RuleSpec, Strict, all_missing, evaluate
from scaletot_jax.errors import ConfigError, DataError
from scaletot_jax.strict_yaml import load_yaml

SPEC_FOLDER = Path(__file__).resolve().parent.parent / "specs"


class Polarity(Strict):
    """A monotonicity that a judgement must obey: moving ``field`` from ``low`` to ``high`` moves the slot's expected
    position up or down (``moves``). Used by the teacher's label-blind pilot; needs ``ordered: true``."""

    field: str
    low: float | str | bool
    high: float | str | bool
    moves: Literal["up", "down"]


class SlotSpec(Strict):
    """One slot of a segment."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    source: Literal["rule", "scored", "free"]
    values: tuple[str, ...] = ()  # the enum; in ascending order where `ordered`
    ordered: bool = False
    stems: tuple[str, ...] = ()  # paraphrases of the text that precedes the value when the teacher scores it; a free
    # slot may have one, after which the teacher writes
    rule: RuleSpec | None = None
    unknown_when_missing: tuple[str, ...] = ()  # "unknown" (free slots: no text) if all of these fields are missing
    polarity: Polarity | None = None
    max_tokens: int = Field(default=0, ge=0)  # free slots

    @model_validator(mode="after")
    def _consistent(self) -> SlotSpec:
        problem = self._problem()
        if problem:
            raise ValueError(f"slot '{self.name}': {problem}")
        return self

    def _problem(self) -> str:
        if self.source == "free":
            if self.max_tokens < 1:
                return "a free slot needs max_tokens of at least 1"
            if self.values or self.rule or self.ordered or self.polarity:
                return "a free slot takes no values, no rule, no order and no polarity"
            return _free_stem_problem(self.stems)
        if self.max_tokens:
            return "max_tokens belongs to free slots"
        if UNKNOWN not in self.values:
            return f"its values lack '{UNKNOWN}', which every enum must contain"
        if len(set(self.values)) != len(self.values):
            return f"a value is listed twice in {list(self.values)}"
        for value in self.values:
            if not value or value != value.strip() or any(mark in value for mark in ";\n"):
                return f"the value {value!r} is empty, has outer spaces, or contains ';' or a line break"
        if self.source == "rule":
            if self.rule is None:
                return "a rule slot needs a rule"
            stray = [value for value in self.rule.values() if value not in self.values]
            if stray:
                return f"its rule gives {stray[0]!r}, which is not among the values {list(self.values)}"
            return "unknown_when_missing belongs to scored and free slots" if self.unknown_when_missing else ""
        if self.rule is not None:
            return "a scored slot takes no rule"
        if len(self.scored_values) < 2:
            return f"a scored slot needs at least two values besides '{UNKNOWN}'"
        if self.polarity and not self.ordered:
            return "polarity needs ordered: true"
        return _stem_problem(self.stems)

    @property
    def scored_values(self) -> tuple[str, ...]:
        """The values that are judged, in order: all but "unknown"."""
        return tuple(value for value in self.values if value != UNKNOWN)

    def fixed_value(self, record: Record, fields: Any = None) -> str | None:
        """The value decided without a language model, or ``None`` where the slot must be scored or written.

        Args:
          record: one profile, field name -> value.
          fields: the profile fields in use (default: all of the record's).
        """
        if self.source == "rule":
            assert self.rule is not None
            return evaluate(self.rule, record, fields)
        if self.unknown_when_missing and all_missing(self.unknown_when_missing, record, fields):
            return UNKNOWN if self.source == "scored" else ""
        return None


class SegmentSpec(Strict):
    """One line of the chain."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    title: str = Field(pattern=r"^\S[^:;\n]*$")
    slots: tuple[SlotSpec, ...] = Field(min_length=1)


class AnswerSpec(Strict):
    """The last line: a distribution over buckets of the label, said in one code word.

    ``words`` are what the student emits (single tokens); ``phrases`` are what the teacher scores after one of ``stems``.
    ``label`` is the label's common name; the column comes from the data schema.
    """

    title: str = Field(pattern=r"^\S[^:;\n]*$")
    label: str
    buckets: tuple[tuple[int, int], ...] = Field(min_length=2)
    words: tuple[str, ...]
    phrases: tuple[str, ...]
    stems: tuple[str, ...]

    @model_validator(mode="after")
    def _consistent(self) -> AnswerSpec:
        for key in ("words", "phrases"):
            texts = getattr(self, key)
            if len(texts) != len(self.buckets):
                raise ValueError(f"{key}: {len(texts)} for {len(self.buckets)} buckets")
            if len(set(texts)) != len(texts):
                raise ValueError(f"{key}: an entry is listed twice in {list(texts)}")
            if any(not text.strip() for text in texts):
                raise ValueError(f"{key}: an entry is empty")
        if any(abs(end) >= 2**31 for bucket in self.buckets for end in bucket):
            raise ValueError("buckets: an end lies beyond 2^31")
        if any(low > high for low, high in self.buckets):
            raise ValueError("buckets: a lower end lies above its upper end")
        if any(left[1] + 1 != right[0] for left, right in pairwise(self.buckets)):
            raise ValueError("buckets: they must ascend without gap or overlap")
        problem = _stem_problem(self.stems)
        if problem:
            raise ValueError(problem)
        return self


class ChainSpec(Strict):
    """A whole chain: ordered segments, then the answer."""

    name: str
    version: int = Field(ge=1)
    instruction: str = Field(min_length=1)
    segments: tuple[SegmentSpec, ...] = Field(min_length=1)
    answer: AnswerSpec

    @model_validator(mode="after")
    def _unique_names(self) -> ChainSpec:
        titles = [segment.title for segment in self.segments] + [self.answer.title]
        for kind, names in (
            ("segment", [segment.name for segment in self.segments]),
            ("title", titles),
            ("slot", [slot.name for slot in self.slots]),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{kind} '{twice[0]}' occurs twice; names are unique in a chain")
        return self

    @property
    def num_segments(self) -> int:
        """K, the number of reasoning segments (the answer is not one of them)."""
        return len(self.segments)

    @cached_property
    def slots(self) -> tuple[SlotSpec, ...]:
        """All slots in the order of the chain."""
        return tuple(slot for segment in self.segments for slot in segment.slots)

    @cached_property
    def free_slots(self) -> tuple[int, ...]:
        """Numbers of the slots of :attr:`slots` that hold free text."""
        return tuple(i for i, slot in enumerate(self.slots) if slot.source == "free")

    @cached_property
    def segment_of_slot(self) -> tuple[int, ...]:
        """The segment of each slot of :attr:`slots`."""
        return tuple(k for k, segment in enumerate(self.segments) for _ in segment.slots)

    @property
    def num_buckets(self) -> int:
        """K_b, the number of answer buckets."""
        return len(self.answer.buckets)

    @cached_property
    def bucket_value(self) -> np.ndarray:
        """The midpoint of each bucket, float32 [K_b], in the label's unit (days)."""
        return np.asarray([(low + high) / 2 for low, high in self.answer.buckets], np.float32)

    def bucket_of(self, labels: Any) -> np.ndarray:
        """The bucket of each label, int32 of the labels' shape; −1 for missing, fractional and out-of-range labels."""
        values = np.asarray(labels, np.float64)
        lows = np.asarray([low for low, _ in self.answer.buckets], np.float64)
        inside = (values >= lows[0]) & (values <= self.answer.buckets[-1][1]) & (values == np.floor(values))
        bucket = np.searchsorted(lows, np.where(inside, values, lows[0]), side="right") - 1
        return np.where(inside, bucket, -1).astype(np.int32)

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """Every profile field that a rule, ``unknown_when_missing`` or ``polarity`` names, in order of first use."""
        names: dict[str, None] = {}
        for slot in self.slots:
            if slot.rule is not None:
                names.update(dict.fromkeys(slot.rule.fields()))
            names.update(dict.fromkeys(slot.unknown_when_missing))
            if slot.polarity:
                names[slot.polarity.field] = None
        return tuple(names)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the content, independent of the file's layout."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def builtin_specs() -> list[str]:
    """Names of the specifications that come with the package."""
    return sorted(path.stem for path in SPEC_FOLDER.glob("*.yaml"))


def load_spec(name_or_path: str | Path) -> ChainSpec:
    """Reads a built-in specification by name, or a YAML file.

    Raises:
      DataError: the file is missing, is not YAML, or does not describe a chain; names the file and the key path.
    """
    path = SPEC_FOLDER / f"{name_or_path}.yaml" if str(name_or_path) in builtin_specs() else Path(name_or_path)
    if not path.is_file():
        raise DataError(
            "the chain specification is missing",
            where=str(name_or_path),
            do=f"give a YAML file or one of the built-in names: {', '.join(builtin_specs())}",
        )
    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError("the chain specification is not readable YAML", where=str(path), why=str(error)) from error
    return parse_spec(content, where=str(path))


def spec_of_run(config: Mapping[str, Any]) -> ChainSpec:
    """The chain specification of a run's configuration: ``lm.chain_spec``, or the built-in one of the data set's name.

    Raises:
      ConfigError: a table of one's own without ``lm.chain_spec``.
    """
    name = config["lm"]["chain_spec"] or config["data"]["name"]
    if name == "parquet":
        raise ConfigError(
            "a table of your own needs a chain specification", where="lm.chain_spec", do="give a YAML file"
        )
    return load_spec(name)


def parse_spec(content: Any, *, where: str) -> ChainSpec:
    """Validates the parsed content of a specification; ``where`` names its origin in errors.

    Raises:
      DataError: with the key path of every problem.
    """
    try:
        return ChainSpec.model_validate(content)
    except ValidationError as error:
        problems = [(_key_path(item["loc"]), item["msg"].removeprefix("Value error, ")) for item in error.errors()]
        raise DataError(
            "the chain specification is invalid",
            where=f"{where}: {', '.join(dict.fromkeys(path for path, _ in problems))}",
            why="; ".join(f"{path}: {message}" for path, message in problems),
            do="correct these keys; the built-in files in scaletot_jax/specs are examples",
        ) from error


def _stem_problem(stems: tuple[str, ...]) -> str:
    if len(stems) < 2:
        return "stems: at least two paraphrases are needed, to measure disagreement between wordings"
    if len(set(stems)) != len(stems) or any(not stem or stem != stem.strip() for stem in stems):
        return "stems: they must differ, and carry no outer spaces (values bring their own leading space)"
    return ""


def _free_stem_problem(stems: tuple[str, ...]) -> str:
    if len(stems) > 1:
        return "stems: a free slot takes at most one, because its text is written once"
    if any(not stem or stem != stem.strip() or any(mark in stem for mark in ";\n") for stem in stems):
        return "stems: it carries no outer spaces, no ';' and no line break (it stands inside the chain's line)"
    return ""


def _key_path(location: tuple[int | str, ...]) -> str:
    path = ""
    for i, part in enumerate(location):
        if isinstance(part, int):
            path += f"[{part}]"
        # pydantic puts the kind of a rule into the location; the file has no such key.
        elif not (i and (location[i - 1] == "rule" or (i > 1 and location[i - 2] == "of"))):
            path += f".{part}" if path else part
    return path or "(top level)"
