"""The work of benchmarks/osipo_step.py, and its peers: Tunix's GRPO update and TRL's, each in an environment of its own.

Nothing here imports scaletot_jax: the peers' environments do not have it. Weights, adapters, tokens and advantages are drawn
by NumPy, the same on all sides. Every chain is a row of prompt and chain, as both libraries lay them out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

USERS, CHAINS, PROMPT, LENGTH = 8, 4, 112, 56
RANK, SCALE, KL, RATE = 16, 2.0, 1e-3, 1e-4
SHAPE = {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_heads": 9, "num_kv_heads": 3}
HEAD, THETA = 64, 1_000_000  # the base that Tunix's Llama is written with
_SIZES = {"q": (576, 576), "k": (576, 192), "v": (576, 192), "o": (576, 576)}
SIZES = _SIZES | {"gate": (576, 1536), "up": (576, 1536), "down": (1536, 576)}
Step = Callable[[], dict[str, float]]  # makes one update; what it says of itself


class Work(NamedTuple):
    """Prompts [U, P], chains [U, N, R] and outcomes [U, N] of one batch; token 0 stands for nothing and is not drawn."""

    prompts: np.ndarray
    chains: np.ndarray
    outcomes: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """Every chain behind its prompt, [U·N, P + R]."""
        prompts = np.repeat(self.prompts[:, None], CHAINS, axis=1)
        return np.concatenate([prompts, self.chains], axis=2).reshape(USERS * CHAINS, PROMPT + LENGTH)

    @property
    def advantages(self) -> np.ndarray:
        """Leave-one-out, by the root mean square of the batch, [U·N] float32: what RLOO credits each chain with."""
        others = (self.outcomes.sum(1, keepdims=True) - self.outcomes) / (CHAINS - 1)
        credit = self.outcomes - others
        return (credit / np.sqrt(np.mean(credit**2))).reshape(-1).astype(np.float32)


def work() -> Work:
    rng = np.random.default_rng(0)
    vocabulary = SHAPE["vocab_size"]
    prompts = rng.integers(1, vocabulary, (USERS, PROMPT)).astype(np.int32)
    chains = rng.integers(1, vocabulary, (USERS, CHAINS, LENGTH)).astype(np.int32)
    return Work(prompts, chains, rng.uniform(0.8, 1.0, (USERS, CHAINS)))


def weights(layers: int) -> dict[str, Any]:
    """Base parameters in our layout, float32."""
    rng = np.random.default_rng(1)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32) * np.float32(shape[-2] ** -0.5)

    made = {name: draw(layers, *size) for name, size in SIZES.items()}
    norms = {name: np.ones((layers, SHAPE["hidden_size"]), np.float32) for name in ("attn_norm", "mlp_norm")}
    embed = rng.standard_normal((SHAPE["vocab_size"], SHAPE["hidden_size"]), np.float32) * np.float32(576**-0.5)
    return {"embed": embed, "layers": {**made, **norms}, "final_norm": np.ones(SHAPE["hidden_size"], np.float32)}


def adapters(layers: int) -> dict[str, np.ndarray]:
    """The A of each projection, [L, inputs, r]; every B is zero."""
    rng = np.random.default_rng(2)
    return {
        name: rng.standard_normal((layers, size[0], RANK), np.float32) * np.float32(size[0] ** -0.5)
        for name, size in SIZES.items()
    }


# -- Tunix -----------------------------------------------------------------------------------------------------------------


def tunix(layers: int, checkpointing: bool) -> Step:
    """``tunix.rl.grpo``: reference log-probabilities, then its trainer's jitted step over its GRPO loss.

    Its learner's own programs, called as its cluster calls them, without the cluster's bookkeeping. The reference shares the
    base weights, as its clusters do with LoRA.
    """
    import jax
    import jax.numpy as jnp
    import optax
    import qwix
    from flax import nnx
    from tunix.models.llama3 import model as llama
    from tunix.rl import algo_core, common, trainer
    from tunix.rl.grpo import grpo_learner
    from tunix.sft.peft_trainer import TrainingConfig

    config = llama.ModelConfig(
        num_layers=layers, vocab_size=SHAPE["vocab_size"], embed_dim=SHAPE["hidden_size"],
        hidden_dim=SHAPE["intermediate_size"], num_heads=SHAPE["num_heads"], head_dim=HEAD,
        num_kv_heads=SHAPE["num_kv_heads"], rope_theta=THETA, norm_eps=1e-5, weight_tying=True,
        remat_config=llama.RematConfig.DECODER if checkpointing else llama.RematConfig.NONE,
    )  # fmt: skip
    base = llama.Llama3(config, rngs=nnx.Rngs(0))
    _fill_tunix(base, weights(layers))
    provider = qwix.LoraProvider(module_path=".*(q|k|v|o|gate|up|down)_proj", rank=RANK, alpha=SCALE * RANK)
    actor = qwix.apply_lora_to_model(base, provider, **base.get_model_input(), rngs=nnx.Rngs(0))
    _adapt_tunix(actor, adapters(layers))
    reference, shared = nnx.split(base)
    settings = grpo_learner.GRPOConfig(num_generations=CHAINS, beta=KL, kl_loss_mode="low_var_kl")
    settings.temperature = 1.0
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(RATE, weight_decay=0.0))
    learner = trainer.Trainer(actor, optimizer, TrainingConfig(eval_every_n_steps=1000), lambda: {})

    def loss(model: Any, train_example: Any, algo_config: Any) -> Any:
        return algo_core.grpo_loss_fn(model, train_example, algo_config, 0, 0)

    learner.with_loss_fn(loss, has_aux=True)
    learner.with_gen_model_input_fn(lambda example: {"train_example": example, "algo_config": settings})
    train, _ = learner.jit_train_and_eval_step()
    batch = work()
    prompts, chains = (jnp.asarray(part) for part in (batch.rows[:, :PROMPT], batch.rows[:, PROMPT:]))
    advantages = jnp.asarray(batch.advantages)

    def step() -> dict[str, float]:
        logps = common.compute_per_token_logps(reference, shared, prompts, chains, 0, 0)
        example = grpo_learner.TrainExample(
            prompt_ids=prompts, prompt_mask=prompts != 0, completion_ids=chains, completion_mask=chains != 0,
            advantages=advantages, ref_per_token_logps=logps, old_per_token_logps=None,
        )  # fmt: skip
        _, _, norm = train(example)
        return {"logps": float(jnp.mean(logps)), "grad_norm": float(norm), "trained": trained}

    trained = float(sum(leaf.size for leaf in jax.tree.leaves(nnx.state(actor, nnx.LoRAParam))))
    return step


def _fill_tunix(model: Any, params: dict[str, Any]) -> None:
    import jax.numpy as jnp

    model.embedder.input_embedding.value = jnp.asarray(params["embed"])
    for index, layer in enumerate(model.layers):
        part = {name: jnp.asarray(params["layers"][name][index]) for name in SIZES}
        for name in "qkv":
            place = getattr(layer.attn, f"{name}_proj").w
            place.value = part[name].reshape(SHAPE["hidden_size"], -1, HEAD)
        layer.attn.o_proj.w.value = part["o"].reshape(-1, HEAD, SHAPE["hidden_size"])
        for name in ("gate", "up", "down"):
            getattr(layer.mlp, f"{name}_proj").kernel.value = part[name]


def _adapt_tunix(model: Any, drawn: dict[str, np.ndarray]) -> None:
    import jax.numpy as jnp

    for index, layer in enumerate(model.layers):
        for name in SIZES:
            module = getattr(layer.attn if name in "qkvo" else layer.mlp, f"{name}_proj")
            place = module.w_lora_a if name in "qkvo" else module.kernel_lora_a
            place.value = jnp.asarray(drawn[name][index]).reshape(place.value.shape)


# -- TRL -------------------------------------------------------------------------------------------------------------------


def trl(layers: int, checkpointing: bool) -> Step:
    """``trl.GRPOTrainer``: reference log-probabilities with the adapter off, its loss, backward, clipping, AdamW.

    The trainer's own methods on the trainer's own model (PEFT, its chunked head), without its data loading and logging.
    """
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    config = LlamaConfig(
        vocab_size=SHAPE["vocab_size"], hidden_size=SHAPE["hidden_size"], intermediate_size=SHAPE["intermediate_size"],
        num_hidden_layers=layers, num_attention_heads=SHAPE["num_heads"], num_key_value_heads=SHAPE["num_kv_heads"],
        head_dim=HEAD, rms_norm_eps=1e-5, rope_theta=THETA, tie_word_embeddings=True, max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": float(THETA)}, use_cache=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).float()
    model.config._name_or_path = "random"
    fill_torch(model, weights(layers))
    words = Tokenizer(models.WordLevel({"[PAD]": 0, "[EOS]": 1, "[UNK]": 2}, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", eos_token="[EOS]", unk_token="[UNK]")
    settings = GRPOConfig(
        output_dir=tempfile.mkdtemp(), use_cpu=True, bf16=False, report_to=[], save_strategy="no", beta=KL,
        loss_type="grpo", num_generations=CHAINS, per_device_train_batch_size=USERS * CHAINS, learning_rate=RATE,
        max_completion_length=LENGTH, gradient_checkpointing=checkpointing, temperature=1.0,
    )  # fmt: skip
    targets = [f"{name}_proj" for name in SIZES]
    trainer = GRPOTrainer(
        model, lambda completions, **_: [0.0] * len(completions), settings, Dataset.from_dict({"prompt": ["x"] * 64}),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=RANK, lora_alpha=SCALE * RANK, target_modules=targets, task_type="CAUSAL_LM"),
    )  # fmt: skip
    actor = trainer.model
    if checkpointing:
        actor.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with torch.no_grad():
        for name, drawn in adapters(layers).items():
            for index, matrix in enumerate(drawn):
                (place,) = [
                    value
                    for key, value in actor.named_parameters()
                    if f"layers.{index}." in key and f"{name}_proj.lora_A" in key
                ]
                place.copy_(torch.from_numpy(matrix.T.copy()))
    actor.train()
    trainer.current_gradient_accumulation_steps = 1
    optimizer = torch.optim.AdamW([p for p in actor.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0)
    batch = work()
    rows = torch.from_numpy(batch.rows.astype(np.int64))
    mask = torch.ones_like(rows)
    inputs = {
        "prompt_ids": rows[:, :PROMPT], "prompt_mask": mask[:, :PROMPT], "completion_ids": rows[:, PROMPT:],
        "completion_mask": mask[:, PROMPT:], "advantages": torch.from_numpy(batch.advantages),
    }  # fmt: skip
    trained = float(sum(p.numel() for p in actor.parameters() if p.requires_grad))

    def step() -> dict[str, float]:
        with torch.no_grad(), actor.disable_adapter():
            logps, _, _ = trainer._get_per_token_logps_and_entropies(actor, rows, mask, LENGTH)
        loss = trainer._compute_loss(actor, {**inputs, "ref_per_token_logps": logps})
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(actor.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {"logps": float(logps.mean()), "grad_norm": float(norm), "trained": trained}

    return step


def fill_torch(model: Any, params: dict[str, Any]) -> None:
    """Puts our parameters into a transformers model, whose matrices are [outputs, inputs]."""
    import torch

    found = dict(model.named_parameters())
    with torch.no_grad():
        found["model.embed_tokens.weight"].copy_(torch.from_numpy(params["embed"]))
        for name in SIZES:
            block = "self_attn" if name in "qkvo" else "mlp"
            for index, matrix in enumerate(params["layers"][name]):
                found[f"model.layers.{index}.{block}.{name}_proj.weight"].copy_(torch.from_numpy(matrix.T.copy()))


def peak_mib() -> float:
    """Highest resident memory of this program so far."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024
