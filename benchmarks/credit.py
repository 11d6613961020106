"""Does credit by segment help? Estimators of the policy gradient on a toy whose credit is known, at equal rollouts and tokens.

    python benchmarks/credit.py [--quick] [--seeds 16]

The toy is ``credit_toy.py``: decisive, irrelevant and misleading segments; outcomes clean, with noise per leaf, with one
noisy label a user, and zero-inflated. Every estimator has the same updates, the same optimizer and the same number of
configurations, chosen by the mean true reward of the whole curve on seeds 100–103; what is reported comes from other
seeds, paired: the same supervised policy, users, labels and random numbers. One configuration an estimator for all worlds.

Two factors, reported apart: **rewards**, from each user's own label or from the pooled labels of equal canonical profiles
(``pooled_targets``), the same for all estimators; and **credit**, the estimator. With true labels the two rewards are one.

    rloo, grpo            outcome alone
    prime                 implicit token rewards, as PRIME's code has it
    osipo                 the same with a little segment reward
    critic                the segment rewards as a critic of prefixes
    …, taught             the reward model starts from the teacher's chains, which cost no rollouts: it sees their outcomes
    tree, same leaves     chains drawn as a tree, eight leaves a user, fewer tokens
    tree, same tokens     twelve leaves a user
    rloo, double          sixteen chains a user: what twice the tokens buy
    oracle                the true credit of each segment in place of an estimate: what there is to win

All flat estimators decode the same tokens, so for them equal rollouts are equal tokens. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from typing import NamedTuple

import credit_learn
import credit_toy
import harness
import jax
import jax.numpy as jnp
import numpy as np
from credit_learn import Hyper, Setting

CHOICE = tuple(range(100, 104))
CHUNK = 32
# Labels are true in the first two worlds, so there is nothing to pool.
WORLDS = (
    ("clean", 0),
    ("noise per leaf", 0),
    ("noise per user", 0),
    ("zero-inflated", 0),
    ("noise per user", 1),
    ("zero-inflated", 1),
)
CHOICE_WORLDS = WORLDS[:4]


class Contestant(NamedTuple):
    """An estimator and the configurations it may choose from: a list, or the name of another whose choice it takes."""

    setting: Setting
    options: list[Hyper] | str


def varied(rates: tuple[float, ...], field: str = "gamma", values: tuple[float, ...] = (0.0,), **fixed) -> list[Hyper]:
    """Configurations: every learning rate with every value of the estimator's own number."""
    return [Hyper(rate=rate, **{field: value}, **fixed) for rate in rates for value in values]


RATES, TWO_RATES = (0.01, 0.02, 0.03, 0.04), (0.02, 0.03)
# The reward model's rate and β were set once, on the choice seeds, by the credit accuracy of a policy that stands still.
CONTESTANTS = {
    "rloo": Contestant(Setting("rloo"), varied(RATES)),
    "osipo": Contestant(Setting("osipo"), varied(TWO_RATES, "process", (0.1, 0.3))),
    "osipo, taught": Contestant(Setting("osipo"), varied(TWO_RATES, "process", (0.1, 0.3), taught=1.0)),
    "critic": Contestant(Setting("critic"), varied(TWO_RATES, "residual", (0.5, 1.0))),
    "critic, taught": Contestant(Setting("critic"), varied(TWO_RATES, "residual", (0.5, 1.0), taught=1.0)),
    "tree, same leaves": Contestant(Setting("tree", branches=(2, 2, 2, 1)), varied(RATES)),
    "tree, same tokens": Contestant(Setting("tree", branches=(2, 2, 3, 1)), "tree, same leaves"),
    "grpo": Contestant(Setting("grpo"), varied(RATES)),
    "prime": Contestant(Setting("prime"), varied(TWO_RATES, "process", (0.1, 1.0))),
    "rloo, double": Contestant(Setting("rloo", branches=(16, 1, 1, 1)), "rloo"),
    "oracle": Contestant(Setting("oracle"), varied(RATES)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few updates and seeds: whether it runs")
    parser.add_argument("--seeds", type=int, default=16, help="held-out seeds, at least 8 for a claim")
    arguments = parser.parse_args()
    updates = 10 if arguments.quick else Setting().updates
    seeds = tuple(range(2 if arguments.quick else arguments.seeds))
    start = time.perf_counter()
    choosers, judges = start_policies(CHOICE[:1] if arguments.quick else CHOICE), start_policies(seeds)

    curves, chosen = {}, {}
    for name, (setting, options) in CONTESTANTS.items():
        setting = setting._replace(updates=updates)
        if isinstance(options, str):
            chosen[name] = chosen[options]
        else:
            tried = run(setting, choosers, [(world, option) for option in options for world in CHOICE_WORLDS])
            scores = tried["reward"].mean((1, 2)).reshape(len(options), len(CHOICE_WORLDS)).mean(1)
            chosen[name] = options[int(scores.argmax())]
        curves[name] = run(setting, judges, [(world, chosen[name]) for world in WORLDS])
        gains = (curves[name]["reward"] - curves["rloo"]["reward"]).mean(2)
        own = {key: value for key, value in chosen[name]._asdict().items() if value != getattr(Hyper(), key)}
        print(f"{time.perf_counter() - start:6.0f} s  {name}: chosen {own or 'the defaults'}", flush=True)
        print("        against rloo:", *["{:+.4f} ± {:.4f}".format(*interval(gain)) for gain in gains], flush=True)

    report = summary(curves)
    for world, rows in report.items():
        print(f"\n{world}\n{HEAD}")
        for name, row in rows.items():
            print(f"{name:20}" + "".join(f"{row[key]:>{width}}" for key, width in COLUMNS.items()))
    gains = denoising(curves)
    print("\npooled labels against own ones, the same estimator")
    for name, row in gains.items():
        print(f"{name:20}" + "".join(f"{world:>18} {gain}" for world, gain in row.items()))
    print(
        json.dumps(
            {
                "denoising": gains,
                "curves": {name: points(metrics) for name, metrics in curves.items()},
                "benchmark": "credit",
                "seeds": len(seeds),
                "updates": updates,
                "chosen": {name: option._asdict() for name, option in chosen.items()},
                "tokens": {
                    n: credit_toy.decoded_tokens(c.setting.users, c.setting.branches) for n, c in CONTESTANTS.items()
                },
                "worlds": report,
                "seconds": round(time.perf_counter() - start),
                "machine": harness.machine(),
                "versions": harness.versions("jax"),
            }
        )
    )


def start_policies(seeds: tuple[int, ...]):
    """One key and one supervised policy a seed."""
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds))
    return keys, jax.jit(jax.vmap(credit_toy.supervised))(keys)


