"""Questions that were asked before are not asked again."""

import numpy as np
import pytest

from scaletot_jax.teacher.backend import Backend, Question, Wording, stack
from scaletot_jax.teacher.scoring import Scorer
from scaletot_jax.teacher.store import Store

PROFILES = ("Age: 35-44\nActivity: daily\n", "Age: 18-24\nActivity: none\n")
HABIT = Wording(("Habit:",), (" daily", " weekly", " rare"))
DAYS = Wording(("Days:",), (" 0 days", " 1 day", " 2-3 days"))


@pytest.fixture
def backend(tiny_lm, tmp_path):
    encode = tiny_lm.tokenizer.encode
    scorer = Scorer(tiny_lm.params, tiny_lm.config, instruction=encode("Judge.\n"), max_profile_tokens=48, batch_size=2)
    with Store(tmp_path / "store.sqlite") as store:
        yield Backend(scorer, store, encode, identity="tiny", close=encode("\n")[0])


def open_batch(backend):
    return backend.open([backend.ids((profile,)) for profile in PROFILES])


def test_a_stored_question_costs_no_call_but_the_same_tokens(backend):
    asked = [Question(0, (), (HABIT,)), Question(1, (), (HABIT, DAYS))]
    batch = open_batch(backend)
    first = batch.ask(asked)
    calls = backend.scorer.calls
    assert [tokens for _, tokens in batch.ask(asked)] == [tokens for _, tokens in first]  # not yet committed
    batch.commit()
    again = open_batch(backend).ask(asked)
    assert backend.scorer.calls == calls
    for (a, cost_a), (b, cost_b) in zip(first, again):
        assert cost_a == cost_b
        for x, y in zip(a, b):
            np.testing.assert_array_equal(x.local, y.local)
    open_batch(backend).ask([Question(1, ("Context:", " settled", "\n"), (HABIT,))])  # another chain: another question
    assert backend.scorer.calls > calls


def test_full_scores_answer_local_questions(backend):
    batch = open_batch(backend)
    ((full, _),) = batch.ask([Question(0, (), (DAYS,))], full=True)
    calls = backend.scorer.calls
    ((local, _),) = batch.ask([Question(0, (), (DAYS,))])
    assert backend.scorer.calls == calls
    np.testing.assert_array_equal(full[0].local, local[0].local)
    ((only, _),) = open_batch(backend).ask([Question(1, (), (DAYS,))])
    assert np.isnan(only[0].full).all()  # never silently another number
    assert stack(full, "full").shape == stack(only, "trie").shape == (1, 3)
