"""The Tree-of-Thought workload of the teacher: tokens a second of ours against ``transformers``, end to end.

    python benchmarks/sampler.py [--quick] [--rounds 3]

4 prompts of 200 tokens at a time, 8 branches a prompt, five segments of 24 tokens; after each segment one branch goes on.
Sampling at τ = 0.7 over the whole vocabulary, no early end, so every form draws the same 3,840 tokens. Ours also keeps the
model's own log-probability and entropy of every token; the peers do not.

    transformers_f32         as people call it: one ``generate(num_return_sequences=8)`` a prompt and segment
    transformers_f32_best    prompt cache kept across segments, all 32 branches in one batch
    transformers_bf16        the same in bfloat16
    llama_cpp_f32            llama.cpp's server, 32 slots over one cache, all prompts at once, 8 completions each
    llama_cpp_q4             the same with the 4-bit weights as they are distributed (other arithmetic: activations in 8 bits)

The last line is one JSON object; a ratio above 1 means ours is faster.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import harness
import jax
import numpy as np

from scaletot_jax.lm.load import load_model, resolve
from scaletot_jax.lm.save import save_directory
from scaletot_jax.sampler.constraint import free_text
from scaletot_jax.sampler.sampler import Request, Sampler
from scaletot_jax.sampler.slots import Sizes

PROMPTS, BRANCHES, PROMPT, SEGMENTS, SEGMENT, TAU = 4, 8, 200, 5, 24, 0.7
THREADS = len(os.sched_getaffinity(0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of two segments")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    segments, rounds = (2, 1) if arguments.quick else (SEGMENTS, arguments.rounds)
    lm = load_model("smollm2")
    rng = np.random.default_rng(0)
    prompts = rng.integers(100, 40_000, (PROMPTS, PROMPT))

    jobs, missing = {"ours": ours(lm, prompts, segments)}, {}
    try:
        jobs |= transformers_jobs(lm, prompts, segments)
    except ImportError as error:
        missing["transformers"] = str(error)
    with tempfile.TemporaryDirectory() as folder:
        try:
            jobs |= llama_cpp_jobs(Path(folder), prompts, segments)
        except ImportError as error:
            missing["llama_cpp"] = str(error)
        measure(jobs, rounds, missing, segments)


def measure(jobs: dict, rounds: int, missing: dict[str, str], segments: int) -> None:
    rates = harness.in_turn(jobs, rounds)
    harness.table(rates, "tokens/s")
    harness.last_line("sampler", rates, "tokens/s", missing=missing, segments=segments)


def ours(lm, prompts: np.ndarray, segments: int):
    sizes = Sizes(PROMPTS, BRANCHES, PROMPT + SEGMENTS * SEGMENT + 8, SEGMENT)
    sampler = Sampler(lm.params, lm.config, [free_text(())], sizes)
    runs = 0

    def job() -> float:
        nonlocal runs
        runs += 1
        groups = range(PROMPTS)
        sampler.forget()
        for group in groups:
            sampler.fill(group, prompts[group])
        written = 0
        for segment in range(segments):
            for group in groups:
                key = jax.random.fold_in(jax.random.fold_in(jax.random.key(runs), segment), group)
                sampler.begin(group, Request((), key, temperature=TAU))
            sampler.decode(groups)
            for group in groups:
                samples = sampler.read(group)
                written += sum(len(sample.tokens) for sample in samples)
                best = max(range(BRANCHES), key=lambda i: samples[i].model_logps.sum())
                sampler.adopt(group, best)
        assert written == PROMPTS * BRANCHES * SEGMENT * segments
        return written

    return job


def llama_cpp_jobs(folder: Path, prompts: np.ndarray, segments: int) -> dict:
    from llama_cpp_peer import Server, expand, tree_job

    small, whole = Path(resolve("smollm2")), folder / "float32.gguf"
    expand(small, whole)
    shape = {"branches": BRANCHES, "segments": segments, "segment": SEGMENT, "tau": TAU}
    settings = {"parallel": PROMPTS * BRANCHES, "tokens": PROMPT + SEGMENTS * SEGMENT + 40, "threads": THREADS}
    return {
        name: tree_job(Server(file, **settings), prompts, **shape)
        for name, file in (("llama_cpp_f32", whole), ("llama_cpp_q4", small))
    }


def transformers_jobs(lm, prompts: np.ndarray, segments: int) -> dict:
    import torch
    import transformers

    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory() as folder:
        save_directory(folder, lm.config, lm.params)
        model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    half = transformers.LlamaForCausalLM(model.config).to(torch.bfloat16).eval()
    half.load_state_dict(model.state_dict())
    total = PROMPTS * BRANCHES * SEGMENT * segments

    def as_called() -> float:
        for prompt in prompts:
            ids = torch.tensor(prompt)[None]
            for _ in range(segments):
                out = model.generate(
                    ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=TAU, top_k=0, top_p=1.0,
                    num_return_sequences=BRANCHES, max_new_tokens=SEGMENT, min_new_tokens=SEGMENT, pad_token_id=0,
                )  # fmt: skip
                ids = out[:1]
        return total

    def best_form(network):
        def job() -> float:
            cache = transformers.DynamicCache()
            out = network(torch.tensor(prompts), past_key_values=cache, logits_to_keep=1)
            cache.batch_repeat_interleave(BRANCHES)
            logits = out.logits[:, -1].repeat_interleave(BRANCHES, 0)
            first = torch.arange(PROMPTS) * BRANCHES
            for _ in range(segments):
                score = torch.zeros(PROMPTS * BRANCHES)
                for _ in range(SEGMENT):
                    logp = torch.log_softmax(logits.float() / TAU, -1)
                    token = torch.multinomial(logp.exp(), 1)
                    score += logp.gather(1, token)[:, 0]
                    logits = network(token, past_key_values=cache, logits_to_keep=1).logits[:, -1]
                chosen = (first + score.reshape(PROMPTS, BRANCHES).argmax(1)).repeat_interleave(BRANCHES)
                cache.reorder_cache(chosen)
                logits = logits[chosen]
            return total

        return job

    return {
        "transformers_f32": as_called,
        "transformers_f32_best": best_form(model),
        "transformers_bf16": best_form(half),
    }


if __name__ == "__main__":
    main()
