"""One SFT step of all parameters: ours against torch and transformers, float32, on the same model and batch.

    JAX_PLATFORMS=cpu python benchmarks/sft_step.py                 # SmolLM2-135M, 8 rows of 256 tokens
    JAX_PLATFORMS=cpu python benchmarks/sft_step.py --layers 4      # a quick look

The model is random: SmolLM2-135M's shape (30 layers, 49152 words, tied head), the same numbers on both sides. A row is a
prompt of 128 tokens and a chain of 128 whose tokens are learnt; the peer gets the same rows with the prompt's labels masked,
in eager float32 with its own cross-entropy, AdamW without weight decay and clipping to norm 1: what people run. Losses of the
first step are compared. Each side has a process of its own, and they step in turn; peak memory is the highest resident set of
that process above what it held with its libraries loaded. The last line is JSON: ``ratio.torch_f32`` (tokens a second, ours / torch; goal 0.9) and
``ratio.torch_f32_memory`` (bytes, ours / torch; goal at most 0.6).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import harness
import numpy as np

ROWS, PROMPT, CHAIN = 8, 128, 128
SHAPE = {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_heads": 9, "num_kv_heads": 3}


def tokens_of(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, SHAPE["vocab_size"], (ROWS, PROMPT + CHAIN)).astype(np.int32)


def resident() -> float:
    """Highest resident set of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def initial(layers: int) -> dict[str, Any]:
    """The same parameters for both sides, in our layout, float32."""
    rng = np.random.default_rng(1)
    d, f, kv = SHAPE["hidden_size"], SHAPE["intermediate_size"], SHAPE["num_kv_heads"] * 64
    sizes = {"q": (d, d), "k": (d, kv), "v": (d, kv), "o": (d, d), "gate": (d, f), "up": (d, f), "down": (f, d)}
    made = {
        name: rng.standard_normal((layers, *size), np.float32) * np.float32(size[0] ** -0.5)
        for name, size in sizes.items()
    }
    norms = {name: np.ones((layers, d), np.float32) for name in ("attn_norm", "mlp_norm")}
    embed = rng.standard_normal((SHAPE["vocab_size"], d), np.float32) * np.float32(d**-0.5)
    return {"embed": embed, "layers": {**made, **norms}, "final_norm": np.ones(d, np.float32)}


def ours(layers: int, remat: str) -> Any:
    """A function that makes one step and returns its loss."""
    from functools import partial

    import jax
    import jax.numpy as jnp

    from scaletot_jax.lm.config import LMConfig
    from scaletot_jax.student.adapter import adamw
    from scaletot_jax.student.constrained import GrammarArrays
    from scaletot_jax.student.free_text import FreeText
    from scaletot_jax.student.full import full_sft_step, start_full
    from scaletot_jax.student.sft_step import SFTBatch

    config = LMConfig(**SHAPE, num_layers=layers, head_dim=64, rope_theta=1e4)
    optimizer = adamw(1e-4, steps=1000, warmup=0, weight_decay=0.0, clip_norm=1.0, schedule="constant")
    tokens = tokens_of()
    chains = tokens[:, None, PROMPT:]
    # A grammar whose only state is free text: what is taught there is the token that is written.
    one, table = jnp.zeros(1, jnp.int32), jnp.zeros((1, 1), jnp.int32)
    free = FreeText(states=one, number=one, next_states=one, segments=one, closes=one, reserved=one)
    start, nowhere = jnp.int32(0), jnp.int32(-1)
    grammar = GrammarArrays(table, table, table, table, start, start, nowhere, one, free)
    shape = chains.shape
    batch = SFTBatch(
        prompts=jnp.asarray(tokens[:, :PROMPT]),
        prompt_valid=jnp.ones((ROWS, PROMPT), bool),
        chains=jnp.asarray(chains),
        chain_valid=jnp.ones(shape, bool),
        states=jnp.zeros(shape, jnp.int32),
        targets=jnp.ones((*shape, 1), jnp.float32),
        weights=jnp.ones(shape[:2], jnp.float32),
    )
    step = jax.jit(partial(full_sft_step, config=config, optimizer=optimizer, remat=remat), donate_argnums=0)
    state = [start_full(jax.tree.map(jnp.asarray, initial(layers)), optimizer)]

    def run() -> float:
        state[0], metrics = step(state[0], grammar, batch)
        return float(metrics["loss"])

    return run


