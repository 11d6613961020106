"""The report's sections on the population and the teacher: funnel, budget, doubt, chains.

Pure: :class:`~scaletot_jax.report.material.Material` in, HTML out. A number that is not in the material is shown as a
dash, and a section whose stage is missing says so.
"""

from __future__ import annotations

from scaletot_jax.report.cards import chain_card
from scaletot_jax.report.charts import bars, before_after
from scaletot_jax.report.lookup import dig, product, ratio
from scaletot_jax.report.material import Material
from scaletot_jax.report.page import Markup, absent, el, facts, folded, join, number, percent, section, table


def people(material: Material) -> Markup:
    """Funnel of users and chains."""
    prepare, counts, distill = material.summary("prepare"), material.chains, material.summary("distill")
    if not prepare:
        return section("people", "People and chains", absent("The population", "prepare"))
    distinct = dig(prepare, "distinct_profiles.exact")
    rows = [
        ("Rows read", prepare.get("rows_read")),
        (
            "Rows of the population" + (", low activity" if dig(material.config, "data.low_activity") else ""),
            prepare.get("rows"),
        ),
        ("Distinct profiles", distinct),
        ("Profiles reasoned about by the teacher", counts.get("reasoned")),
        ("… whose chain was accepted", counts.get("accepted")),
        ("Profiles distilled into the encoder", dig(distill, "profiles.total")),
        ("Rows scored without a language model", (material.manifest or {}).get("rows")),
    ]
    shown = [(name, float(value), number(value)) for name, value in rows if value is not None]
    splits = prepare.get("splits") or {}
    order = ("teacher", "distill", "head", "val", "test", "unused")
    split_rows = [
        [name, number(splits[name])] for name in (*order, *sorted(set(splits) - set(order))) if name in splits
    ]
    notes: list[object] = []
    if counts.get("rejected"):
        reasons = [[reason, number(count)] for reason, count in counts["rejected"].items()]
        notes.append(table("Rejected chains", ["Reason", "Profiles"], reasons, numeric=[1]))
    if split_rows:
        notes.append(table("Rows by split (a user is in one split only)", ["Split", "Rows"], split_rows, numeric=[1]))
    repeated = prepare.get("repetition") or {}
    labels = [
        [name, number(label.get("mean")), percent(label.get("zero_share")), number(label.get("max"), 1)]
        for name, label in (prepare.get("labels") or {}).items()
    ]
    right = [
        facts(
            [
                ("Users", number(prepare.get("users"))),
                ("Reasoned about, of distinct profiles", percent(ratio(counts.get("reasoned"), distinct), 2)),
                ("Rows that share their exact profile", percent(repeated.get("exact"))),
                ("Rows that share their coarse profile", percent(repeated.get("coarse"))),
            ]
        ),
        table("Labels", ["Label", "Mean", "Zeros", "Largest"], labels, numeric=[1, 2, 3]) if labels else None,
    ]
    grid = el("div", bars("From everybody to the few, and back", shown), el("div", right), class_="grid")
    folds = folded("Splits and rejections", notes) if notes else None
    return section("people", "People and chains", grid, _texts(material), folds)


def _texts(material: Material) -> Markup | None:
    """What became of the free texts that the teacher wrote; None where the chains have none."""
    texts = material.summary("teach").get("texts")
    if not texts:
        return None
    reasons = {
        "number": "a number that the profile does not hold",
        "value": "a value that the profile does not hold",
        "form": "no text that a chain can hold",
        "budget": "not written: out of budget",
    }
    rows = [["asked for", number(texts.get("asked"))], ["accepted", number(texts.get("accepted"))]]
    rows += [["… of these empty", number(texts.get("empty"))]]
    rows += [[f"rejected: {reasons.get(why, why)}", number(count)] for why, count in texts.get("rejected", {}).items()]
    return table("Free texts of the teacher", ["What became of them", "Texts"], rows, numeric=[1])


