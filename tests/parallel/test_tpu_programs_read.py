"""What is read from programs: loops, collectives and FLOPs counted as often as they run, refusals, targets, figures."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from scaletot_jax.cli import main
from scaletot_jax.config import default_config
from scaletot_jax.errors import ConfigError, ResourceError
from scaletot_jax.parallel.mesh import make_mesh
from scaletot_jax.parallel.tpu.ahead import MARGIN, Compiled, compile_ahead
from scaletot_jax.parallel.tpu.analytic import analytic_bytes
from scaletot_jax.parallel.tpu.collectives import by_kind, collectives
from scaletot_jax.parallel.tpu.flops import flops
from scaletot_jax.parallel.tpu.models import MODELS, parameters
from scaletot_jax.parallel.tpu.plan import plan_target, workloads
from scaletot_jax.parallel.tpu.programs import Workload, needed_flops
from scaletot_jax.parallel.tpu.report import aliased, cache_copies, cycles, record, show, times
from scaletot_jax.parallel.tpu.topology import GIB, known_targets, target
from scaletot_jax.parallel.tpu.worker import out_of_memory
from scaletot_jax.plan import student_shape

# The forms in which the TPU compiler writes things, cut from its programs: a loop whose bound is in its condition, an
# all-reduce whose fusion keeps a slice, one all-gather in two pieces of an asynchronous fusion, and groups as mesh axes.
TEXT = """HloModule jit_step, is_scheduled=true, input_output_alias={ {0}: (0, {}, may-alias), {1}: (3, {}, may-alias) }, entry=x

%all-reduce-scatter.7 (input: f32[512,256]) -> f32[128,256] {
  %input = f32[512,256]{1,0} parameter(0)
  %all-reduce.55 = f32[512,256]{1,0} all-reduce(%input), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %dynamic-slice.1 = f32[128,256]{1,0} dynamic-slice(%all-reduce.55, %i, %c), dynamic_slice_sizes={128,256}
}

%piece.1 (p: bf16[64,256]) -> bf16[256,256] {
  ROOT %all-gather.1 = bf16[256,256]{1,0} all-gather(%p), channel_id=9, replica_groups=mesh['x'=2,'y'=4] {'y'}, dimensions={0}
}

%piece.2 (p: bf16[64,256]) -> bf16[256,256] {
  ROOT %all-gather.2 = bf16[256,256]{1,0:S(1)} all-gather(%p), channel_id=9, replica_groups=mesh['x'=2,'y'=4] {'y'}, dimensions={0}
}

%condition (t: (s32[])) -> pred[] {
  %bound = s32[]{:T(128)} constant(5)
  ROOT %less = pred[] compare(%i, %bound), direction=LT
}

%body (t: (s32[])) -> (s32[]) {
  %fusion.1 = f32[128,256]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.7, backend_config={"estimated_cycles":"100"}
  %fusion.2 = bf16[256,256]{1,0} fusion(%w), kind=kCustom, calls=%piece.1
  %fusion.3 = bf16[256,256]{1,0} fusion(%w), kind=kCustom, calls=%piece.2, backend_config={"estimated_cycles":"20"}
}

ENTRY %main (a: s32[]) -> s32[] {
  %while.1 = (s32[]) while(%t), condition=%condition, body=%body
  %permute = (f32[8,4], f32[8,4], u32[], u32[]) collective-permute-start(%x), channel_id=1, source_target_pairs={{0,1},{1,0}}
  %ar = f32[100]{0} all-reduce(%y), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%add, backend_config={"estimated_cycles":"7"}
}
"""


def test_collectives_of_a_text_count_as_often_as_they_run():
    found = {one.kind: one for one in collectives(TEXT)}
    assert len(found) == len(collectives(TEXT)) == 4
    scatter, gather = found["reduce-scatter"], found["all-gather"]
    assert (scatter.trips, scatter.depth, scatter.group, scatter.bytes) == (5, 1, 4, 512 * 256 * 4)
    assert scatter.wire_bytes == 5 * 512 * 256 * 4 * 3 / 4
    assert (gather.trips, gather.group, gather.bytes) == (5, 4, 256 * 256 * 2)
    assert found["all-reduce"].wire_bytes == 2 * 400 * 3 / 4 and found["all-reduce"].depth == 0
    assert found["collective-permute"].bytes == 8 * 4 * 4
    totals = by_kind(collectives(TEXT))
    assert totals["all-gather"].listed == 1 and totals["all-gather"].runs == 5 and "all-to-all" not in totals
    assert cycles(TEXT) == 5 * 120 + 7


def test_reused_outputs_and_copies_of_caches_are_seen():
    copies = """
  %copy.1 = bf16[4,1,64,64]{3,2,1,0:T(8,128)(2,1)} copy(%ring)
  ROOT %copy.2 = f32[16,1,32,64]{3,2,1,0} copy(%other)
  %copy.3 = bf16[64]{0} copy(%small)
