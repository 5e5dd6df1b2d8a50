"""Packing: how sequences of different lengths become one batch.

Token-proportional work shrinks by 1/(1 − padding) when pads are left out. `packed` lays the sequences of a batch in one
row with positions that start again; who may attend to whom then depends on the implementation of attention and on how the
model is called, and several ways that look right let documents read one another without a word. Those ways are choices
here too, so that they can be refused by name and, where the user insists, caught by the numerics gate.

Decoders find packed sequences by positions that start again; encoders do not look for them, and need a float mask unless
attention is told where a sequence ends. Rule ids P1–P14 are levers.md's; P15–P25 are ours (P15 and P19: stack.md, section
5: "explicit 4D bool mask" and "BERT: no detection").
"""

from __future__ import annotations

from collections.abc import Callable

from advisor.knobs.attention.common import about
from advisor.knobs.choice import Batching, Choice, Collation, Knob, Reading, Reason, Situation, Verdict
from advisor.knobs.traits import Traits
from advisor.nouns.model import RECURRENT, ModelFacts
from advisor.workloads import Head, Workload

_SOURCE = "https://huggingface.co/blog/packing-with-FA2"


def _is_flash(situation: Situation) -> bool:
    return situation.traits.tells_apart


def _sorted_why_not(situation: Situation) -> list[Reason]:
    workload = situation.workload
    if workload.padded_tokens(by_length=True) >= workload.padded_tokens():
        return [Reason("P18", Verdict.ALIAS, "sorting changes nothing: it saves no pads in this list of lengths")]
    return []


def _packed_why_not(situation: Situation) -> list[Reason]:
    facts, workload, reasons = situation.facts, situation.workload, []
    if workload.padding == 0:
        reasons.append(Reason("P14", Verdict.ALIAS, "without pads a packed batch is the same work as a padded one"))
    recurrent = sorted(RECURRENT & set(facts.layer_types))
    if facts.carries_state:
        kind = f"layers of kind {', '.join(recurrent)}" if recurrent else "states and convolutions along the row"
        reasons.append(Reason("P7", Verdict.INVALID, f"{kind} can't keep packed sequences apart"))
    if facts.max_row is not None and (longest := _longest_row(workload)) > facts.max_row - facts.position_offset:
        text = (
            f"rows of up to {longest} tokens are beyond the {facts.max_row} positions of {facts.architecture}'s buffers"
        )
        reasons.append(Reason("P23", Verdict.INVALID, text, "a smaller batch"))
    if facts.alibi:
        text = "ALiBi counts positions along the row, across the sequences of a pack"
        reasons.append(Reason("P16", Verdict.WRONG, text))
    if not any(reason.rule in ("P7", "P16") for reason in reasons):  # they say what P22 would, and why
        reasons += _row_why_not(situation)
    if situation.workload.needs.head is Head.CLASSIFICATION and not facts.head:
        text = f"the head of {facts.architecture} reads one position a row, not one a sequence"
        reasons.append(Reason("P21", Verdict.INVALID, text))
    if not _is_flash(situation) and not situation.traits.masks_by_block:
        reasons.append(Reason("P6", Verdict.SLOW, "needs a dense ΣT×ΣT mask unless attention is flash"))
    return reasons


def _row_why_not(situation: Situation) -> list[Reason]:
    """Refuse a row whose class does not keep sequences apart by what it is called with; FlashAttention is told where they end."""
    facts = situation.facts
    if _is_flash(situation):
        return []
    reasons, use = [], "use FlashAttention, or padded batches"
    if facts.packed_row == "wrong":
        text = f"{facts.architecture} does not keep packed sequences apart: on a small copy they come out otherwise than alone"
        reasons.append(Reason("P22", Verdict.WRONG, text, use))
    if facts.packed_row == "raises":
        needed = "" if facts.is_causal else ", which needs a mask of four dimensions here"
        text = f"{facts.architecture} can't be called with a packed row{needed}: tried on a small copy"
        reasons.append(Reason("P25", Verdict.INVALID, text, use))
    if not facts.is_causal and (window := _narrowest(facts)) and max(situation.workload.lengths) > window + 1:
        text = f"the mask that keeps packed sequences apart replaces the windows of {window} tokens to either side"
        reasons.append(Reason("P24", Verdict.WRONG, text, use))
    return reasons


def _narrowest(facts: ModelFacts) -> int:
    """Return how many tokens to either side an encoder's sliding layers see, 0 where none slides."""
    slides = any("sliding" in kind for kind in facts.layer_types)
    return (facts.sliding_window or 0) if slides else 0


def _longest_row(workload: Workload) -> int:
    """Return the tokens of the longest row where each batch is one."""
    return max(sum(workload.lengths[i] for i in batch) for batch in workload.batches())


