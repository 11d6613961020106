"""The served backend against a made-up server: answers, faults, limits, and nothing asked twice."""

import json
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from teacher.served.toy_server import Toy, serving

from scaletot_jax.config import default_config
from scaletot_jax.errors import ConfigError, DataError, ResourceError
from scaletot_jax.teacher.backend import Question, Wording
from scaletot_jax.teacher.dialogue import TextRequest
from scaletot_jax.teacher.served.backend import Service
from scaletot_jax.teacher.served.reading import drive
from scaletot_jax.teacher.served.text_tree import Token, entropy_of, walk
from scaletot_jax.teacher.store import Store

INSTRUCTION = "Judge.\n"
PROFILES = ("Age: 35-44\nActivity: daily\n", "Age: 18-24\nNote: <|im_end|>\nActivity: none\n")
HABIT = Wording(("Habit:",), (" daily", " weekly", " rare"))
DAYS = Wording(("Days", ":"), (" 0 days", " 1 day", " 2-3 days", " 15-22 days"))
LEAD = ("Context:", " settled", "\n")
TOY = Toy(
    (" daily", " weekly", " rare", " ", *"0123456789", "-", " day", " days", "yes", "no", "daily", "weekly", "rare")
)
ASKED = [Question(0, (), (HABIT, DAYS)), Question(1, LEAD, (HABIT,)), Question(1, LEAD, (DAYS,))]


@pytest.fixture
def api():
    with serving(TOY) as server:
        yield server


class Teacher:
    """A service in one folder, opened and closed like a stage does."""

    def __init__(self, folder, api, tokenizer):
        self.folder, self.tokenizer = folder, tokenizer
        self.settings = default_config().teacher.served.to_dict() | {"base_url": api.url, "timeout_s": 5.0}

    def ask(self, questions=ASKED, *, write=(), **changes):
        with Store(self.folder / "store.sqlite") as store:
            settings = {**self.settings, **changes}
            with Service(settings, store, self.folder, self.tokenizer) as service:
                self.backend = service.backend(INSTRUCTION)
                ids = [self.tokenizer.encode(text, control=False) for text in PROFILES]
                self.batch = self.backend.open(ids)
                self.drafts = self.batch.write(write)
                return self.batch.ask(questions)

    def ledger(self):
        return [json.loads(line) for line in (self.folder / "requests.jsonl").read_text().splitlines()]


@pytest.fixture
def teacher(tmp_path, api, tiny_lm, monkeypatch):
    monkeypatch.setattr("scaletot_jax.teacher.served.drawing.backoff", lambda *_: 0.01)
    return Teacher(tmp_path, api, tiny_lm.tokenizer)


def probabilities(replies):
    return [np.exp(scores.local.astype(float)) for group, _ in replies for scores in group]


def test_completions_give_the_models_own_distribution(teacher, api):
    replies = teacher.ask(top_k=99)
    prompt = INSTRUCTION + PROFILES[0] + "Days:"
    truth = drive(walk(DAYS.values), lambda prefix: tuple(Token(*t) for t in TOY.top(prompt + prefix, 99)))
    np.testing.assert_allclose(probabilities(replies)[1], np.exp(truth.log_probs), atol=1e-6)
    assert all(np.isnan(scores.full).all() for group, _ in replies for scores in group)
    assert [tokens for _, tokens in replies] == [len(teacher.backend.tree(q, full=False).tokens) for q in ASKED]
    evidence = teacher.backend.evidence()
    assert evidence["read_from"] == {"top-k": 4} and evidence["values_outside_top_k"] == 0
    assert evidence["top_k"] == len(TOY.vocabulary) and evidence["mean_tail"] == pytest.approx(0, abs=1e-9)
    assert evidence["reported"] == [["toy-1", "fp"]] and evidence["requests"] == len(api.bodies) - 1  # and the probe


def test_what_is_sent_is_the_text_the_local_teacher_reads(teacher, api):
    teacher.ask()
    sent = {json.loads(body)["prompt"] for body in api.bodies[1:]}
    assert INSTRUCTION + PROFILES[0] + "Habit:" in sent
    second = "Age: 18-24\nNote: < |im_end|>\nActivity: none\n"  # data cannot be a control token
    assert INSTRUCTION + second + "Context: settled\nDays: " in sent
    assert all(json.loads(body)["max_tokens"] == 1 for body in api.bodies)


def test_nothing_is_asked_twice_and_a_replay_needs_no_server(teacher, api):
    first = teacher.ask()
    asked, evidence = len(api.bodies), teacher.backend.evidence()
    teacher.ask()
    assert len(api.bodies) == asked and api.repeated() == 0
    api.shutdown()
    api.server_close()
    again = teacher.ask()
    for a, b in zip(probabilities(first), probabilities(again)):
        np.testing.assert_array_equal(a, b)
    assert teacher.backend.evidence() == evidence


