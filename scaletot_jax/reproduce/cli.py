"""``scaletot reproduce RUN [--workdir DIR] [--tolerance T] [--anyway]``: does a run again from its record and compares."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

_EPILOG = """The folder needs config.json, env.json and metrics.json, and the stage.json of each stage for the files. First it is said
what differs in versions, machine, code and inputs; then the stages are run into DIR; then every value and file is compared.
Where nothing differs beforehand the comparison is exact, by bits and SHA-256. Elsewhere numbers may differ by the tolerance, and
bytes of files are shown and not judged. Exit code 0: all that is judged is the same. 8: it is not, or the inputs are others.

Inputs that lie elsewhere now: --config.data.path=…, data.schema, data.manual_dir, lm.weights, lm.chain_spec."""


def main(arguments: Sequence[str]) -> int:
    """Runs the verb."""
    from scaletot_jax.cli import split_overrides

    rest, moved = split_overrides(arguments)
    parser = argparse.ArgumentParser(
        prog="scaletot reproduce",
        description="A run is done again from its own record, and what comes out is compared.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="the run directory")
    parser.add_argument("--workdir", default="", metavar="DIR", help="where it is done again (default: RUN.reproduced)")
    parser.add_argument(
        "--tolerance", type=float, metavar="T",
        help="relative, of fractional numbers (default: 0 with the same versions, machine, code and inputs, else 0.001)",
    )  # fmt: skip
    parser.add_argument("--anyway", action="store_true", help="run although the inputs are not those of the record")
    options = parser.parse_args(rest)
    if options.tolerance is not None and not 0 <= options.tolerance < 1:
        parser.error("--tolerance is at least 0 and below 1")
    from scaletot_jax.reproduce import reproduce, table

    repetition = reproduce.begin(options.run, options.workdir, moved)
    print(table.show_before(repetition.before), flush=True)
    if repetition.config.teacher.backend == "served" or repetition.config.teacher.deadline_s:
        print("teacher        a server or a deadline decides here, too: it need not answer again as it did", flush=True)
    found = reproduce.reproduce(repetition, tolerance=options.tolerance, anyway=options.anyway)
    print(table.show(found))
    reproduce.refuse_differences(found, repetition.into)
    return 0
