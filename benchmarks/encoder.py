"""The encoder's forward pass, encoded profiles to embeddings: users a second of ours against ONNX Runtime on the same graph.

    python benchmarks/encoder.py [--quick] [--rounds 7] [--rows 65536] [--shared]

An untrained encoder of the default size (width 256, 2 cross layers, 2 residual layers, 64 dimensions) on the synthetic
population, float32 everywhere. Every form is measured at each batch size first and then, in turn, at its own best one.

    onnxruntime_plain   the graph of ``scaletot export --format onnx`` (embedding alone), optimiser off
    onnxruntime_fused   the same file, all of its optimisations

``--shared`` is for a machine that does other work, too: ONNX Runtime's threads then sleep while they wait (by default they
spin, which is fast where nobody else runs and hopeless where somebody does), and what may be quoted is the processor time.

The roofline is the best float32 matrix product of this machine, measured in the same rounds (NumPy, JAX, and torch where it is
installed): the network does over 2,000 operations for each byte of a user's row and embedding, so arithmetic bounds it, not
memory. The last line is one JSON object; a ratio above 1 means ours is faster.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable

import harness
import jax
import jax.numpy as jnp
import numpy as np

from scaletot_jax.datasets.synthetic import build_table
from scaletot_jax.encoder.embed import compile_embedding
from scaletot_jax.encoder.model import EncoderSpec, Inputs
from scaletot_jax.population.untrained import write_untrained_model
from scaletot_jax.profiles.schema import load_schema
from scaletot_jax.profiles.table import validate

THREADS = len(os.sched_getaffinity(0))
BATCHES = (256, 1024, 4096, 16384)
Forward = Callable[[Inputs], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8,192 rows, two rounds")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=1 << 16)
    parser.add_argument("--shared", action="store_true", help="other jobs run: no spinning, read the processor time")
    arguments = parser.parse_args()
    rows, rounds = (8192, 2) if arguments.quick else (arguments.rows, arguments.rounds)
    spec, params, inputs = population(rows)

    forwards: dict[str, Forward] = {"ours": ours(spec, params)}
    missing: dict[str, str] = {}
    if jax.default_backend() == "cpu":
        try:
            forwards |= onnx_runtime(spec, params, inputs, spinning=not arguments.shared)
        except ImportError as error:
            missing["onnxruntime"] = str(error)
    else:
        missing["onnxruntime"] = "measured on the processor only"
    agree(forwards, Inputs(*(part[:1024] for part in inputs)))

    batches = {name: best_batch(forward, inputs) for name, forward in forwards.items()}
    busy: dict[str, list[float]] = {name: [] for name in forwards}  # processor seconds a user, the first to warm up
    jobs = {name: timed(job(forward, inputs, batches[name]), busy[name]) for name, forward in forwards.items()}
    rates = harness.in_turn(jobs | products(), rounds)
    found = {name: 1 / min(rates.pop(name)) for name in [name for name in rates if name not in jobs]}
    of = max(found, key=lambda name: found[name])
    peak = found[of]
    harness.table(rates, "users a second")
    operations = flops(spec)
    share = {name: operations / min(seconds) / peak for name, seconds in rates.items()}
    print(f"\nroofline: {peak / 1e9:.1f} GFLOP/s float32 ({of}); {operations / 1e6:.3f} MFLOP a user")
    processor = {name: statistics.median(seconds[1:]) * 1e6 for name, seconds in busy.items()}
    for name, value in share.items():
        print(
            f"{name:28}{100 * value:9.1f}% of the roofline, batch {batches[name]}, processor {processor[name]:.2f} µs a user"
        )
    harness.last_line(
        "encoder", rates, "users/s", missing=missing, rows=rows, batches=batches, gflops=round(peak / 1e9, 1),
        roofline_by=of, mflop_a_user=round(operations / 1e6, 3),
        share_of_roofline={name: round(value, 3) for name, value in share.items()},
        processor_us={name: round(value, 3) for name, value in processor.items()}, shared=arguments.shared,
        onnxruntime=harness.versions("onnxruntime", "onnx"),
    )  # fmt: skip


def population(rows: int) -> tuple[EncoderSpec, dict, Inputs]:
    """The encoder and ``rows`` encoded users (4,096 distinct ones, repeated: gathers do not care)."""
    schema = load_schema("synthetic")
    table = validate(build_table(4096, seed=0), schema)
    with tempfile.TemporaryDirectory() as folder:
        model = write_untrained_model(folder, table, schema)
    inputs = model.space.encode(table)
    return model.spec.encoder, model.params["encoder"], Inputs(*(np.resize(p, (rows, *p.shape[1:])) for p in inputs))


def ours(spec: EncoderSpec, params: dict) -> Forward:
    call = compile_embedding(spec, params)
    return lambda inputs: np.asarray(call(inputs))


def onnx_runtime(spec: EncoderSpec, params: dict, inputs: Inputs, *, spinning: bool) -> dict[str, Forward]:
    import onnxruntime

    from scaletot_jax.export.onnx_encoder import encoder_graph
    from scaletot_jax.export.onnx_graph import Graph

    graph = Graph()
    outputs = {"embedding": (encoder_graph(graph, spec, params), (spec.dim,))}
    arrays = {name: (part.dtype, part.shape[1:]) for name, part in zip(Inputs._fields, inputs)}
    program = graph.model(arrays, outputs, {}).SerializeToString()
    out: dict[str, Forward] = {}
    levels = onnxruntime.GraphOptimizationLevel
    for name, level in (("plain", levels.ORT_DISABLE_ALL), ("fused", levels.ORT_ENABLE_ALL)):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level, options.intra_op_num_threads = level, THREADS
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
        session = onnxruntime.InferenceSession(program, options, providers=["CPUExecutionProvider"])
        out[f"onnxruntime_{name}"] = lambda batch, run=session.run: run(None, batch._asdict())[0]
    return out


def agree(forwards: dict[str, Forward], inputs: Inputs) -> None:
    want = forwards["ours"](inputs)
    for name, forward in forwards.items():
        error = np.abs(forward(inputs) - want).max() / np.abs(want).max()
        if not error < 1e-5:
            raise SystemExit(f"{name} computes something else: {error:.3g}")


def job(forward: Forward, inputs: Inputs, batch: int) -> Callable[[], float]:
    parts = [Inputs(*(p[i : i + batch] for p in inputs)) for i in range(0, len(inputs.cat), batch)]

    def run() -> float:
        for part in parts:
            forward(part)
        return len(inputs.cat)

    return run


def timed(run: Callable[[], float], into: list[float]) -> Callable[[], float]:
    """``run`` that also notes the processor seconds of a unit, of all threads."""

    def noting() -> float:
        start = time.process_time()
        units = run()
        into.append((time.process_time() - start) / units)
        return units

    return noting


def best_batch(forward: Forward, inputs: Inputs) -> int:
    found = {}
    for batch in (size for size in BATCHES if size <= len(inputs.cat)):
        run = job(forward, inputs, batch)
        found[batch] = min(harness.in_turn({"x": run}, 2)["x"])
    return min(found, key=lambda size: found[size])


def flops(spec: EncoderSpec) -> float:
    """Multiplications and additions of the matrix products of one user; all else is left out of the roofline's share."""
    from scaletot_jax.encoder.model import field_width

    fields = sum(field_width(size) for size in spec.cat_sizes) + sum(field_width(size) + 1 for size in spec.multi_sizes)
    fields += sum(len(edges) - 1 for edges in spec.knots) + 2 * len(spec.knots)
    square = spec.width * spec.width * (spec.cross_layers + 2 * spec.mlp_layers)
    return 2.0 * (fields * spec.width + square + spec.width * spec.dim)


def products() -> dict[str, Callable[[], float]]:
    """Large float32 matrix products by every library at hand; a job returns the operations done."""
    size = 2048
    a, b = (np.random.default_rng(i).normal(size=(size, size)).astype(np.float32) for i in (0, 1))
    product = jax.jit(lambda x, y: jnp.matmul(x, y, precision="highest"))
    x, y = jnp.asarray(a), jnp.asarray(b)
    forms: dict[str, Callable[[], object]] = {"product_jax": lambda: product(x, y).block_until_ready()}
    if jax.default_backend() == "cpu":
        forms["product_numpy"] = lambda: a @ b
        try:
            import torch

            torch.set_num_threads(THREADS)
            p, q = torch.from_numpy(a), torch.from_numpy(b)
            forms["product_torch"] = lambda: p @ q
        except ImportError:
            pass

    def counted(form: Callable[[], object]) -> Callable[[], float]:
        def run() -> float:
            form()
            return 2.0 * size**3

        return run

    return {name: counted(form) for name, form in forms.items()}


if __name__ == "__main__":
    main()
