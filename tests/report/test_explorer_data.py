"""What the explorer holds: which users, the nearest profile, entropies, and nothing that must stay hidden."""

import json
from types import SimpleNamespace as Box

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaletot_jax.report.explorer import render
from scaletot_jax.report.explorer_data import Users, choose, entropy_share, explorer_data, nearest

KEYS = [f"{i:064x}" for i in range(4)]
SECRET = "wrote-this-myself"
SPEC = Box(
    segments=[Box(name="context", title="Context"), Box(name="note", title="Note")],
    slots=[
        Box(name="life", source="scored", values=("settled", "moving")),
        Box(name="remark", source="free", values=()),
    ],
    segment_of_slot=(0, 1),
    answer=Box(title="Days", buckets=((0, 0), (1, 30))),
)


def chain(key, **more):
    row = {"values": ["moving", SECRET], "distributions": [[0.25, 0.75], []], "answer": [0.4, 0.6], "log_prob": -0.5}
    return {"exact_key": key, "accepted": True, "reason": "", "calls": 3, "tokens": 90, **row, **more}


def data(show_text=False, ids=None, nodes=None):
    z = np.array([[1.0, 0.0], [0.0, 1.0], [0.1, 3.0], [-1.0, 0.05]])
    users = Users(np.arange(4), KEYS, ["teacher", "head", "head", "test"], [["a: 1"], ["a: 2"], ["a: 1"], []], ids, z=z)
    text = {
        "slot": "remark",
        "accepted": True,
        "reason": "",
        "tokens": [7, 8],
        "entropies": [0.5, 2.5],
        "log_probs": [-0.1, -1.0],
    }
    return explorer_data(
        users, [chain(KEYS[0]), chain(KEYS[1])], nodes or {}, {KEYS[0]: [text]}, SPEC, total=9, label="lt30",
        show_text=show_text, piece=lambda token: f"{SECRET}{token}",
    )  # fmt: skip


def test_an_unreasoned_user_gets_the_reasoned_one_of_largest_cosine():
    users = data()["users"]
    assert [user["nearest"] for user in users] == [None, None, 1, 1]
    assert users[2]["similarity"] == pytest.approx(3 / (9.01**0.5), abs=1e-4)
    assert users[0]["chain"] == 0 and users[3]["chain"] is None and users[2]["profile"] == users[0]["profile"]


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 6))
def test_nearest_agrees_with_a_loop(seed, count, width):
    rng = np.random.default_rng(seed)
    z, reasoned = rng.normal(size=(count, width)), rng.random(count) < 0.5
    reasoned[rng.integers(count)] = True
    place, cosine = nearest(z, reasoned)
    for i in range(count):
        every = {j: z[i] @ z[j] / np.linalg.norm(z[i]) / np.linalg.norm(z[j]) for j in np.flatnonzero(reasoned)}
        assert place[i] == i if reasoned[i] else cosine[i] == pytest.approx(max(every.values()))
        assert cosine[i] == pytest.approx(every[place[i]])


@given(st.lists(st.booleans(), max_size=60), st.integers(0, 70))
def test_reasoned_users_are_shown_first_and_never_too_many(flags, most):
    keys = [f"{i}" for i in range(len(flags))]
    reasoned = {key for key, flag in zip(keys, flags) if flag}
    places = choose(keys, reasoned, most).tolist()
    assert places == sorted(set(places)) and len(places) == min(most, len(keys))
    shown = {keys[place] for place in places}
    assert reasoned <= shown or (len(shown & reasoned) == most)


def test_entropy_is_a_share_of_the_largest():
    assert entropy_share([0.5, 0.5]) == pytest.approx(1) and entropy_share([1.0, 0.0, 0.0]) == 0
    assert entropy_share([0.25, 0.75]) == pytest.approx(0.8112781)
    assert entropy_share([1.0]) is None and entropy_share([0.0, 0.0]) is None
    assert data()["chains"][0]["entropies"] == [0.811, None] and data()["chains"][0]["shares"] == [0.75, None]


def test_free_text_and_identifiers_are_absent_unless_asked_for():
    hidden = json.dumps(data())
    assert SECRET not in hidden and KEYS[0] not in hidden and '"id"' not in hidden
    assert data()["chains"][0]["texts"][0]["entropies"] == [0.5, 2.5]
    shown = data(show_text=True, ids=["ann", "bob", "cy", "dee"])
    assert shown["chains"][0]["values"] == ["moving", SECRET] and shown["users"][1]["id"] == "bob"
    assert shown["chains"][0]["texts"][0]["pieces"] == [f"{SECRET}7", f"{SECRET}8"]
    assert shown["redacted"] == {"ids": False, "text": False}


def test_data_cannot_end_the_element_it_stands_in():
    users = Users(np.arange(1), KEYS[:1], ["head"], [["</script><script>alert(1)</script><!-- \ud800"]])
    page = render(explorer_data(users, [], {}, {}, None, total=1, label="days"))
    assert page.count("</script>") == 3 and "alert(1)" in page and "<!--" not in page
