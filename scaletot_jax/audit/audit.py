"""``scaletot audit``: looks for leaks in a run directory, trusting as little as it can of what the stages say of themselves.

Fields, prompts, dates, users and splits are looked up in the population, thresholds and chains compared with what stands beside
them. Taken on trust are the rows that ``teach``, ``osipo`` and ``distill`` list as trained on, and the uncertainties that the pilot
wrote down: only the language model could say them again.

A check is *clean*, a *leak*, or *not reached* where the stages that it looks at have not run; what is no question of right or
wrong is *told*. The result goes to ``audit.json``; a leak ends the command with its own exit code (:class:`~scaletot_jax.errors.LeakError`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scaletot_jax.audit.anonymity import anonymity, describe
from scaletot_jax.audit.identifiers import named
from scaletot_jax.audit.labels import suspicions
from scaletot_jax.errors import LeakError, OverlapError
from scaletot_jax.evaluation.split_audit import audit_splits, audit_time, audit_training
from scaletot_jax.files import read_json, read_table, write_json
from scaletot_jax.profiles.render import Renderer
from scaletot_jax.profiles.schema import Schema

CLEAN, LEAK, NOT_REACHED, TOLD = "clean", "leak", "not reached", "told"
PROMPTS = 2000  # rows whose prompts are rendered and searched, evenly spaced
TRAINED_BY = (("teach", "profiles"), ("osipo", "users"), ("distill", "profiles"))


class Finding(NamedTuple):
    """One check's result; ``detail`` says what was looked at, or what is wrong and where."""

    check: str
    status: str
    detail: str


class _Material(NamedTuple):
    workdir: Path
    config: Mapping[str, Any]
    table: pa.Table
    schema: Schema
    renderer: Renderer
    sample: np.ndarray  # rows whose prompts are searched
    prompts: list[str]


def audit(workdir: str | Path, config: Mapping[str, Any]) -> list[Finding]:
    """Runs every check on a run directory in which at least ``prepare`` is done, and writes ``audit.json``.

    Args:
      config: the run's configuration, nested.

    Raises:
      DataError: nothing to look at, an artifact that cannot be read, or a split without rows; ``audit.json`` is not written.
    """
    workdir = Path(workdir)
    table = read_table(workdir / "prepare" / "population.parquet")
    stated = read_json(workdir / "prepare" / "schema.json")
    renderer = Renderer.from_dict(read_json(workdir / "prepare" / "renderer.json"))
    sample = np.unique(np.linspace(0, table.num_rows - 1, min(PROMPTS, table.num_rows)).astype(np.int64))
    material = _Material(
        workdir, config, table, Schema.from_dict(stated["schema"], where=str(workdir / "prepare" / "schema.json")),
        renderer, sample, renderer.texts(table.take(pa.array(sample))),
    )  # fmt: skip
    findings = [Finding(name, *check(material)) for name, check in CHECKS.items()]
    write_json(workdir / "audit.json", {"findings": [finding._asdict() for finding in findings]})
    return findings


def show(findings: list[Finding]) -> str:
    """The findings as text."""
    width = max(len(finding.check) for finding in findings)
    return "\n".join(f"{f.status:<12}{f.check:<{width + 2}}{f.detail}" for f in findings)


def refuse_leaks(findings: list[Finding], workdir: str | Path) -> None:
    """Raises LeakError where a check found a leak."""
    leaks = [finding for finding in findings if finding.status == LEAK]
    if leaks:
        raise LeakError(
            f"{len(leaks)} of {len(findings)} checks found a leak",
            where=f"{Path(workdir) / 'audit.json'}: {', '.join(leak.check for leak in leaks)}",
            why=leaks[0].detail,
            do="no figure of this run can be believed: mend the table, the schema or the code, and run the line again",
        )


Result = tuple[str, str]


def _labels_in_features(m: _Material) -> Result:
    numbers: dict[str, np.ndarray] = {}
    categories: dict[str, list[str | None]] = {}
    lists: dict[str, list[list[str] | None]] = {}
    for field in m.renderer.fields:
        column = m.table[field.name]
        if field.kind in ("number", "date", "boolean"):
            plain = column.cast(pa.int32()) if pa.types.is_date(column.type) else column
            numbers[field.name] = plain.cast(pa.float64()).to_numpy(zero_copy_only=False)
        elif field.kind == "ordered":
            places = pc.index_in(column, value_set=pa.array(field.values, pa.string()))
            numbers[field.name] = places.cast(pa.float64()).to_numpy(zero_copy_only=False)
        elif field.kind == "multi":
            lists[field.name] = column.to_pylist()
        else:
            categories[field.name] = column.to_pylist()
    labels = {name: m.table[name].cast(pa.float64()).to_numpy() for name in m.schema.labels.columns}
    found = suspicions(numbers, categories, lists, {}, labels)
    if found:
        return LEAK, "; ".join(f"field '{s.field}' and label '{s.label}': {s.how} ({s.figure:.3f})" for s in found)
    return (
        CLEAN,
        f"{len(numbers) + len(categories) + len(lists)} fields against {len(labels)} labels, {m.table.num_rows} rows",
    )


