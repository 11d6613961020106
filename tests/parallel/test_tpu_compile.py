"""The real steps and the sampler compile for a TPU v5e slice of four chips, with the TPU's own compiler, on this machine.

What the compiled programs say is checked: memory is reused, the head is quiet inside its loops, split weights' gradients are
scattered and not reduced everywhere, caches are not copied.
"""

import importlib.util
import re

import pytest

from scaletot_jax.lm.config import LMConfig
from scaletot_jax.parallel.tpu.ahead import compile_ahead
from scaletot_jax.parallel.tpu.collectives import collectives
from scaletot_jax.parallel.tpu.programs import Workload, state_bytes
from scaletot_jax.parallel.tpu.report import aliased, cache_copies, record, show
from scaletot_jax.parallel.tpu.topology import target

pytestmark = [
    pytest.mark.tpu_compile,
    pytest.mark.xdist_group("tpu_compile"),  # one after another
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed"),
]
CONFIG = LMConfig(512, 256, 512, 4, 4, 2, 64, tie_embeddings=False)
SLICE = target("v5e-4")
SMALL = dict(prompt=64, chains=2, length=32, rank=8, alternatives=4, states=32, buckets=4)


def compiled(work):
    found = compile_ahead(work, CONFIG, SLICE, seconds=300)
    assert found.outcome == "compiled", found.reason
    assert found.fits(SLICE) and "fits" in show(found, work, CONFIG, SLICE)
    assert found.text is not None
    # The old state's memory is the new state's.
    assert found.memory["reused"] >= 0.9 * state_bytes(work, CONFIG) / SLICE.chips
    assert found.flops is not None and found.cpu_seconds is not None
    return found


def test_full_sft_scatters_the_gradients_of_its_split_weights():
    """With splash attention, so that the kernel too is compiled for a TPU, forward and backward."""
    found = compiled(Workload("full_sft", fsdp=4, rows=8, attention="splash", **SMALL))
    listed = collectives(found.text)
    inside = [one for one in listed if one.depth]
    assert not [one for one in inside if "shard_map" in one.name], "the head communicates inside its loops"
    assert [one for one in listed if "shard_map" in one.name], "the head's communication is not recognised"
    layer = sum(inputs * outputs for inputs, outputs in CONFIG.projections.values())
    scattered = [one for one in inside if one.kind == "reduce-scatter"]
    assert {one.trips for one in scattered} == {CONFIG.num_layers}
    assert sum(one.bytes for one in scattered) >= 2 * layer  # bfloat16 or wider
    reduced = [one.bytes for one in inside if one.kind == "all-reduce"]
    assert sum(reduced) < 0.01 * layer, "gradients of split weights are reduced everywhere"
    assert found.text.count('custom_call_target="tpu_custom_call"') >= 3  # splash: forward, and two kernels backward
    row = record(found, Workload("full_sft", fsdp=4, rows=8, **SMALL), CONFIG, SLICE)
    assert row["fits"] and row["seconds"][0] <= row["seconds"][1]


def test_osipo_gathers_no_head_inside_loops():
    found = compiled(Workload("osipo", fsdp=2, tensor=2, rows=4, attention="dot_product", **SMALL))
    inside = [one for one in collectives(found.text) if one.depth]
    assert not [one for one in inside if "shard_map" in one.name]


def test_the_sampler_writes_its_caches_in_place():
    work = Workload("decode", data=2, tensor=2, rows=2, **SMALL)
    found = compiled(work)
    shapes = {(1, 1, 64, 64), (2, 1, 32, 64), (1, 64, 64), (2, 32, 64)}  # [prompts or rows, heads, slots, width] a chip
    assert cache_copies(found.text, shapes) == 0
    assert aliased(found.text) >= 4 * CONFIG.num_layers
    assert re.search(r"bf16\[2,1,32,64\]", found.text), "these are not the shapes of the caches"


def test_the_rollouts_of_stage_osipo_compile_and_divide_the_batch():
    found = compiled(Workload("rollouts", data=2, tensor=2, rows=2, **SMALL))
    assert re.search(r"bf16\[2,[12],96,64\]", found.text), (
        "no cache of [chains of one prompt, heads, prompt + chain, width] a chip"
    )
    assert "while" in found.text


def test_a_program_that_does_not_fit_is_refused_with_what_it_needs():
    config = LMConfig(128_256, 4096, 14_336, 16, 32, 8, 128, tie_embeddings=False)
    work = Workload("sft", rows=1, compute_dtype="float32", attention="dot_product", **SMALL)
    found = compile_ahead(work, config, target("v5e-1"), seconds=300)
    assert found.outcome == "out of memory" and not found.fits(target("v5e-1"))
    assert found.memory["peak"] > found.memory["available"] > 15 * 2**30
