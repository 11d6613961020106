"""FLOPs and utilisation by their convention, against the packed mask itself and a count of matrix products."""

import json

import numpy as np
import pytest
from student import toy

from scaletot_jax.parallel.mesh import make_mesh
from scaletot_jax.step_log import read_steps
from scaletot_jax.student.clock import Clock
from scaletot_jax.student.packing import pack
from scaletot_jax.student.throughput import (
    FORWARD,
    FULL,
    LORA,
    PEAKS,
    Work,
    count_work,
    model_flops,
    peak_flops,
    utilisation,
)

E = toy.examples(6).arrays


def test_work_is_what_the_packed_rows_hold():
    packed = pack(E.prompts, E.prompt_valid, E.chains, E.chain_valid)
    work = count_work(E.prompt_valid, E.chain_valid, vocabulary=True)
    assert work.tokens == int(packed.valid.sum())
    assert work.pairs == int((packed.mask & packed.valid[:, :, None]).sum())
    assert work.predicted == int(E.chain_valid.sum())
    assert count_work(E.prompt_valid, E.chain_valid, vocabulary=False).predicted == 0


def test_flops_are_those_of_the_matrix_products():
    """2 a multiply-add: projections, head, and the two products of attention, for one row without padding."""
    config, tokens = toy.student().config, 10
    layer = sum(2 * tokens * inputs * outputs for inputs, outputs in config.projections.values())
    pairs = tokens * (tokens + 1) // 2
    attention = 2 * 2 * pairs * config.num_heads * config.head_dim
    head = 2 * tokens * config.hidden_size * config.vocab_size
    forward = config.num_layers * (layer + attention) + head
    work = Work(tokens, tokens, pairs)
    assert model_flops(config, work, FORWARD) == forward
    assert model_flops(config, work, FULL) == 3 * forward
    assert model_flops(config, work, LORA) == 3 * forward - config.num_layers * layer - head  # no weight gradients


def test_peaks():
    assert (
        peak_flops("TPU v5 lite") == 197e12 and peak_flops("TPU v5") == 459e12 and peak_flops("TPU v6 lite") == 918e12
    )
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12 and peak_flops("NVIDIA L40S") == 362e12
    assert peak_flops("cpu") is None and utilisation(1e12, 1.0, 1, "cpu") is None
    assert all(peak > 1e13 for peak in PEAKS.values())
    np.testing.assert_allclose(utilisation(197e12, 2.0, 2, "TPU v5 lite"), 0.25)


@pytest.mark.parametrize("kind", ["cpu", "TPU v4"])
def test_the_clock_writes_a_line_a_step(tmp_path, capsys, kind):
    class Stage:
        name = "sft"

        def path(self, name):
            return tmp_path / name

    clock = Clock(Stage(), make_mesh(data=2), done=0, convention="4ND")
    clock._kind = kind
    for step in (1, 2, 3):
        clock.start()
        assert "tokens/s a device" in clock.stop(step, 100, 1e9, rollout_seconds=0.5)
    clock.close()
    found = read_steps(tmp_path / "timing.jsonl")
    assert [row["step"] for row in found] == [1, 2, 3] and found[0]["rollout_seconds"] == 0.5
    for row in found:
        np.testing.assert_allclose(row["tokens_per_second_per_device"], 100 / row["seconds"] / 2)
        expected = None if kind == "cpu" else 1e9 / (row["seconds"] * 2 * 275e12)
        assert row["model_flops_utilisation"] == (None if expected is None else pytest.approx(expected))
    told = capsys.readouterr().err
    assert ("no peak is known for 'cpu'" if kind == "cpu" else "TPU v4, 4ND") in told
    again = Clock(Stage(), make_mesh(), done=2, convention="4ND")
    again.close()
    assert len((tmp_path / "timing.jsonl").read_text().splitlines()) == 2
    assert json.loads((tmp_path / "timing.jsonl").read_text().splitlines()[1])["step"] == 2