"""
    assert cache_copies(copies, {(4, 1, 64, 64), (16, 1, 32, 64)}) == 2 and cache_copies(copies, {(4, 64)}) == 0
    assert aliased(TEXT) == 2 and aliased("HloModule jit_step, entry=x") == 0


def test_collectives_of_a_program_compiled_here():
    """A scan with a gather inside on eight devices: the text of another backend, and its own way to write trip counts."""
    with jax.set_mesh(make_mesh(fsdp=8)):

        def step(weights, x):
            def layer(x, weight):
                return jnp.tanh(x @ jax.lax.all_gather(weight, "fsdp", axis=0, tiled=True)), None

            return jax.lax.psum(jnp.sum(jax.lax.scan(layer, x, weights)[0]), "fsdp")

        run = jax.shard_map(step, in_specs=(P(None, "fsdp"), P("fsdp")), out_specs=P())
        text = jax.jit(run).lower(jnp.ones((6, 16, 16)), jnp.ones((8, 16))).compile().as_text()
    found = {one.kind: one for one in collectives(text)}
    assert (found["all-gather"].trips, found["all-gather"].depth, found["all-gather"].bytes) == (6, 1, 16 * 16 * 4)
    assert (found["all-reduce"].trips, found["all-reduce"].group) == (1, 8)


def test_flops_count_loops_branches_and_devices():
    a, b = jnp.ones((4, 8)), jnp.ones((8, 8))
    one = 2 * 4 * 8 * 8

    def scanned(a, b):
        return jax.lax.scan(lambda x, _: (jax.checkpoint(lambda x: x @ b)(x), None), a, None, length=7)[0]

    assert flops(jax.make_jaxpr(lambda a, b: a @ b)(a, b)) == one
    assert flops(jax.make_jaxpr(jax.jit(scanned))(a, b)) == 7 * one
    backward = jax.make_jaxpr(jax.grad(lambda a: scanned(a, b).sum()))(a)
    assert flops(backward) >= 14 * one  # forward and backward, whatever is computed again
    branches = jax.make_jaxpr(lambda a, b: jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: a))(a, b)
    assert flops(branches) == one
    batched = jax.make_jaxpr(lambda x: jnp.einsum("bij,bjk->bik", x, x))(jnp.ones((3, 5, 5)))
    assert flops(batched) == 3 * 2 * 5**3
    with jax.set_mesh(make_mesh(fsdp=4)):
        split = jax.shard_map(lambda a, b: a @ b, in_specs=(P("fsdp"), P()), out_specs=P("fsdp"))
        assert flops(jax.make_jaxpr(split)(a, b)) == one


@pytest.mark.parametrize(
    ("name", "topology", "chips"),
    [("v5e-16", "v5e:4x4", 16), ("v6e-1", "v6e:1x1", 1), ("v5p-32", "v5p:2x2x4", 16), ("v5p:4x4x8", "v5p:4x4x8", 128)],
)
def test_targets(name, topology, chips):
    found = target(name)
    assert (found.topology, found.chips) == (topology, chips)


@pytest.mark.parametrize("name", ["v5e-5", "v5e", "h100", "v5p:9x9x9", "v5e-", ""])
def test_unknown_targets_are_refused_with_the_known_ones(name):
    with pytest.raises(ConfigError, match="unknown TPU target") as raised:
        target(name)
    assert all(known in str(raised.value) for known in known_targets())


def test_the_refusal_of_a_program_that_does_not_fit_is_read():
    message = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (17.48G) exceeds available HBM (15.75G). HLO module: jit_step."
    )
    assert out_of_memory(message) == (17.48 * GIB, 15.75 * GIB)
    assert out_of_memory("INVALID_ARGUMENT: no such option") is None


def test_a_mesh_that_does_not_fill_the_slice_is_refused():
    with pytest.raises(ConfigError, match="does not fill the slice"):
        compile_ahead(Workload("sft", fsdp=2), MODELS["smollm2-135m"], target("v5e-4"))


def test_parameters_and_needed_flops():
    assert abs(parameters(MODELS["llama3.1-8b"]) - 8.03e9) < 1e7
    assert abs(parameters(MODELS["qwen2.5-72b"]) - 72.7e9) < 1e8
    config = MODELS["llama3.1-8b"]
    full = Workload("full_sft", rows=16, prompt=512, chains=4, length=384)
    by_rule = 6 * parameters(config) * full.tokens
    assert 0.85 * by_rule < needed_flops(full, config) < 1.1 * by_rule  # less head, more attention
    assert needed_flops(dataclasses.replace(full, program="sft"), config) < needed_flops(full, config)


def test_arithmetic_is_near_the_compiler():
    """Peaks that the TPU compiler gave (benchmarks/RESULTS.md), GiB a chip, within a third."""
    measured = {
        ("llama3.1-8b", Workload("full_sft", fsdp=16, rows=16, prompt=512, chains=4, length=384)): 10.02,
        ("llama3.1-8b", Workload("osipo", fsdp=4, rows=4, prompt=256, chains=4, length=192)): 7.41,
        ("llama3.1-8b", Workload("decode", tensor=8, rows=4, prompt=1024, chains=4, length=1024)): 2.40,
    }
    for (name, work), peak in measured.items():
        found = sum(analytic_bytes(work, MODELS[name]).values()) / GIB
        assert abs(found / peak - 1) < 1 / 3, (work.program, found)


def test_every_rollout_holds_its_prompt_and_the_batch_is_split():
    config = MODELS["smollm2-135m"]
    sizes = dict(rows=16, prompt=256, chains=8, length=192)
    slot = 2 * config.num_layers * config.num_kv_heads * config.head_dim * 2  # bytes of keys and values of a token
    found = analytic_bytes(Workload("rollouts", fsdp=16, **sizes), config)
    assert found["cache"] == 16 * 8 * (256 + 192) * slot / 16 and found["weights"] == 2 * 2 * parameters(config) / 16
    shared = analytic_bytes(Workload("decode", **sizes), config)  # one prompt for the branches of each
    assert shared["cache"] == 16 * (256 + 8 * 192) * slot


def test_report_gives_a_range_on_v5e_and_no_times_elsewhere():
    config, work = MODELS["qwen2.5-0.5b"], Workload("sft", fsdp=4, rows=4)
    memory = {"peak": 15.0 * GIB}
    compiled = Compiled("compiled", memory=memory, flops=10**12, cpu_seconds=3.0, text=TEXT)
    found = times(compiled, work, config, target("v5e-4"))
    assert found is not None and 0 < found.lower < found.upper and found.utilisation_low < found.utilisation_high
    np.testing.assert_allclose(found.lower, max(607 / 1.5e9, 10**12 / 4 / 197e12))
    assert "never measured" in show(compiled, work, config, target("v5e-4"))
    assert times(compiled, work, config, target("v5p-8")) is None
    assert "seconds" not in record(compiled, work, config, target("v5p-8"))
    assert compiled.fits(target("v5e-4"))
    tight = dataclasses.replace(compiled, memory={"peak": target("v5e-4").generation.hbm - MARGIN + 1})
    assert not tight.fits(target("v5e-4")) and "leaves less" in show(tight, work, config, target("v5e-4"))
    refused = Compiled("out of memory", memory={"peak": 17.48 * GIB, "available": 15.75 * GIB})
    assert "does NOT fit, needs 17.48" in show(refused, work, config, target("v5e-4"))
    assert not record(refused, work, config, target("v5e-4"))["fits"]


def planned(**mesh):
    """The default configuration with batches that any mesh of up to 16 devices divides."""
    config = default_config().to_dict()
    config["mesh"] |= mesh
    config["sft"]["batch_size"] = config["osipo"]["prompts"] = 16
    return config


def test_the_plan_of_a_configuration_on_a_slice():
    config, where = planned(fsdp=16), target("v5e-16")
    sft, osipo, rollouts = works = workloads(config, 128, 40, where)
    assert (sft.program, osipo.program, rollouts.program) == ("sft", "osipo", "rollouts")
    assert all(work.data * work.fsdp * work.tensor == 16 and work.rows % (work.data * work.fsdp) == 0 for work in works)
    assert sft.chains == config["teacher"]["beam"] and osipo.chains == config["osipo"]["rollouts"]
    said = list(plan_target(works, MODELS["smollm2-135m"], where, compile=False))
    assert "16 chips as v5e:4x4, 15.75 GiB each" in said[0] and "--compile" in said[-1]
    assert len(said) == 5 and all("GiB a chip by arithmetic" in line for line in said[1:4])
    config["student"]["trainable"] = "full"
    assert workloads(config, 128, 40, where)[0].program == "full_sft"
    config["mesh"] |= {"data": 1, "fsdp": 3}
    with pytest.raises(ConfigError, match="does not fill the slice"):
        workloads(config, 128, 40, where)


@pytest.mark.parametrize(
    ("changes", "mesh", "said"),
    [
        (
            {},
            {},
            "does not fill the slice.*data=1 × fsdp=1 × tensor=1 of 16 chips.*mesh.fsdp=16",
        ),  # nobody chose a mesh
        ({}, {"fsdp": 4}, "does not fill the slice"),
        ({"sft": {"batch_size": 8}}, {"fsdp": 16}, "sft.batch_size.*set sft.batch_size=16"),
        ({"osipo": {"prompts": 24}}, {"data": 0}, "osipo.prompts.*set osipo.prompts=32"),
        ({"sft": {"batch_size": 32, "accumulate": 4}}, {"fsdp": 16}, "set sft.batch_size=64"),
    ],
)
def test_a_plan_refuses_what_the_run_would_refuse(changes, mesh, said):
    """Neither the mesh nor the batches are quietly made to fit: the run does not do that either."""
    config = planned(**mesh)
    for section, values in changes.items():
        config[section] |= values
    with pytest.raises(ConfigError, match=f"(?s){said}"):
        workloads(config, 128, 40, target("v5e-16"))


def test_a_model_that_the_mesh_cannot_split_is_refused():
    config = planned(fsdp=128)
    config["sft"]["batch_size"] = config["osipo"]["prompts"] = 128
    works = workloads(config, 128, 40, target("v5e-128"))
    with pytest.raises(ConfigError, match=r"cannot be split evenly[\s\S]*size 576"):
        list(plan_target(works, MODELS["smollm2-135m"], target("v5e-128"), compile=False))


def test_a_plan_that_does_not_fit_says_all_and_then_fails(monkeypatch):
    where, config = target("v5e-4"), MODELS["smollm2-135m"]
    works = workloads(planned(fsdp=4), 128, 40, where)
    found = [
        Compiled("compiled", memory={"peak": GIB}, cpu_seconds=1.0),
        Compiled("out of memory", memory={"peak": 17 * GIB, "available": 15.75 * GIB}),
        Compiled("compiled", memory={"peak": 15.5 * GIB}, cpu_seconds=1.0),
    ]
    monkeypatch.setattr("scaletot_jax.parallel.tpu.plan.compile_ahead", lambda work, *_: found[works.index(work)])
    said = []
    with pytest.raises(ResourceError, match="osipo: out of memory; rollouts: no room to spare"):
        said.extend(plan_target(works, config, where, compile=True))  # extend keeps what came before the error
    found[1:] = found[:1] * 2
    assert len(list(plan_target(works, config, where, compile=True))) == 7


def test_the_plan_is_of_the_student_and_not_of_the_teacher():
    config, model = default_config().to_dict(), dataclasses.replace(MODELS["smollm2-135m"], windows=(8, 0) * 15)
    assert student_shape(config, model) == model
    config["student"]["num_layers"] = 15
    shorter = student_shape(config, model)
    assert shorter.num_layers == len(shorter.windows) == 15
    assert parameters(shorter) < 0.65 * parameters(model)


def test_the_command_refuses_an_unknown_target_before_it_does_anything(tmp_path, capsys):
    recipe = tmp_path / "recipe.py"
    recipe.write_text("from scaletot_jax.config import default_config as get_config\n")
    code = main(["plan", "--config", str(recipe), "--workdir", str(tmp_path / "run"), "--target", "v9-4"])
    assert code == 2 and "v5e-16" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("more", "said"), [([], "does not fill the slice"), (["--config.nokey=3"], "nokey")])
def test_the_command_refuses_what_the_run_refuses_before_it_does_anything(tmp_path, capsys, more, said):
    recipe = tmp_path / "recipe.py"
    recipe.write_text("from scaletot_jax.config import default_config as get_config\n")
    place = ["--config", str(recipe), "--workdir", str(tmp_path / "run")]
    assert main(["plan", *place, "--target", "v5e-16", *more]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
