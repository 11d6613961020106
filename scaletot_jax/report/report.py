"""Stage ``report``: self-contained pages about a run and its users, and the run's numbers in one file.

Writes ``report/report.html`` and ``report/explorer.html``, and beside the stages ``config.json`` (the whole configuration), ``env.json`` (versions and
kind of machine) and ``metrics.json`` (everything that was measured). No time, path or host name enters them: equal runs
give equal bytes. The report is made anew whenever a stage has changed; it holds no work of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scaletot_jax.errors import ConfigError, StaleRunError
from scaletot_jax.files import sha256_file, write_bytes, write_json
from scaletot_jax.report import (
    calibration_section,
    cells_section,
    closing,
    coverage_section,
    drift_section,
    model_card,
    sections,
    slices_section,
    student_sections,
    verdict_section,
)
from scaletot_jax.report.environment import environment
from scaletot_jax.report.explorer import explorer
from scaletot_jax.report.material import Material, collect, coverage_of, spec_of, usable_stages
from scaletot_jax.report.page import document
from scaletot_jax.run import Run, Stage

FORMAT = 1  # of metrics.json
TITLE = "ScaleToT report"
PAGE, EXPLORER = "report.html", "explorer.html"

SECTIONS = {
    "verdict": ("Verdict", verdict_section.hero),
    "ltv": ("LTV", verdict_section.ltv),
    "calibration": ("Calibration", calibration_section.calibrated),
    "coverage": ("Coverage", coverage_section.coverage),
    "seen": ("Seen", slices_section.seen),
    "cells": ("Groups", cells_section.cells),
    "people": ("People", sections.people),
    "budget": ("Cost", sections.budget),
    "doubt": ("Doubt", sections.doubt),
    "learning": ("Learning", student_sections.learning),
    "transfer": ("Encoder", student_sections.transfer),
    "chains": ("Chains", sections.chains),
    "drift": ("Drift", drift_section.drift),
    "card": ("Card", model_card.model_card),
    "choices": ("Choices", closing.choices),
    "configuration": ("Setup", closing.configuration),
}


def report(run: Run) -> Stage:
    """Writes the page from whatever stages have finished; a missing one is named on the page.

    Raises:
      StaleRunError: a finished stage belongs to another configuration, or an artifact was changed.
    """
    usable, missing = usable_stages(run)
    needs, config_sections = tuple(usable), tuple(sorted(run.config))
    extra = {"missing": missing, "environment": environment(), "coverage": coverage_of(run)}
    try:
        stage = run.stage("report", sections=config_sections, needs=needs, extra=extra)
    except StaleRunError:  # of other stages, or damaged: there is nothing in it to lose
        run.discard("report")
        stage = run.stage("report", sections=config_sections, needs=needs, extra=extra)
    material = None
    beside = {name: run.workdir / name for name in ("config.json", "env.json", "metrics.json")}
    stated = stage.summary().get("beside", {}) if stage.done else {}
    if {name: sha256_file(path) for name, path in beside.items() if path.exists()} != stated or not stated:
        material = collect(run)
        write_json(beside["config.json"], run.config)
        write_json(beside["env.json"], material.environment)
        write_json(beside["metrics.json"], merged_metrics(material))
    if not stage.done:
        assert material is not None
        write_bytes(stage.path(PAGE), render(material).encode("utf-8"))
        pages = [PAGE]
        found = explorer(run, usable, spec_of(run.config))
        if found is not None:
            write_bytes(stage.path(EXPLORER), found.encode("utf-8"))
            pages.append(EXPLORER)
        written = {name: sha256_file(path) for name, path in beside.items()}
        stage.finish(pages, summary={"sections": list(SECTIONS), "missing": missing, "beside": written})
    return stage


def render(material: Material) -> str:
    """The page as HTML. Pure."""
    return _page(material, SECTIONS)


def excerpt(workdir: str | Path, config: Any, name: str) -> str:
    """One section of the report as a page of its own, e.g. for a notebook; reads whatever stages have finished.

    Args:
      workdir: the run directory.
      config: the run's configuration (``ConfigDict`` or mapping).
      name: one of :data:`SECTIONS`.
    """
    if name not in SECTIONS:
        raise ConfigError("the report has no such section", where=name, do=f"choose one of {', '.join(SECTIONS)}")
    run = Run(workdir, config.to_dict() if hasattr(config, "to_dict") else config, lock=False)
    return _page(collect(run), {name: SECTIONS[name]})


def _page(material: Material, chosen: Mapping[str, tuple[str, Any]]) -> str:
    contents = [(key, title) for key, (title, _) in chosen.items()]
    return document(TITLE, contents if len(contents) > 1 else [], [make(material) for _, make in chosen.values()])


_ELSEWHERE = ("held_out", "example_prompt")  # under "student"; a profile's text is no metric


def merged_metrics(material: Material) -> dict[str, Any]:
    """Everything that was measured, in one mapping; stages that are missing are named under ``missing``.

    Returns:
      format, data, teacher, student (base rate and held-out scores before training, after SFT, after OSIPO), sft, osipo,
      distill, score, calibration, coverage, drift, evaluation, verdict (``sentence`` and what the evaluation says of it).
    """
    out: dict[str, Any] = {"format": FORMAT, "missing": dict(material.missing)}
    held_out = student_sections.held_out_scores(material)
    if held_out:
        known = next(iter(held_out.values()))
        out["student"] = {"base_rate_rps": known.get("base_rate_rps"), "users": known.get("users"), **held_out}
    names = {
        "prepare": "data",
        "teach": "teacher",
        "sft": "sft",
        "osipo": "osipo",
        "distill": "distill",
        "score": "score",
    }
    for stage, name in names.items():
        if stage in material.summaries:
            out[name] = {key: value for key, value in material.summaries[stage].items() if key not in _ELSEWHERE}
    if material.chains:
        out["teacher"] = {
            **out.get("teacher", {}),
            "chains": dict(material.chains),
            "segments": list(material.uncertainty),
        }
    for name in ("calibration", "coverage", "drift"):
        found = getattr(material, name)
        if found:
            out[name] = found
    if material.evaluation is not None:
        out["evaluation"] = {key: value for key, value in material.evaluation.items() if key != "verdict"}
        with contextlib.suppress(KeyError, TypeError):
            out["verdict"] = {
                **material.evaluation["verdict"],
                "sentence": verdict_section.sentence(material.evaluation["verdict"]),
            }
    return out
