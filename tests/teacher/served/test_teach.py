"""Stage teach with a served teacher: whole chains, replay, a budget in the middle, and no identifier on the wire."""

import json
import shutil

import line
import numpy as np
import pyarrow.parquet as pq
import pytest
from teacher.served.toy_server import Toy, serving
from teaching import digests, prepare_in

from scaletot_jax import plan
from scaletot_jax.chains.spec import SPEC_FOLDER, spec_of_run
from scaletot_jax.config import load_config, override
from scaletot_jax.errors import ResourceError, StaleRunError
from scaletot_jax.files import read_json
from scaletot_jax.lm.load import load_tokenizer
from scaletot_jax.profiles.prepare import open_population
from scaletot_jax.run import Run, flatten
from scaletot_jax.teacher.served.estimate import estimate
from scaletot_jax.teacher.teach import teach

ARTIFACTS = ("pilot.json", "chains.parquet", "nodes.parquet", "profiles.parquet", "stage.json")
PROFILES = 6
DIGITS = (*map(str, range(10)), " ", "-", " day", " days")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return line.write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def api(recipe):
    spec = spec_of_run(load_config(recipe).to_dict())
    words = [f" {value}" for slot in spec.slots for value in slot.scored_values]
    with serving(Toy((*words, *DIGITS))) as server:
        yield server


@pytest.fixture(scope="module")
def prepared(recipe, tmp_path_factory):
    return prepare_in(tmp_path_factory.mktemp("prepared") / "run", recipe)


def teach_in(workdir, recipe, server, spec="", profiles=PROFILES, **overrides):
    config = load_config(recipe)
    config.teacher.backend, config.teacher.served.base_url = "served", server.url
    config.lm.chain_spec = str(spec)
    config.teacher.num_profiles, config.teacher.pilot_profiles = profiles, min(profiles, 4)
    for key, value in overrides.items():
        override(config, f"teacher.served.{key}", str(value))
    with Run(workdir, config.to_dict()) as run:
        return teach(run)


@pytest.fixture(scope="module")
def taught(recipe, prepared, api, tmp_path_factory):
    """An undisturbed run."""
    workdir = tmp_path_factory.mktemp("taught") / "run"
    shutil.copytree(prepared, workdir)
    teach_in(workdir, recipe, api)
    return workdir


def test_chains_come_out_and_the_pilot_says_how(taught):
    rows = pq.read_table(taught / "teach" / "chains.parquet").to_pylist()
    assert len({row["exact_key"] for row in rows}) == PROFILES
    assert all(row["accepted"] and sum(row["answer"]) == pytest.approx(1, abs=1e-5) for row in rows)
    scoring = read_json(taught / "teach" / "pilot.json")["evidence"]["scoring"]
    assert (scoring["chosen"], scoring["by"]) == ("trie", "what is served")
    served = scoring["served"]
    assert served["model"] == "toy" and served["read_from"]["top-k"] == served["distributions"] > 50
    assert 1 < served["mean_truncated_entropy"] < 5 and served["values_outside_top_k"] == 0
    assert not list((taught / "teach").glob(".spare*"))


def test_the_plan_foretells_the_requests_and_the_money(taught, recipe, prepared):
    config = load_config(recipe)
    config.teacher.num_profiles, config.teacher.pilot_profiles, config.teacher.backend = PROFILES, 4, "served"
    config.teacher.served.usd_per_million_input, config.teacher.served.max_usd = 2.0, 7.5
    tokenizer = load_tokenizer(config.lm.weights)
    with Run(prepared, load_config(recipe).to_dict()) as run:
        texts = open_population(run).renderer.texts(open_population(run).table)
    mean = np.mean([len(tokenizer.encode(text)) for text in texts])
    found = estimate(spec_of_run(config.to_dict()), tokenizer.encode, config.teacher.to_dict(), mean)
    ledger = [json.loads(text) for text in (taught / "teach" / "requests.jsonl").read_text().splitlines()]
    answered = sum(entry["event"] == "answered" for entry in ledger)
    assert 0.6 * answered < found.requests < 1.6 * answered
    assert found.usd == pytest.approx(found.input_tokens * 2e-6) and found.output_tokens == found.requests
    assert found.input_tokens > found.requests * mean
    more = estimate(spec_of_run(config.to_dict()), tokenizer.encode, config.teacher.to_dict(), mean + 10)
    assert more.input_tokens == pytest.approx(found.input_tokens + 10 * found.requests, abs=20)
    config.teacher.served.api = "chat"
    chats = [
        estimate(spec_of_run(config.to_dict()), tokenizer.encode, config.teacher.to_dict(), mean, samples=n)
        for n in (1, 4)
    ]
    assert chats[1].requests == pytest.approx(4 * chats[0].requests, abs=4) and chats[0].requests < found.requests
    rates = plan.Rates(1.0, 1.0, 1.0, 1.0, 0.0)
    row = plan.StagePlan("teach", "", 0, 0, 0.0, 0.0, 0.0)
    page = plan.show(plan.Plan(flatten(config.to_dict()), 1, 1, 1, 0.0, rates, [row], chats[0]))
    assert f"{chats[0].usd:,.2f} US dollars" in page and "hard limit: 7.5 US dollars" in page and "8 times" in page


