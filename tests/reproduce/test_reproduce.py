"""A small run, done again from its own record: exactly, from moved inputs, from other inputs, from a record with a lie in it."""

import json
import shutil

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from scaletot_jax.cli import main
from scaletot_jax.config import default_config
from scaletot_jax.datasets.synthetic import build_table
from scaletot_jax.errors import ConfigError, DataError
from scaletot_jax.files import write_json
from scaletot_jax.pipeline import run_all
from scaletot_jax.reproduce.manifest import config_of, read_manifest
from scaletot_jax.reproduce.reproduce import MARK, RESULT, begin
from scaletot_jax.run import flatten


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of which ``prepare`` is done, and the report that says so; it takes a second."""
    place = tmp_path_factory.mktemp("reproduce")
    pq.write_table(build_table(300, seed=3), place / "users.parquet")
    config = default_config()
    config.data.name, config.data.path, config.data.schema = "parquet", str(place / "users.parquet"), "synthetic"
    config.data.low_activity = False
    config.distill.placebos = ("labels",)
    run_all(config, place / "run", stages=("prepare", "report"))
    return place, config


@pytest.fixture
def run(made, tmp_path):
    """A copy of the record without any of the work: what somebody would publish."""
    source = made[0] / "run"
    folder = tmp_path / "run"
    for path in [*source.glob("*.json"), *source.glob("*/stage.json")]:
        target = folder / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return folder


def plant(path, *keys, value):
    record = json.loads(path.read_text())
    record.pop("digest", None)  # as a record that never had one: the lie must be found by running
    node = record
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    write_json(path, record)


def test_the_record_alone_gives_the_same_bytes(run, capsys):
    assert main(["reproduce", str(run)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("environment    same\ninputs         same\nconfiguration  same\n")
    again = run.with_name("run.reproduced")
    record = read_manifest(again)
    assert set(record.files) == {
        *(f"prepare/{name}" for name in ("population.parquet", "schema.json", "renderer.json", "features.json")),
        "report/report.html",
        "report/explorer.html",
    }
    result = json.loads((again / RESULT).read_text())
    assert f"reproduced: all {result['same']} judged values and files are the same" in text
    assert result["reproduced"] and result["other"] == [] and result["same"] > 40 and result["tolerance"] == 0


def test_a_number_that_was_changed_is_found(run, made, capsys):
    plant(run / "metrics.json", "data", "rows", value=301)
    assert main(["reproduce", str(run), "--workdir", str(made[0] / "changed")]) == 8
    shown = capsys.readouterr()
    assert "differs              metrics  data.rows  301 → 300 (by 1, relative 0.0033)" in shown.out
    assert "not reproduced: 1 of" in shown.err


def test_other_versions_and_code_are_said_first_and_loosen_the_comparison(run, tmp_path, capsys):
    plant(run / "env.json", "packages", "jax", value="0.0.1")
    plant(run / "env.json", "code", value="0123456789abcdef")
    plant(
        run / "metrics.json",
        "data",
        "labels",
        "lt30",
        "mean",
        value=read_manifest(run).metrics["data"]["labels"]["lt30"]["mean"] * 1.0001,
    )
    plant(run / "prepare" / "stage.json", "artifacts", "population.parquet", "sha256", value="0" * 64)
    assert main(["reproduce", str(run), "--workdir", str(tmp_path / "again")]) == 0
    first, second, *rest = capsys.readouterr().out.splitlines()
    assert first.split()[:4] == ["environment", "code", "'0123456789abcdef'", "→"]
    assert second.split()[:4] == ["environment", "packages.jax", "'0.0.1'", "→"]
    assert any(line.startswith("differs, not judged  files    prepare/population.parquet") for line in rest)
    assert main(["reproduce", str(run), "--workdir", str(tmp_path / "again"), "--tolerance", "0.00001"]) == 8


def test_another_table_is_refused_before_anything_is_run(run, made, tmp_path, capsys):
    table = pq.read_table(made[0] / "users.parquet")
    other = tmp_path / "other.parquet"
    pq.write_table(
        table.set_column(table.column_names.index("lt30"), "lt30", pc.subtract(pa.scalar(30), table["lt30"])), other
    )
    arguments = ["reproduce", str(run), "--workdir", str(tmp_path / "again"), f"--config.data.path={other}"]
    assert main(arguments) == 8
    shown = capsys.readouterr()
    assert "inputs         data.sha256" in shown.out and "nothing was run" in shown.err
    assert not (tmp_path / "again").exists()
    assert main([*arguments, "--anyway"]) == 8
    assert "differs              metrics  data.labels.lt30.mean" in capsys.readouterr().out


def test_the_same_table_elsewhere_is_the_same_input(run, made, tmp_path, capsys):
    moved = tmp_path / "moved.parquet"
    shutil.copy(made[0] / "users.parquet", moved)
    assert main(["reproduce", str(run), "--workdir", str(tmp_path / "again"), f"--config.data.path={moved}"]) == 0
    text = capsys.readouterr().out
    assert "configuration  data.path" in text and "inputs         same" in text


def test_a_record_that_was_edited_is_named(run):
    path = run / "prepare" / "stage.json"
    path.write_text(path.read_text().replace('"bytes"', '"octets"'))
    with pytest.raises(DataError, match=r"damaged\n.*prepare"):
        begin(run)


def test_the_same_command_goes_on_and_other_code_does_not(run, capsys, monkeypatch):
    """A finished folder of other code would be compared with the record as if this code had made it."""
    assert main(["reproduce", str(run)]) == main(["reproduce", str(run)]) == 0
    monkeypatch.setattr("scaletot_jax.report.environment._code", lambda: "0123456789abcdef")
    capsys.readouterr()
    assert main(["reproduce", str(run)]) == 4
    shown = capsys.readouterr()
    assert "reproduced" not in shown.out and "code: " in shown.err and "0123456789abcdef" in shown.err


def test_a_killed_start_goes_on(run):
    again = run.with_name("run.reproduced")
    again.mkdir()
    (again / ".lock").touch()
    write_json(again / MARK, begin(run).mark)
    (again / "prepare").mkdir()
    assert begin(run).into == again


@pytest.mark.parametrize("of", ["a run", "a repetition"])
def test_a_copy_of_the_run_is_no_repetition_of_it(run, made, of, capsys):
    """Nothing would be run, and everything would be the same."""
    source = made[0] / "run"
    if of == "a repetition":
        assert main(["reproduce", str(run)]) == 0
        source = run.with_name("run.reproduced")
    copy = run.with_name("copy")
    shutil.copytree(source, copy)
    assert main(["reproduce", str(source), "--workdir", str(copy)]) == 4
    assert "not done from this record" in capsys.readouterr().err


@pytest.mark.parametrize("into", ["run", "run/again", "."])
def test_a_folder_that_would_mix_both_is_refused(run, into):
    with pytest.raises(ConfigError, match="folder of its own"):
        begin(run, run.parent / into)


def test_another_value_would_be_another_run(run):
    with pytest.raises(ConfigError, match="another run"):
        begin(run, moved=[("seed", "1")])


def test_a_folder_without_a_record_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no config\.json, env\.json, metrics\.json"):
        begin(tmp_path)


def test_a_recorded_configuration_comes_back_with_its_types(run, made):
    config = config_of(read_manifest(run).config, run)
    assert config == made[1] and isinstance(config.distill.placebos, tuple)
    recorded = read_manifest(run).config
    with pytest.raises(ConfigError, match=r"sft\.turbo"):
        config_of({**recorded, "sft": {**recorded["sft"], "turbo": 1}}, run)
    with pytest.raises(ConfigError, match=r"sft\.epochs"):
        config_of({**recorded, "sft": {**recorded["sft"], "epochs": "two"}}, run)
    del recorded["osipo"]["epochs"]  # of before there was such a key
    assert flatten(config_of(recorded, run).to_dict()) == flatten(made[1].to_dict())
