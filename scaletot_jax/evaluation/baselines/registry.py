"""All baselines by name, and one call that fits those that can be fitted and says of each other one why not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from scaletot_jax.evaluation.baselines.answers import student_answer, teacher_answer
from scaletot_jax.evaluation.baselines.attributes import mapped_latent
from scaletot_jax.evaluation.baselines.boosting import boosted_hurdle, boosted_tweedie
from scaletot_jax.evaluation.baselines.known import Known, Missing, NotApplicable
from scaletot_jax.evaluation.baselines.neighbours import neighbours
from scaletot_jax.evaluation.baselines.networks import ordinal_network, ziln_network
from scaletot_jax.evaluation.baselines.profile_mean import profile_mean
from scaletot_jax.evaluation.baselines.segment_mean import segment_mean
from scaletot_jax.evaluation.baselines.semantic_groups import chain_groups, sentence_groups
from scaletot_jax.evaluation.baselines.sentence import sentence_boosted, sentence_ridge
from scaletot_jax.evaluation.baselines.target_encoding import target_encoding
from scaletot_jax.evaluation.predictions import Predictions, Target

Fit = Callable[[Known, Target], Sequence[Predictions]]


class System(NamedTuple):
    """A line of the table."""

    title: str
    kind: str  # baseline | head | system | placebo | answer
    reads: str  # what it sees besides the labels of the head split


SYSTEMS: Mapping[str, System] = {
    "constant": System("Constant: the training distribution", "baseline", "nothing"),
    "segment_mean": System("Segment mean: one field", "baseline", "one profile field"),
    "profile_mean": System("Leave-one-out mean of the coarse profile", "baseline", "the coarse profile"),
    "target_encoding": System("Target encoding + ridge", "baseline", "profile fields"),
    "ridge": System("Ridge on the profile", "baseline", "profile fields"),
    "neighbours": System("k nearest neighbours", "baseline", "profile fields"),
    "boosted_tweedie": System("LightGBM, Tweedie", "baseline", "profile fields"),
    "boosted_hurdle": System("LightGBM, hurdle", "baseline", "profile fields"),
    "ziln_network": System("Zero-inflated log-normal network", "baseline", "profile fields"),
    "ordinal_network": System("Hurdle-ordinal network on bins", "baseline", "profile fields"),
    "sentence_ridge": System("Sentence embedding + ridge", "baseline", "the profile's text"),
    "sentence_boosted": System("Sentence embedding + LightGBM", "baseline", "the profile's text"),
    "sentence_groups": System("Semantic groups of sentence embeddings", "baseline", "the profile's text"),
    "teacher_answer": System("The teacher's own answer", "answer", "the teacher's answers by coarse profile"),
    "student_answer": System("The student's own answer", "answer", "the student's answers by coarse profile"),
    "chain_groups": System("Semantic groups of ẑ", "baseline", "ẑ"),
    "mapped_latent": System("Attribute-to-latent map of reasoning states", "baseline", "profile fields, states of training users"),
    "profile": System("Head without ẑ", "head", "profile fields"),
    "profile_z_shuffled": System("Placebo: another row's ẑ", "placebo", "profile fields, another row's ẑ"),
    "profile_z_untrained": System("Placebo: undistilled encoder", "placebo", "profile fields through the encoder's initial weights"),
    "encoder_labels": System("Encoder trained on labels only", "placebo", "profile fields, labels of the encoder's training users"),
    "encoder_shuffled": System("Placebo: encoder of shuffled states", "placebo", "profile fields, states of other profiles"),
    "encoder_random": System("Placebo: encoder of random projections", "placebo", "profile fields"),
    "encoder_prompt_end": System("Encoder of prompt ends, no reasoning", "placebo", "profile fields, the student's prompt ends"),
    "encoder_pooled": System("Encoder of content-mean states", "head", "profile fields, the student's states"),
    "profile_z": System("Head with ẑ", "system", "profile fields, ẑ"),
}  # fmt: skip

FITS: Mapping[str, Fit] = {
    "segment_mean": segment_mean,
    "profile_mean": profile_mean,
    "target_encoding": target_encoding,
    "neighbours": neighbours,
    "boosted_tweedie": boosted_tweedie,
    "boosted_hurdle": boosted_hurdle,
    "ziln_network": ziln_network,
    "ordinal_network": ordinal_network,
    "sentence_ridge": sentence_ridge,
    "sentence_boosted": sentence_boosted,
    "sentence_groups": sentence_groups,
    "teacher_answer": teacher_answer,
    "student_answer": student_answer,
    "chain_groups": chain_groups,
    "mapped_latent": mapped_latent,
}


def fit_baselines(
    known: Known, target: Target, fits: Mapping[str, Fit] = FITS
) -> tuple[dict[str, Sequence[Predictions]], dict[str, dict[str, Any]]]:
    """Fits every baseline.

    Returns:
      system → predictions of each seed for the test rows; and of those that were not run, system → {note, why, do}, note being
      "missing" (an optional package), "not run" or "not applicable".
    """
    found: dict[str, Sequence[Predictions]] = {}
    absent: dict[str, dict[str, Any]] = {}
    for name, fit in fits.items():
        try:
            found[name] = fit(known, target)
        except Missing as error:
            absent[name] = {"note": error.note, "why": error.why, "do": error.do}
        except NotApplicable as error:
            absent[name] = {"note": "not applicable", "why": str(error), "do": ""}
    return found, absent
