"""``scaletot plan --target v5e-16 [--compile]``: what the steps of a configuration need on a TPU slice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from scaletot_jax.errors import ConfigError, ResourceError
from scaletot_jax.lm.config import LMConfig
from scaletot_jax.parallel.tpu.ahead import compile_ahead
from scaletot_jax.parallel.tpu.analytic import analytic_bytes
from scaletot_jax.parallel.tpu.programs import Workload, check_split
from scaletot_jax.parallel.tpu.report import show
from scaletot_jax.parallel.tpu.topology import GIB, Target


def workloads(config: Mapping[str, Any], prompt: int, chain: int, where: Target) -> list[Workload]:
    """SFT, OSIPO and the sampler with the batches of a configuration, on all chips of a slice.

    Args:
      config: the whole configuration. prompt, chain: padded lengths.

    Raises:
      ConfigError: the mesh does not take all chips: on several hosts the run refuses that, on one it leaves chips idle that
        are paid for. Or a batch does not divide among the mesh, which the run refuses in the stage that needs it.
    """
    mesh, student = config["mesh"], config["student"]
    fsdp, tensor = mesh["fsdp"], mesh["tensor"]
    data = mesh["data"] or where.chips // (fsdp * tensor)
    if data * fsdp * tensor != where.chips:
        raise ConfigError(
            "the mesh does not fill the slice",
            where="mesh",
            why=f"data={data} × fsdp={fsdp} × tensor={tensor} of {where.chips} chips ({where.name})",
            do=f"set mesh.fsdp={where.chips} (the model divided among all), or mesh.data=0 (a copy on each), and mesh.fsdp and "
            "mesh.tensor to what divides the number of chips",
        )
    attention = config["student"]["attention"]
    common: dict[str, Any] = dict(
        data=data,
        fsdp=fsdp,
        tensor=tensor,
        prompt=prompt,
        length=chain,
        rank=student["lora_rank"],
        compute_dtype=student["compute_dtype"],
        attention="dot_product" if attention == "auto" else attention,
    )
    sft, osipo = config["sft"], config["osipo"]

    def rows(key: str, wanted: int, accumulate: int) -> int:
        unit = data * fsdp * accumulate
        if wanted % unit:
            raise ConfigError(
                "a batch does not divide among the mesh",
                where=key,
                why=f"{wanted} rows over data={data} × fsdp={fsdp} × {accumulate} micro-batches",
                do=f"set {key}={-(-wanted // unit) * unit}, or a smaller data × fsdp",
            )
        return wanted

    trained = "full_sft" if student["trainable"] == "full" else "sft"
    return [
        Workload(
            trained,
            rows=rows("sft.batch_size", sft["batch_size"], sft["accumulate"]),
            chains=config["teacher"]["beam"],
            remat=sft["remat"],
            accumulate=sft["accumulate"],
            **common,
        ),
        Workload(
            "osipo",
            rows=rows("osipo.prompts", osipo["prompts"], osipo["accumulate"]),
            chains=osipo["rollouts"],
            remat=osipo["remat"],
            accumulate=osipo["accumulate"],
            **common,
        ),
        Workload("rollouts", rows=rows("osipo.prompts", osipo["prompts"], 1), chains=osipo["rollouts"], **common),
    ]


def plan_target(works: list[Workload], config: LMConfig, where: Target, *, compile: bool) -> Iterator[str]:
    """Lines for people, one program after another: the arithmetic first, then the compiler's word where it is asked.

    Raises:
      ConfigError: before the first line, a weight of the model cannot be split over the mesh.
      ResourceError: after the last line, by the compiler's word a program does not fit the slice.
    """
    check_split(works[0], config)
    hbm = where.generation.hbm / GIB
    yield f"\ntarget {where.name}: {where.chips} chips as {where.topology}, {hbm:.2f} GiB each"
    for work in works:
        parts = {name: size / GIB for name, size in analytic_bytes(work, config).items()}
        said = ", ".join(f"{name} {size:.2f}" for name, size in parts.items())
        yield (
            f"{work.program}, {work.rows} rows of {work.tokens // work.rows} tokens on data={work.data} × "
            f"fsdp={work.fsdp} × tensor={work.tensor}: about {sum(parts.values()):.2f} GiB a chip by arithmetic ({said})"
        )
    if not compile:
        yield "  --compile asks the TPU compiler, which takes minutes"
        return
    refused = []
    for work in works:
        compiled = compile_ahead(work, config, where)
        if not compiled.fits(where):
            refused.append(
                f"{work.program}: {compiled.outcome if compiled.outcome != 'compiled' else 'no room to spare'}"
            )
        yield show(compiled, work, config, where)
    if refused:
        raise ResourceError(
            "not every program of this configuration fits the slice",
            where=f"--target {where.name}",
            why="; ".join(refused),
            do="take a larger slice, or lower sft.batch_size, osipo.prompts or osipo.rollouts, or set sft.remat=full, osipo.remat=full",
        )
