"""One specification with free slots through teach, sft, osipo and the reasoning states."""

import json

import numpy as np
import pytest
import quick_compile
import tiny
from teacher.free_spec import spec, write_spec

from scaletot_jax.chains.parser import parse
from scaletot_jax.config import default_config
from scaletot_jax.files import read_table
from scaletot_jax.profiles.prepare import open_population, prepare
from scaletot_jax.run import Run
from scaletot_jax.step_log import read_steps
from scaletot_jax.student.osipo import osipo
from scaletot_jax.student.policy import load_student
from scaletot_jax.student.sft import load_examples, sft
from scaletot_jax.student.states import reasoning_states
from scaletot_jax.teacher.teach import teach

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module", autouse=True)
def quick(tmp_path_factory):
    with quick_compile.here(tmp_path_factory.mktemp("programs")):
        yield


@pytest.fixture(scope="module")
def line(quick, tmp_path_factory):
    place = tmp_path_factory.mktemp("line")
    config = default_config()
    config.data.name, config.data.limit = "synthetic", 200
    config.lm.weights, config.lm.chain_spec = str(tiny.write_tiny_lm(place / "lm", layers=1)), str(write_spec(place))
    config.lm.max_profile_tokens = 48
    config.teacher.num_profiles, config.teacher.pilot_profiles, config.teacher.batch_size = 12, 8, 4
    config.teacher.scoring, config.teacher.beam = "trie", 1
    config.student.lora_rank = 2
    config.sft.batch_size, config.sft.epochs, config.sft.learning_rate = 4, 4, 1e-2
    config.osipo.updates, config.osipo.prompts, config.osipo.rollouts = 2, 2, 3
    config.osipo.warmup_updates, config.osipo.eval_profiles = 1, 8
    with Run(place / "run", config.to_dict()) as run:
        prepare(run)
        for stage in (teach, sft, osipo):
            stage(run)
        yield run


def test_the_student_learns_the_written_texts(line):
    losses = [row["loss"] for row in read_steps(line.workdir / "sft" / "steps.jsonl")]
    assert losses[-1] < losses[0] - 0.5
    student = load_student(line, "osipo")
    examples = load_examples(line, open_population(line), student)
    chains = read_table(line.finished("teach").path("chains.parquet")).to_pylist()
    values = {(row["exact_key"], row["rank"]): row["values"] for row in chains if row["accepted"]}
    assert any(value[i] for value in values.values() for i in spec().free_slots)
    for key, ids, valid in zip(examples.keys, examples.arrays.chains[:, 0], examples.arrays.chain_valid[:, 0]):
        parsed = parse(student.chain, ids[valid])
        assert parsed.complete
        for i in spec().free_slots:
            assert student.tokenizer.decode(parsed.values[i]).strip() == values[key, 0][i]


def test_osipo_updates_are_finite_and_every_chain_is_whole(line):
    rows = read_steps(line.workdir / "osipo" / "steps.jsonl")
    assert len(rows) == 2 and all(np.isfinite(value) for row in rows for value in row.values())
    assert all(row["valid_rate"] == 1 for row in rows) and rows[0]["kl"] == 0 and rows[1]["kl"] > 0
    summary = json.loads((line.workdir / "osipo" / "stage.json").read_text())["summary"]
    assert all(score["valid_rate"] == 1 for score in summary["held_out"].values())


def test_states_are_read_where_each_segment_closes(line):
    student = load_student(line, "osipo")
    texts = ["age: 34 years\nplan: basic\n", "plan: premium\ninterests: music\n"]
    found = reasoning_states(student, texts, chains=2, seed=1, layers=(1,), batch_size=2)
    segments, width = student.spec.num_segments, student.config.hidden_size
    assert segments == spec().num_segments and found.states[1].shape == (2, 2, segments, width)
    np.testing.assert_allclose(found.answers.sum(-1), 1, rtol=1e-5)
    assert np.ptp(found.states[1], axis=2).min(axis=(0, 1)).max() > 0  # not one state for all segments
