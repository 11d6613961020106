"""The configuration: every key with its default, and strict overrides.

A recipe is a Python file with ``get_config()`` that starts from :func:`default_config`. Keys are locked: an unknown
key or a value of another type is a :class:`~scaletot_jax.errors.ConfigError` that names the key.
"""

from __future__ import annotations

import difflib
import importlib.util
from pathlib import Path
from typing import Any

import yaml
from ml_collections import ConfigDict

from scaletot_jax import config_limits, recipes
from scaletot_jax.errors import ConfigError


def default_config() -> ConfigDict:
    """All keys, with the defaults of a full-size run. Sections follow the stations of the line."""
    config = ConfigDict()
    config.seed = 0

    # profiles and data
    config.data = ConfigDict()
    config.data.name = "complete_journey"  # complete_journey | oulad | kuairand_pure | synthetic | parquet
    config.data.path = ""  # with name=parquet: the table
    config.data.schema = ""  # a schema file or the name of a built-in one; empty: the builder's own
    config.data.manual_dir = ""  # official downloads of oulad and kuairand_pure
    config.data.low_activity = True  # keep only the builder's low-activity population
    config.data.profile_fields = "static+early"  # static | static+early
    config.data.limit = 0  # keep at most this many rows (0: all), chosen by the hash of their user id

    config.split = ConfigDict()  # fractions of users (groups), by hash; they sum to 1
    config.split.teacher = 0.25  # teacher chains, SFT, OSIPO
    config.split.distill = 0.20  # student states for the encoder
    config.split.head = 0.30  # labels for the LTV heads
    config.split.val = 0.10
    config.split.test = 0.15
    config.split.time_forward = True  # where the schema has a snapshot date: val and test lie after the training labels
    config.split.evaluation_share = 0.4  # share of the snapshot dates, the latest, on which val and test lie
    config.split.shift_field = ""  # train on rows with one value of this field, test on rows with another: a shift test
    config.split.shift_train = ""  # its value for teacher, distill, head and val
    config.split.shift_test = ""  # its value for test

    # language model
    config.lm = ConfigDict()
    config.lm.weights = "smollm2"  # smollm2 | a .gguf file | a Hugging Face directory
    config.lm.chain_spec = ""  # a chain specification file or built-in name; empty: the data set's own
    config.lm.max_profile_tokens = 120

    # teacher
    config.teacher = ConfigDict()
    config.teacher.num_profiles = 2000  # distinct profiles reasoned about, drawn from the teacher split
    config.teacher.pilot_profiles = 500  # label-blind pilot, the first of them
    config.teacher.batch_size = 16  # profiles searched in lockstep and committed together
    config.teacher.answer = "pooled"  # the stored soft label: direct | chain | pooled
    config.teacher.base_rate = True  # shift the mean answer to the aggregate base rate of the training rows
    config.teacher.scoring = "auto"  # auto (the pilot decides) | trie | full
    config.teacher.paraphrases = 2
    config.teacher.beam = 2
    config.teacher.candidates = 3
    config.teacher.refine_quantile = (
        0.95  # threshold of u, per slot, from the pilot; .95 by benchmarks/teacher_ablation.py
    )
    config.teacher.guide = "both"  # what u is made of: both | entropy | disagreement
    config.teacher.min_gain = 0.05
    config.teacher.max_refined_nodes = 3
    config.teacher.max_samples = 45
    config.teacher.max_calls = 24
    config.teacher.max_tokens = 4096
    config.teacher.deadline_s = 0.0  # per profile; 0: none (a deadline makes a run irreproducible)
    config.teacher.backend = "local"  # local: lm.weights, run here | served: a model behind an OpenAI-compatible API

    config.teacher.served = ConfigDict()  # for backend=served; see docs/recipes.md
    config.teacher.served.base_url = ""  # such as http://127.0.0.1:8000/v1
    config.teacher.served.model = ""  # as the server names it; empty: the only one it lists
    config.teacher.served.api = "completions"  # completions (top-k log-probabilities) | chat
    config.teacher.served.api_key_env = ""  # name of the environment variable that holds the key; empty: no key
    config.teacher.served.top_k = 100  # log-probabilities asked for at each decision; 20 or 5 where these are too many
    config.teacher.served.samples = 8  # drawn and counted where a chat server gives no log-probabilities
    config.teacher.served.concurrency = 8  # requests in flight, which is also the most that a kill can cost
    config.teacher.served.requests_per_minute = 0.0  # 0: no limit
    config.teacher.served.timeout_s = 60.0  # of one request, from connecting to the last byte
    config.teacher.served.retries = 5  # of a request that failed for a passing reason
    config.teacher.served.max_total_tokens = 0  # hard limit of a run, prompt and answer together; 0: none
    config.teacher.served.max_usd = 0.0  # hard limit of a run, by the prices below; 0: none
    config.teacher.served.usd_per_million_input = 0.0
    config.teacher.served.usd_per_million_output = 0.0

    # student
    config.student = ConfigDict()
    config.student.num_layers = 0  # 0: all; else the first layers, calibrated to the model's own head
    config.student.trainable = (
        "lora"  # what SFT trains: lora | full (all parameters; OSIPO then trains adapters on them)
    )
    config.student.compute_dtype = (
        "float32"  # of matrix products in SFT and OSIPO: float32 | bfloat16; masters are float32
    )
    config.student.attention = "auto"  # by the backend, or einsum | dot_product | splash (TPU), see lm/attend.py
    config.student.lora_rank = 16
    config.student.lora_alpha = 32.0

    config.student.exit_texts = 64  # texts on which the exit map of a shorter student is fitted

    config.mesh = ConfigDict()  # devices for SFT and OSIPO: data × fsdp × tensor
    config.mesh.data = 1  # 0: as many as there are
    config.mesh.fsdp = 1
    config.mesh.tensor = 1

    config.metrics = ConfigDict()  # beside steps.jsonl and TensorBoard's event files, which are always written
    config.metrics.sinks = ()  # any of wandb, mlflow, trackio; changes no result

    config.checkpoint = ConfigDict()  # of SFT and OSIPO; changes no result, so it may differ between restarts
    config.checkpoint.keep = 2  # the newest
    config.checkpoint.keep_best = 1  # besides them, those with the lowest evaluation loss, where one is measured
    config.checkpoint.asynchronous = True  # written while the training goes on

    config.sft = ConfigDict()
    config.sft.epochs = 2
    config.sft.batch_size = 8
    config.sft.accumulate = 1  # micro-batches a step: the same loss and gradient in as many times less memory
    config.sft.remat = "dots"  # what the backward pass computes again: none | dots (attention) | full (whole layers)
    config.sft.learning_rate = 1e-3
    config.sft.schedule = "cosine"  # after the warm-up: constant | linear | cosine, the latter two towards a tenth
    config.sft.warmup_steps = 5
    config.sft.weight_decay = 0.0
    config.sft.clip_norm = 1.0
    config.sft.answer_weight = 1.0  # of answer tokens, here and in the chains that OSIPO replays
    config.sft.eval_fraction = (
        0.0  # of the teacher's profiles, kept out of SFT; their loss is logged at every checkpoint
    )
    config.sft.keep = "last"  # last | best: which checkpoint is the result; best goes by the loss above
    config.sft.checkpoint_every = 10

    config.osipo = ConfigDict()
    config.osipo.seed = 0  # of the order of prompts and of the rollouts; added to the run's own
    config.osipo.updates = 100
    config.osipo.prompts = 8
    config.osipo.rollouts = 8
    config.osipo.epochs = 1  # updates that a batch of rollouts serves, one after another
    config.osipo.temperature = 1.0
    config.osipo.accumulate = 1  # micro-batches of prompts in each pass of an update
    config.osipo.remat = "dots"  # as sft.remat
    config.osipo.learning_rate = 1e-4
    config.osipo.reward_learning_rate = 1e-4
    config.osipo.schedule = "cosine"  # as sft.schedule, of both rates
    config.osipo.warmup_steps = 5  # of both rates: Adam's first steps are full ones, however small the batch
    config.osipo.warmup_updates = 2  # first updates, with process weight 0: the reward model has learnt nothing yet
    config.osipo.outcome = "own"  # what a chain is judged by: own label | labels pooled over equal coarse profiles
    config.osipo.outcome_weight = 1.0  # 0 with process_weight=0: no policy gradient, the supervised terms alone
    config.osipo.process_weight = 0.1  # 0: RLOO
    config.osipo.estimator = (
        "osipo"  # osipo | prime: credit by token, as PRIME's code has it; baseline, scale, min_scale, gamma unread
    )
    config.osipo.baseline = "loo"  # loo | group_mean
    config.osipo.scale = "batch_rms"  # of advantages: batch_rms | group_std (as GRPO) | none
    config.osipo.gamma = 0.0
    config.osipo.beta = 0.5
    config.osipo.min_scale = 1e-3
    config.osipo.clip_low = 0.2
    config.osipo.clip_high = 0.28
    config.osipo.ratio = "segment"
    config.osipo.aggregation = "segment_mean"
    config.osipo.kl_weight = 1e-3
    config.osipo.answer_weight = 1.0
    config.osipo.answer_prior = 128.0  # labels that the SFT policy's own answers count for, over the whole run; 0: none
    config.osipo.sft_weight = 0.05
    config.osipo.clip_norm = 1.0
    config.osipo.checkpoint_every = 1
    config.osipo.kl_limit = 16.0  # nats a chain from the SFT policy; beyond it the process weight stays 0
    config.osipo.auc_pairs = 2000  # pairs of chains after which the process signal must be better than chance
    config.osipo.eval_chains = 2  # chains a held-out profile, whose answers are averaged
    config.osipo.eval_profiles = 200  # held-out profiles of the validation split for the student's RPS

    # encoder
    config.distill = ConfigDict()
    config.distill.num_profiles = 2000  # distinct profiles of the distill split, beside the teacher's
    config.distill.chains = 4  # sampled chains a profile
    config.distill.student_folds = (
        0  # students for out-of-fold states of the teacher split, see encoder/student_folds.py
    )
    config.distill.student = "osipo"  # osipo | sft: whose states
    config.distill.layer = "auto"  # auto (probe) | a fraction of the depth such as "0.75"
    config.distill.target = (
        "states"  # states | pooled | prompt_end | labels | shuffled | random, see encoder/targets.py
    )
    config.distill.placebos = ("labels", "shuffled", "random", "prompt_end")  # encoders trained beside it, same choices
    config.distill.dim = 64
    config.distill.whiten_dim = 64
    config.distill.emphasis = 0.0  # a direction counts by its variance to this power: 0 whitened, 1 own units
    config.distill.pool = 8000  # profiles without states that are given expected ones, see encoder/spread.py; 0: none
    config.distill.value_init = (
        "random"  # random | words: field values start from the student's embedding of their words
    )
    config.distill.width = 256
    config.distill.field_dropout = 0.2
    config.distill.steps = 2000
    config.distill.batch_size = 256
    config.distill.learning_rate = 1e-3
    config.distill.checkpoint_every = 500

    config.score = ConfigDict()
    config.score.batch_size = 8192
    config.score.shard_rows = 1_000_000

    # evaluation
    config.head = ConfigDict()
    config.head.seeds = 5
    config.head.width = 64
    config.head.steps = 1500
    config.head.batch_size = 256
    config.head.learning_rate = 1e-3
    config.head.penalties = (1e-3, 1e-2, 1e-1, 1.0)  # L2 candidates; the validation rows choose

    config.evaluate = ConfigDict()
    config.evaluate.bootstrap = 1000
    config.evaluate.level = 0.95
    config.evaluate.baselines = True  # fit every baseline of evaluation/baselines besides the heads
    config.evaluate.sentence_rows = 20_000  # most rows whose text is embedded for the sentence baselines; 0: none

    config.coverage = ConfigDict()  # `scaletot coverage`
    config.coverage.points = (0.005, 0.01, 0.025, 0.0732, 0.2, 0.5, 1.0)  # shares of users that are reasoned about
    config.coverage.folds = 3  # encoders a point, each distilled without a fold, for the states that feed a head
    config.coverage.draws = 1  # sets of reasoned users at each point, each with encoders and heads of its own
    config.coverage.chains = 0  # sampled chains a profile; 0: distill.chains
    config.coverage.usd_per_million_teacher = 0.0  # price of a million tokens of the teacher
    config.coverage.usd_per_million_student = 0.0  # and of the student

    config.report = ConfigDict()
    config.report.chains = 6  # examples shown
    config.report.users = 5000  # most rows of the explorer
    config.report.show_text = False  # free text of people and of the teacher
    config.report.show_ids = False  # identifiers, in the explorer alone
    config.lock()
    return config