def _labels_in_prompts(m: _Material) -> Result:
    chosen = m.table.take(pa.array(m.sample))
    labels = {name: chosen[name].cast(pa.float64()).to_numpy() for name in m.schema.labels.columns}
    found = suspicions({}, {}, {}, {"prompt": m.prompts}, labels)
    if found:
        return LEAK, "; ".join(
            f"label '{s.label}' stands in {s.figure:.0%} more of its own prompts"
            if s.how == "written"
            else f"the words of the prompts order label '{s.label}' (ρ {s.figure:.3f})"
            for s in found
        )
    return CLEAN, f"{len(m.prompts)} prompts"


def _future_dates(m: _Material) -> Result:
    dates = [field.name for field in m.renderer.fields if field.kind == "date"]
    if not m.schema.snapshot or not dates:
        return CLEAN, "no date fields beside a snapshot"
    for name in dates:
        late = pc.fill_null(pc.greater(m.table[name], m.table["snapshot"]), False).to_numpy(zero_copy_only=False)
        if late.any():
            return LEAK, f"field '{name}' lies after the snapshot in {late.sum()} rows, first row {late.argmax()}"
    return CLEAN, f"{len(dates)} date fields"


def _identifiers_in_prompts(m: _Material) -> Result:
    chosen = m.table.take(pa.array(m.sample))
    for column in ("user_id", "group"):
        found = named(m.prompts, [{name} for name in chosen[column].to_pylist()])
        if found.leak:
            row = int(m.sample[found.first])
            return LEAK, f"{found.own:.1%} of the prompts hold their own {column}, first row {row}"
    return CLEAN, f"{len(m.prompts)} prompts, user_id and group"


def _identifiers_in_chains(m: _Material) -> Result:
    path = m.workdir / "teach" / "chains.parquet"
    if not path.exists():
        return NOT_REACHED, "no chains yet"
    chains = read_table(path)
    keys = chains["exact_key"].to_pylist()
    rows: dict[str, list[int]] = {key: [] for key in keys}  # of all who share the profile
    for row, key in enumerate(m.table["exact_key"].to_pylist()):
        if key in rows:
            rows[key].append(row)
    foreign = [key for key in keys if not rows[key]]
    if foreign:
        return LEAK, f"{len(foreign)} chains belong to no profile of the population, first {foreign[0]}"
    texts = [" ".join(str(value) for value in values) for values in chains["values"].to_pylist()]
    for column in ("user_id", "group"):
        names = m.table[column].to_pylist()
        owners = {key: {names[row] for row in found} for key, found in rows.items()}
        found = named(texts, [owners[key] for key in keys])
        if found.leak:
            return LEAK, f"{found.own:.1%} of the chains hold a {column} of their profile, first chain {found.first}"
    return CLEAN, f"{len(texts)} chains"


def _user_overlap(m: _Material) -> Result:
    groups, users, splits = (m.table[name].to_pylist() for name in ("group", "user_id", "split"))
    members = audit_splits(groups, splits)
    audit_splits(users, splits, "user")  # splits part groups: a user with two of them may lie on both sides
    found = ", ".join(f"{name} {count}" for name, count in members.items())
    return CLEAN, f"{found} groups, every pair disjoint; so are their users"


def _time_order(m: _Material) -> Result:
    if not m.schema.snapshot or not m.config["split"]["time_forward"]:
        return CLEAN, "one snapshot a user, or splits by user alone"
    days = m.table["snapshot"].to_numpy(zero_copy_only=False).astype("datetime64[D]")
    gap = audit_time(days, m.table["split"].to_pylist(), m.schema.labels.days.horizon)
    return CLEAN, f"{gap} days between the last training label and the first evaluation snapshot"


def _own_labels(m: _Material) -> Result:
    used: set[str] = set()
    reached = []
    groups = np.asarray(m.table["group"].to_pylist(), object)
    for stage, name in TRAINED_BY:
        path = m.workdir / stage / f"{name}.parquet"
        if path.exists():
            used |= set(groups[read_table(path, columns=["row"])["row"].to_numpy()])
            reached.append(stage)
    if not reached:
        return NOT_REACHED, "nothing is trained yet"
    count = audit_training(used, groups, m.table["split"].to_pylist())
    if strange := _unlisted_chains(m):
        return (
            LEAK,
            f"{len(strange)} profiles have chains, which are trained on, but no place in the list of teach; first {strange[0]}",
        )
    return (
        CLEAN,
        f"{count} groups listed by {', '.join(reached)}, none of them in head, val or test; no chain of anybody else",
    )


