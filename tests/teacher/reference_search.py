"""The search again, written apart: one recursive walk over plain lists, fed with recorded replies.

It shares no code with scaletot_jax.teacher.search but the records' shapes, so that an error must be made twice to stay
unseen.
"""

import itertools
import math


def replay(shape, thresholds, bounds, costs, recorded):
    """What the search must decide.

    Args:
      shape: per segment, per slot, (number of values, fixed value or None); "unknown" is the last value.
      recorded: (kind, path, segment) -> reply.
    """
    spent = {"calls": 0, "tokens": 0, "samples": 0, "refined": 0}

    def fits(calls, tokens, samples):
        return (
            spent["calls"] + calls <= bounds.max_calls
            and spent["tokens"] + tokens <= bounds.max_tokens
            and spent["samples"] + samples <= bounds.max_samples
        )

    def pay(reply, samples):
        spent["calls"] += 1
        spent["tokens"] += reply.tokens
        spent["samples"] += samples

    def open_from(k):
        return sum(any(fixed is None for _, fixed in slots) for slots in shape[k:])

    budget = False
    if fits(1, costs["answer"], 0):
        pay(recorded["answer", (), -1], 0)
    else:
        budget = True

    greedy = False
    paths = [((), 0.0)]  # values, log-probability
    for k, slots in enumerate(shape):
        if all(fixed is not None for _, fixed in slots):
            paths = [((*values, tuple(fixed for _, fixed in slots)), score) for values, score in paths]
            continue
        n, rest = len(paths), open_from(k + 1)
        finish = (rest + 1, rest * costs["segment"] + costs["answer"], rest)
        if not greedy and not fits(n + finish[0], n * costs["segment"] + finish[1], n * bounds.candidates + finish[2]):
            greedy, paths = True, paths[:1]
        if greedy and not fits(2, costs["segment"] + costs["answer"], 1):
            paths = [
                ((*values, tuple(size - 1 if f is None else f for size, f in slots)), score) for values, score in paths
            ]
            continue
        width = 1 if greedy else bounds.candidates
        replies = [recorded["segment", values, k] for values, _ in paths]
        for reply in replies:
            pay(reply, width)

        wanted = []
        for i in sorted(range(len(paths)), key=lambda i: (-replies[i].uncertainty, i)):
            p = sorted(replies[i].probabilities[replies[i].focus], reverse=True)
            m = len(wanted) + 1
            room = fits(m + finish[0], m * costs["revision"] + finish[1], m * width + finish[2])
            wants = p[1] > 0 and replies[i].uncertainty > thresholds[k]
            if wants and not greedy and room and spent["refined"] + m <= bounds.max_refined_nodes:
                wanted.append(i)
        for i in wanted:
            revised = recorded["revision", paths[i][0], k]
            pay(revised, width)
            if replies[i].uncertainty - revised.uncertainty >= bounds.min_gain:
                replies[i] = revised
        spent["refined"] += len(wanted)

        pool = []
        for (values, score), reply in zip(paths, replies):
            tuples = []
            for choice in itertools.product(*[range(size) for size, _ in slots]):
                p = math.prod(float(reply.probabilities[s][v]) for s, v in enumerate(choice))
                tuples.append((p, choice))
            tuples.sort(key=lambda item: (-item[0], item[1]))
            top = [(p, choice) for p, choice in tuples[:width] if p > 0]
            pool += [
                (score + math.log(p), reply.uncertainty, len(pool) + j, (*values, choice))
                for j, (p, choice) in enumerate(top)
            ]
        pool.sort(key=lambda item: (-item[0], item[1], item[2]))
        paths = [(values, score) for score, _, _, values in pool[: 1 if greedy else bounds.beam]]

    answers = []
    affordable = max((n for n in range(len(paths) + 1) if fits(n, n * costs["answer"], 0)), default=0)
    for values, _ in paths[:affordable]:
        answers.append(recorded["answer", values, -1])
        pay(answers[-1], 0)
    answers += [None] * (len(paths) - affordable)
    return {
        "chains": [values for values, _ in paths],
        "answers": answers,
        "spent": (spent["calls"], spent["tokens"], spent["samples"], spent["refined"]),
        "budget": budget or greedy or affordable < len(paths),
    }
