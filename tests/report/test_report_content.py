"""What the report says: numbers of the artifacts, and the verdict on top."""

import dataclasses
import json
import re

import pyarrow as pa
import pytest
from report.page_reader import Reader
from report.report_run import add_coverage, make_run

from scaletot_jax.report import model_card, slices_section, student_sections, verdict_section
from scaletot_jax.report.material import collect, segment_uncertainty
from scaletot_jax.report.report import excerpt, render
from scaletot_jax.run import read_record, write_record


@pytest.fixture(scope="module")
def page(run):
    return (run.workdir / "report" / "report.html").read_text(encoding="utf-8")


def sentence_of(run):
    return json.loads((run.workdir / "evaluate" / "metrics.json").read_text())["verdict"]["sentence"]


def test_the_verdict_stands_on_top_with_its_interval(run, page):
    top = page[: page.index('id="people"')]
    subject = sentence_of(run).split(": ")[0]
    assert "cannot be told at this size" in subject
    heading = re.search(r"<h1[^>]*>(.*?)</h1>", top)[1]
    assert re.sub("<[^>]+>", "", heading) == (
        "Cannot be told at this size: with ẑ, Spearman of lt30 changes by +0.004 (95\u00a0% interval −0.011 to +0.019)"
    )
    drawn = re.search(r'aria-label="Spearman: with ẑ minus ….*?"', top)[0]
    assert "Placebo: another user&#x27;s ẑ: +0.002, interval −0.005 to 0.010" in drawn
    assert top.index("<h1") < top.index("<h2")


def test_the_answer_says_which_rivals_it_is_about_and_what_the_label_counts(tmp_path):
    with make_run(tmp_path / "run", word="helped") as run:
        material = collect(run)
    verdict = {
        **material.evaluation["verdict"],
        "beaten": ["profile"],
        "lost": ["encoder_labels"],
        "tied": ["profile_z_shuffled"],
    }
    content = str(
        verdict_section.hero(dataclasses.replace(material, evaluation={**material.evaluation, "verdict": verdict}))
    )
    assert (
        "The rule asks ẑ to be ahead of all 3 rivals. Ahead of: head without ẑ. Behind: encoder_labels. Not told apart from: "
        "placebo: another user&#x27;s ẑ." in content
    )
    assert "lt30 counts the active days among 30." in content


def test_systems_stand_in_the_evaluations_order_and_required_rivals_first(run):
    read = excerpt(run.workdir, run.config, "ltv")
    systems, paired = (
        re.findall(r'<th scope="row">(.*?)</th>', body) for body in re.findall(r"<tbody>(.*?)</tbody>", read)[:2]
    )
    assert [name.split(":")[0] for name in systems[:4]] == [
        "Constant",
        "Ridge on the profile",
        "Head without ẑ",
        "Head with ẑ",
    ]
    assert paired[0] == "Head without ẑ" and "What the metrics are" in read


def test_slices_without_the_verdicts_metric_show_the_nearest_one(run):
    material = collect(run)
    evaluation = json.loads(json.dumps(material.evaluation))
    evaluation["targets"]["lt30"]["features"]["static+early"]["verdict"]["metric"] = "rps_skill"
    read = str(slices_section.seen(dataclasses.replace(material, evaluation=evaluation)))
    first = read[: read.index("</table>")]
    assert "RPS (lower is better): lt30, static+early profile fields" in first and "+0.0310" in first


@pytest.mark.parametrize(
    ("word", "answer"),
    [("helped", '<span class="helps">Yes</span>'), ("hurt", '<span class="hurts">No, it hurts</span>')],
)
def test_the_other_verdicts(tmp_path, word, answer):
    with make_run(tmp_path / "run", word=word) as run:
        content = excerpt(run.workdir, run.config, "verdict")
    assert f"{answer}: with ẑ, Spearman of lt30" in content