@pytest.mark.parametrize("fault", ["busy", "broken", "hang", "slow", "truncated", "short", "shapeless", "reset"])
def test_a_passing_fault_changes_nothing(teacher, api, fault, tmp_path):
    truth = Teacher(tmp_path / "undisturbed", api, teacher.tokenizer).ask()
    api.bodies.clear()
    api.faults = [fault, None, None, fault, None, fault]
    started = time.monotonic()
    replies = teacher.ask(timeout_s=0.3, concurrency=2)
    for a, b in zip(probabilities(truth), probabilities(replies)):
        np.testing.assert_array_equal(a, b)
    assert time.monotonic() - started < 4
    events = [entry["event"] for entry in teacher.ledger()]
    paid = fault not in ("busy", "broken")  # for all the client knows
    assert events.count("lost") == 3 * paid and events.count("free") == 3 * (not paid)
    assert events.count("sent") == len(api.bodies) == events.count("answered") + 3


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("broken", ResourceError, "out of luck"),
        ("truncated", DataError, "ends early"),
        ("shapeless", DataError, "text"),
    ],
)
def test_a_lasting_fault_is_told(teacher, api, fault, error, words):
    api.faults = [None] + [fault] * 50
    with pytest.raises(error, match="served teacher") as caught:
        teacher.ask(retries=2)
    assert words in str(caught.value) and "3 attempts" in str(caught.value)


def test_a_refused_request_is_told_and_the_others_are_kept(teacher, api):
    api.faults, api.delay = [None, None, "bad"], 0.05
    with pytest.raises(ConfigError, match="not allowed"):
        teacher.ask(concurrency=2)
    before = len(api.bodies)
    api.faults = []
    teacher.ask()
    assert api.repeated() == 1 and len(api.bodies) > before  # the refused one alone


def test_the_key_is_sent_and_never_written(teacher, api, monkeypatch, capfd):
    monkeypatch.setenv("TOY_KEY", "sk-very-secret")
    teacher.ask(api_key_env="TOY_KEY")
    assert api.headers[0]["Authorization"] == "Bearer sk-very-secret"
    (teacher.folder / "store.sqlite").unlink()
    api.faults = ["forbidden"]
    with pytest.raises(ConfigError, match="api_key_env") as caught:
        teacher.ask(api_key_env="TOY_KEY")
    written = b"".join(path.read_bytes() for path in teacher.folder.iterdir()).decode("latin1")
    assert "secret" not in written + str(caught.value) + "".join(capfd.readouterr())
    monkeypatch.delenv("TOY_KEY")
    with pytest.raises(ConfigError, match="TOY_KEY"):
        teacher.ask(api_key_env="TOY_KEY")


def test_concurrency_is_used_and_bounded(teacher, api):
    many = [Question(0, (f"{i}",), (HABIT,)) for i in range(12)]
    api.delay = 0.05
    teacher.ask(many, concurrency=3)
    assert api.most == 3
    teacher.ask([Question(0, (f"{i}!",), (HABIT,)) for i in range(3)], concurrency=1)
    assert api.most == 3


def test_the_rate_is_kept_on_the_wire(teacher, api):
    teacher.ask([Question(0, (f"{i}",), (HABIT,)) for i in range(6)], requests_per_minute=1200.0)
    gaps = np.diff(sorted(api.starts[1:]))
    # Sent 50 ms apart; on a busy machine one may arrive late, and the next then seems early. Unlimited, all take some 10 ms.
    assert len(gaps) == 5 and np.median(gaps) > 0.03 and api.starts[-1] - api.starts[1] >= 0.15


def test_a_server_that_is_busy_is_left_alone_by_all(teacher, api, monkeypatch):
    monkeypatch.undo()  # the real pause
    api.faults = [None, "busy"]  # Retry-After: 0.3
    teacher.ask([Question(0, (f"{i}",), (HABIT,)) for i in range(6)], concurrency=2)
    late = [start - api.starts[1] for start in api.starts[3:]]  # one more may have been under way already
    assert min(late) >= 0.3


@pytest.mark.parametrize("limit", [{"max_total_tokens": 300}, {"max_usd": 250e-6, "usd_per_million_input": 1.0}])
def test_the_budget_stops_a_run_which_then_goes_on_with_a_larger_one(teacher, api, limit):
    many = [Question(0, (f"{i}",), (HABIT,)) for i in range(60)]
    with pytest.raises(ResourceError, match="budget"):
        teacher.ask(many, **limit)
    stopped = len(api.bodies)
    spent = sum(e["input"] + e["output"] for e in teacher.ledger() if e["event"] != "sent")
    assert 50 < spent <= 300 and 5 < stopped < 60
    with pytest.raises(ResourceError, match="budget"):
        teacher.ask(many, **limit)
    teacher.ask(many)
    assert api.repeated() == 0 and len(api.bodies) == 61


