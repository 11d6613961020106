"""The quality watch: the index's closed forms, tallies that add up, no alarm on the same population, alarms on a changed one."""

import itertools
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from scaletot_jax import cli
from scaletot_jax.datasets.synthetic import build_table
from scaletot_jax.errors import ConfigError, DataError, StaleRunError
from scaletot_jax.population import quality
from scaletot_jax.population.model import seal_model
from scaletot_jax.population.quality import FLOOR, Tally, Thresholds, judge, psi, psi_by_chance
from scaletot_jax.population.score import Options, score_table
from scaletot_jax.population.watch import ALARM, main, tally_scores, training_reference, watch
from scaletot_jax.profiles.features import FeatureSpace
from scaletot_jax.profiles.schema import Schema
from scaletot_jax.profiles.table import validate

COUNTS = st.lists(st.integers(0, 10_000), min_size=1, max_size=12).filter(any)
SCHEMA = Schema.from_dict(
    {
        "name": "watched",
        "id": "user_id",
        "labels": {"days": {"column": "lt", "horizon": 3}},
        "fields": [
            {"name": "word", "kind": "enum", "role": "static"},
            {"name": "words", "kind": "multi", "role": "static"},
            {"name": "amount", "kind": "number", "role": "early"},
            {"name": "since", "kind": "date", "role": "static"},
        ],
    }
)


# -- the index ------------------------------------------------------------------------------------------------------------------


@given(COUNTS, st.data())
def test_psi_is_never_negative_symmetric_and_blind_to_scale(expected, data):
    actual = data.draw(st.lists(st.integers(0, 10_000), min_size=len(expected), max_size=len(expected)).filter(any))
    value = psi(np.array(expected), np.array(actual))
    assert value >= 0
    assert value == pytest.approx(psi(np.array(actual), np.array(expected)))
    assert value == pytest.approx(psi(7 * np.array(expected), np.array(actual)))
    assert psi(np.array(expected), 3 * np.array(expected)) == pytest.approx(0, abs=1e-12)


def test_psi_of_two_bins_is_its_closed_form():
    assert psi(np.array([50, 50]), np.array([80, 20])) == pytest.approx(0.3 * np.log(1.6) - 0.3 * np.log(0.4))
    gone = (1 - FLOOR) * np.log(1 / FLOOR) + (FLOOR - 1) * np.log(FLOOR)
    assert psi(np.array([1, 0]), np.array([0, 1])) == pytest.approx(gone)
    assert np.isnan(psi(np.zeros(3), np.ones(3)))
    with pytest.raises(ValueError, match="one shape"):
        psi(np.ones(2), np.ones(3))


@pytest.mark.parametrize("bins", [2, 5, 11, 60])
def test_the_limit_of_chance_is_a_quantile_of_chi_squared(bins):
    assert psi_by_chance(bins, 500, 800) == pytest.approx(
        stats.chi2.ppf(0.999, bins - 1) * (1 / 500 + 1 / 800), rel=0.04
    )


def test_chance_seldom_exceeds_its_limit():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(8, 3.0))
    then, now = rng.multinomial(2000, p, 4000), rng.multinomial(700, p, 4000)
    above = np.mean([psi(a, b) > psi_by_chance(8, 2000, 700) for a, b in zip(then, now)])
    assert above < 0.005


# -- reference and tallies --------------------------------------------------------------------------------------------------------


