"""What the advice is worth on this GPU, for people: a table, a verdict computed from the figures, and a chart."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from advisor.nouns.configuration import Configuration, stated
from advisor.seed.seed import DEFAULT, EAGER, FLASH, MATH, PROMISES, RECOMMENDED, ROLES, Promise, is_own_attention
from advisor.seed.seed_result import CaseResult, Ratio
from advisor.show.chart import bar_chart

#: Columns of the text.
WIDTH = 80


def table(results: Sequence[CaseResult]) -> str:
    """Return the figures for people, in at most 80 columns."""
    lines = []
    for result in results:
        lines += [f"{result.case}, {result.case.batch} at once", ""]
        lines.append(f"  {'':42s}{'tokens/s':>11s}   × eager (95 %)")
        held: dict[Configuration, list[str]] = {}
        for role, configuration in result.roles.items():
            held.setdefault(configuration, []).append(role)
        for configuration, roles in held.items():
            marks = ", ".join(role for role in roles if role in (DEFAULT, RECOMMENDED))
            name = _label(result, configuration) + (f" ({marks})" if marks else "")
            lines += _row(result, name, roles[0])
        lines.append("")
    return "\n".join(lines)


def _row(result: CaseResult, name: str, role: str) -> list[str]:
    speed, ratio = result.tokens_per_s(role), result.ratio(role, EAGER)
    if speed is None:
        text = textwrap.shorten(result.why_not(role), 3 * WIDTH, placeholder="…")
        return [f"  {name}", *textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="    ")]
    shown = "1.00" if role == EAGER else str(ratio or "–")
    if len(name) > 42:
        return [f"  {name}"[:WIDTH], f"  {'':42s}{speed:11,.0f}   {shown}"]
    return [f"  {name:42s}{speed:11,.0f}   {shown}"]


def _label(result: CaseResult, configuration: Configuration) -> str:
    """Return attention, packing and whatever else differs from the default."""
    default = result.roles[DEFAULT]
    named, knobs = ("attention", "packing"), stated([configuration, default])
    other = [n for knob, n in configuration.over(knobs) if knob not in named and n != default.get(knob)]
    return " · ".join([*dict(configuration.over(named)).values(), *other])


def verdict(results: Sequence[CaseResult]) -> str:
    """Return what the claim is worth on this GPU, in words computed from the figures: a paragraph a case, and why."""
    paragraphs = [_words(result) for result in results]
    paragraphs += [text for text in (_why(results), _default_words(results)) if text]
    return "\n\n".join(textwrap.fill(text, WIDTH) for text in paragraphs)


def _words(result: CaseResult) -> str:
    ratio, reason = result.ratio(FLASH, EAGER), result.why_not(FLASH) or result.why_not(EAGER)
    if ratio is None:
        return f"{result.case}: the claim can't be judged here: {textwrap.shorten(reason, 300, placeholder='…')}."
    text = f"{result.case}: flash_attention_2 is {ratio.beside('eager attention')}."
    promise = PROMISES.get((result.case.longest, result.case.padding))
    if promise is not None:
        text += f" The advice promised {promise.words}: {_held(ratio, promise)}."
    over = result.ratio(FLASH, DEFAULT)
    if over is not None and result.roles[DEFAULT] != result.roles[EAGER]:
        default = f"today's default, {result.roles[DEFAULT]['attention']}"
        text += f" It is {over.beside(default)}."
    return f"{text} {_advice(result)}"


def _advice(result: CaseResult) -> str:
    best = result.ratio(RECOMMENDED, EAGER)
    if best is None:
        return "Nothing can be recommended."
    label = _label(result, result.roles[RECOMMENDED])
    if result.roles[RECOMMENDED] == result.roles[DEFAULT]:
        return f"The default stays: {label}, {best.beside(EAGER)}."
    return f"Recommended is {label}: {best.beside(EAGER)}."


def _held(ratio: Ratio, promise: Promise) -> str:
    """Return whether a ratio keeps a promise; its interval has to be outside to break it."""
    if ratio.interval is None:
        return "not confirmed"
    low, high = ratio.interval
    if low > promise.high:
        return "it is more"
    if high < promise.low or ratio.is_tie:
        return "it is less"
    return "that holds"


def _why(results: Sequence[CaseResult]) -> str:
    """Return why length decides: attention's share in the operations, and what eager's scores cost beyond it."""
    found = [(result, ratio) for result in results if (ratio := result.ratio(FLASH, EAGER)) is not None]
    if not found:
        return ""
    shares = "; ".join(
        f"at {result.case.longest} tokens attention is {100 * result.attention_share:.1f} % of the operations needed, and "
        f"flash_attention_2 takes away {max(0.0, 100 - 100 / ratio.value):.0f} % of eager's time"
        for result, ratio in found
    )
    return (
        f"Why: {shares}. Eager attention writes every score to memory and reads it back, which costs far more time "
        "than its operations and grows with the square of the length."
    )


def _default_words(results: Sequence[CaseResult]) -> str:
    """Return what the default ran, where it is PyTorch's own attention: the advice knew only eager attention."""
    found = [r for r in results if is_own_attention(r.roles[DEFAULT]) and r.kernels]
    if not found:
        return ""
    runs: dict[tuple[str, ...], list[CaseResult]] = {}
    for result in found:
        runs.setdefault(result.kernels, []).append(result)
    ran = "; ".join(f"{' and '.join(kernels)} at {_lengths(group)} tokens" for kernels, group in runs.items())
    text = f"Today's default is sdpa, not eager. The kernel that PyTorch picked for it here: {ran}."
    if not any(MATH in kernels for kernels in runs):
        return text
    heads = "with this model's single key-value head (multi-query attention) " if found[0].one_kv_head else ""
    text += f" The math kernel is no fused one: {heads}sdpa writes all scores to memory, as eager does"
    slower = [r for r in found if MATH in r.kernels and (x := r.ratio(DEFAULT, EAGER)) and x.value < 1 and not x.is_tie]
    if slower:
        text += f", and is slower than eager at {_lengths(slower)} tokens"
    return f"{text}."


def _lengths(results: Sequence[CaseResult]) -> str:
    *others, last = [str(result.case.longest) for result in results]
    return f"{', '.join(others)} and {last}" if others else last


def payload(results: Sequence[CaseResult]) -> dict[str, Any]:
    """Return everything as JSON values."""
    return {
        "model": results[0].model,
        "environment": {"key": results[0].environment.key, **results[0].environment.payload},
        "cases": [result.payload for result in results],
        "words": verdict(results),
    }


def chart(results: Sequence[CaseResult], model: str) -> str:
    """Return the SVG of the speeds over eager attention. model: its name for people."""
    ratios = [[result.ratio(role, EAGER) for result in results] for role in ROLES]
    defaults = ", ".join(sorted({result.roles[DEFAULT]["attention"] for result in results}))
    blocks = max((ratio.blocks for row in ratios for ratio in row if ratio), default=0)
    return bar_chart(
        f"{model}: speed over native (eager) attention",
        [f"{result.case.batch} × {result.case}" for result in results],
        ["eager, padded", f"the default ({defaults})", "flash_attention_2, padded", "recommended"],
        [[ratio.value if ratio else None for ratio in row] for row in ratios],
        [
            [ratio.interval if ratio and role != EAGER else None for ratio in row]
            for role, row in zip(ROLES, ratios, strict=True)
        ],
        "times the speed of eager attention, padded (useful tokens/s)",
        f"{results[0].environment}. Last logits; error bars: 95 % over {blocks} blocks of fresh processes. "
        "Measured by advisor reproduce-seed.",
    )
