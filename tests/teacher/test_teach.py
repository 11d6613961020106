"""Stage teach end to end on the synthetic population with a tiny random model."""

import shutil

import line
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from teaching import digests, interrupt, prepare_in, replay, taught_copy, teach_in

from scaletot_jax.chains.grammar import compile_chain
from scaletot_jax.chains.parser import parse
from scaletot_jax.chains.spec import spec_of_run
from scaletot_jax.config import load_config
from scaletot_jax.errors import ConfigError
from scaletot_jax.files import read_json, sha256_file
from scaletot_jax.lm.load import load_model
from scaletot_jax.run import read_record, write_record
from scaletot_jax.teacher import teach as stage_module

ARTIFACTS = ("pilot.json", "chains.parquet", "nodes.parquet")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return line.write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def prepared(recipe, tmp_path_factory):
    """A run directory in which only ``prepare`` is done."""
    return prepare_in(tmp_path_factory.mktemp("prepared") / "run", recipe)


@pytest.fixture(scope="module")
def taught(recipe, prepared, tmp_path_factory):
    """An undisturbed run of ``teach``."""
    return taught_copy(prepared, tmp_path_factory.mktemp("taught") / "run", recipe)


def chains_of(workdir):
    return pq.read_table(workdir / "teach" / "chains.parquet").to_pylist()


def test_every_chain_can_be_written_and_read_by_the_grammar(taught, recipe):
    spec = spec_of_run(load_config(recipe).to_dict())
    tokenizer = load_model(load_config(recipe).lm.weights).tokenizer
    compiled = compile_chain(spec, tokenizer.encode, tokenizer.eos_id)
    rows = chains_of(taught)
    assert len({row["exact_key"] for row in rows}) == 24
    for row in rows:
        parsed = parse(compiled, compiled.serialize(row["values"], int(np.argmax(row["answer"]))))
        assert parsed.complete and all(segment.ok for segment in parsed.segments)
        for p, slot in zip(row["distributions"], spec.slots, strict=True):
            assert len(p) == len(slot.values) and sum(p) == pytest.approx(1, abs=1e-5)
            if slot.source == "rule":
                assert max(p) == 1
        for name in ("answer", "answer_direct", "answer_chain"):
            assert len(row[name]) == spec.num_buckets and sum(row[name]) == pytest.approx(1, abs=1e-5)
        targets = compiled.token_targets(row["distributions"], row["answer"], row["values"])
        assert np.all(np.isfinite(targets))


def test_ranks_weights_and_the_pooled_answer(taught):
    by_key = {}
    for row in chains_of(taught):
        by_key.setdefault(row["exact_key"], []).append(row)
    assert list(by_key) == sorted(by_key)
    for rows in by_key.values():
        assert [row["rank"] for row in rows] == list(range(len(rows)))
        assert sum(row["weight"] for row in rows) == pytest.approx(1, abs=1e-5)
        assert len({tuple(row["values"]) for row in rows}) == len(rows)
        assert len({tuple(row["answer_direct"]) for row in rows}) == 1
        product = np.sqrt(np.multiply(rows[0]["answer_direct"], rows[0]["answer_chain"]))
        np.testing.assert_allclose(rows[0]["answer"], product / product.sum(), atol=1e-5)


def test_the_answer_follows_the_chain(taught):
    """OSIPO lives from differences between chains of one user; a direct answer would leave it nothing."""
    rows = [row for row in chains_of(taught) if row["rank"] == 0]
    assert np.std([np.subtract(row["answer_chain"], row["answer_direct"]) for row in rows]) > 1e-4
    several = [r for r in chains_of(taught) if r["rank"] == 1]
    first = {r["exact_key"]: r["answer_chain"] for r in rows}
    assert any(np.abs(np.subtract(r["answer_chain"], first[r["exact_key"]])).max() > 1e-5 for r in several)


def test_nodes_and_pilot_tell_the_story(taught):
    nodes = pq.read_table(taught / "teach" / "nodes.parquet").to_pylist()
    pilot = read_json(taught / "teach" / "pilot.json")
    summary = read_json(taught / "teach" / "stage.json")["summary"]
    for node in nodes:
        if node["threshold"] > 0:
            assert node["refined"] <= (node["uncertainty"] > node["threshold"]) or node["refinement_accepted"]
        assert 0 <= node["entropy"] <= 1 and 0 <= node["disagreement"] <= 1
    assert any(node["refined"] for node in nodes)
    assert pilot["profiles"] == 16
    assert all(
        {"effect", "share", "passed"} <= set(v) or "skipped" in v for v in pilot["evidence"]["polarity"].values()
    )
    agreement = pilot["evidence"]["scoring"]["agreement"]
    chosen = "full" if agreement["full"] >= agreement["trie"] + 0.05 else "trie"
    assert pilot["calibration"]["mode"] == chosen == summary["scoring"]
    assert summary["funnel"]["profiles"] == 24 and summary["calls"]["most"] <= 24
    dropped = pilot["calibration"]["dropped"]
    assert dropped == sorted(k for k, v in pilot["evidence"]["polarity"].items() if v.get("passed") is False)


