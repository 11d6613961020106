"""The stage: what is missing, stale or changed, and equal bytes."""

import json

import pytest
from report.page_reader import Reader
from report.report_run import add_coverage, make_run

from scaletot_jax.errors import ConfigError, StaleRunError
from scaletot_jax.report.report import excerpt, report
from scaletot_jax.run import STAGES, Run, read_record, write_record


@pytest.mark.parametrize("count", range(len(STAGES)))
def test_any_prefix_of_the_line_gives_a_report_that_names_what_is_missing(tmp_path, count):
    done = STAGES[:-1][:count]
    with make_run(tmp_path / "run", stages=done) as run:
        stage = report(run)
    assert stage.done
    content = (run.workdir / "report" / "report.html").read_text()
    Reader(content)
    metrics = json.loads((run.workdir / "metrics.json").read_text())
    assert set(metrics["missing"]) == set(STAGES[:-1]) - set(done)
    assert ("verdict" in metrics) == ("evaluate" in done)
    assert ("No verdict yet" in content) == ("evaluate" not in done)
    for name in set(STAGES[:-1]) - set(done) - {"score", "sft"}:
        assert f"the stage <code>{name}</code> has not finished" in content, name


def test_a_stage_built_on_an_older_one_is_not_reported(tmp_path):
    with make_run(tmp_path / "run") as run:
        path = run.workdir / "osipo" / "stage.json"
        record = read_record(path)
        record["identity"]["extra"] = "another state"
        write_record(path, record)
    with Run(tmp_path / "run", run.config) as run:
        report(run)
    missing = json.loads((run.workdir / "metrics.json").read_text())["missing"]
    assert missing["distill"] == "stage 'distill' was built on another state of 'osipo'; run it again"
    assert set(missing) == {"distill", "score", "evaluate"}


def test_another_configuration_is_refused(tmp_path):
    with make_run(tmp_path / "run") as run:
        config = {**run.config, "sft": {**run.config["sft"], "learning_rate": 0.5}}
    with Run(tmp_path / "run", config) as other, pytest.raises(StaleRunError, match=r"sft.learning_rate: 0.001 -> 0.5"):
        report(other)
    assert not (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.parametrize(
    "name", ["teach/nodes.parquet", "evaluate/metrics.json", "sft/steps.jsonl", "prepare/renderer.json"]
)
def test_a_changed_artifact_is_refused(tmp_path, name):
    with make_run(tmp_path / "run") as run:
        path = run.workdir / name
        path.write_bytes(path.read_bytes() + b"\n")
        with pytest.raises(StaleRunError, match="SHA-256"):
            report(run)


def test_equal_runs_give_equal_bytes(tmp_path):
    pages = []
    for name in ("first", "second"):
        with make_run(tmp_path / name / "run", report__chains=1) as run:
            report(run)
        pages.append(
            [
                (run.workdir / part).read_bytes()
                for part in ("report/report.html", "report/explorer.html", "metrics.json", "env.json")
            ]
        )
    assert pages[0] == pages[1]


def test_a_second_report_redoes_nothing_and_a_new_stage_renews_it(tmp_path):
    with make_run(tmp_path / "run", stages=STAGES[:4]) as run:
        report(run)
        path = run.workdir / "report" / "report.html"
        before = path.stat().st_mtime_ns
        metrics = run.workdir / "metrics.json"
        whole = metrics.read_text()
        for damaged in (None, "", whole.replace("1", "2", 1)):
            metrics.unlink() if damaged is None else metrics.write_text(damaged)
            report(run)
            assert path.stat().st_mtime_ns == before
            assert metrics.read_text() == whole
    with make_run(tmp_path / "run") as run:
        report(run)
    assert json.loads((run.workdir / "metrics.json").read_text())["missing"] == {}
    assert "No verdict yet" not in path.read_text()


def test_without_a_chain_specification_the_cards_have_numbers_for_names(tmp_path):
    with make_run(tmp_path / "run", spec=False) as run:
        content = excerpt(run.workdir, run.config, "chains")
    Reader(content)
    assert 'title="slot 1"' in content


def test_an_excerpt_is_one_section(run):
    content = excerpt(run.workdir, run.config, "chains")
    read = Reader(content)
    assert [a["id"] for a in read.all("section")] == ["chains"]
    with pytest.raises(ConfigError, match="no such section"):
        excerpt(run.workdir, run.config, "nothing")


def test_a_coverage_curve_measured_later_renews_the_report(tmp_path):
    with make_run(tmp_path / "run", report__chains=0) as run:
        report(run)
        page = run.workdir / "report" / "report.html"
        assert "This run has no coverage curve" in page.read_text()
        add_coverage(run)
        report(run)
    shown = page.read_text()
    assert "20 reasoned users, at least 100 are needed" in shown and "$2.0110" in shown
    assert "RPS skill over the profile alone, labels of reasoned users alone" in shown
    assert json.loads((run.workdir / "metrics.json").read_text())["coverage"]["points"][1]["cost"]["usd"] == 0.147