def test_no_identifier_reaches_the_wire(taught, api, prepared):
    table = pq.read_table(prepared / "prepare" / "population.parquet")
    names = [*map(str, table["user_id"].to_pylist()), *table["exact_key"].to_pylist(), *table["group"].to_pylist()]
    names = {name for name in map(str, names) if len(name) > 3}
    assert len(names) >= 800 and len(api.bodies) > 100
    sent = "\n".join(api.bodies) + str(api.headers)
    assert not [name for name in names if name in sent]
    keys = {key for body in api.bodies for key in json.loads(body)}
    assert keys == {"model", "prompt", "max_tokens", "temperature", "seed", "logprobs"}


def test_a_replay_asks_nobody(taught, recipe, api, tmp_path):
    workdir, asked = tmp_path / "run", len(api.bodies)
    shutil.copytree(taught, workdir)
    for name in ARTIFACTS:
        (workdir / "teach" / name).unlink()
    teach_in(workdir, recipe, api)
    assert digests(workdir, ARTIFACTS) == digests(taught, ARTIFACTS) and len(api.bodies) == asked


def test_a_budget_stops_it_and_a_larger_one_ends_in_the_same_bytes(taught, prepared, recipe, api, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(prepared, workdir)
    api.bodies.clear()
    for limit in (3000, 6000):
        with pytest.raises(ResourceError, match="budget"):
            teach_in(workdir, recipe, api, max_total_tokens=limit)
    api.faults = [None, "broken", "busy", "reset"]
    teach_in(workdir, recipe, api, concurrency=2)  # what does not change the answers may change
    assert digests(workdir, ARTIFACTS) == digests(taught, ARTIFACTS)
    assert api.repeated() == 3  # the faults
    with pytest.raises(StaleRunError, match="top_k"):
        teach_in(workdir, recipe, api, top_k=7)


def test_a_chat_that_says_nothing_useful_is_flagged(prepared, recipe, api, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(prepared, workdir)
    api.logprobs = False
    try:
        teach_in(workdir, recipe, api, profiles=2, api="chat", samples=1)
    finally:
        api.logprobs = True
    funnel = read_json(workdir / "teach" / "stage.json")["summary"]["funnel"]
    assert funnel["unread"] > 0 and funnel["profiles"] == 2
    assert read_json(workdir / "teach" / "pilot.json")["evidence"]["scoring"]["served"]["read_from"].keys() == {
        "nothing"
    }


def test_free_slots_are_written_by_the_server(prepared, recipe, api, tmp_path):
    workdir, spec = tmp_path / "run", tmp_path / "spec.yaml"
    shutil.copytree(prepared, workdir)
    slot = "      - {name: note, source: free, max_tokens: 4}\n\n  - name: habit\n"
    spec.write_text((SPEC_FOLDER / "synthetic.yaml").read_text().replace("\n  - name: habit\n", slot))
    teach_in(workdir, recipe, api, spec=spec, profiles=2)
    texts = pq.read_table(workdir / "teach" / "texts.parquet").to_pylist()
    assert texts and all(len(text["log_probs"]) <= 4 for text in texts)
    assert any(text["accepted"] and text["text"] for text in texts)
    sent = [json.loads(body) for body in api.bodies if '"stop"' in body]
    assert {body["max_tokens"] for body in sent} == {4} and all(body["prompt"].endswith(";") for body in sent)