def test_a_second_run_replays_from_the_store(taught, recipe, tmp_path, monkeypatch):
    """Without its tables and its done-mark, but with the store: the same bytes, and the model is never run."""
    workdir = tmp_path / "run"
    replay(monkeypatch, taught, workdir, recipe, ARTIFACTS, "prefix", "score")
    assert digests(workdir, ARTIFACTS) == digests(taught, ARTIFACTS)


@pytest.mark.parametrize("batches", [1, 4, 7, 9])
def test_an_interrupted_run_ends_with_the_same_bytes(taught, prepared, recipe, tmp_path, monkeypatch, batches):
    workdir = tmp_path / "run"
    shutil.copytree(prepared, workdir)
    interrupt(monkeypatch, batches, workdir, recipe)
    teach_in(workdir, recipe)
    assert digests(workdir, ARTIFACTS) == digests(taught, ARTIFACTS)


def test_a_damaged_store_is_computed_again(taught, recipe, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(taught, workdir)
    (workdir / "teach" / "stage.json").unlink()
    store = workdir / "teach" / "store.sqlite"
    store.write_bytes(store.read_bytes()[:5000])
    teach_in(workdir, recipe)
    assert digests(workdir, ARTIFACTS) == digests(taught, ARTIFACTS)
    assert "damaged" in capsys.readouterr().err


def test_identifiers_and_labels_do_not_reach_the_teacher(prepared, recipe, tmp_path):
    """Other identifiers and other labels: the same chains, where not even the base rate is used."""
    found = []
    for change in (False, True):
        workdir = tmp_path / f"run{change}"
        shutil.copytree(prepared, workdir)
        path = workdir / "prepare" / "population.parquet"
        table = pq.read_table(path)
        if change:
            schema = read_json(workdir / "prepare" / "schema.json")["schema"]
            labels = [schema["labels"]["days"]["column"]]
            for name in labels:
                values = table[name].to_numpy()[::-1].copy()
                table = table.set_column(table.column_names.index(name), name, pa.array(values, table[name].type))
            ids = pa.array([f"person-{i}-secret" for i in range(table.num_rows)])
            table = table.set_column(table.column_names.index("user_id"), "user_id", ids)
            pq.write_table(table, path)
            record = read_record(workdir / "prepare" / "stage.json")
            record["artifacts"]["population.parquet"]["sha256"] = sha256_file(path)
            write_record(workdir / "prepare" / "stage.json", record)
        teach_in(workdir, recipe, teacher__base_rate="false")
        found.append(digests(workdir, ARTIFACTS))
    assert found[0] == found[1]


def test_the_mean_answer_leans_to_the_base_rate(taught):
    base = np.asarray(read_json(taught / "teach" / "pilot.json")["evidence"]["base_rate"])
    rows = [row for row in chains_of(taught) if row["rank"] == 0]
    mean = np.mean([row["answer_direct"] for row in rows], axis=0)
    assert np.abs(mean - base).sum() < 0.5 * np.abs(base - 1 / len(base)).sum()


def test_a_spent_budget_is_flagged_and_stays_valid(prepared, recipe, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(prepared, workdir)
    teach_in(workdir, recipe, teacher__max_calls=2)
    rows = chains_of(workdir)
    assert len(rows) == 24 and all(row["budget"] and row["calls"] <= 2 and not row["accepted"] for row in rows)
    assert {row["reason"] for row in rows} == {"budget: unknown"}
    assert read_json(workdir / "teach" / "stage.json")["summary"]["funnel"]["out_of_budget"] == 24


def test_a_finished_stage_is_not_done_again(taught, recipe, monkeypatch):
    monkeypatch.setattr(stage_module, "load_model", lambda *_: pytest.fail("the model was loaded"))
    assert teach_in(taught, recipe).done


def test_a_table_of_ones_own_needs_a_specification():
    with pytest.raises(ConfigError, match="chain specification"):
        spec_of_run({"lm": {"chain_spec": ""}, "data": {"name": "parquet"}})
