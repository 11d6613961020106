"""``scaletot ab``: a Parquet table of arms and outcomes in, a report card out; or, before an experiment, how many users it needs."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from scaletot_jax.errors import ConfigError

_EPILOG = """examples:
  scaletot ab --plan-lift 0.06738 --plan-cv 1.9
  scaletot ab --plan-lift 0.06738 --plan-cv 1.9 --plan-users 5000
  scaletot ab --table experiment.parquet --unit user_id --arm variant --control old \\
      --outcome lt30 --before lt30=lt30_before --prediction lt30=expected_lt30 --outcome ltv30 --out card/
"""


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(
        prog="scaletot ab", description=__doc__, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    out.add_argument("--table", default="", metavar="FILE", help="one row a unit of assignment")
    out.add_argument("--arm", default="arm", metavar="COLUMN", help="the column of arms (default: arm)")
    out.add_argument(
        "--control", default="", metavar="ARM", help="the arm compared against (default: the first by name)"
    )
    out.add_argument("--unit", default="", metavar="COLUMN", help="the unit's id; a unit may occur once")
    out.add_argument("--outcome", action="append", default=[], metavar="COLUMN", help="an outcome; may be repeated")
    out.add_argument(
        "--before", action="append", default=[], metavar="OUTCOME=COLUMN", help="the outcome before assignment"
    )
    out.add_argument(
        "--prediction",
        action="append",
        default=[],
        metavar="OUTCOME=COLUMN",
        help="a prediction made before assignment",
    )
    out.add_argument(
        "--scores", default="", metavar="DIR",
        help="what 'scaletot score --model' wrote before the experiment: expected_L becomes the prediction of outcome L",
    )  # fmt: skip
    out.add_argument(
        "--ratio", action="append", default=[], metavar="ARM=SHARE", help="planned shares (default: equal)"
    )
    out.add_argument("--level", type=float, default=0.95, help="of the intervals (default: 0.95)")
    out.add_argument("--winsorise", type=float, default=0.99, metavar="Q", help="quantile of the winsorised form")
    out.add_argument(
        "--sequential",
        type=int,
        default=0,
        metavar="N",
        help="planned units, if the experiment is looked at as it runs",
    )
    for name, text in (
        ("population", "who was in it"),
        ("assignment", "how units were assigned"),
        ("plan", "what was fixed beforehand"),
    ):
        out.add_argument(f"--{name}", default="", metavar="TEXT", help=f"for the card: {text}")
    out.add_argument("--out", default="", metavar="DIR", help="also write card.md and card.json there")
    out.add_argument(
        "--plan-lift", type=float, default=0.0, metavar="R", help="no table: users needed for a relative lift"
    )
    out.add_argument("--plan-cv", type=float, default=1.0, metavar="CV", help="coefficient of variation of the outcome")
    out.add_argument("--plan-power", type=float, default=0.8, metavar="P", help="(default: 0.8)")
    out.add_argument("--plan-users", type=int, default=0, metavar="N", help="instead: the power of N users an arm")
    return out


def main(arguments: Sequence[str]) -> int:
    """Runs the verb; returns the exit code.

    Raises:
      ScaleToTError: bad arguments, or a table that cannot be analysed.
    """
    options = parser().parse_args(arguments)
    if not 0.5 <= options.level < 1 or not 0.5 <= options.winsorise <= 1:
        raise ConfigError(
            "a level or quantile lies outside its range", where="--level in [0.5, 1), --winsorise in [0.5, 1]"
        )
    if options.sequential < 0:
        raise ConfigError(
            "the planned units are fewer than none", where="--sequential", why=f"{options.sequential}",
            do="give the units of the whole experiment, or leave it out where nobody looks before the end",
        )  # fmt: skip
    if options.plan_lift:
        return _plan(options)
    if not options.table or not options.outcome:
        raise ConfigError("nothing to analyse", where="scaletot ab", do="give --table and --outcome, or --plan-lift")
    from scaletot_jax.ab.analysis import analyse
    from scaletot_jax.ab.card import markdown, to_json
    from scaletot_jax.ab.table import Outcome, check_table, with_scores
    from scaletot_jax.files import write_bytes, write_json
    from scaletot_jax.profiles.table import read_parquet

    before, prediction = (_pairs(given, options.outcome) for given in (options.before, options.prediction))
    outcomes = [Outcome(name, before.get(name, ""), prediction.get(name, "")) for name in options.outcome]
    experiment = read_parquet(options.table)
    if options.scores:
        if not options.unit or options.unit not in experiment.column_names:
            raise ConfigError("scores are joined by the unit's id", where="--unit", why=repr(options.unit))
        columns = ["user_id", *(f"expected_{name}" for name in options.outcome)]
        experiment, outcomes = with_scores(
            experiment, _scores(options.scores, columns), options.unit, outcomes, where=options.scores
        )
    table, control, _ = check_table(
        experiment,
        options.arm,
        outcomes,
        unit=options.unit,
        control=options.control,
        where=options.table,
    )
    try:
        ratio = {name: float(share) for name, _, share in (text.rpartition("=") for text in options.ratio)} or None
    except ValueError as error:
        raise ConfigError("a ratio is not ARM=SHARE", where="--ratio", why=str(error)) from error
    analysis = analyse(
        table, options.arm, outcomes, control=control, level=options.level, ratio=ratio, quantile=options.winsorise,
        planned=options.sequential,
    )  # fmt: skip
    card = markdown(analysis, population=options.population, assignment=options.assignment, plan=options.plan)
    print(card)
    if options.out:
        write_bytes(Path(options.out) / "card.md", card.encode())
        write_json(Path(options.out) / "card.json", to_json(analysis))
    return 0


def _scores(directory: str, columns: Sequence[str]) -> pa.Table:
    """The recorded shards of a scored table, those columns that they have."""
    from scaletot_jax.files import read_table
    from scaletot_jax.population.commit import read_manifest

    parts = [Path(directory) / shard["file"] for shard in read_manifest(directory)["shards"]]
    return pa.concat_tables(
        read_table(part, columns=[c for c in columns if c in pq.read_schema(part).names]) for part in parts
    )


def _plan(options: argparse.Namespace) -> int:
    from scaletot_jax.ab.power import power_of, units_needed

    finite = math.isfinite(options.plan_cv) and math.isfinite(options.plan_lift)
    if not finite or options.plan_cv <= 0 or not 0 < options.plan_power < 1 or options.plan_users < 0:
        raise ConfigError(
            "the plan's numbers are out of range",
            where="--plan-lift, --plan-cv > 0 finite, 0 < --plan-power < 1, --plan-users >= 0",
        )
    if options.plan_users:
        print(f"power to find a relative lift of {options.plan_lift:+.3%} with {options.plan_users:,} users an arm:")
        for correlation in (0.0, 0.3, 0.5, 0.7):
            cv = options.plan_cv * (1 - correlation**2) ** 0.5
            found = power_of(cv, options.plan_lift, options.plan_users, options.plan_users, alpha=1 - options.level)
            print(f"  {found:>12.1%}   with a covariate of correlation {correlation:.1f} to the outcome")
        return 0
    print(
        f"users an arm for a relative lift of {options.plan_lift:+.3%}, power {options.plan_power:.0%}, level {options.level:.0%}:"
    )
    for correlation in (0.0, 0.3, 0.5, 0.7):
        cv = options.plan_cv * (1 - correlation**2) ** 0.5
        units, _ = units_needed(cv, options.plan_lift, power=options.plan_power, alpha=1 - options.level)
        print(f"  {units:>12,}   with a covariate of correlation {correlation:.1f} to the outcome")
    return 0


def _pairs(given: Sequence[str], outcomes: Sequence[str]) -> dict[str, str]:
    out = {}
    for text in given:
        outcome, equals, column = text.partition("=")
        if not equals or outcome not in outcomes:
            raise ConfigError(
                "a covariate is not OUTCOME=COLUMN of a stated outcome", where=text, why=f"outcomes: {list(outcomes)}"
            )
        out[outcome] = column
    return out
