"""Free text of the teacher: written after the judgements, checked against the profile, bounded like them. Pure.

A text that a small model writes before it judges makes the judgement worse, so the search never sees one. Afterwards, for
every chain that was kept, each free slot is written in the order of the chain: the model continues profile, chain so far
(texts included) and the slot's title exactly where the text will stand.

A text counts only if it can stand there (it has an encoding that the grammar allows) and if the profile backs it
(:mod:`scaletot_jax.teacher.grounding`); else the slot stays empty, and the record keeps what was rejected and why. Every
bound is checked before the call that would break it: what is not affordable is not written, and flagged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from scaletot_jax.chains.automaton import CompiledChain
from scaletot_jax.profiles.render import without_control
from scaletot_jax.teacher import prompt
from scaletot_jax.teacher.budget import Bounds, Ledger
from scaletot_jax.teacher.dialogue import Draft, TextRequest
from scaletot_jax.teacher.grounding import objection
from scaletot_jax.teacher.questions import Case

FORM, BUDGET = "form", "budget"  # reasons beside those of grounding


Write = Callable[[list[TextRequest]], Sequence[Draft]]
Ids = Callable[[Sequence[str]], tuple[int, ...]]


def write_texts(
    chain: CompiledChain,
    cases: Sequence[Case],
    records: Sequence[Mapping[str, Any]],
    write: Write,
    *,
    ids: Ids,
    bounds: Bounds,
    started: float,
    clock: Callable[[], float],
    vocabulary: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Fills the free slots of finished searches.

    Args:
      chain: the specification, compiled.
      cases: the profiles of one batch.
      records: their searches, see :func:`scaletot_jax.teacher.records.search_record`; what they spent counts.
      write: answers requests about the batch, in order.
      ids: pieces of text -> ids, to know what a request reads.
      bounds: of a profile, for search and writing together.
      started: when the search began, on ``clock``.
      vocabulary: see :func:`scaletot_jax.teacher.grounding.vocabulary`.

    Returns:
      Records whose accepted chains have texts among their ``values`` and one entry a written slot in ``texts``; ``calls``
      and ``tokens`` include the writing, and ``budget`` is set where a text was not affordable. Rejected chains, and slots
      that have no text by rule, are left alone.
    """
    spec = chain.spec
    out = [
        {**record, "chains": [{**c, "values": list(c["values"]), "texts": []} for c in record["chains"]]}
        for record in records
    ]
    ledgers = [_ledger(bounds, record, started, clock) for record in records]
    for number in spec.free_slots:
        slot = spec.slots[number]
        asked: list[tuple[dict[str, Any], int, int, TextRequest]] = []
        for row, (case, record, ledger) in enumerate(zip(cases, out, ledgers)):
            calls = tokens = 0  # announced in this round
            for kept in record["chains"] if number in case.written else ():
                if not kept["accepted"]:
                    continue
                request = text_request(chain, row, kept["values"], number)
                price = len(ids(request.lead)) + slot.max_tokens
                if ledger.allows(calls + 1, tokens + price):
                    calls, tokens = calls + 1, tokens + price
                    asked.append((kept, row, price, request))
                else:
                    kept["texts"].append(_entry(slot.name, reason=BUDGET))
                    record["budget"] = True
        drafts = write([request for *_, request in asked]) if asked else ()
        for (kept, row, price, _), draft in zip(asked, drafts, strict=True):
            ledgers[row].charge([draft], price, 0)
            entry = judge(chain, number, draft, cases[row].facts, vocabulary)
            kept["texts"].append(entry)
            kept["values"][number] = entry["text"]
    for record, ledger in zip(out, ledgers):
        record["calls"], record["tokens"] = ledger.calls, ledger.tokens
    return out


def text_request(chain: CompiledChain, row: int, values: Sequence[str], number: int) -> TextRequest:
    """The request for slot ``number`` after the values before it."""
    slot, spec = chain.spec.slots[number], chain.spec
    last = spec.segment_of_slot[number] not in spec.segment_of_slot[number + 1 :]
    return TextRequest(row, tuple(prompt.open_pieces(spec, values, number)), "\n" if last else ";", slot.max_tokens)


def judge(chain: CompiledChain, number: int, draft: Draft, facts: str, vocabulary: Collection[str]) -> dict[str, Any]:
    """The record of a draft, JSON-able: the text that counts (empty if rejected), and the reason of a rejection."""
    name = chain.spec.slots[number].name
    known = {
        "draft": draft.text,
        "tokens": list(draft.ids),
        "log_probs": list(draft.log_probs),
        "entropies": list(draft.entropies),
        "closed": draft.closed,
    }
    text = fitted(chain, number, draft.text)
    if text is None:
        return _entry(name, reason=FORM, **known)
    found = objection(text, facts, vocabulary)
    if found:
        return _entry(name, reason=found.kind, detail=found.what, **known)
    return _entry(name, text=text, accepted=True, **known)


def fitted(chain: CompiledChain, number: int, text: str) -> str | None:
    """The text in the form that chains hold, or None where there is none.

    It ends at the first mark of the chain, has single spaces and no broken characters. Its ids are those of the text, not
    those that were drawn, so it can be a token too long: then words are left out at the end. A text that encodes to a
    reserved token (it spells the name of a control token, of this model or of another) has no form.
    """
    plain = " ".join(re.split(r"[;\r\n]", text.lstrip())[0].replace("\ufffd", "").split())
    if not plain:
        return None if text.strip() else ""
    if without_control(plain) != plain:
        return None
    limit = chain.spec.slots[number].max_tokens
    reserved = set(chain.grammar.stop.tolist())
    while plain:
        found = list(chain.encode(" " + plain))
        if reserved.intersection(found):
            return None
        if len(found) <= limit:
            return plain
        plain = " ".join(plain.split()[:-1])
    return None


def _entry(slot: str, **known: Any) -> dict[str, Any]:
    nothing = {"text": "", "accepted": False, "reason": "", "detail": "", "draft": "", "closed": False}
    return {"slot": slot, **nothing, "tokens": [], "log_probs": [], "entropies": [], **known}


def _ledger(bounds: Bounds, record: Mapping[str, Any], started: float, clock: Callable[[], float]) -> Ledger:
    """A ledger that has spent what the search spent."""
    ledger = Ledger(bounds, clock)
    ledger.started, ledger.calls, ledger.tokens = started, record["calls"], record["tokens"]
    ledger.samples = record["samples"]
    return ledger