def _unlisted_chains(m: _Material) -> list[str]:
    """Keys of chains whose profile is that of no row that ``teach`` lists; none while it has written but one of the two."""
    chains, listed = (m.workdir / "teach" / f"{name}.parquet" for name in ("chains", "profiles"))
    if not (chains.exists() and listed.exists()):
        return []
    keys = m.table["exact_key"].take(read_table(listed, columns=["row"])["row"].combine_chunks())
    return sorted(set(read_table(chains, columns=["exact_key"])["exact_key"].to_pylist()) - set(keys.to_pylist()))


def _thresholds(m: _Material) -> Result:
    path = m.workdir / "teach" / "pilot.json"
    if not path.exists():
        return NOT_REACHED, "no pilot yet"
    pilot, quantile = read_json(path), m.config["teacher"]["refine_quantile"]
    owner = m.workdir / "teach" / "owner.json"  # what teach was run with, whatever this command was given
    if owner.exists():
        quantile = read_json(owner).get("config", {}).get("teacher.refine_quantile", quantile)
    for segment, evidence in pilot["evidence"]["thresholds"].items():
        if "uncertainties" not in evidence:
            return NOT_REACHED, "the pilot was made by an earlier version, which did not keep its uncertainties"
        stated = pilot["calibration"]["thresholds"][segment]
        expected = float(np.quantile(evidence["uncertainties"], quantile))
        if abs(stated - expected) > 1e-9:
            return (
                LEAK,
                f"the threshold of '{segment}' is {stated:.6g}; the pilot's own quantile {quantile} is {expected:.6g}",
            )
    listed, nodes = (m.workdir / "teach" / f"{name}.parquet" for name in ("profiles", "nodes"))
    if not listed.exists():
        return NOT_REACHED, "teach is under way: the pilot is done, its list of profiles comes last"
    if nodes.exists():  # those that the search went by, 0 where it asked nothing
        for node in (
            read_table(nodes, columns=["segment", "threshold"])
            .group_by(["segment", "threshold"])
            .aggregate([])
            .to_pylist()
        ):
            stated = pilot["calibration"]["thresholds"].get(node["segment"], 0.0)
            if node["threshold"] and abs(node["threshold"] - stated) > 1e-6:
                return (
                    LEAK,
                    f"the search went by the threshold {node['threshold']:.6g} of '{node['segment']}'; the pilot says {stated:.6g}",
                )
    rows = read_table(listed, columns=["row"])["row"].to_numpy()
    splits = np.asarray(m.table["split"].to_pylist(), object)[rows]
    if (splits != "teacher").any():
        return (
            LEAK,
            f"row {int(rows[splits != 'teacher'][0])} of split '{splits[splits != 'teacher'][0]}' was reasoned about",
        )
    return (
        CLEAN,
        "every threshold is the stated quantile of the uncertainties that the pilot wrote down, which no label enters",
    )


def _users_behind_records(m: _Material) -> Result:
    """k-anonymity of what the teacher made, which somebody may want to hand on: the profiles, and the chains' content."""
    path = m.workdir / "teach" / "chains.parquet"
    if not path.exists():
        return NOT_REACHED, "no chains yet"
    chains = read_table(path)
    reasoned: dict[str, set[str]] = {key: set() for key in chains["exact_key"].to_pylist()}
    for key, group in zip(m.table["exact_key"].to_pylist(), m.table["group"].to_pylist()):
        if key in reasoned:
            reasoned[key].add(group)
    contents = list(zip(map(tuple, chains["values"].to_pylist()), chains["exact_key"].to_pylist()))
    profiles = anonymity((key, user) for key, users in reasoned.items() for user in users)
    content = anonymity((values, user) for values, key in contents for user in reasoned[key])
    return TOLD, f"{describe('reasoned profiles', profiles)}; {describe('chains', content)}"


def _guarded(check: Callable[[_Material], Result]) -> Callable[[_Material], Result]:
    """A check that raises what it found becomes a finding; a fault of the data that is no leak stays an error of its own."""

    def run(material: _Material) -> Result:
        try:
            return check(material)
        except OverlapError as error:
            return LEAK, f"{error.what} ({error.where}): {error.why}"

    return run


CHECKS: dict[str, Callable[[_Material], Result]] = {
    "labels in features": _labels_in_features,
    "labels in prompts": _labels_in_prompts,
    "dates after the snapshot": _future_dates,
    "identifiers in prompts": _identifiers_in_prompts,
    "identifiers in chains": _identifiers_in_chains,
    "users in two splits": _guarded(_user_overlap),
    "order of time": _guarded(_time_order),
    "states of users trained on": _guarded(_own_labels),
    "thresholds from labels": _thresholds,
    "users behind a record": _users_behind_records,
}
