"""Plain decoding of SmolLM2: tokens a second at B = 1, 8, 32 against ``transformers`` float32, and what annotations cost.

    python benchmarks/decode.py [--quick] [--rounds 3]

Prompts of 32 tokens, 64 new ones each, greedy; both keep their cache, neither counts the prompt's own run apart. Beside it:
ours without the model's log-probability and entropy of every token (their cost), and the share of the roofline that the
decode phase alone reaches: a step cannot be quicker than reading the weights once nor than its 2 · weights · B operations,
bandwidth and operations a second measured in the same run by summing a large array and multiplying two large matrices.

The last line is one JSON object; a ratio above 1 means ours is faster.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time

import harness
import jax
import jax.numpy as jnp
import numpy as np

from scaletot_jax.lm.load import load_model
from scaletot_jax.lm.save import save_directory
from scaletot_jax.sampler.constraint import free_text
from scaletot_jax.sampler.sampler import Request, Sampler
from scaletot_jax.sampler.slots import Sizes

PROMPT, NEW = 32, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round at B = 1 and 8")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    sizes, rounds = ((1, 8), 1) if arguments.quick else ((1, 8, 32), arguments.rounds)
    lm = load_model("smollm2")
    torch_model, missing = peer(lm)
    weights = sum(leaf.size for leaf in jax.tree.leaves(lm.params))
    found, last = {}, {}
    walls, measured = [(bandwidth(), operations())], {}
    for batch in sizes:
        prompts = np.random.default_rng(batch).integers(100, 40_000, (batch, PROMPT))
        steps: list[float] = []
        jobs = {"ours": ours(lm, prompts, True, steps), "ours without statistics": ours(lm, prompts, False, [])}
        if torch_model is not None:
            jobs["transformers_f32"] = theirs(torch_model, prompts)
        rates = harness.in_turn(jobs, rounds)
        print(f"\nB = {batch}")
        harness.table(rates, "tokens/s")
        median = {name: 1 / statistics.median(seconds) for name, seconds in rates.items()}
        found[f"B={batch}"] = {
            "tokens_per_second": round(median["ours"], 1),
            "ratio": round(median["ours"] / median.get("transformers_f32", float("nan")), 2),
            "cost_of_statistics": round(median["ours without statistics"] / median["ours"] - 1, 3),
        }
        last = rates
        walls.append((bandwidth(), operations()))
        measured[batch] = statistics.median(steps[1:])
    read, multiply = (max(values) for values in zip(*walls))  # a neighbour on the machine makes both look slower
    for batch, seconds in measured.items():
        least = max(4 * weights / read, 2 * weights * batch / multiply)
        found[f"B={batch}"]["share_of_roofline"] = round(least / seconds, 2)
        print(f"B = {batch}: a step took {seconds * 1e3:.1f} ms and cannot be quicker than {least * 1e3:.1f} ms")
    harness.last_line("decode", last, "tokens/s", missing=missing, batches=found)


def ours(lm, prompts: np.ndarray, annotated: bool, steps: list[float]):
    """The job; ``steps`` gathers the seconds of one decode step, the prompts' own run left out."""
    sampler = Sampler(lm.params, lm.config, [free_text(())], Sizes(len(prompts), 1, PROMPT, NEW), statistics=annotated)

    def job() -> float:
        groups = range(len(prompts))
        sampler.forget()
        for group in groups:
            sampler.fill(group, prompts[group])
            sampler.begin(group, Request((), jax.random.key(0), temperature=0.0))
        start = time.perf_counter()
        sampler.decode(groups)
        steps.append((time.perf_counter() - start) / NEW)
        return sum(len(sampler.read(group)[0].tokens) for group in groups)

    return job


def peer(lm):
    try:
        import torch
        import transformers
    except ImportError as error:
        return None, {"transformers": str(error)}
    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory() as folder:
        save_directory(folder, lm.config, lm.params)
        return transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), {}


def theirs(model, prompts: np.ndarray):
    import torch
    import transformers

    def job() -> float:
        cache = transformers.DynamicCache()
        logits = model(torch.tensor(prompts), past_key_values=cache, logits_to_keep=1).logits[:, -1]
        for _ in range(NEW):
            token = logits.argmax(-1, keepdim=True)
            logits = model(token, past_key_values=cache, logits_to_keep=1).logits[:, -1]
        return len(prompts) * NEW

    return job


def bandwidth() -> float:
    """Bytes a second of reading 1 GiB, the best of five."""
    array = jnp.ones(2**28, jnp.float32)
    total = jax.jit(jnp.sum)
    total(array).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        total(array).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return array.nbytes / min(seconds)


def operations() -> float:
    """Floating-point operations a second of a 2,048³ product in float32, the best of five."""
    size = 2048
    square = jnp.ones((size, size), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(square, square).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        product(square, square).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


if __name__ == "__main__":
    main()