@functools.cache
def program(setting: Setting):
    """:func:`credit_learn.learn` over ``CHUNK`` runs at once; compiled once, whatever is asked of it."""
    return jax.jit(jax.vmap(functools.partial(credit_learn.learn, setting)))


def run(setting: Setting, start, conditions) -> dict[str, np.ndarray]:
    """Curves [condition, seed, update] of every metric."""
    keys, references = start
    seeds, number = len(keys), len(conditions) * len(keys)
    place = np.arange(-(-number // CHUNK) * CHUNK) % number  # the last chunk is filled up with repetitions
    worlds = [(*credit_toy.VARIANTS[name], pooled, *option) for (name, pooled), option in conditions]
    table = np.asarray(worlds, np.float32)[place // seeds].T
    variant = credit_toy.Variant(*table[:3])
    out = []
    for part in np.arange(len(place)).reshape(-1, CHUNK):
        who = place[part] % seeds
        runs = keys[who], jax.tree.map(lambda x, who=who: x[who], references)
        rest = jax.tree.map(lambda x, part=part: x[part], (variant, table[3], Hyper(*table[4:])))
        out.append(jax.tree.map(np.asarray, program(setting)(*runs, *rest)))
    whole = jax.tree.map(lambda *x: np.concatenate(x)[:number], *out)
    return jax.tree.map(lambda x: x.reshape(len(conditions), seeds, -1), whole)


def interval(values: np.ndarray) -> tuple[float, float]:
    """Mean and half width of its 95 % interval (Student's t) over the seeds."""
    from scipy.stats import t

    n = len(values)
    return float(values.mean()), float(t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n))


COLUMNS = {"curve": 18, "against rloo": 20, "early": 9, "end": 18, "credit": 9, "kl": 8, "valid": 8}
HEAD = " " * 20 + "".join(f"{key:>{width}}" for key, width in COLUMNS.items())


def summary(curves: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, dict[str, str]]]:
    """True reward: mean of the curve, its paired difference to RLOO, first quarter, last sixth; and the diagnostics."""
    report = {}
    for n, (world, pooled) in enumerate(WORLDS):
        rows = report[world + (", pooled labels" if pooled else "")] = {}
        rloo = curves["rloo"]["reward"][n].mean(1)
        for name, metrics in curves.items():
            reward = metrics["reward"][n]
            updates = reward.shape[1]
            last = slice(updates - max(updates // 6, 1), None)
            rows[name] = {
                "curve": "{:.4f} ± {:.4f}".format(*interval(reward.mean(1))),
                "against rloo": "{:+.4f} ± {:.4f}".format(*interval(reward.mean(1) - rloo)),
                "early": f"{reward[:, : max(updates // 4, 1)].mean():.4f}",
                "end": "{:.4f} ± {:.4f}".format(*interval(reward[:, last].mean(1))),
                "credit": f"{metrics['credit'][n].mean():.3f}",
                "kl": f"{metrics['kl'][n][:, last].mean():.2f}",
                "valid": f"{metrics['valid'][n][:, last].mean():.4f}",
            }
    return report


def denoising(curves: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, str]]:
    """What pooling the labels adds to each estimator's curve, paired by seed, in the worlds where labels are noisy."""
    pairs = [(n, WORLDS.index((world, 0)), world) for n, (world, pooled) in enumerate(WORLDS) if pooled]
    means = {name: metrics["reward"].mean(2) for name, metrics in curves.items()}  # [world, seed]
    return {
        name: {world: "{:+.4f} ± {:.4f}".format(*interval(mean[shared] - mean[own])) for shared, own, world in pairs}
        for name, mean in means.items()
    }


def points(metrics: dict[str, np.ndarray], number: int = 8) -> list[list[list[float]]]:
    """The learning curve of each world as (mean, half width of the 95 % interval) of ``number`` stretches of updates."""
    stretches = [part.mean(-1) for part in np.array_split(metrics["reward"], number, axis=-1)]  # each [world, seed]
    return [[[round(x, 4) for x in interval(part[n])] for part in stretches] for n in range(len(WORLDS))]


if __name__ == "__main__":
    main()
