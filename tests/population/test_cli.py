"""``scaletot score --model`` and ``scaletot export`` as they are typed."""

import json

import pytest
from population.toy_job import files

from scaletot_jax.cli import main


def call(*arguments):
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as exit_:
        return exit_.code


@pytest.fixture
def command(served, users, tmp_path):
    return ["score", "--model", served.directory, "--table", users, "--out", tmp_path / "out", "--batch-rows", 128]


def test_workers_share_a_table(command, tmp_path, capsys, monkeypatch):
    assert call(*command, "--shard-rows=300", "--worker=1/2") == 0
    assert "others are at work" in capsys.readouterr().out
    monkeypatch.setenv("SCALETOT_WORKER", "0/2")
    assert call(*command, "--shard-rows=300", "--form=distinct") == 0
    assert "others" not in capsys.readouterr().out
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [entry["rows"] for entry in manifest["shards"]] == [300, 300, 300, 100]
    before = files(tmp_path / "out")
    assert call(*command, "--shard-rows=300") == 0
    assert files(tmp_path / "out") == before
    assert call(*command, "--shard-rows=200") == 4
    assert "shard_rows: 300 -> 200" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "code", "message"),
    [
        (["--embedding=bfloat16"], 2, "--embedding"),
        (["--form=both"], 2, "--form"),
        (["--worker=3/3"], 2, "I/N"),
        (["--shard-rows=0"], 2, "--shard-rows"),
        (["--config.sft.epochs=3"], 2, "no configuration"),
        (["--table=/nowhere"], 3, "no file and no folder"),
        (["--model=/nowhere"], 3, "no served model"),
    ],
)
def test_bad_usage_says_what_and_exits_non_zero(command, extra, code, message, capsys):
    assert call(*command, *extra) == code
    assert message in capsys.readouterr().err


def test_export_needs_a_finished_run(tmp_path, capsys):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "from scaletot_jax.config import default_config\n"
        "def get_config():\n    config = default_config()\n    config.data.name = 'synthetic'\n    return config\n"
    )
    assert call("export", "--config", recipe, "--workdir", tmp_path / "run", "--out", tmp_path / "model") == 4
    assert "stage 'prepare' is not finished" in capsys.readouterr().err
