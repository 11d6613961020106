"""The command line: ``scaletot VERB --config FILE --config.key=value --workdir DIR``.

Exit codes: 0 done; 1 an unexpected failure; 2 usage or configuration; 3 bad input data; 4 a run directory of another
configuration or in use; 5 a resource ran out; 6 the quality watch raised an alarm; 7 an audit found a leak; 8 a run was not
reproduced; 75 told to stop by SIGTERM, after saving, or another process of the run was lost; 130 interrupted (continue with
the same command).
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import traceback
from collections.abc import Sequence

from scaletot_jax import __version__
from scaletot_jax.errors import ConfigError, PreemptedError, ScaleToTError
from scaletot_jax.parallel import distributed
from scaletot_jax.report.environment import accelerators

_LESS = "  what to do: lower teacher.batch_size, sft.batch_size, osipo.prompts or score.batch_size"
_FREE = "  what to do: free some space and run the same command again; everything finished so far is kept"
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG)

VERBS = {
    "plan": "what a run would cost, before anything is spent: users, calls, tokens, minutes, memory, disk",
    "prepare": "read and validate the table, split users, fit prompts and features",
    "teach": "the teacher turns sparse profiles into typed user-state chains (bounded entropy-guided tree of thought)",
    "sft": "the student learns the chains from the profile alone",
    "osipo": "the student improves on outcomes (segment-aware implicit reward policy optimisation)",
    "distill": "the student's reasoning states become a light profile encoder",
    "score": "the whole population gets its embedding, without the language model; with --model, any table",
    "evaluate": "LTV heads with and without the embedding, intervals, and the verdict",
    "report": "two self-contained HTML pages: the report of the run, and the explorer of its users",
    "view": "serve a run's pages on 127.0.0.1 until Ctrl-C; no --config",
    "export": "the encoder and the heads with ẑ as one directory, from which 'score --model' serves any table",
    "serve": "answer requests over HTTP with an exported model: 'scaletot serve --model DIR', see docs/serving.md",
    "watch": "is a table, and are its scores, still like those the model learnt from: an alarm ends with exit code 6",
    "coverage": "the coverage curve of a finished run: metric against the share of users that the model reasons about",
    "audit": "look for leaks in a run directory: labels, identifiers, users, time and thresholds where they must not be",
    "run": "all of the above from prepare to report; finished stages are not done again",
    "reproduce": "run a finished run again from its own record, beside it, and compare: 'scaletot reproduce RUN'; no --config",
    "recipes": "list the recipes that --config takes by name; no --config",
    "ab": "what an A/B test showed, or how many users one needs; no --config",
}
OWN_OPTIONS = ("export", "serve", "watch", "view", "reproduce", "recipes", "ab")  # not read by the parser below

_USAGE = f"""scaletot VERB --config RECIPE [--config.key=value ...] [--workdir DIR] [options, see below]
       scaletot score --model DIR --table FILE|FOLDER --out DIR [options: 'scaletot score --model DIR --help']
       scaletot {{{",".join(OWN_OPTIONS)}}} ... [options: 'scaletot VERB --help']"""

_EPILOG = """examples:
  scaletot plan --config quickstart
  scaletot run  --config quickstart --workdir runs/quickstart
  scaletot run  --config quickstart --workdir runs/mine \\
      --config.data.name=parquet --config.data.path=users.parquet --config.data.schema=users.yaml
  scaletot teach --config quickstart --workdir runs/quickstart --config.teacher.beam=1 --on-change=redo

