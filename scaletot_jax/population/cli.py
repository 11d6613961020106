"""The verbs of a served model: ``export`` makes one of a run, ``score --model`` applies it to any table, ``serve``
answers requests with it, ``watch`` compares."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

_SCORE = """The table is a Parquet file or a folder of them, with the columns of the model's schema; labels are not needed.
DIR gets part-*.parquet (row, id, embedding, and of each label the expectation, P(y > 0) and quantiles), a record of each
and, when all are there, manifest.json. Typed again, it continues; several workers share the work by the number of the shard:

  scaletot score --model MODEL --table users/ --out scores/ --worker 0/4      (and 1/4, 2/4, 3/4, anywhere)

Without --worker the environment is asked: SCALETOT_WORKER=I/N, a Slurm step or job array, or JOB_COMPLETION_INDEX of a
Kubernetes indexed job with SCALETOT_WORKERS=N."""


def handles(arguments: Sequence[str]) -> bool:
    """Whether a command line is for this module; ``score`` without a model is a stage of a run."""
    if not arguments:
        return False
    served = any(argument == "--model" or argument.startswith("--model=") for argument in arguments)
    return arguments[0] in ("export", "watch", "serve") or (arguments[0] == "score" and served)


def main(arguments: Sequence[str], overrides: Sequence[tuple[str, str]]) -> int:
    """Runs the verb; ``overrides`` are the ``--config.key=value`` of the command line."""
    verbs = {"export": _export, "score": _score, "watch": _watch, "serve": _serve}
    return verbs[arguments[0]](arguments[1:], overrides)


def _watch(arguments: Sequence[str], overrides: Sequence[tuple[str, str]]) -> int:
    from scaletot_jax.population.watch import main as watch

    return watch([*arguments, *(f"--config.{key}={value}" for key, value in overrides)])  # which argparse refuses


def _serve(arguments: Sequence[str], overrides: Sequence[tuple[str, str]]) -> int:
    from scaletot_jax.serving.cli import main as serve

    return serve([*arguments, *(f"--config.{key}={value}" for key, value in overrides)])


def _score(arguments: Sequence[str], overrides: Sequence[tuple[str, str]]) -> int:
    parser = argparse.ArgumentParser(
        prog="scaletot score",
        description="A served model scores a table.",
        epilog=_SCORE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="what 'scaletot export' wrote")
    parser.add_argument("--table", required=True, metavar="FILE|FOLDER", help="Parquet, one file or many")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder of the results")
    parser.add_argument("--shard-rows", type=int, default=1 << 20, metavar="N", help="rows a shard (default: 1048576)")
    parser.add_argument(
        "--batch-rows", type=int, default=0, metavar="N", help="rows a compiled call (default: by device)"
    )
    parser.add_argument("--embedding", default="float16", help="float16 (default), int8 with a scale a row, or none")
    parser.add_argument("--form", default="rows", help="rows (default), or distinct: equal profiles are computed once")
    parser.add_argument("--worker", default="", metavar="I/N", help="make the shards whose number is I modulo N")
    parser.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="ray places and retries whole shards"
    )
    parser.add_argument(
        "--ray-address", default="", metavar="ADDRESS", help="of a running cluster (default: start one here)"
    )
    parser.add_argument(
        "--ray-gpus", type=float, default=0, metavar="N", help="GPUs a task of Ray asks for (default: 0)"
    )
    options = parser.parse_args(arguments)
    if overrides:
        parser.error("a served model has no configuration: --config.* belongs to the stage 'score' of a run")
    from scaletot_jax.population.score import Options, score_table
    from scaletot_jax.population.worker import find_worker

    chosen = Options(options.shard_rows, options.batch_rows, options.embedding, options.form)
    if options.engine == "ray":
        from scaletot_jax.population.ray_engine import score_on_ray

        whole = score_on_ray(
            options.model, options.table, options.out, chosen, address=options.ray_address, gpus=options.ray_gpus
        )
    else:
        worker = find_worker(os.environ, options.worker)
        whole = score_table(options.model, options.table, options.out, chosen, worker)
    print(f"score: {options.out}" + ("" if whole else " (this worker's part is done, others are at work)"))
    return 0


def _export(arguments: Sequence[str], overrides: Sequence[tuple[str, str]]) -> int:
    parser = argparse.ArgumentParser(prog="scaletot export", description="A finished run becomes a served model.")
    parser.add_argument("--config", required=True, metavar="FILE", help="the recipe of the run")
    parser.add_argument("--workdir", default="", metavar="DIR", help="the run directory (default: runs/<recipe name>)")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder of the model")
    parser.add_argument(
        "--format", default="", metavar="LIST", help="programs for callers without this package: jax, onnx or jax,onnx"
    )
    parser.add_argument(
        "--chains", action="store_true", help="with chains of the teacher, which 'scaletot serve' shows as explanations"
    )
    parser.add_argument(
        "--min-users",
        type=int,
        default=5,
        metavar="N",
        help="with --chains: users who must share a chain (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    if options.min_users < 2:
        parser.error("--min-users is at least 2: a chain of one user is about that user")
    from scaletot_jax.config import load_config, override, validate
    from scaletot_jax.export.write import parse_formats
    from scaletot_jax.population.export import export_model
    from scaletot_jax.run import Run

    formats = parse_formats(options.format)
    config = load_config(options.config)
    for key, value in overrides:
        override(config, key, value)
    validate(config)
    with Run(options.workdir or Path("runs") / Path(options.config).stem, config.to_dict(), lock=False) as run:
        model = export_model(run, options.out, formats, options.min_users if options.chains else 0)
    print(f"export: {options.out} (model {model.fingerprint})")
    return 0