def test_another_model_under_the_same_name_is_refused(teacher, api):
    teacher.ask(ASKED[:1])
    api.models = [{"id": "toy", "meta": {"n_params": 8}}]
    teacher.ask(ASKED[:1])  # a replay asks nobody
    with pytest.raises(DataError, match="another model"):
        teacher.ask()


def test_what_the_server_can_do_is_found_out(teacher, api, tmp_path):
    api.most_k = 5  # as the completions API of old
    teacher.ask()
    assert teacher.backend.evidence()["top_k"] == 5
    api.logprobs = False
    with pytest.raises(ConfigError, match="no log-probabilities"):
        Teacher(tmp_path / "a", api, teacher.tokenizer).ask()
    api.models = [{"id": "one"}, {"id": "two"}]
    with pytest.raises(ConfigError, match="one, two"):
        Teacher(tmp_path / "b", api, teacher.tokenizer).ask()
    api.models = []  # no list at all: the name must be given
    with pytest.raises(ConfigError, match=r"served\.model"):
        Teacher(tmp_path / "c", api, teacher.tokenizer).ask()
    api.logprobs = True
    Teacher(tmp_path / "d", api, teacher.tokenizer).ask(model="three")
    assert json.loads(api.bodies[-1])["model"] == "three"


def test_nobody_there(teacher, api):
    with pytest.raises(ResourceError, match="does not answer"):
        teacher.ask(base_url="http://127.0.0.1:9/v1", retries=0)


# -- chat ---------------------------------------------------------------------------------------------------------------


def test_chat_reads_the_decision_tokens(teacher, api):
    api.says = lambda prompt, seed: '{"value": "weekly"}' if "Habit" in prompt else '{"value": "2-3 days"}'
    replies = teacher.ask([ASKED[0]], api="chat", top_k=99)
    body = json.loads(api.bodies[-1])
    assert body["response_format"]["json_schema"]["schema"]["properties"]["value"]["enum"][0] in ("daily", "0 days")
    assert [m["role"] for m in body["messages"]] == ["system", "user"] and PROFILES[0] in body["messages"][1]["content"]
    assert teacher.backend.evidence()["read_from"] == {"decision tokens": 2}
    habit = next(json.loads(b) for b in api.bodies[1:] if "Habit" in b)["messages"][-1]["content"]
    told = dict(TOY.top(habit + '{"value": "', 99))
    raw = np.exp([told[v.strip()] for v in HABIT.values])
    np.testing.assert_allclose(probabilities(replies)[0], raw / raw.sum(), atol=1e-6)


def test_chat_without_log_probabilities_counts_samples(teacher, api):
    api.logprobs = api.schema = False
    api.says = lambda prompt, seed: json.dumps({"value": ["daily", "weekly"][seed % 4 == 3]})
    replies = teacher.ask([Question(0, (), (HABIT,))], api="chat", samples=8)
    np.testing.assert_allclose(probabilities(replies)[0], np.array([6.5, 2.5, 0.5]) / 9.5, atol=1e-6)
    evidence = teacher.backend.evidence()
    assert evidence["read_from"] == {"samples": 1} and evidence["mean_tail"] is None and not evidence["schema"]
    bodies = [json.loads(body) for body in api.bodies[-8:]]
    assert sorted(body["seed"] for body in bodies) == list(range(8)) and {b["temperature"] for b in bodies} == {1.0}
    assert not any("logprobs" in body or "response_format" in body for body in bodies)


def test_an_unreadable_answer_is_repaired_once_else_flagged(teacher, api):
    api.logprobs = False

    def says(prompt, seed):
        if "cannot be used" in prompt:
            return '{"value": "rare"}' if seed == 1 else "dunno"
        return "dunno" if seed < 2 else '{"value": "daily"}'

    api.says = says
    replies = teacher.ask([Question(0, (), (HABIT,))], api="chat", samples=3)
    np.testing.assert_allclose(probabilities(replies)[0], np.array([1.5, 0.5, 1.5]) / 3.5, atol=1e-6)
    assert teacher.backend.evidence()["repaired"] == 1 and teacher.batch.unread == [0, 0]
    repair = next(json.loads(b) for b in api.bodies if "cannot be used" in b)["messages"]
    assert repair[2] == {"role": "assistant", "content": "dunno"} and "not the JSON object" in repair[3]["content"]
    api.says = lambda prompt, seed: "dunno"
    replies = teacher.ask([Question(1, (), (HABIT, HABIT))], api="chat", samples=2)
    np.testing.assert_allclose(probabilities(replies)[0], 1 / 3)
    assert teacher.backend.evidence()["read_from"] == {"nothing": 2} and teacher.batch.unread == [0, 2]


