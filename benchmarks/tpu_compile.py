"""The programs of the line compiled ahead of time for TPU slices, by the TPU's own compiler, without a TPU.

    python benchmarks/tpu_compile.py [--only NAME ...] [--seconds 1500] [--keep FOLDER]

Every case runs in a process of its own, which is ended after ``--seconds``. ``--keep`` stores the compiled programs. What
the numbers mean, and do not: scaletot_jax/parallel/tpu/report.py. The last line is one JSON object.
"""

import argparse
import json
from pathlib import Path

from harness import machine, versions

from scaletot_jax.parallel.tpu.ahead import compile_ahead
from scaletot_jax.parallel.tpu.models import MODELS
from scaletot_jax.parallel.tpu.programs import Workload
from scaletot_jax.parallel.tpu.report import aliased, cache_copies, record, show
from scaletot_jax.parallel.tpu.topology import target

COLAB = dict(rows=8, prompt=256, chains=4, length=192)  # 8 × 1024 tokens
LONG = dict(prompt=512, chains=4, length=384)  # 2048 tokens a row
CASES = {
    "0.5B LoRA SFT, v5e:1x1": ("qwen2.5-0.5b", "v5e:1x1", Workload("sft", **COLAB)),
    "0.5B LoRA OSIPO, v5e:1x1": ("qwen2.5-0.5b", "v5e:1x1", Workload("osipo", **COLAB)),
    "0.5B LoRA SFT, einsum, v5e:1x1": ("qwen2.5-0.5b", "v5e:1x1", Workload("sft", attention="einsum", **COLAB)),
    "0.5B LoRA OSIPO, einsum, v5e:1x1": ("qwen2.5-0.5b", "v5e:1x1", Workload("osipo", attention="einsum", **COLAB)),
    "8B sampler, v5e:2x4": ("llama3.1-8b", "v5e:2x4", Workload("decode", tensor=8, rows=4, prompt=1024, chains=4, length=1024)),
    "8B full SFT, v5e:4x4": ("llama3.1-8b", "v5e:4x4", Workload("full_sft", fsdp=16, rows=16, **LONG)),
    "8B LoRA OSIPO, v5e:2x2": ("llama3.1-8b", "v5e:2x2", Workload("osipo", fsdp=4, rows=4, prompt=256, chains=4, length=192)),
    "8B LoRA OSIPO, v6e:1x1": ("llama3.1-8b", "v6e:1x1", Workload("osipo", rows=4, prompt=256, chains=4, length=192)),
    "8B full SFT, v5p:2x2x4": ("llama3.1-8b", "v5p:2x2x4", Workload("full_sft", fsdp=16, rows=16, **LONG)),
    "72B full SFT, v5p:4x4x8": ("qwen2.5-72b", "v5p:4x4x8", Workload("full_sft", fsdp=32, tensor=4, rows=64, **LONG)),
}  # fmt: skip


def cache_shapes(work: Workload, model) -> set[tuple[int, ...]]:
    """Shapes on one chip of the sampler's caches, heads split over the tensor axis."""
    heads = model.num_kv_heads // work.tensor
    both = ((work.rows, work.prompt), (work.rows * work.chains, work.length))
    return {(count, heads, slots, model.head_dim) for count, slots in both}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(CASES), choices=list(CASES), metavar="NAME")
    parser.add_argument("--seconds", type=float, default=1500.0)
    parser.add_argument("--keep", default="")
    options = parser.parse_args()
    results = {}
    for name in options.only:
        model, slice_name, work = CASES[name]
        config, where = MODELS[model], target(slice_name)
        compiled = compile_ahead(work, config, where, seconds=options.seconds)
        results[name] = record(compiled, work, config, where)
        if work.program == "decode" and compiled.text is not None:
            leaves = 4 * config.num_layers
            results[name] |= {
                "cache_leaves": leaves,
                "aliased_outputs": aliased(compiled.text),
                "cache_copies": cache_copies(compiled.text, cache_shapes(work, config)),
            }
        print(f"{name}\n{show(compiled, work, config, where)}\n{json.dumps(results[name])}\n", flush=True)
        if options.keep and compiled.text is not None:
            Path(options.keep).mkdir(parents=True, exist_ok=True)
            Path(options.keep, "".join(c if c.isalnum() else "_" for c in name) + ".txt").write_text(compiled.text)
    packages = versions("jax", "jaxlib", "libtpu")
    print(json.dumps({"benchmark": "tpu_compile", "results": results, "machine": machine(), "versions": packages}))


if __name__ == "__main__":
    main()
