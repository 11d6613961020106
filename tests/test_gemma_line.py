"""A model of another family through teacher, student and states: Gemma 3, whose texts begin with <bos> and whose layers
see windows."""

import importlib.util
import json

import numpy as np
import pytest
import quick_compile
import tiny
from lm import family_models

from scaletot_jax.config import default_config
from scaletot_jax.files import read_json
from scaletot_jax.lm.load import load_model
from scaletot_jax.profiles.prepare import open_population, prepare
from scaletot_jax.run import Run
from scaletot_jax.step_log import read_steps
from scaletot_jax.student.policy import encode_prompts, load_student
from scaletot_jax.student.sft import load_examples, sft
from scaletot_jax.student.states import reasoning_states
from scaletot_jax.teacher.teach import teach

pytestmark = [
    pytest.mark.pipeline,
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="transformers writes the model with torch"),
]
BOS = 1


def write_gemma(folder):
    """The tiny tokenizer, which now begins every text with a control token, and random weights of Gemma's layout."""
    from tokenizers import Tokenizer, processors

    path = tiny.write_tiny_lm(folder)
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    bos = tokenizer.id_to_token(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, BOS)])
    eos = tokenizer.token_to_id("<|im_end|>")
    (path / "model.safetensors").unlink()
    family_models.write(path, "gemma3", vocab_size=tokenizer.get_vocab_size(), eos_token_id=eos, bos_token_id=BOS)
    tokenizer.save(str(path / "tokenizer.json"))
    return path


@pytest.fixture(scope="module", autouse=True)
def quick(tmp_path_factory):
    with quick_compile.here(tmp_path_factory.mktemp("programs")):
        yield


@pytest.fixture(scope="module")
def line(quick, tmp_path_factory):
    place = tmp_path_factory.mktemp("gemma")
    config = default_config()
    config.data.name, config.data.limit = "synthetic", 200
    config.lm.weights, config.lm.max_profile_tokens = str(write_gemma(place / "lm")), 48
    config.teacher.num_profiles, config.teacher.pilot_profiles, config.teacher.batch_size = 8, 8, 4
    config.teacher.scoring, config.teacher.beam = "trie", 1
    config.student.lora_rank = 2
    config.sft.batch_size, config.sft.epochs, config.sft.learning_rate = 4, 4, 1e-2
    config.osipo.eval_profiles = 8
    with Run(place / "run", config.to_dict()) as run:
        prepare(run)
        for stage in (teach, sft):
            stage(run)
        yield run


def test_every_text_begins_with_bos(line):
    student = load_student(line, "sft")
    assert load_model(line.config["lm"]["weights"]).config.family == "gemma3" and student.tokenizer.start == (BOS,)
    arrays = load_examples(line, open_population(line), student).arrays
    assert np.all(arrays.prompts[:, 0] == BOS) and not np.any(arrays.prompts[:, 1:] == BOS)
    texts = ["age: 34 years\nplan: basic\n"]
    tokens, valid, cut = encode_prompts(student.tokenizer, texts, len(student.tokenizer.encode(texts[0])))
    assert tokens[0][valid[0]].tolist() == [BOS, *student.tokenizer.encode(texts[0])] and not cut


def test_it_is_taught_and_learns(line):
    losses = [row["loss"] for row in read_steps(line.workdir / "sft" / "steps.jsonl")]
    assert losses[-1] < losses[0] - 0.5
    held_out = json.loads((line.workdir / "sft" / "stage.json").read_text())["summary"]["held_out"]
    assert all(score["valid_rate"] == 1 for score in held_out.values())
    assert read_json(line.workdir / "teach" / "pilot.json")


def test_states_of_the_longest_profile_allowed(line):
    student = load_student(line, "sft")
    text = "age: 34 years\n" * 40  # cut to max_profile_tokens, <bos> on top
    found = reasoning_states(student, [text], chains=1, seed=1, layers=(2,), batch_size=1)
    assert np.isfinite(found.states[2]).all() and np.ptp(found.states[2], axis=2).max() > 0