Every key of the configuration can be set as --config.section.key=value; 'scaletot plan' prints them all.
A killed command continues where it was when it is typed again. Exit codes: 0 done, 1 unexpected, 2 usage or
configuration, 3 bad input, 4 run directory of another configuration or in use, 5 out of disk, memory or budget,
6 alarm of the quality watch, 7 an audit found a leak, 8 a run was not reproduced, 75 told to stop by SIGTERM or
another process of the run was lost (start it again), 130 interrupted."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scaletot",
        usage=_USAGE,
        description="LLM reasoning about sparse users, distilled into a light encoder that serves everyone.",
        epilog="verbs:\n" + "\n".join(f"  {verb:<9} {text}" for verb, text in VERBS.items()) + "\n\n" + _EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", choices=list(VERBS), metavar="VERB", help="what to do, see below")
    parser.add_argument(
        "--config", required=True, metavar="RECIPE", help="a file, or a name that 'scaletot recipes' lists"
    )
    parser.add_argument("--workdir", default="", metavar="DIR", help="the run directory (default: runs/<recipe name>)")
    parser.add_argument(
        "--on-change",
        choices=("refuse", "redo"),
        default="refuse",
        help="when a stage in the run directory was done with another configuration (default: refuse, showing what changed)",
    )
    parser.add_argument(
        "--coordinator",
        default="",
        metavar="HOST:PORT",
        help="several processes: where the first listens, the same in all; 'auto' on TPU pods and under Slurm",
    )
    parser.add_argument("--processes", type=int, metavar="N", help="several processes: how many")
    parser.add_argument("--process", type=int, metavar="I", help="several processes: the number of this one, from 0")
    parser.add_argument(
        "--target",
        default="",
        metavar="SLICE",
        help="with plan: what the steps need on a TPU slice, e.g. v5e-16 or v5p:2x2x4",
    )
    parser.add_argument(
        "--compile", action="store_true", help="with plan --target: ask the TPU compiler too, which takes minutes"
    )
    parser.add_argument("--version", action="version", version=f"scaletot_jax {__version__}")
    return parser


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Takes ``--config.a.b=value`` (or ``--config.a.b value``) out of the arguments."""
    rest: list[str] = []
    overrides: list[tuple[str, str]] = []
    queue = list(arguments)
    while queue:
        argument = queue.pop(0)
        if not argument.startswith("--config."):
            rest.append(argument)
            continue
        key, equals, value = argument[len("--config.") :].partition("=")
        if not equals:
            if not queue:
                raise ConfigError("a configuration override has no value", where=argument, do=f"write {argument}=VALUE")
            value = queue.pop(0)
        overrides.append((key, value))
    return rest, overrides


def _execute(arguments: Sequence[str]) -> int:
    from pathlib import Path

    from scaletot_jax.config import load_config, override, validate

    if arguments and arguments[0] == "ab":
        from scaletot_jax.ab import cli as ab

        return ab.main(arguments[1:])
    if arguments and arguments[0] == "view":
        from scaletot_jax.report import view

        return view.main(arguments[1:])
    if arguments and arguments[0] == "reproduce":
        from scaletot_jax.reproduce import cli as reproduce

        return reproduce.main(arguments[1:])
    if arguments and arguments[0] == "recipes":
        from scaletot_jax import recipes

        return recipes.main(arguments[1:])
    rest, overrides = split_overrides(arguments)
    from scaletot_jax.population import cli as population

    if population.handles(rest):
        return population.main(rest, overrides)
    parser = _parser()
    options = parser.parse_args(rest)
    if options.verb in OWN_OPTIONS:
        parser.error(f"'{options.verb}' has options of its own and comes first: scaletot {options.verb} --help")
    config = load_config(options.config)
    for key, value in overrides:
        override(config, key, value)
    validate(config)
    workdir = Path(options.workdir or Path("runs") / Path(options.config).stem)

    if options.verb == "plan":
        from scaletot_jax.parallel.tpu.plan import plan_target, workloads
        from scaletot_jax.parallel.tpu.topology import target
        from scaletot_jax.plan import plan, show

        where = target(options.target) if options.target else None
        if where is not None:
            workloads(
                config.to_dict(), 1, 1, where
            )  # a mesh or a batch that the run refuses, said before anything is timed
        found = plan(config, workdir)
        print(show(found))
        if where is not None:
            works = workloads(config.to_dict(), *found.padded, where)
            for text in plan_target(works, found.model, where, compile=options.compile):
                print(text, flush=True)
        return 0

    if options.verb == "audit":
        from scaletot_jax.audit import audit

        findings = audit.audit(workdir, config.to_dict())
        print(audit.show(findings))
        audit.refuse_leaks(findings, workdir)
        return 0

    if options.verb == "coverage":
        from scaletot_jax.evaluation import cover_text
        from scaletot_jax.evaluation.cover import coverage
        from scaletot_jax.run import Run

        with Run(workdir, config.to_dict(), on_change=options.on_change) as run:
            coverage(run)
        print(cover_text.show(workdir))
        return 0

    distributed.initialize(options.coordinator, options.processes, options.process)  # before anything wants a device
    if distributed.count() > 1 and options.verb in ("run", "sft", "osipo"):
        from scaletot_jax.parallel.mesh import make_mesh

        make_mesh(**config.mesh)  # a mesh that does not fit is refused now, not after days of teaching
    from scaletot_jax.pipeline import run_all, verdict
    from scaletot_jax.run import STAGES

    run_all(config, workdir, on_change=options.on_change, stages=STAGES if options.verb == "run" else (options.verb,))
    if not distributed.leads():
        return 0
    if options.verb in ("run", "report"):
        print(f"report:  {workdir / 'report' / 'report.html'}")
    if options.verb == "run":
        print(f"verdict: {verdict(workdir)}")
    elif options.verb != "report":
        print(f"{options.verb}: {workdir / options.verb}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the ``scaletot`` command; returns the exit code."""
    orderly = False
    try:
        code = _guarded(arguments)
        orderly = code == 0
    except PreemptedError as error:
        code, orderly = _say(error), error.together
    except ScaleToTError as error:
        code = _say(error)
    except Exception as error:
        if distributed.count() == 1:
            raise
        traceback.print_exc()
        gone = distributed.lost(error)
        code = _say(gone) if gone else 1
    if not orderly and distributed.count() > 1:
        # The others wait for this process in the middle of a step. An orderly end would wait for them in turn.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _say(error: ScaleToTError) -> int:
    print(f"scaletot: {error}", file=sys.stderr)
    return error.exit_code


def _guarded(arguments: Sequence[str] | None) -> int:
    """Runs the command; what the machine refuses becomes a message and an exit code."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if not accelerators():
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # an installed libtpu would look for a TPU for seconds, noisily
    try:
        return _execute(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        print("scaletot: interrupted; the same command continues where it was", file=sys.stderr)
        return 130
    except MemoryError:
        print(f"scaletot: out of memory\n{_LESS}", file=sys.stderr)
        return 5
    except BrokenPipeError:
        return 1
    except OSError as error:  # where no stage says it better
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            print(f"scaletot: the disk is full\n  why: {error}\n{_FREE}", file=sys.stderr)
        elif error.errno in _REFUSED:
            print(f"scaletot: the operating system refused a file\n  why: {error}", file=sys.stderr)
        else:
            raise
        return 5
    except RuntimeError as error:  # what XLA raises when a device has no memory left
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(f"scaletot: a device is out of memory\n  why: {str(error).splitlines()[0]}\n{_LESS}", file=sys.stderr)
        return 5


if __name__ == "__main__":
    sys.exit(main())
