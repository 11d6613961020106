"""What the values of a configuration may be: choices, ranges, and what must hold between keys. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from scaletot_jax import sinks
from scaletot_jax.errors import ConfigError
from scaletot_jax.teacher.served import settings as served

TARGETS = ("states", "pooled", "prompt_end", "labels", "shuffled", "random")
CHOICES = {
    "data.name": ("complete_journey", "oulad", "kuairand_pure", "synthetic", "parquet"),
    "data.profile_fields": ("static", "static+early"),
    "student.attention": ("auto", "einsum", "dot_product", "splash"),
    "teacher.answer": ("direct", "chain", "pooled"),
    "teacher.scoring": ("auto", "trie", "full"),
    "teacher.guide": ("both", "entropy", "disagreement"),
    "teacher.backend": ("local", "served"),
    "teacher.served.api": ("completions", "chat"),
    "student.trainable": ("lora", "full"),
    "student.compute_dtype": ("float32", "bfloat16"),
    "sft.keep": ("last", "best"),
    **{f"{stage}.remat": ("none", "dots", "full") for stage in ("sft", "osipo")},
    **{f"{stage}.schedule": ("constant", "linear", "cosine") for stage in ("sft", "osipo")},
    "distill.target": TARGETS,
    "distill.student": ("osipo", "sft"),
    "osipo.outcome": ("own", "pooled"),
    "osipo.estimator": ("osipo", "prime"),
    "osipo.baseline": ("loo", "group_mean"),
    "osipo.scale": ("batch_rms", "group_std", "none"),
    "distill.value_init": ("random", "words"),
    "osipo.ratio": ("segment", "token", "sequence"),
    "osipo.aggregation": ("segment_mean", "token_mean", "sequence_mean", "constant"),
}

_INF = float("inf")
_COUNT, _FROM_0, _SHARE = (1, _INF, False), (0, _INF, False), (0, 1, True)
_ABOVE_0, _SHARE_FROM_0 = (0, _INF, True), (0, 1, False)
# (low, high, ends excluded) of every numeric key; a test holds this table and the defaults together.
RANGES: dict[str, tuple[float, float, bool]] = {
    **{name: (0, 2**32 - 1, False) for name in ("seed", "osipo.seed")},
    "data.limit": _FROM_0,
    **{f"split.{name}": _SHARE for name in ("teacher", "distill", "head", "val", "test", "evaluation_share")},
    "lm.max_profile_tokens": (8, _INF, False),
    **{f"teacher.{name}": _COUNT for name in ("num_profiles", "pilot_profiles", "batch_size", "paraphrases", "beam")},
    **{f"teacher.{name}": _COUNT for name in ("candidates", "max_samples", "max_calls", "max_tokens")},
    **{f"teacher.{name}": _FROM_0 for name in ("min_gain", "max_refined_nodes", "deadline_s")},
    "teacher.refine_quantile": _SHARE_FROM_0,
    **{f"teacher.served.{name}": _COUNT for name in ("top_k", "samples", "concurrency")},
    **{f"teacher.served.{name}": _FROM_0 for name in ("requests_per_minute", "retries", "max_total_tokens", "max_usd")},
    **{f"teacher.served.usd_per_million_{name}": _FROM_0 for name in ("input", "output")},
    "teacher.served.timeout_s": _ABOVE_0,
    **{f"student.{name}": kind for name, kind in (("num_layers", _FROM_0), ("exit_texts", _COUNT))},
    **{f"student.{name}": kind for name, kind in (("lora_rank", _COUNT), ("lora_alpha", _ABOVE_0))},
    "mesh.data": _FROM_0,
    **{f"mesh.{name}": _COUNT for name in ("fsdp", "tensor")},
    **{f"checkpoint.{name}": kind for name, kind in (("keep", _COUNT), ("keep_best", _FROM_0))},
    **{f"sft.{name}": _COUNT for name in ("epochs", "batch_size", "accumulate", "checkpoint_every")},
    "sft.eval_fraction": (0, 0.9, False),
    **{f"sft.{name}": _ABOVE_0 for name in ("learning_rate", "clip_norm")},
    **{f"sft.{name}": _FROM_0 for name in ("warmup_steps", "weight_decay", "answer_weight")},
    **{f"osipo.{name}": _COUNT for name in ("updates", "prompts", "rollouts", "epochs", "accumulate")},
    **{f"osipo.{name}": _COUNT for name in ("checkpoint_every", "auc_pairs", "eval_profiles", "eval_chains")},
    **{f"osipo.{name}": _ABOVE_0 for name in ("temperature", "learning_rate", "reward_learning_rate", "beta")},
    **{f"osipo.{name}": _ABOVE_0 for name in ("min_scale", "clip_norm", "kl_limit")},
    **{f"osipo.{name}": _FROM_0 for name in ("warmup_updates", "process_weight", "kl_weight", "clip_high")},
    **{
        f"osipo.{name}": _FROM_0
        for name in ("warmup_steps", "outcome_weight", "answer_weight", "answer_prior", "sft_weight")
    },
    **{f"osipo.{name}": _SHARE_FROM_0 for name in ("gamma", "clip_low")},
    **{f"distill.{name}": _COUNT for name in ("num_profiles", "chains", "dim", "whiten_dim", "width", "steps")},
    **{f"distill.{name}": _COUNT for name in ("batch_size", "checkpoint_every")},
    "distill.field_dropout": (0, 0.95, False),
    "distill.emphasis": (0, 2, False),
    "distill.pool": _FROM_0,
    "distill.student_folds": _FROM_0,
    "distill.learning_rate": _ABOVE_0,
    **{f"score.{name}": _COUNT for name in ("batch_size", "shard_rows")},
    **{f"head.{name}": _COUNT for name in ("seeds", "width", "steps", "batch_size")},
    "head.learning_rate": _ABOVE_0,
    "evaluate.bootstrap": (20, _INF, False),
    "evaluate.level": _SHARE,
    "coverage.folds": (2, _INF, False),
    "coverage.draws": (1, _INF, False),
    **{f"coverage.{name}": _FROM_0 for name in ("chains", "usd_per_million_teacher", "usd_per_million_student")},
    "evaluate.sentence_rows": _FROM_0,
    "report.chains": _FROM_0,
    "report.users": (0, 20_000, False),
}


def check(flat: Mapping[str, Any]) -> None:
    """Refuses impossible values and combinations.

    Args:
      flat: every key of the configuration, dotted, with its value.

    Raises:
      ConfigError: names the key, its value and what it may be.
    """
    for key, choices in CHOICES.items():
        if flat[key] not in choices:
            raise ConfigError(
                "a value is not one of the choices",
                where=key,
                why=f"{flat[key]!r}",
                do=f"choose one of {', '.join(choices)}",
            )
    fractions = [flat[f"split.{name}"] for name in ("teacher", "distill", "head", "val", "test")]
    if any(fraction <= 0 for fraction in fractions) or abs(sum(fractions) - 1) > 1e-6:
        raise ConfigError(
            "the split fractions must be positive and sum to 1", where="split", why=f"they are {fractions}"
        )
    for key, value in flat.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            low, high, open_ends = RANGES[key]
            inside = low < value < high if open_ends else low <= value <= high
            if not inside:
                signs = ("above", "below") if open_ends else ("at least", "at most")
                limits = [f"{sign} {end:g}" for sign, end in zip(signs, (low, high)) if abs(end) != math.inf]
                raise ConfigError(
                    f"a value must be {' and '.join(limits)}" if limits else "a value must be a finite number",
                    where=key,
                    why=f"it is {value}",
                )
    strange = [mode for mode in flat["distill.placebos"] if mode not in TARGETS]
    if strange or len(set(flat["distill.placebos"])) < len(flat["distill.placebos"]):
        raise ConfigError(
            "placebos are different kinds of targets",
            where="distill.placebos",
            why=f"{list(flat['distill.placebos'])}",
            do=f"list some of {', '.join(TARGETS)}, each once",
        )
    strange = [name for name in flat["metrics.sinks"] if name not in sinks.OPTIONAL]
    if strange:
        raise ConfigError(
            "unknown sink of metrics", where="metrics.sinks", why=f"{strange}", do=f"any of {', '.join(sinks.OPTIONAL)}"
        )
    penalties = flat["head.penalties"]
    if not penalties or not all(isinstance(p, (int, float)) and p >= 0 for p in penalties):
        raise ConfigError(
            "penalties must be a list of numbers that are not negative", where="head.penalties", why=f"{penalties}"
        )
    if flat["distill.layer"] != "auto":
        try:
            inside = 0 < float(flat["distill.layer"]) <= 1
        except ValueError:
            inside = False
        if not inside:
            raise ConfigError(
                "a layer is 'auto' or a fraction of the depth", where="distill.layer", why=flat["distill.layer"]
            )
    if flat["teacher.pilot_profiles"] > flat["teacher.num_profiles"]:
        raise ConfigError(
            "the pilot is drawn from the reasoned profiles",
            where="teacher.pilot_profiles",
            why=f"{flat['teacher.pilot_profiles']} > teacher.num_profiles = {flat['teacher.num_profiles']}",
        )
    for rows, parts in (("sft.batch_size", "sft.accumulate"), ("osipo.prompts", "osipo.accumulate")):
        if flat[rows] % flat[parts]:
            raise ConfigError(
                "a batch cannot be split into micro-batches of equal size",
                where=parts,
                why=f"{rows} = {flat[rows]} is not a multiple of {flat[parts]}",
            )
    if flat["sft.keep"] == "best" and not (flat["sft.eval_fraction"] and flat["checkpoint.keep_best"]):
        raise ConfigError(
            "the best checkpoint is known by its evaluation loss",
            where="sft.keep",
            why=f"sft.eval_fraction = {flat['sft.eval_fraction']}, checkpoint.keep_best = {flat['checkpoint.keep_best']}",
            do="set both above 0, or sft.keep=last",
        )
    shift = {name: bool(flat[f"split.shift_{name}"]) for name in ("field", "train", "test")}
    if any(shift.values()) and (not all(shift.values()) or flat["split.shift_train"] == flat["split.shift_test"]):
        raise ConfigError(
            "a shift test needs a field and two different values of it",
            where="split.shift_field, split.shift_train, split.shift_test",
            do="set all three, e.g. --config.split.shift_field=module --config.split.shift_train=BBB "
            "--config.split.shift_test=AAA, or none",
        )
    if flat["teacher.backend"] == "served":
        section = "teacher.served."
        of_server = {key.removeprefix(section): value for key, value in flat.items() if key.startswith(section)}
        served.check(of_server, scoring=flat["teacher.scoring"])
    if flat["data.name"] == "parquet" and not (flat["data.path"] and flat["data.schema"]):
        raise ConfigError(
            "a table of your own needs a path and a schema",
            where="data.path, data.schema",
            do="set both, e.g. --config.data.path=users.parquet --config.data.schema=users.yaml",
        )
