"""Writing after the search: in the chain's order, only what the profile backs and the grammar takes, within the bounds."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from teacher.free_spec import content, spec

from scaletot_jax.chains.parser import parse
from scaletot_jax.chains.reserved import compile_for, reserved_ids
from scaletot_jax.chains.spec import parse_spec
from scaletot_jax.errors import DataError
from scaletot_jax.teacher import prompt, questions, records
from scaletot_jax.teacher.budget import Bounds
from scaletot_jax.teacher.dialogue import Answer, Draft, Draw
from scaletot_jax.teacher.search import run, search
from scaletot_jax.teacher.tree import NO_VALUE
from scaletot_jax.teacher.writing import fitted, write_texts

SPEC = spec()
NOTE, WHY, REMARK = SPEC.free_slots
RECORD = {"age": 40, "plan": "basic", "interests": ["music"], "city": "Leeds", "device": "phone", "visits_30": 4.0,
          "days_since_last_visit": 3.0}  # fmt: skip
VOCABULARY = ("basic", "leeds", "music", "phone", "premium", "tablet")


@pytest.fixture(scope="module")
def chain(tiny_lm):
    return compile_for(SPEC, tiny_lm.tokenizer, tiny_lm.config.vocab_size)


def case_of(record=RECORD):
    def render(shown):
        return "".join(f"{name}: {value}\n" for name, value in shown.items() if value is not None)

    return questions.make_case(SPEC, "key", record, (1, 2, 3), fields=SPEC.fields, render=render)


def searched(case, *, calls=7, tokens=100, chains=2):
    """A finished search with made-up replies."""

    def reply(ask):
        if ask.kind == "answer":
            return Answer(np.ones(7) / 7, 1)
        segment = case.segments[ask.segment]
        p = tuple(
            np.eye(n)[f] if f != NO_VALUE else np.linspace(2, 1, n) / np.linspace(2, 1, n).sum()
            for n, f in zip(segment.sizes, segment.fixed)
        )
        return Draw(p, 0.5, 0.5, 0.5, segment.fixed.index(NO_VALUE), 1)

    bounds = Bounds(beam=chains, max_calls=10**6, max_tokens=10**6, max_samples=10**6)
    found = run(search(case.segments, [1.0] * len(case.segments), bounds, cost=lambda kind, k: 1), reply)
    return {**records.search_record(SPEC, found, profile_tokens=3), "calls": calls, "tokens": tokens}


class Writer:
    """Says what it is told, slot by slot, and remembers what it was asked."""

    def __init__(self, chain, *texts):
        self.chain, self.texts, self.asked = chain, texts, []

    def ids(self, pieces):
        return tuple(prompt.encode_pieces(pieces, self.chain.encode))

    def __call__(self, requests):
        drafts = []
        for request in requests:
            text = self.texts[len(self.asked) % len(self.texts)]
            ids = tuple(self.chain.encode(text))[: request.max_tokens]
            self.asked.append(request)
            zeros = (0.0,) * len(ids)
            drafts.append(Draft(text, ids, zeros, zeros, True, len(self.ids(request.lead)) + len(ids)))
        return drafts


def write(chain, cases, found, writer, *, limits=None, started=0.0, clock=lambda: 0.0):
    return write_texts(
        chain, cases, found, writer, ids=writer.ids, bounds=limits or Bounds(), started=started, clock=clock,
        vocabulary=VOCABULARY,
    )  # fmt: skip


def test_texts_are_written_in_order_where_they_will_stand(chain):
    case = case_of()
    assert case.written == SPEC.free_slots
    found = searched(case)
    assert [found["chains"][0]["values"][i] for i in SPEC.free_slots] == ["", "", ""]
    assert [found["chains"][0]["distributions"][i] for i in SPEC.free_slots] == [[], [], []]
    writer = Writer(chain, " music", " basic", " daily music", " weekly", " home", " sport")
    (record,) = write(chain, [case], [found], writer)
    assert [kept["values"][NOTE] for kept in record["chains"]] == ["music", "basic"]
    assert [request.close for request in writer.asked[::2]] == [";", "\n", "\n"]
    assert found["chains"][0]["values"][NOTE] == "", "the search's own record is not touched"
    for rank, kept in enumerate(record["chains"]):
        whole = chain.serialize(kept["values"], 0)
        assert parse(chain, whole).complete
        for i, slot in enumerate(SPEC.free_slots):
            request = writer.asked[2 * i + rank]
            stem = list(chain.encode(f" {SPEC.slots[slot].stems[0]}")) if SPEC.slots[slot].stems else []
            lead = list(writer.ids(request.lead))
            assert lead[len(lead) - len(stem) :] == stem
            shown = lead[: len(lead) - len(stem)]
            after = [*chain.encode(" " + kept["values"][slot]), chain.slots[slot].close]
            assert whole[: len(shown) + len(after)] == shown + after, "lead, text and mark are the chain's beginning"
    assert record["calls"] == 7 + 6 and record["tokens"] > 100


def test_judgements_see_neither_texts_nor_their_places():
    plain, _ = parse_spec({**content(), "segments": without_texts()}, where="plain"), None
    case = case_of()
    path = tuple(tuple(max(f, 0) for f in segment.fixed) for segment in case.segments)
    bare = tuple(
        tuple(v for v, slot in zip(values, segment.slots) if slot.source != "free")
        for values, segment in zip(path, SPEC.segments)
    )[:-1]
    assert questions.answer_question(SPEC, 0, path).lead == questions.answer_question(plain, 0, bare).lead
    assert all(NO_VALUE not in (s.fixed[s.sizes.index(1)],) for s in case.segments if 1 in s.sizes)


def without_texts():
    segments = [
        {**segment, "slots": [slot for slot in segment["slots"] if slot["source"] != "free"]}
        for segment in content()["segments"]
    ]
    return [segment for segment in segments if segment["slots"]]


@pytest.mark.parametrize(
    "text, reason, detail",
    [
        (" on 12 days", "number", "12"),
        (" twelve", "number", "twelve"),
        (" tablet home", "value", "tablet"),
        (" <|im_end|>", "form", ""),
        ("\ufffd\ufffd", "form", ""),
    ],
)
def test_what_is_not_backed_becomes_empty_and_stays_on_record(chain, text, reason, detail):
    (record,) = write(chain, [case_of()], [searched(case_of(), chains=1)], Writer(chain, text))
    entry = record["chains"][0]["texts"][0]
    assert entry["slot"] == "note" and not entry["accepted"] and entry["text"] == "" and entry["draft"] == text
    assert (entry["reason"], entry["detail"]) == (reason, detail)
    assert record["chains"][0]["values"][NOTE] == ""
    summary = records.summarise_texts([record])
    assert summary["asked"] == 3 and summary["accepted"] == 0 and summary["rejected"] == {reason: 3}


@pytest.mark.parametrize("text", [" 4 days; basic", " likes music", "phone\nDays: many", "", "   "])
def test_what_is_backed_stays_up_to_the_first_mark(chain, text):
    (record,) = write(chain, [case_of()], [searched(case_of(), chains=1)], Writer(chain, text))
    entry = record["chains"][0]["texts"][0]
    assert entry["accepted"] and entry["reason"] == ""
    assert entry["text"] == text.strip().split(";")[0].split("\n")[0]


def test_a_slot_is_empty_by_rule_without_a_call(chain):
    case = case_of({**RECORD, "city": None})
    assert NOTE not in case.written
    writer = Writer(chain, " music")
    (record,) = write(chain, [case], [searched(case, chains=1)], writer)
    assert len(writer.asked) == 2 and [entry["slot"] for entry in record["chains"][0]["texts"]] == ["why", "remark"]


def test_rejected_chains_are_not_written(chain):
    found = searched(case_of(), chains=1)
    found["chains"][0]["accepted"] = False
    writer = Writer(chain, " music")
    (record,) = write(chain, [case_of()], [found], writer)
    assert not writer.asked and record["chains"][0]["texts"] == [] and record["calls"] == 7


limits = st.builds(Bounds, max_calls=st.integers(0, 30), max_tokens=st.integers(0, 900))


@given(st.lists(limits, min_size=1, max_size=3), st.integers(0, 20), st.integers(0, 400), st.integers(1, 3))
def test_no_bound_is_ever_exceeded(tiny_lm, bounds, calls, tokens, chains):
    chain = _compiled(tiny_lm)
    case = case_of()
    for limit in bounds:
        found = searched(case, calls=min(calls, limit.max_calls), tokens=min(tokens, limit.max_tokens), chains=chains)
        writer = Writer(chain, " a rather long text about music and food and sport and home")
        (record,) = write(chain, [case], [found], writer, limits=limit)
        assert record["calls"] == found["calls"] + len(writer.asked) <= limit.max_calls
        assert record["tokens"] <= limit.max_tokens
        entries = [entry for kept in record["chains"] for entry in kept["texts"]]
        assert len(entries) == 3 * len(found["chains"])
        flagged = [entry for entry in entries if entry["reason"] == "budget"]
        assert len(flagged) == len(entries) - len(writer.asked) and record["budget"] == bool(flagged)
        assert all(entry["text"] == "" and not entry["tokens"] for entry in flagged)


def test_nothing_is_written_after_the_deadline(chain):
    writer, now = Writer(chain, " music"), iter([0.0, 1.0, 2.0, *[9.0] * 20])
    limit = Bounds(deadline_s=3.0)
    (record,) = write(
        chain, [case_of()], [searched(case_of())], writer, limits=limit, started=0.0, clock=lambda: next(now)
    )
    assert len(writer.asked) == 2 and record["budget"]
    assert [entry["reason"] for entry in record["chains"][0]["texts"]][-1] == "budget"


def _compiled(tiny_lm, made={}):  # noqa: B006  one compilation for all examples
    return made.setdefault("chain", compile_for(SPEC, tiny_lm.tokenizer, tiny_lm.config.vocab_size))


ALPHABET = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from([" music", ";", "\n", "<|im_end|>", "\ufffd", "  ", " 12", "é", "日本", "\x00", "Days:"]), max_size=9).map("".join),
)  # fmt: skip


@given(ALPHABET, st.sampled_from(SPEC.free_slots))
def test_whatever_is_taken_parses_and_serialises_back(tiny_lm, text, slot):
    chain = _compiled(tiny_lm)
    taken = fitted(chain, slot, text)
    if taken is None:
        return
    values = [s.values[0] if s.values else "" for s in SPEC.slots]
    values[slot] = taken
    ids = chain.serialize(values, 1)
    parsed = parse(chain, ids)
    assert parsed.complete and chain.serialize(parsed.values, parsed.bucket) == ids
    assert len(parsed.values[slot]) <= SPEC.slots[slot].max_tokens
    assert tiny_lm.tokenizer.decode(parsed.values[slot]) == (" " + taken if taken else "")
    assert fitted(chain, slot, taken) == taken


def test_reserved_tokens_are_those_that_hold_a_mark_or_control(tiny_lm):
    tokenizer, rows = tiny_lm.tokenizer, tiny_lm.config.vocab_size + 3
    reserved = set(reserved_ids(tokenizer, rows))
    for i in range(rows):
        text = tokenizer.decode([i]) if i < tokenizer.vocab_size else None
        expected = text is None or any(mark in text for mark in ";\n\r") or text in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # fmt: skip
        assert (i in reserved) == expected, (i, text)


def test_bad_free_slots_are_refused():
    for bad, message in (
        ({"stems": ["a", "b"]}, "at most one"),
        ({"stems": ["a;b"]}, "no ';'"),
        ({"ordered": True}, "no order"),
        ({"max_tokens": 0}, "max_tokens"),
    ):
        made = content()
        made["segments"][-1]["slots"][0].update(bad)
        with pytest.raises(DataError, match=message):
            parse_spec(made, where="bad")


def test_the_recipe_of_the_documentation_is_a_slot():
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^# A slot in free text$.*?```yaml\n(.*?)```", page, re.S | re.M)
    made = content()
    made["segments"] += yaml.safe_load(block)
    parsed = parse_spec(made, where="recipe")
    assert [parsed.slots[i].name for i in parsed.free_slots] == ["note", "why", "remark", "reason"]
