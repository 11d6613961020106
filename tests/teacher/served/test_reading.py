"""Responses of several servers, and texts of several chat models, read or refused."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaletot_jax.teacher.served.reading import Answer, parse_value, read_answer, read_decision
from scaletot_jax.teacher.served.text_tree import Token

VALUES = ("no", "yes", "not now")
ARRAYS = {  # vLLM, SGLang and the older API
    "model": "m",
    "choices": [{"text": " a", "logprobs": {"tokens": [" a"], "top_logprobs": [{" a": -0.5, "▁b": -1.5, "c": None}]}}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1},
}
LISTS = {  # llama.cpp
    "model": "m",
    "system_fingerprint": "f",
    "choices": [
        {
            "text": " a",
            "logprobs": {
                "content": [
                    {
                        "token": " a",
                        "logprob": -0.5,
                        "top_logprobs": [{"token": " b", "logprob": -1.5}, {"token": " a", "logprob": -0.5}],
                    }
                ]
            },
        }
    ],
}


def test_both_forms_of_log_probabilities():
    for body, usage, fingerprint in ((ARRAYS, (3, 1), ""), (LISTS, (-1, -1), "f")):
        answer = read_answer(body, top_k=5)
        assert answer.tokens == ((" a", (Token(" a", -0.5), Token(" b", -1.5))),)
        assert (answer.input_tokens, answer.output_tokens) == usage and answer.fingerprint == fingerprint
        assert Answer.from_json(json.loads(json.dumps(answer.to_json()))) == answer
    assert len(read_answer(LISTS, top_k=1).tokens[0][1]) == 1  # vLLM adds the drawn token to the k


@pytest.mark.parametrize(
    "body",
    [
        None, [], "text", {}, {"choices": []}, {"choices": [1]}, {"choices": [{"index": 0}]}, {"choices": [{"text": 3}]},
        {"choices": [{"text": "", "logprobs": {"content": [{"token": "a"}]}}]},
        {"choices": [{"text": "", "logprobs": [1]}]},
        {"choices": [{"text": "", "logprobs": {"tokens": ["a"], "top_logprobs": [["a", 1]]}}]},
        {"choices": [{"text": "", "logprobs": {"tokens": ["a"], "top_logprobs": [{"a": "x"}]}}]},
        {"choices": [{"text": "", "logprobs": {"tokens": ["a"], "top_logprobs": [{"a": 10**400}]}}]},
    ],
)  # fmt: skip
def test_another_shape_is_refused(body):
    with pytest.raises(ValueError, match="response"):
        read_answer(body, top_k=5)


@given(st.recursive(st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=3), lambda x: st.lists(x, max_size=3) | st.dictionaries(st.sampled_from(["choices", "text", "message", "content", "logprobs", "tokens", "top_logprobs", "usage", "token", "logprob"]), x, max_size=4), max_leaves=12))  # fmt: skip
def test_no_json_breaks_the_reader(body):
    try:
        answer = read_answer(body, top_k=3)
    except ValueError:
        return
    assert Answer.from_json(json.loads(json.dumps(answer.to_json()))) == answer


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"value": "no"}', 0),
        ('```json\n{\n  "value": "Not now"\n}\n```', 2),
        ('Well, {"why": "x"} and {"value": "yes"}', 1),
        ("yes", 1),
        (' "NO."\n', 0),
        ('{"value": "perhaps"}', "'perhaps' is not one"),
        ('{"value": ["no"]}', "cannot be read"),
        ('{"value": "n', "is not one"),
        ("I would say no", "not the JSON object"),
        ("", "not the JSON object"),
        ('{"value":' * 5000, "cannot be read"),
        ('{"a":' * 50_000 + '{"value": "no"}', "cannot be read"),
    ],
)
def test_a_value_is_found_or_the_error_says_why(text, value):
    found = parse_value(text, VALUES)
    assert found == value if isinstance(value, int) else value in str(found)


@given(st.text(max_size=30))
def test_any_text_is_a_value_or_an_error(text):
    found = parse_value(text, VALUES)
    assert isinstance(found, str) or 0 <= found < 3
    for i, value in enumerate(VALUES):
        assert parse_value(json.dumps({"value": value, "note": text}), VALUES) == i


def place(token, **tops):
    return (token, tuple(Token(t, math.log(p)) for t, p in tops.items()))


def chat(*places):
    return Answer("", tuple(places), -1, -1, "", "", "")


def test_the_decision_is_read_where_the_value_begins():
    answer = chat(place("```{"), place('"value'), place('": "'), place("no", no=0.5, yes=0.3, x=0.2), place('"}'))
    found = read_decision(answer, ("no", "yes", "never"))
    np.testing.assert_allclose(np.exp(found.log_probs), np.array([0.5, 0.3, 1e-12]) / 0.8, rtol=1e-5, atol=1e-9)
    assert (found.how, found.requests) == ("decision tokens", 1)


def test_values_that_share_the_written_token_are_told_apart_at_the_next():
    ending = ("no", (Token('"}', math.log(0.2)), Token(" now", math.log(0.01)), Token("t now", math.log(0.6))))
    answer = chat(place('{"value": "'), place("no", no=0.8, yes=0.1), ("t now", ending[1]), place('"}'))
    found = read_decision(answer, VALUES)
    np.testing.assert_allclose(np.exp(found.log_probs), np.array([0.8 * 0.2, 0.1, 0.8 * 0.6]) / 0.74, rtol=1e-6)


def test_a_token_that_holds_the_quote_before_the_value():
    answer = chat(place('{"value":'), place(' "no', **{' "no': 0.6, ' "yes': 0.3, " no": 0.1}), place('"}'))
    found = read_decision(answer, ("no", "yes"))
    np.testing.assert_allclose(np.exp(found.log_probs), [2 / 3, 1 / 3], rtol=1e-6)


def test_branches_that_were_not_written_share_equally():
    """ "left" was written; "right a" and "right b" share a token whose continuation nobody saw."""
    answer = chat(place('{"value": "'), place("left", left=0.5, right=0.4), place('"}'))
    found = read_decision(answer, ("left", "right a", "right b"))
    np.testing.assert_allclose(np.exp(found.log_probs), np.array([0.5, 0.2, 0.2]) / 0.9, rtol=1e-6)


def test_what_is_no_decision_is_not_read():
    assert read_decision(chat(), VALUES) is None
    assert read_decision(chat(place("Sure!"), place(" no", no=0.9)), VALUES) is None
    assert read_decision(chat(place('{"value": "'), place("maybe", maybe=1.0)), VALUES) is None


def test_only_the_tokens_around_the_value_keep_their_alternatives():
    texts = ["```", '{"value": "', "no", '"', "}", " and", ' "more"']
    content = [{"token": t, "logprob": -1, "top_logprobs": [{"token": t, "logprob": -1.0}]} for t in texts]
    body = {"choices": [{"message": {"content": "no"}, "logprobs": {"content": content}}]}
    assert [bool(top) for _, top in read_answer(body, top_k=3).tokens] == [
        False,
        False,
        True,
        True,
        False,
        False,
        False,
    ]
    body = {"choices": [{"message": {"content": None}, "logprobs": None}]}
    assert read_answer(body, top_k=3).text == ""  # a refusal
