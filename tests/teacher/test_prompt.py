"""What the teacher reads, piece by piece."""

import numpy as np
import pytest

from scaletot_jax.chains.grammar import compile_chain
from scaletot_jax.chains.spec import builtin_specs, load_spec
from scaletot_jax.teacher import prompt, questions
from scaletot_jax.teacher.dialogue import Ask, Segment
from scaletot_jax.teacher.tree import NO_VALUE


@pytest.mark.parametrize("name", builtin_specs())
def test_the_chain_so_far_is_what_the_student_will_write(tiny_lm, name):
    """The pieces' ids are the beginning of the serialised chain, so teacher and student speak of the same text."""
    spec = load_spec(name)
    encode = tiny_lm.tokenizer.encode
    values = [slot.values[0] for slot in spec.slots]
    path = tuple(tuple(slot.values[0] for slot in segment.slots) for segment in spec.segments)
    whole = compile_chain(spec, encode, tiny_lm.tokenizer.eos_id).serialize(values)
    lead = prompt.encode_pieces(prompt.chain_pieces(spec, path), encode)
    assert whole[: len(lead)] == lead
    assert whole[len(lead) :] == encode(f"{spec.answer.title}:")


def case_of(record, *, fields=None, dropped=()):
    spec = load_spec("synthetic")
    names = spec.fields if fields is None else fields
    return spec, questions.make_case(
        spec,
        "key",
        record,
        (1, 2, 3),
        fields=names,
        render=lambda shown: "".join(f"{name}: {value}\n" for name, value in shown.items()),
        dropped=dropped,
    )


FULL = {
    "age": 40,
    "plan": "basic",
    "interests": ["books"],
    "city": "Leeds",
    "device": "phone",
    "visits_30": 4.0,
    "days_since_last_visit": 3.0,
}


def slot_of(spec, name):
    k = next(k for k, segment in enumerate(spec.segments) for slot in segment.slots if slot.name == name)
    return k, [slot.name for slot in spec.segments[k].slots].index(name)


def test_facts_come_by_rule_and_absent_fields_are_unknown():
    spec, case = case_of(FULL)
    k, s = slot_of(spec, "age")
    assert spec.segments[k].slots[s].values[case.segments[k].fixed[s]] == "mature"
    k, s = slot_of(spec, "outlook")
    assert case.segments[k].fixed[s] == NO_VALUE and case.segments[k].scored
    assert case.evidence["outlook"] == "visits_30: 4.0\n"

    _, nothing = case_of(dict.fromkeys(FULL))
    assert not any(segment.scored for segment in nothing.segments) and nothing.evidence == {}
    assert all(s.fixed == s.unknown for s in nothing.segments)


def test_a_slot_that_failed_the_pilot_is_unknown_for_everybody():
    spec, case = case_of(FULL, dropped=("outlook",))
    k, s = slot_of(spec, "outlook")
    assert case.segments[k].fixed[s] == case.segments[k].unknown[s]


def test_fields_that_are_not_in_use_do_not_show():
    spec, case = case_of(FULL, fields=("age", "plan"))
    assert "visits" not in "".join(case.evidence.values())
    k, s = slot_of(spec, "habit")
    assert case.segments[k].fixed[s] == case.segments[k].unknown[s]


def test_a_revision_shows_both_orders_and_the_evidence():
    spec, case = case_of(FULL)
    k, s = slot_of(spec, "outlook")
    ask = Ask("revision", (), k, s, (2, 0))
    question = questions.revision_question(spec, 0, case, ask, {"outlook": (1, 0)})
    texts = ["".join(wording.pieces) for wording in question.wordings]
    stem = spec.segments[k].slots[s].stems[1]
    assert texts == [
        f"Check: active or inactive?\nvisits_30: 4.0\n{stem}",
        f"Check: inactive or active?\nvisits_30: 4.0\n{stem}",
    ]
    assert all("unknown" not in value for wording in question.wordings for value in wording.values)


def calibration_of(mean, entropies=(0.5,)):
    return questions.Calibration(
        mode="trie",
        stems={"outlook": (0, 1)},
        means={"outlook": np.asarray(mean, float)},
        prior=np.zeros(7),
        entropies={"outlook": np.asarray(entropies)},
        thresholds={"outlook": 0.5},
    )