def test_a_difference_is_called_by_its_word_after_holms_correction_and_shows_p(run):
    read = excerpt(run.workdir, run.config, "ltv")
    paired = next(part for part in read.split("<caption>") if part.startswith("<span>Head with ẑ minus another system"))
    cells = {
        re.sub("<[^>]+>", "", row[0]): [re.sub("<[^>]+>", " ", cell) for cell in row]
        for row in (re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", paired))
    }
    kept, lost = (cells[name][-1] for name in ("Placebo: another user&#x27;s ẑ", "Head without ẑ"))
    assert "hurt, p 0.012" in kept
    assert "hurt" not in lost and "p 0.060" in lost  # its interval leaves out zero: one of many
    assert "Holm&#x27;s correction over the required rivals" in read
    assert "p 0.060 after Holm&#x27;s correction" in read  # said of the drawing, too


@pytest.mark.parametrize(("seeds", "folds", "draws"), [(5, 0, 1), (1, 0, 3), (5, 4, 3)])
def test_the_report_says_of_what_there_is_one(run, seeds, folds, draws):
    material = collect(run)
    config = {**run.config, "distill": {**run.config["distill"], "student_folds": folds}}
    found = dataclasses.replace(
        material,
        config=config,
        evaluation={**material.evaluation, "seeds": seeds},
        coverage={**material.coverage, "draws": draws},
    )
    (said,) = re.findall(r"<p>(The student.*? are one each.*?)</p>", str(verdict_section.ltv(found)))
    assert "is not in the intervals" in said and f"seed {run.config['seed']};" in said
    assert (f"{seeds} seeds vary the head alone" in said) == (seeds > 1)
    assert ("4 more, each trained without one fold" in said) == bool(folds)
    assert ("over 3 draws, never the student" in said) == (draws == 3)


def test_numbers_come_from_the_artifacts(run, page):
    shown = re.sub("<[^>]+>", " ", page[: page.index("<script")])
    for number_ in (
        "9,834",
        "2,011",
        "0.1457",
        "0.1379",
        "16,350",
        "74,880",
        "best cross-validated R² of the days label",
    ):
        assert number_ in shown
    assert "nan" not in shown.lower().replace("finance", "")
    metrics = json.loads((run.workdir / "metrics.json").read_text())
    evaluated = json.loads((run.workdir / "evaluate" / "metrics.json").read_text())
    estimate = evaluated["targets"]["lt30"]["features"]["static"]["systems"]["ridge"]["rmse"]["estimate"]
    assert f"{estimate:.3f}" in shown
    assert metrics["evaluation"]["targets"] == evaluated["targets"]


def test_slices_are_shown_with_their_words_and_without_numbers_where_there_are_too_few(run):
    """Cells of the first table, that of the verdict's label and fields."""
    read = excerpt(run.workdir, run.config, "seen")
    first, *others = (re.findall(r"<tr>(.*?)</tr>", table_) for table_ in re.findall(r"<tbody>(.*?)</tbody>", read))
    rows = [[re.sub("<[^>]+>", " ", cell).split() for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in first]  # fmt: skip
    assert [" ".join(row[0]) for row in rows] == [
        "Among those the teacher reasoned about", "Not among those the teacher reasoned about",
        "Among those the heads were trained on", "Not among those the heads were trained on", "The former minus the latter",
    ]  # fmt: skip
    assert rows[2][1:3] == [["907"], ["344"]] and rows[2][5] == ["+0.0310", "+0.0120", "to", "+0.0470", "helped"]
    assert rows[3][5][-1] == "hurt" and rows[4][5] == ["+0.0550", "+0.0330", "to", "+0.0710"]
    assert rows[1][1:4] == [["17"], ["9"], ["–"]] and " ".join(rows[1][5]) == "too few to tell fewer than 30 rows"
    assert len(others) == 3 and read.count("not applicable") == 2


def test_groups_of_users_are_shown_and_small_ones_only_counted(run):
    read = excerpt(run.workdir, run.config, "cells")
    tables = [
        [
            [" ".join(re.sub("<[^>]+>", " ", cell).split()) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
            for row in re.findall(r"<tr>(.*?)</tr>", body)
        ]
        for body in re.findall(r"<tbody>(.*?)</tbody>", read)
    ]
    gaps, groups = tables[:2]
    assert gaps[0][:3] == ["how much is known", "2", "0"] and gaps[1][:4] == ["city", "1", "3", "–"]
    assert gaps[0][3].startswith("0.321") and gaps[0][5].startswith("−0.222") and gaps[0][8].startswith("−0.222")
    assert [row[:4] for row in groups] == [
        ["few known fields", "how much is known", "613", "306"], ["many known fields", "how much is known", "417", "208"],
        ["Arden", "city", "1,012", "506"],
    ]  # fmt: skip
    assert groups[1][4].startswith("−0.456")
    assert not [small for small in ("Tiny Hamlet", "Hidden", "Gone") if small in read]
    card = excerpt(run.workdir, run.config, "card")
    assert "by how much is known of a user and by field (city), with ẑ and without" in card


@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("text", [False, True])
def test_the_card_says_what_the_pages_show(run, ids, text):
    settings = {**run.config["report"], "show_ids": ids, "show_text": text}
    card = str(model_card.model_card(dataclasses.replace(collect(run), config={**run.config, "report": settings})))
    assert ("The explorer shows them: report.show_ids is set." in card) == ids
    assert ("shows row numbers of the run&#x27;s own population instead" in card) != ids
    assert ("is shown in both pages: report.show_text is set." in card) == text


def test_the_coverage_curve_is_judged_by_the_rule_and_over_all_draws(run):
    read = excerpt(run.workdir, run.config, "coverage")
    table_ = next(
        part for part in read.split("<caption>") if part.startswith("<span>RPS skill, ẑ everywhere minus …, labels of")
    )
    rows = [
        [" ".join(re.sub("<[^>]+>", " ", cell).split()) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
        for row in re.findall(r"<tr>(.*?)</tr>", table_)
    ]
    head, not_run, over, first, second, _ = rows
    assert head[3:] == [
        "Profile alone", "Encoder of labels only", "Encoder of shuffled states", "Encoder of random projections",
        "Prompt ends, no reasoning",
    ]  # fmt: skip
    assert not_run[2].startswith("not run 20 reasoned users")
    unrun = "not run: Encoder of random projections; Prompt ends, no reasoning"
    assert over[1:4] == ["all 3", f"cannot be told at this size {unrun}", "−0.0255 −0.1205 to +0.0695 p 1.000"]
    assert first[1:3] == ["first alone", f"hurt {unrun}"] and first[5].endswith("p 0.012") and first[6] == "–"
    assert second[1] == "first alone" and second[2].startswith("cannot")
    assert "reasoning about that share helped" not in read and "one rival of five" in read
    assert "Encoder of shuffled states" in read.split("Systems, labels of reasoned users")[2] and "+0.0123" in read


def test_the_coverage_curve_stands_against_tokens_and_money_where_a_price_is_known(run, tmp_path):
    read = excerpt(run.workdir, run.config, "coverage")
    assert "20 402k $0.40 gives" in read  # said of the drawing: share, tokens, money
    assert "$0.4020" in read and "so no price is known" not in read
    with make_run(tmp_path / "free" / "run") as free:
        add_coverage(free, usd=0.0)
        shown = excerpt(free.workdir, free.config, "coverage")
    assert "20 402k gives" in shown and "$" not in shown and "so no price is known" in shown


def test_transfer_of_groups_the_student_knew_is_named_for_what_it_is(run):
    shown = re.sub("<[^>]+>", " ", excerpt(run.workdir, run.config, "transfer"))
    unseen, trained = shown.split("groups whose chains or labels trained the student")
    assert "groups that no training of the language model saw" in unseen and "0.410" in unseen and "0.770" not in unseen
    assert "0.770" in trained and "Groups of the teacher split" in unseen


def test_a_run_from_before_the_slices_and_the_two_kinds_of_held_out_groups_is_still_shown(tmp_path):
    with make_run(tmp_path / "run") as run:
        path = run.workdir / "distill" / "stage.json"
        record = read_record(path)
        record["summary"]["transfer"] = record["summary"]["transfer"]["unseen_groups"]
        write_record(path, record)
        material = collect(run)
    evaluation = json.loads(json.dumps(material.evaluation))
    for target in evaluation["targets"].values():
        for found in target["features"].values():
            del found["slices"], found["cells"]
    content = render(dataclasses.replace(material, evaluation=evaluation))
    Reader(content)
    assert "This evaluation was made without slices" in content and "This evaluation has no groups of users" in content
    assert "groups of the teacher split among them" in content


def test_merged_metrics(run):
    metrics = json.loads((run.workdir / "metrics.json").read_text())
    assert metrics["student"]["base_rate_rps"] == 0.1457
    assert [metrics["student"][name]["rps"] for name in ("base", "sft", "osipo")] == [0.1702, 0.1391, 0.1379]
    assert metrics["verdict"]["sentence"] == sentence_of(run)
    assert metrics["teacher"]["chains"]["accepted"] == 29
    assert metrics["teacher"]["funnel"]["profiles"] == 30
    assert metrics["distill"]["layer"] == 11
    assert metrics["score"]["rows"] == metrics["data"]["rows"] == 9834
    assert metrics["missing"] == {}
    config = json.loads((run.workdir / "config.json").read_text())
    assert config == json.loads(json.dumps(run.config))
    environment = json.loads((run.workdir / "env.json").read_text())
    assert environment["packages"]["jax"] and environment["cpus"] >= 1


def test_a_student_without_signal_is_named(tmp_path):
    with make_run(tmp_path / "run") as run:
        path = run.workdir / "osipo" / "stage.json"
        record = read_record(path)
        record["summary"].update(
            osipo_signal=False, worse_than_sft="held-out skill fell", outcome_variance=2e-6, process_stopped={"kl": 7}
        )
        write_record(path, record)
        content = excerpt(run.workdir, run.config, "learning")
    assert "OSIPO had no signal" in content
    assert "switched off after update 7" in content and "held-out skill fell" in content


def test_every_segment_has_its_credit(run):
    """Also those beyond the colours of one chart."""
    steps = [
        {"step": step, **{f"{what}_{k}": 0.1 * k for what in ("credit", "process_reward") for k in range(7)}}
        for step in (1, 2)
    ]
    names = [f"part {k}" for k in range(6)]
    read = str(student_sections.learning(dataclasses.replace(collect(run), osipo_steps=steps, segments=names)))
    shown = re.findall(r"<h3>(OSIPO: (?:credit|process reward) by segment[^<]*)</h3>", read)
    assert shown == [
        f"OSIPO: {what} by segment, {part} of 7"
        for what in ("credit", "process reward")
        for part in ("1 to 5", "6 to 7")
    ]
    assert read.count("part 5 from") == read.count("segment 7 from") == 4  # in name and description of two drawings


def test_uncertainty_before_and_after_refinement():
    columns = (
        "exact_key",
        "parent",
        "depth",
        "segment",
        "entropy",
        "disagreement",
        "uncertainty",
        "threshold",
        "refined",
        "refinement_accepted",
        "reason",
    )
    rows = [
        ("a", 0, 1, "context", 0.9, 0.1, 0.8, 0.5, True, True, "replaced by the revision"),
        ("a", 0, 1, "context", 0.3, 0.2, 0.2, 0.5, True, True, ""),
        ("a", 0, 1, "context", 0.3, 0.2, 0.2, 0.5, True, True, "outside the beam"),
        ("b", 0, 1, "context", 0.5, 0.4, 0.4, 0.5, False, False, ""),
        ("b", 1, 2, "outlook", 0.7, 0.0, 0.6, 0.5, True, False, ""),
        ("b", 2, 3, "rule", 0.0, 0.0, 0.0, 0.0, False, False, ""),  # no call: not an expansion
    ]
    context, outlook = segment_uncertainty(pa.Table.from_pylist([dict(zip(columns, row)) for row in rows]))
    assert (context["expansions"], context["refined"], context["accepted"]) == (2, 1, 1)
    assert context["entropy_before"] == pytest.approx((0.9 + 0.5) / 2)
    assert context["entropy_after"] == pytest.approx((0.3 + 0.5) / 2)
    assert context["uncertainty_before"] == pytest.approx((0.8 + 0.4) / 2)
    assert (outlook["segment"], outlook["refined"], outlook["accepted"]) == ("outlook", 1, 0)
    assert outlook["entropy_before"] == outlook["entropy_after"]
