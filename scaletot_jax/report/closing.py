"""The report's last sections: what the paper leaves open and was chosen here, and the configuration behind the numbers."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Any

from scaletot_jax.report.lookup import dig
from scaletot_jax.report.material import Material
from scaletot_jax.report.page import Markup, el, folded, section, table, text
from scaletot_jax.run import flatten


def choices(material: Material) -> Markup:
    """A short list of what the paper does not state, with the values of this run."""
    config = material.config

    def of(path: str) -> Markup:
        value = dig(config, path)
        return text("?" if value is None else value)

    items = [
        ("Lifetime", "active days in the days after the snapshot; a value label (spend) is evaluated beside it where there is one."),
        ("Chain", "typed segments from a YAML specification; a slot comes by rule, or is scored as an enum under a grammar."),
        (
            "Doubt",
            ["half calibrated entropy, half disagreement across ", of("teacher.paraphrases"), " wordings; the threshold is the ",
             of("teacher.refine_quantile"), " quantile of a label-blind pilot of ", of("teacher.pilot_profiles"), " profiles."],
        ),
        (
            "Bounds",
            ["beam ", of("teacher.beam"), ", candidates ", of("teacher.candidates"), ", refined nodes ≤ ", of("teacher.max_refined_nodes"),
             ", calls ≤ ", of("teacher.max_calls"), ", tokens ≤ ", of("teacher.max_tokens"), " a profile, each checked before the call."],
        ),
        ("Labels", "the teacher never sees one. Splits are disjoint by user; where there are dates, evaluation lies after the training labels."),
        ("Soft label", ["the answer is kept direct and after the chain; stored is: ", of("teacher.answer"), "."]),
        ("Outcome reward", "1 − ranked probability score of the answer conditioned on the rollout's own chain."),
        (
            "OSIPO",
            ["implicit process rewards summed by typed segment, weight ", of("osipo.process_weight"), ", γ = ", of("osipo.gamma"), ", β = ",
             of("osipo.beta"), ", a leave-one-out baseline for each segment type; ratio by ", of("osipo.ratio"), "."],
        ),
        ("Transferred state", "the hidden state at each segment's closing token, averaged over sampled chains, whitened by segment; the layer is chosen by a probe."),
        ("Helped", "said only where ẑ beats the head without it, labels alone, the placebos and prompt ends, each by its paired interval on users nobody trained on and by p after Holm's correction."),
    ]  # fmt: skip
    listed = [el("li", el("strong", name), ": ", content) for name, content in items]
    intro = el(
        "p",
        "ScaleToT (arXiv:2606.24605) is known to us by its abstract; the following are choices of this project, and the paper may differ. "
        "Numbers measured offline here are never comparable with the paper's online experiment.",
    )
    return section(
        "choices", "What the paper leaves open, and what was chosen", intro, el("ul", listed, class_="choices")
    )


def configuration(material: Material) -> Markup:
    """Configuration, environment and the state of the stages, folded away."""
    keys = [[el("code", key), el("code", _plain(value))] for key, value in sorted(flatten(material.config).items())]
    machine = material.environment
    versions = [
        [el("code", name), el("code", version)] for name, version in sorted((machine.get("packages") or {}).items())
    ]
    place = ", ".join(
        f"{key} {machine[key]}"
        for key in ("python", "implementation", "system", "machine", "processor", "cpus", "accelerators", "code")
        if machine.get(key)
    )
    absent = [[name, why] for name, why in material.missing.items()]
    parts = [
        folded(f"Configuration, {len(keys)} keys", table("Configuration", ["Key", "Value"], keys)),
        folded("Environment", el("p", place or "Not recorded."), table("Packages", ["Package", "Version"], versions)),
    ]
    if absent:
        parts.insert(0, table("Stages that are not in this report", ["Stage", "Why"], absent))
    footer = el(
        "footer",
        "Made from the artifacts of the run alone. The same numbers stand in ",
        el("code", "metrics.json"),
        ".",
    )
    return section("configuration", "Configuration and environment", parts, footer)


def _plain(value: Any) -> str:
    """A configuration value; of an absolute path only its last part, since a page travels."""
    if isinstance(value, str):
        return f"…/{posixpath.basename(value.rstrip('/'))}" if value.startswith(("/", "~")) else value or "“”"
    if isinstance(value, Mapping):
        return "{}"
    return str(value)