def budget(material: Material) -> Markup:
    """What was spent on the language model, by stage."""
    config, counts, teach = material.config, material.chains, material.summary("teach")
    sft, osipo, distill = (material.summary(name) for name in ("sft", "osipo", "distill"))
    per_update = product(dig(config, "osipo.prompts"), dig(config, "osipo.rollouts"))
    # Rollouts that serve several updates stand in the row of the first.
    sampled = [row["chain_tokens"] for row in material.osipo_steps if "chain_tokens" in row]
    tokens = None
    if sampled and per_update and all(value is not None for value in sampled):
        tokens = round(sum(float(value or 0) for value in sampled) * per_update)
    seen = product(sft.get("steps"), dig(config, "sft.batch_size"))
    # A row of a batch holds the prompt once and all kept chains of the profile side by side.
    chains_wide = product(counts.get("most_chains"), sft.get("chain_tokens"))
    places = product(seen, sft["prompt_tokens"] + chains_wide) if chains_wide and sft.get("prompt_tokens") else None
    sampled_chains = product(dig(distill, "profiles.total"), distill.get("chains"))
    scored = (material.manifest or {}).get("rows")
    counted = [
        ("Teacher's pilot", "calls", dig(teach, "calls.pilot"), dig(teach, "tokens.pilot"), "read and scored"),
        ("Teacher's search", "calls", counts.get("calls"), counts.get("tokens"), "read and scored"),
        ("SFT", "profiles seen", seen, places, "places of the batches, padding included"),
        ("OSIPO", "rollouts", product(osipo.get("batches", osipo.get("updates")), per_update), tokens, "sampled"),
        ("Reasoning states", "chains sampled", sampled_chains, None, "tokens are not recorded"),
        ("Population", "rows scored", scored, None if scored is None else 0, "no language model"),
    ]
    rows = [[stage, unit, number(count), number(spent), what] for stage, unit, count, spent, what in counted]
    note = None
    if counts:
        most = [number(dig(teach, "calls.most")), " calls and ", number(dig(teach, "tokens.most")), " tokens"]
        note = el(
            "p",
            "The dearest profile took ",
            *most,
            ". Searches cut short by their budget: ",
            number(counts.get("budget")),
            ".",
            class_="note",
        )
    head = ["Stage", "Unit", "Count", "Tokens", "What is counted"]
    return section("budget", "What it cost", table("Language-model work by stage", head, rows, numeric=[2, 3]), note)


def doubt(material: Material) -> Markup:
    """Entropy by segment, before and after refinement."""
    title = "Where the teacher was unsure"
    if "teach" not in material.summaries:
        return section("doubt", title, absent("The teacher's search", "teach"))
    rows = material.uncertainty
    if not rows:
        return section(
            "doubt", title, el("p", "No segment was judged by the model: all were decided by rule.", class_="absent")
        )
    measures = (("entropy", "Entropy"), ("disagreement", "Disagreement"), ("uncertainty", "Uncertainty u"))
    charts = [
        before_after(
            f"{name} by segment",
            [(row["segment"], row[f"{key}_before"], row[f"{key}_after"]) for row in rows],
            ("before refinement", "after"),
            caption="Mean over all expansions; where nothing was revised, before and after are equal.",
        )
        for key, name in (measures[0], measures[2])
    ]
    cells = [
        [
            row["segment"],
            number(row["expansions"]),
            number(row["refined"]),
            number(row["accepted"]),
            *[join([number(row[f"{key}_before"]), " → ", number(row[f"{key}_after"])]) for key, _ in measures],
        ]
        for row in rows
    ]
    head = ["Segment", "Expansions", "Refined", "Accepted", *[name for _, name in measures]]
    intro = el(
        "p",
        "One expansion is one question to the teacher about one segment on one path. It is asked again, once, where u lies "
        "above a threshold from the label-blind pilot, and the revision counts only if u falls.",
    )
    by_segment = table("Expansions by segment", head, cells, numeric=range(1, 7))
    return section("doubt", title, intro, _pilot(material), el("div", charts, class_="grid"), by_segment)


def _pilot(material: Material) -> Markup:
    """What the label-blind pilot decided, and how often a revision was asked for."""
    teach = material.summary("teach")
    dropped = teach.get("dropped_slots")
    return facts(
        [
            ("Pilot profiles", number(dig(teach, "funnel.pilot_profiles"))),
            ("Scoring chosen by the pilot", teach.get("scoring") or number(None)),
            (
                "Slots dropped by the polarity test",
                ", ".join(map(str, dropped)) or "none" if dropped is not None else number(None),
            ),
            ("Revisions asked for", number(dig(teach, "revisions.asked"))),
            ("… and accepted", number(dig(teach, "revisions.accepted"))),
        ]
    )


def chains(material: Material) -> Markup:
    """A few chains with their trees."""
    title = "A few chains"
    if not material.cards:
        return section(
            "chains",
            title,
            absent("The teacher's chains", "teach")
            if "teach" not in material.summaries
            else el("p", "None was asked for.", class_="absent"),
        )
    intro = el(
        "p",
        "In the order of their profile's content hash, those with a refined node first: not chosen for looks. No user is named; "
        "profile fields are shown only as the text the model was given. All users, chains and trees: ",
        el("a", "the explorer", href="explorer.html"),
        ".",
    )
    return section("chains", title, intro, [chain_card(card) for card in material.cards])