def test_a_revision_reopens_only_the_contest_and_doubts_word_order():
    from scaletot_jax.teacher.token_tree import Scores

    spec, case = case_of(FULL)
    k, s = slot_of(spec, "outlook")
    calibration = calibration_of(np.zeros((2, 3)), entropies=(0.9,))

    def scores(*rows):
        return [Scores(np.float32(row), np.float32(row)) for row in rows]

    even = np.log([0.3, 0.3, 0.4])
    before = questions.segment_draw(spec, case, k, scores(even, even), calibration, 7)
    np.testing.assert_allclose(before.probabilities[s], [0.3, 0.3, 0.4, 0], atol=1e-6)
    ask = Ask("revision", (), k, s, (2, 0))
    clear = np.log([0.1, 0.2, 0.7])
    agreed = questions.revision_draw(spec, case, ask, before, scores(clear, clear), calibration, 9)
    np.testing.assert_allclose(agreed.probabilities[s], [0.7 / 8, 0.3, 4.9 / 8, 0], atol=1e-6)
    assert agreed.uncertainty < before.uncertainty and agreed.disagreement == pytest.approx(0, abs=1e-9)
    order_bias = questions.revision_draw(
        spec, case, ask, before, scores(np.log([0.1, 0.2, 0.7]), np.log([0.7, 0.2, 0.1])), calibration, 9
    )
    assert order_bias.disagreement > 0.1 and order_bias.uncertainty > before.uncertainty


def test_a_revision_leaves_the_other_slot_its_own_disagreement():
    """Two judged slots in a segment: wordings quarrel about one and agree about the other, which is then revised."""
    from scaletot_jax.chains.spec import parse_spec
    from scaletot_jax.teacher.token_tree import Scores

    content = load_spec("synthetic").model_dump(mode="json")
    (segment,) = [segment for segment in content["segments"] if segment["slots"][0]["name"] == "outlook"]
    segment["slots"].append({**segment["slots"][0], "name": "mood", "polarity": None})
    spec = parse_spec(content, where="test")
    names = spec.fields
    case = questions.make_case(
        spec,
        "key",
        FULL,
        (1, 2, 3),
        fields=names,
        render=lambda shown: "".join(f"{n}: {v}\n" for n, v in shown.items()),
    )
    k, s = slot_of(spec, "mood")
    mean = np.zeros((2, 3))
    calibration = questions.Calibration(
        mode="trie",
        stems={"outlook": (0, 1), "mood": (0, 1)},
        means={"outlook": mean, "mood": mean},
        prior=np.zeros(7),
        entropies={"outlook": np.asarray([0.5])},
        thresholds={"outlook": 0.5},
    )

    def scores(*rows):
        return [Scores(np.float32(row), np.float32(row)) for row in np.log(rows)]

    quarrel, agree = ([0.8, 0.1, 0.1], [0.1, 0.1, 0.8]), ([0.4, 0.2, 0.4], [0.4, 0.2, 0.4])
    before = questions.segment_draw(spec, case, k, scores(*quarrel, *agree), calibration, 7)
    assert before.spreads[0] > 0.3 and before.spreads[s] == pytest.approx(0, abs=1e-9)
    ask = Ask("revision", (), k, s, (0, 2))
    after = questions.revision_draw(spec, case, ask, before, scores(*agree), calibration, 7)
    assert after.spreads == pytest.approx(before.spreads, abs=1e-6)
    assert after.disagreement == pytest.approx(before.disagreement, abs=1e-6)


def test_the_calibration_survives_json():
    import json

    calibration = calibration_of(np.arange(6).reshape(2, 3) / 7)
    again = questions.Calibration.from_dict(json.loads(json.dumps(calibration.to_dict())))
    np.testing.assert_array_equal(again.means["outlook"], calibration.means["outlook"])
    assert again.stems == calibration.stems and again.to_dict() == calibration.to_dict()


def test_segments_know_whether_they_need_a_call():
    assert Segment((NO_VALUE, 1), (2, 2), (3, 3)).scored
    assert not Segment((0, 1), (2, 2), (3, 3)).scored