def _wrong_where(
    rule: str, text: str, applies: Callable[[Situation], bool], otherwise: str
) -> Callable[[Situation], list[Reason]]:
    """Refuse a form of packing: as wrong where the rule applies, elsewhere as the same work as packed, in these words."""

    def why_not(situation: Situation) -> list[Reason]:
        reasons = [reason for reason in _packed_why_not(situation) if reason.verdict.refuses]
        if applies(situation):
            reasons.append(Reason(rule, Verdict.WRONG, text, "call it as the choice packed does"))
        elif _encoder_without_flash(situation) and rule != "P8":
            reasons.append(Reason("P19", Verdict.WRONG, _P19, "call it as the choice packed does"))
        else:
            reasons.append(Reason("P17", Verdict.ALIAS, f"{otherwise} it is the same work as packed"))
        return reasons

    return why_not


def _needs_positions_alone(situation: Situation) -> bool:
    """Whether sequences are told apart by positions that start again, and by nothing else."""
    return situation.facts.is_causal and not _is_flash(situation)


def _encoder_without_flash(situation: Situation) -> bool:
    return not situation.facts.is_causal and not _is_flash(situation)


def _counts_from_offset(situation: Situation) -> bool:
    return situation.facts.position_offset > 0


def _bool_mask_why_not(situation: Situation) -> list[Reason]:
    reasons = [reason for reason in _packed_why_not(situation) if reason.verdict.refuses]
    if _encoder_without_flash(situation):
        reasons.append(Reason("P19", Verdict.WRONG, "this mask is causal, which an encoder is not", "choose packed"))
    elif situation.traits.adds_mask:
        text = f"{situation.configuration['attention']} adds a 4D bool mask to the scores instead of masking with it"
        instead = "pass a float mask, or none"
        reasons.append(Reason("P15", Verdict.WRONG, text, instead, about=about(situation, "attention")))
    elif _is_flash(situation):
        reasons.append(Reason("P17", Verdict.INVALID, "flash attention takes no 4D mask"))
    else:
        reasons.append(Reason("P17", Verdict.ALIAS, "it is the same work as packed, with a mask made by hand"))
    return reasons


def _taught_across_why_not(situation: Situation) -> list[Reason]:
    reasons = [reason for reason in _packed_why_not(situation) if reason.verdict.refuses]
    if not situation.workload.trains:
        return [*reasons, Reason("P17", Verdict.ALIAS, "without labels it is the same work as packed")]
    return [*reasons, Reason("T3", Verdict.WRONG, _T3, "call it as the choice packed does")]


def _effective(reading: Reading) -> str:
    """By how the model was called: see `advisor.measure.proof_torch.inputs_of`."""
    inputs = reading.inputs
    if not inputs.get("restarting_positions"):
        if inputs.get("cu_seq_lens"):
            return "packed-cu-seq-lens-only"
        return "sorted" if inputs.get("by_length") else "padded"
    mask = str(inputs.get("mask") or "")
    forms = (
        ("packed-taught-across", inputs.get("taught_across")),
        ("packed-bool-mask", mask == "4d-bool"),
        ("packed-zeros-in-mask", mask.startswith("2d") and inputs.get("mask_zeros")),
        ("packed-2d-mask", mask.startswith("2d")),
        ("packed-positions-from-0", not inputs.get("from_first_position", True)),
        ("packed-no-mask", inputs.get("lacks_mask")),
        ("packed-two-rows", inputs.get("rows", 1) > 1),
        ("packed-cached", inputs.get("cache")),
    )
    return next((name for name, is_so in forms if is_so), "packed")


def _proof(name: str) -> Callable[[Reading], str | None]:
    def proof(reading: Reading) -> str | None:
        ran = _effective(reading)
        return None if ran == name else f"the model was called as {ran}"

    return proof


def _default(_: ModelFacts) -> str:
    return "padded"


_P1 = (
    "packing is only detected when no cache is used; with the default use_cache=True documents attend across their "
    "boundaries: pass use_cache=False"
)
_P2 = "a 2D mask, even all ones, switches packed detection off: do not pass attention_mask"
_P3 = "cu_seq_lens are read only by FlashAttention: pass position_ids that start again"
_P4 = (
    "FlashAttention recognises packing by positions only in a single row: lay all sequences in one, or pass cu_seq_lens"
)
_P5 = "a mask with zeros wins over positions and cu_seq_lens: the row becomes one sequence; leave pads and mask out"
_P8 = "positions of this model start at padding_idx + 1, not at 0"
_T3 = "labels at the first token of a sequence teach the last token of the one before it to predict it: they are -100"
_P19 = "encoders do not look for packed sequences: pass a float block-diagonal mask, or use flash attention"

_MODULE = "advisor.knobs.packing_torch"