def _table(rows: int, seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    lists = [
        None if i % 9 == 0 else list(rng.choice(["p", "q", "r"], rng.integers(0, 3), replace=False))
        for i in range(rows)
    ]
    return pa.table(
        {
            "word": pa.array(rng.choice(["a", "b", "c"], rows), mask=rng.random(rows) < 0.1),
            "words": pa.array(lists, pa.list_(pa.string())),
            "amount": pa.array(rng.poisson(3, rows).astype(float), mask=rng.random(rows) < 0.2),
            "since": pa.array(rng.integers(10_000, 12_000, rows).astype(np.int32)).cast(pa.date32()),
        }
    )


@pytest.fixture(scope="module")
def space():
    return FeatureSpace.fit(_table(3000, 0), SCHEMA, SCHEMA.profile_fields())


@pytest.fixture(scope="module")
def known(space):
    scores = {"expected_lt": np.random.default_rng(1).lognormal(size=3000)}
    return json.loads(json.dumps(quality.reference(space, _table(3000, 0), scores)))


def _tally(space, known, table) -> dict[str, Tally]:
    return {
        field.name: quality.tally_field(space, field, known["fields"][field.name], table[field.name])
        for field in space.fields
    }


def _column(found, name):
    return next(column for column in found["columns"] if column["name"] == name)


def test_counts_are_those_of_a_loop_over_rows(space, known):
    table = pa.table(
        {
            "word": ["a", "a", None, "z", "[redacted]", "b"],
            "words": pa.array([["p", "z"], [], None, ["z", "y"], ["q"], ["q"]], pa.list_(pa.string())),
            "amount": [1.0, None, -1.0, float("inf"), 1e9, 0.0],
            "since": pa.array([10_500, 9_000, None, 10_500, 10_500, 10_500], pa.int32()).cast(pa.date32()),
        }
    )
    found = _tally(space, known, table)
    # missing, unknown, redacted, none, rest, then the values in the order of the vocabulary
    assert found["word"][:4] == (6, 1, 1, 0) and found["word"].bins.tolist() == [1, 1, 1, 0, 0, 2, 1, 0]
    assert found["words"][:4] == (6, 1, 2, 0) and found["words"].bins.tolist() == [1, 3, 0, 1, 0, 1, 2, 0]
    assert found["amount"][:4] == (6, 1, 0, 3) and found["amount"].bins.sum() == 6
    assert found["since"][:4] == (6, 1, 0, 1)


def test_bins_of_a_number_are_closed_on_the_right_and_hold_a_tenth_each(known):
    entry = quality._number_bins(np.arange(1.0, 1001.0))
    assert entry == {"edges": [100.0 * i for i in range(1, 10)], "low": 1.0, "high": 1000.0}
    assert quality.tally_numbers(entry, np.arange(1.0, 1001.0)).bins.tolist() == [100] * 10 + [0]
    assert quality._number_bins(np.full(5, 3.0)) == {"edges": [], "low": 3.0, "high": 3.0}
    nothing = quality._number_bins(np.full(5, np.nan))
    tally = quality.tally_numbers(nothing, np.array([np.nan, 2.0]))
    assert tally[:4] == (2, 1, 0, 1) and tally.bins.tolist() == [1, 1]
    counts = known["fields"]["amount"]["bins"]
    assert sum(counts) == 3000 and min(counts[:-1]) > 0  # a Poisson number has no empty bin


@given(st.lists(st.integers(0, 400), max_size=4), st.integers(0, 5))
def test_tallies_of_blocks_add_up(space, known, cuts, seed):
    table = _table(400, seed)
    whole = _tally(space, known, table)
    bounds = [0, *sorted(cuts), 400]
    parts = [_tally(space, known, table.slice(a, b - a)) for a, b in itertools.pairwise(bounds)]
    for name, tally in whole.items():
        total = parts[0][name]
        for part in parts[1:]:
            total = total.plus(part[name])
        assert total[:4] == tally[:4] and (total.bins == tally.bins).all()


def test_many_values_share_the_bin_of_the_rest():
    names = [f"v{i:03}" for i in range(80)]
    table = pa.table({"word": names * 2 + names[40:]})
    schema = Schema.from_dict(SCHEMA.to_dict() | {"fields": [SCHEMA.to_dict()["fields"][0]]})
    space = FeatureSpace.fit(table, schema, schema.profile_fields())
    entry = quality.reference(space, table, {})["fields"]["word"]
    assert len(entry["values"]) == quality.WORDS and set(names[40:]) <= set(entry["values"])
    assert entry["unknown"] == 0 and entry["bins"][4] == 2 * 30 and sum(entry["bins"]) == table.num_rows


# -- the judgement ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [30, 300, 3000])
def test_the_same_population_raises_no_alarm(space, known, rows):
    for seed in range(1, 6):
        found = judge(known, _tally(space, known, _table(rows, seed)), {})
        assert found["alarms"] == 0, quality.show(found)


def test_the_training_table_itself_has_index_zero(space, known):
    found = judge(known, _tally(space, known, _table(3000, 0)), {})
    assert all(column["psi"] == 0 for column in found["columns"])


def _changed(name: str, change) -> pa.Table:
    table = _table(1000, 7)
    values = [change(i, value) for i, value in enumerate(table[name].to_pylist())]
    return table.set_column(table.column_names.index(name), name, pa.array(values, table[name].type))


@pytest.mark.parametrize(
    ("name", "change", "alarms"),
    [
        ("word", lambda i, v: None if i % 2 else v, {"psi", "missing"}),
        ("word", lambda i, v: "new" if i % 5 == 0 else v, {"psi", "unknown"}),
        ("word", lambda i, v: "a" if v == "b" else v, {"psi"}),
        ("words", lambda i, v: ["new"] if i % 5 == 0 else v, {"psi", "unknown"}),
        ("words", lambda i, v: v or [], {"psi", "missing"}),  # nulls became empty lists: 11 % fewer missing
        ("amount", lambda i, v: None if v is None else v + 2, {"psi"}),
        ("amount", lambda i, v: -5.0 if i % 10 == 0 else v, {"out_of_range"}),
        ("amount", lambda i, v: v or 0.0, {"psi", "missing"}),  # nulls became zeros
    ],
)
def test_a_shifted_field_is_alarmed_and_no_other(space, known, name, change, alarms):
    found = judge(known, _tally(space, known, _changed(name, change)), {})
    assert set(_column(found, name)["alarms"]) == alarms
    assert found["alarms"] == len(alarms)


def test_thresholds_move_the_alarm(space, known):
    table = _changed("word", lambda i, v: "new" if i % 40 == 0 else v)
    tallies = _tally(space, known, table)
    assert judge(known, tallies, {})["alarms"] == 0
    strict = judge(known, tallies, {}, Thresholds(unknown=0.01))
    assert _column(strict, "word")["alarms"] == ["unknown"] and _column(strict, "word")["unknown"]["share"] == 0.025


def test_a_shifted_score_is_alarmed(known):
    values = np.random.default_rng(2).lognormal(size=2000)
    for factor, alarms in ((1.0, []), (3.0, ["psi"])):
        tally = quality.tally_numbers(known["scores"]["expected_lt"], factor * values)
        assert judge(known, {}, {"expected_lt": tally})["columns"][0]["alarms"] == alarms


def test_another_reference_is_refused(known):
    with pytest.raises(DataError, match="no reference"):
        judge({}, {}, {})
    with pytest.raises(DataError, match="lacks 'other'"):
        judge(known, {"other": Tally(1, 0, 0, 0, np.ones(2))}, {})


# -- the command ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def watched(served, tmp_path_factory):
    """The served model of this folder with a reference."""
    directory = tmp_path_factory.mktemp("watched") / "model"
    shutil.copytree(served.directory, directory)
    rows = validate(build_table(2000, seed=3), served.schema)
    rows = rows.append_column("split", pa.array(["head"] * 1500 + ["test"] * 500))
    return seal_model(directory, reference=lambda model: training_reference(model, rows))


def test_the_reference_counts_training_rows_alone(watched):
    assert watched.reference["rows"] == 1500
    assert set(watched.reference["fields"]) == {field.name for field in watched.fields}
    assert set(watched.reference["scores"]) == {
        f"{part}_{label}" for part in ("expected", "p_positive") for label in ("lt30", "ltv30")
    }
    assert all(entry["rows"] == 1500 for entry in watched.reference["scores"].values())


def test_table_and_scores_are_watched_and_an_alarm_has_its_own_exit_code(watched, users, tmp_path, capsys):
    score_table(watched.directory, users, tmp_path / "scores", Options(shard_rows=600, batch_rows=256))
    arguments = ["--model", str(watched.directory), "--table", str(users)]
    assert main([*arguments, "--scores", str(tmp_path / "scores"), "--json", str(tmp_path / "found.json")]) == 0
    text = capsys.readouterr().out
    assert text.startswith("1,000 rows against 1,500 of training") and text.endswith("no alarm\n")
    found = json.loads((tmp_path / "found.json").read_text())
    assert [c["name"] for c in found["columns"] if c["of"] == "scores"] == list(
        tally_scores(watched, tmp_path / "scores")
    )
    assert all(column["name"] in text for column in found["columns"])

    field = next(field for field in watched.fields if field.kind == "number")
    table = pa.concat_tables([pq.read_table(path) for path in sorted(users.glob("*.parquet"))])
    index = table.column_names.index(field.source)
    far = pa.array(np.full(1000, -7.0))  # below the schema's range: score would refuse it, the watch counts it
    pq.write_table(table.set_column(index, field.source, far), tmp_path / "far.parquet")
    assert (
        cli.main(["watch", "--model", str(watched.directory), "--table", str(tmp_path / "far.parquet")]) == ALARM == 6
    )
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(field.name))
    assert line.endswith("psi, out of range") or line.endswith("psi, missing, out of range")
    assert main([*arguments[:2], "--table", str(tmp_path / "far.parquet"), "--max-psi", "99", "--max-out-of-range", "2",
                 "--max-missing", "2"]) == 0  # fmt: skip


def test_what_cannot_be_watched_is_refused(watched, served, users, tmp_path):
    with pytest.raises(DataError, match="no reference"):
        watch(served.directory, users)
    score_table(served.directory, users, tmp_path / "scores", Options(shard_rows=600, batch_rows=256))
    with pytest.raises(StaleRunError, match="another model"):
        watch(watched.directory, users, tmp_path / "scores")
    with pytest.raises(ConfigError, match="negative"):
        main(["--model", "m", "--table", "t", "--max-psi", "-1"])
    with pytest.raises(SystemExit):  # a served model has no configuration
        cli.main(["watch", "--model", str(watched.directory), "--table", str(users), "--config.seed=1"])
    with pytest.raises(DataError, match="missing"):
        watch(watched.directory, tmp_path / "nothing.parquet")