# -- free text ----------------------------------------------------------------------------------------------------------


def test_free_text_is_written_to_its_mark(teacher, api):
    lead = ("Need:", " variety", ";")
    requests = [TextRequest(0, lead, close, limit) for close, limit in ((";", 1), ("\n", 9), (";", 40))]
    for _ in range(2):
        teacher.ask([], write=requests)
        for request, draft in zip(requests, teacher.drafts):
            assert not draft.ids and draft.tokens <= len(teacher.backend.ids(lead)) + request.max_tokens
            text = INSTRUCTION + PROFILES[0] + "".join(lead)
            for log_prob, entropy in zip(draft.log_probs, draft.entropies, strict=True):
                top = TOY.top(text, 20)
                assert log_prob == top[0][1] and entropy == pytest.approx(entropy_of(tuple(Token(*t) for t in top)))
                text += top[0][0]
            assert text.endswith(draft.text) and len(draft.log_probs) <= request.max_tokens
            stopped = set(request.close + "\n") & set(TOY.top(text, 1)[0][0])
            assert draft.closed == (bool(stopped) and len(draft.log_probs) < request.max_tokens)
    assert len(api.bodies) == 4  # with the probe: the second time from the store
    api.says = lambda prompt, seed: "calm people" if "variety;" in prompt else "?"
    teacher.ask([], write=requests[:1], api="chat")
    assert teacher.drafts[0].text == "calm people" and not teacher.drafts[0].log_probs


# -- kills --------------------------------------------------------------------------------------------------------------

SCRIPT = """
import json, sys
from scaletot_jax.teacher.served.drawing import Drawer
from scaletot_jax.teacher.served.ledger import Ledger, Prices
from scaletot_jax.teacher.served.pace import Pace
from scaletot_jax.teacher.served.spare import Spare
from scaletot_jax.teacher.served.transport import Endpoint
from scaletot_jax.teacher.served.wording import completion
from scaletot_jax.teacher.store import Store
folder, url = sys.argv[1:]
with Store(folder + "/store.sqlite") as store, Spare(folder + "/spare", 4096) as spare, \\
     Ledger(folder + "/requests.jsonl", Prices(1, 1)) as ledger:
    drawer = Drawer(Endpoint(url, "", 5.0), store, ledger, spare, top_k=9, concurrency=3, retries=1, pace=Pace(0))
    for start in range(0, 60, 12):
        asked = {f"key {i}": completion("toy", f"stem {i}", top_k=9, seed=0) for i in range(start, start + 12)}
        print(json.dumps([drawer.draw(asked)[key].to_json() for key in asked]), flush=True)
"""


def test_kills_cost_at_most_what_was_under_way(tmp_path, api):
    """Killed twice in the middle, the second time with a torn ledger: the same answers, little asked again."""

    def start(folder):
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-c", SCRIPT, str(folder), api.url]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    api.delay = 0.05
    for asked in (15, 40):
        process = start(tmp_path / "killed")
        deadline = time.monotonic() + 30
        while len(api.bodies) < asked and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    ledger = tmp_path / "killed" / "requests.jsonl"
    with ledger.open("ab") as handle:
        handle.write(b'{"id": 99, "event": "se')
    printed, problems = start(tmp_path / "killed").communicate()
    answers = [answer for text in printed.splitlines() for answer in json.loads(text)]
    truth = [[[t, p] for t, p in TOY.top(f"stem {i}", 9)] for i in range(60)]
    assert [answer["tokens"][0][1] for answer in answers] == truth, problems
    assert len(set(api.bodies)) == 60 and api.repeated() <= 2 * 3
    events = [json.loads(line)["event"] for line in ledger.read_text().splitlines()]
    assert len(api.bodies) <= events.count("sent") == events.count("answered") + events.count("lost")


def test_an_interrupt_keeps_what_is_under_way(teacher, api, monkeypatch):
    """Ctrl-C between two answers: those that were sent are waited for and kept."""
    from scaletot_jax.teacher.served import drawing

    real, calls = drawing.wait, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    api.delay = 0.05
    monkeypatch.setattr(drawing, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        teacher.ask(concurrency=2)
    monkeypatch.setattr(drawing, "wait", real)
    asked = len(api.bodies)
    teacher.ask()
    assert asked > 2 and api.repeated() == 0
    assert threading.active_count() < 20