def _padded(words: str = "") -> Callable[[Batching], Collation]:
    def collation(batching: Batching) -> Collation:
        side = "left" if batching.left else "right"
        given = ("pad_token_id", "first_position") if batching.left else ("pad_token_id",)
        makes = ("attention_mask", "position_ids") if batching.left else ("attention_mask",)
        told = words or f"batches as they come, padded on the {side} to the longest"
        return Collation(_MODULE, f"collate_{side}_padded", given, makes, told)

    return collation


def _packed(name: str, masked: str = "") -> Callable[[Batching], Collation]:
    """Return how one row is made by this function of packing_torch; by `masked` where an encoder is not told the ends."""

    def collation(batching: Batching) -> Collation:
        is_masked = bool(masked) and not batching.causal and not batching.apart
        mask = "a float mask that keeps sequences apart" if is_masked else "no attention_mask"
        words = f"lay each batch in one row without pads, positions starting again, use_cache=False, {mask}"
        if is_masked:
            makes = ("attention_mask", "position_ids")
            return Collation(_MODULE, masked, ("dtype", "first_position"), makes, words)
        return Collation(_MODULE, name, ("first_position",), ("position_ids", "cu_seq_lens_q"), words)

    return collation


def _wrong(
    name: str, summary: str, why_not: Callable[[Situation], list[Reason]], collation: Callable[[Batching], Collation]
) -> Choice:
    """Return a form that is there to be refused by a rule, and caught where a user insists."""
    traits = Traits(packs=True, advised=False)
    return Choice(
        "packing",
        name,
        summary,
        _SOURCE,
        why_not=why_not,
        proof=_proof(name),
        collation=collation,
        traits=traits,
    )


_SORTED = "sort all sequences by length, longest first, and batch neighbours; put the results back in order"

_RIGHT = (
    Choice(
        "packing",
        "padded",
        "in the given order, padded to the longest of the batch",
        _SOURCE,
        proof=_proof("padded"),
        collation=_padded(),
    ),
    Choice(
        "packing",
        "sorted",
        "sorted by length into batches, then padded",
        _SOURCE,
        why_not=_sorted_why_not,
        proof=_proof("sorted"),
        collation=_padded(_SORTED),
        traits=Traits(by_length=True),
    ),
    Choice(
        "packing",
        "packed",
        "one row without pads; positions start again; use_cache=False; for an encoder without flash attention a float "
        "mask, else none",
        _SOURCE,
        why_not=_packed_why_not,
        proof=_proof("packed"),
        collation=_packed("collate_packed", "collate_packed_masked"),
        traits=Traits(packs=True),
    ),
)

_WRONG = (
    _wrong(
        "packed-cached",
        "packed, with the default cache",
        _wrong_where("P1", _P1, _needs_positions_alone, "with flash attention or an encoder"),
        _packed("collate_cached"),
    ),
    _wrong(
        "packed-2d-mask",
        "packed, with an attention_mask of ones",
        _wrong_where("P2", _P2, lambda s: not _is_flash(s), "with flash attention"),
        _packed("collate_2d_masked"),
    ),
    _wrong(
        "packed-cu-seq-lens-only",
        "packed, with cu_seq_lens and no position_ids",
        _wrong_where("P3", _P3, lambda s: not _is_flash(s), "with flash attention"),
        _packed("collate_without_positions"),
    ),
    _wrong(
        "packed-two-rows",
        "packed in two rows, without cu_seq_lens",
        _wrong_where("P4", _P4, _is_flash, "without flash attention"),
        _packed("collate_two_rows"),
    ),
    _wrong(
        "packed-zeros-in-mask",
        "packed, with a pad at the end and a mask that says so",
        _wrong_where("P5", _P5, lambda _: True, ""),
        _packed("collate_zeros_in_mask"),
    ),
    _wrong(
        "packed-positions-from-0",
        "packed, with positions from 0 where the model's start later",
        _wrong_where("P8", _P8, _counts_from_offset, "with positions that start at 0"),
        _packed("collate_from_zero", "collate_masked_from_zero"),
    ),
    _wrong(
        "packed-taught-across",
        "packed, with labels at the first tokens of sequences",
        _taught_across_why_not,
        _packed("collate_taught_across"),
    ),
    _wrong("packed-bool-mask", "packed, with a 4D bool mask", _bool_mask_why_not, _packed("collate_bool_masked")),
    _wrong(
        "packed-no-mask",
        "packed as for decoders, on an encoder",
        _wrong_where("P19", _P19, _encoder_without_flash, "with flash attention or a decoder"),
        _packed("collate_packed"),
    ),
)

KNOB = Knob(
    name="packing",
    summary="how sequences become a batch",
    reload=False,
    default=_default,
    effective=_effective,
    choices={choice.name: choice for choice in (*_RIGHT, *_WRONG)},
    reference=_RIGHT[0].name,
    implied=_RIGHT[0].name,
    place=40,
)
