"""The fused head against materialised logits: time and peak memory of log-probabilities and their gradient.

    python benchmarks/fused_head.py [--rows 1024] [--rounds 3]

Float32, one token and its entropy a row, the gradient in hidden states and weight, at the vocabularies of SmolLM2 (49k,
D = 576) and Qwen2.5 (152k, D = 896). Each form runs in a process of its own, since peak memory of a process never falls;
processes take turns. ``peak``: the compiler's figure, arguments + outputs − reused + temporaries; ``rss``: the process's
high-water mark above what it held before the first run (Linux; the mark is reset after compiling, which leaves one). The last line is one JSON object.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from harness import machine, versions

SIZES = {"49k": (49_152, 576), "152k": (151_936, 896)}
FORMS = ("ours", "materialised")


def measure(form: str, size: str, rows: int) -> None:
    """The child: compiles, runs twice, prints what it took."""
    import jax
    import jax.numpy as jnp

    from scaletot_jax.lm.config import LMConfig
    from scaletot_jax.lm.head import token_statistics

    vocabulary, width = SIZES[size]
    config = LMConfig(vocabulary, width, 4, 1, 1, 1, 2)
    keys = jax.random.split(jax.random.key(0), 3)
    weight = jax.random.normal(keys[0], (vocabulary, width)) * width**-0.5
    hidden = jax.random.normal(keys[1], (rows, width))
    ids = jax.random.randint(keys[2], (rows,), 0, vocabulary)

    def fused(weight, hidden, ids):
        return token_statistics({"embed": weight}, config, hidden, ids)

    def materialised(weight, hidden, ids):
        log_probs = jax.nn.log_softmax(hidden @ weight.T)
        chosen = jnp.take_along_axis(log_probs, ids[:, None], axis=1)[:, 0]
        return chosen, -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)

    def loss(weight, hidden, ids):
        chosen, entropy = {"ours": fused, "materialised": materialised}[form](weight, hidden, ids)
        return -jnp.mean(chosen) - 0.01 * jnp.mean(entropy)

    compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(weight, hidden, ids).compile()
    analysis = compiled.memory_analysis()
    peak = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    jax.block_until_ready((weight, hidden, ids))
    Path("/proc/self/clear_refs").write_text("5")  # resets the mark
    before = memory("VmRSS")
    value = jax.block_until_ready(compiled(weight, hidden, ids))[0]
    start = time.perf_counter()
    jax.block_until_ready(compiled(weight, hidden, ids))
    seconds = time.perf_counter() - start
    rss = memory("VmHWM") - before
    megabytes = (peak + analysis.temp_size_in_bytes) / 2**20
    print(json.dumps({"seconds": seconds, "peak_mib": megabytes, "rss_mib": rss, "loss": float(value)}))


def memory(field: str) -> float:
    """MiB of this process, from the kernel."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", nargs=2, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return measure(*options.child, options.rows)
    results, ratio = {}, {}
    print(f"{options.rows} rows, forward and backward, median of {options.rounds}\n")
    print(f"{'V':>5} {'form':14}{'seconds':>9}{'peak MiB':>10}{'RSS MiB':>10}")
    for size in SIZES:
        runs: dict[str, list[dict]] = {form: [] for form in FORMS}
        for _ in range(options.rounds):
            for form in FORMS:
                command = [sys.executable, __file__, "--rows", str(options.rows), "--child", form, size]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                runs[form].append(json.loads(done.stdout.splitlines()[-1]))
        for form, found in runs.items():
            results[f"{form} {size}"] = row = {
                name: round(statistics.median(run[name] for run in found), 3)
                for name in ("seconds", "peak_mib", "rss_mib")
            }
            print(f"{size:>5} {form:14}{row['seconds']:9.2f}{row['peak_mib']:10.0f}{row['rss_mib']:10.0f}")
        ours, theirs = (results[f"{form} {size}"] for form in FORMS)
        ratio |= {f"{size}_time": round(theirs["seconds"] / ours["seconds"], 2)}
        ratio |= {f"{size}_peak": round(theirs["peak_mib"] / ours["peak_mib"], 2)}
        ratio |= {f"{size}_rss": round(theirs["rss_mib"] / max(1.0, ours["rss_mib"]), 2)}
        assert abs(runs["ours"][0]["loss"] - runs["materialised"][0]["loss"]) < 1e-4
    record = {"benchmark": "fused_head", "rows": options.rows, "results": results, "ratio": ratio}
    print(json.dumps(record | {"machine": machine(), "versions": versions("jax")}))


if __name__ == "__main__":
    main()