def theirs(layers: int) -> Any:
    """The same for torch."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=SHAPE["vocab_size"],
        hidden_size=SHAPE["hidden_size"],
        intermediate_size=SHAPE["intermediate_size"],
        num_hidden_layers=layers,
        num_attention_heads=SHAPE["num_heads"],
        num_key_value_heads=SHAPE["num_kv_heads"],
        head_dim=64,
        rms_norm_eps=1e-5,
        rope_theta=1e4,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
        use_cache=False,
    )
    model = LlamaForCausalLM(config).float()
    fill(model, initial(layers))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)
    tokens = torch.from_numpy(tokens_of().astype(np.int64))
    labels = tokens.clone()
    labels[:, :PROMPT] = -100

    def run() -> float:
        loss = model(input_ids=tokens, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return run


def fill(model: Any, params: dict[str, Any]) -> None:
    """Puts our parameters into a transformers model, whose matrices are [outputs, inputs]."""
    import torch

    names = {
        "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
        "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
    }  # fmt: skip
    found = dict(model.named_parameters())
    with torch.no_grad():
        found["model.embed_tokens.weight"].copy_(torch.from_numpy(params["embed"]))
        for name, place in names.items():
            for index, matrix in enumerate(params["layers"][name]):
                found[f"model.layers.{index}.{place}.weight"].copy_(torch.from_numpy(matrix.T.copy()))


def worker(side: str, layers: int, remat: str) -> None:
    """Answers each line of stdin with a step: its loss, and what the process has held at most so far."""
    if side == "ours":
        import jax

        jax.devices()
    else:
        import torch
        import transformers  # noqa: F401

        torch.zeros(1)
    before = resident()
    step = ours(layers, remat) if side == "ours" else theirs(layers)
    for _ in sys.stdin:
        loss = step()
        print(json.dumps({"loss": loss, "mib": resident() - before}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--remat", default="dots", choices=("none", "dots", "full"))
    parser.add_argument("--worker", default="")
    options = parser.parse_args()
    if options.worker:
        worker(options.worker, options.layers, options.remat)
        return
    program = [sys.executable, str(Path(__file__).resolve()), "--layers", str(options.layers), "--remat", options.remat]
    names = {"ours": "ours", "torch_f32": "theirs"}
    workers = {
        name: subprocess.Popen([*program, "--worker", side], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name, side in names.items()
    }
    losses: dict[str, list[float]] = {name: [] for name in workers}
    memory = {}

    def job(name: str) -> float:
        pipe = workers[name]
        assert pipe.stdin is not None and pipe.stdout is not None
        pipe.stdin.write("step\n")
        pipe.stdin.flush()
        answer = json.loads(pipe.stdout.readline())
        losses[name].append(answer["loss"])
        memory[name] = answer["mib"]
        return ROWS * (PROMPT + CHAIN)

    try:
        rates = harness.in_turn({name: lambda name=name: job(name) for name in workers}, options.rounds)
    finally:
        for pipe in workers.values():
            if pipe.stdin is not None:
                pipe.stdin.close()
            pipe.wait()
    harness.table(rates, "tokens/s")
    print("\nloss of the first step: " + ", ".join(f"{name} {values[0]:.5f}" for name, values in losses.items()))
    print("peak memory, MiB: " + ", ".join(f"{name} {value:,.0f}" for name, value in memory.items()))
    if abs(losses["ours"][0] - losses["torch_f32"][0]) > 1e-3 * losses["torch_f32"][0]:
        raise SystemExit("the two sides do not compute the same loss")
    median = {name: 1 / float(np.median(seconds)) for name, seconds in rates.items()}
    ratio = {
        "torch_f32": round(median["ours"] / median["torch_f32"], 3),
        "torch_f32_memory": round(memory["ours"] / memory["torch_f32"], 3),
    }
    harness.last_line(
        "sft_step", rates, "tokens/s", missing={}, layers=options.layers, remat=options.remat, ratio=ratio,
        memory_mib={name: round(value) for name, value in memory.items()},
    )  # fmt: skip


if __name__ == "__main__":
    main()