def load_config(path: str | Path) -> ConfigDict:
    """Runs ``get_config()`` of a recipe: a file, or the name of a shipped one (:mod:`scaletot_jax.recipes`)."""
    path = recipes.find(path)
    if not path.is_file():
        raise ConfigError(
            "the configuration file is missing",
            where=str(path),
            do=f"pass a file of your own, or the name of a shipped recipe: {', '.join(recipes.names())}",
        )
    spec = importlib.util.spec_from_file_location("scaletot_recipe", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except (AttributeError, KeyError, TypeError) as error:
        raise ConfigError(
            "the recipe sets a key that does not exist or a value of the wrong type", where=str(path), why=str(error)
        ) from error
    except (SyntaxError, ImportError) as error:
        raise ConfigError("the recipe cannot be read", where=str(path), why=str(error)) from error
    return config


def override(config: ConfigDict, key: str, text: str) -> None:
    """Sets the dotted ``key`` from its text form, e.g. ``override(config, "sft.epochs", "3")``."""
    *parents, leaf = key.split(".")
    node: Any = config
    for part in parents:
        if not isinstance(node, ConfigDict) or part not in node:
            raise _unknown(config, key)
        node = node[part]
    if not isinstance(node, ConfigDict) or leaf not in node:
        raise _unknown(config, key)
    old = node[leaf]
    if isinstance(old, ConfigDict):
        raise ConfigError(
            f"'{key}' is a section, not a value",
            where=f"--config.{key}={text}",
            do=f"set one of: {', '.join(sorted(old))}",
        )
    node[leaf] = _parse(key, text, old)


def _parse(key: str, text: str, old: Any) -> Any:
    if isinstance(old, str):
        return text
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError("a value cannot be read", where=f"--config.{key}={text}", why=str(error)) from error
    if isinstance(old, float) and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    elif isinstance(old, tuple) and isinstance(value, list):
        return tuple(value)
    elif type(value) is type(old):
        return value
    raise ConfigError(
        "a value has the wrong type",
        where=f"--config.{key}={text}",
        why=f"{key} is of type {type(old).__name__} (default {old!r})",
        do=f"write a list, such as --config.{key}={yaml.safe_dump(list(old), default_flow_style=True).strip()}"
        if isinstance(old, tuple)
        else "",
    )


def _unknown(config: ConfigDict, key: str) -> ConfigError:
    known = list(_leaves(config))
    close = difflib.get_close_matches(key, known, n=3)
    hint = f"did you mean {', '.join(close)}?" if close else "see 'scaletot plan' for every key with its value"
    return ConfigError("unknown configuration key", where=key, do=hint)


def _leaves(config: ConfigDict, prefix: str = ""):
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def validate(config: ConfigDict) -> None:
    """Refuses impossible values and combinations before anything is loaded; names the key.

    Raises:
      ConfigError: see :mod:`scaletot_jax.config_limits`.
    """
    config_limits.check({key: _get(config, key) for key in _leaves(config)})


def _get(config: ConfigDict, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value[part]
    return value
