"""The seed: the advice that this project grew from, measured on this GPU.

Hugging Face's documentation of 2023 said of Falcon-7B that FlashAttention-2 in 16 bit is a little faster than "native"
attention at 256 tokens with 30 % padding, and up to twice as fast at 4096 tokens without. Here every case is an ordinary
tune, with its gate, its proof and its rows in the database; `Job.also` sees to it that the two configurations of the claim
meet the default in every block of the confirmation.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from advisor import probe
from advisor.chart import bar_chart
from advisor.configuration import Configuration, stated
from advisor.cost import attention_width, useful_operations
from advisor.environment import Environment, Machine
from advisor.errors import BadInput, NothingAdmissible
from advisor.knobs import KNOBS, Reason, baseline_choices
from advisor.measurement import LEAST_BLOCKS, TIE_ZONE, Comparison
from advisor.model import ModelFacts, ModelSource
from advisor.objective import Budget, Objective, Tier
from advisor.opening import facts_for
from advisor.runner import Runner
from advisor.store import Store
from advisor.suggest import recommend
from advisor.trial import Outcome, Trial
from advisor.tune import tune
from advisor.tuning import Job, Listener
from advisor.workloads import Workload, quantile_lengths, workload_of

#: The shape of tiiuae/falcon-7b: weights are drawn, for speed does not depend on them.
FALCON = Path(__file__).with_name("falcon-7b.json")

#: Columns of the text.
WIDTH = 80


@dataclass(frozen=True)
class Case:
    """One row of the advice: the longest sequence in tokens, the share of pads, and the sequences in a batch."""

    longest: int
    padding: float
    batch: int

    @classmethod
    def of(cls, text: str) -> Case:
        """Read "4096:0:4", length, padding and batch. Raises BadInput."""
        try:
            longest, padding, batch = text.split(":")
            return cls(int(longest), float(padding), int(batch))
        except ValueError:
            raise BadInput(f"--case must be LENGTH:PADDING:BATCH such as 4096:0:4, not {text!r}") from None

    def workload(self, batches: int) -> Workload:
        """Return the work. Raises BadInput where no list of lengths has this padding."""
        lengths = quantile_lengths(self.longest, self.padding, self.batch, batches)
        return workload_of({"kind": "forward", "lengths": lengths, "batch": self.batch, "output": "last-logits"})

    def __str__(self) -> str:
        """Return the case in words."""
        padding = f"{self.padding:.0%} padding".replace("%", " %") if self.padding else "no padding"
        return f"{self.longest} tokens, {padding}"


#: The advice's two ends and one between them; batches as large as eager attention has memory for on a large GPU.
CASES = (Case(256, 0.3, 64), Case(2048, 0.3, 8), Case(4096, 0.0, 4))


@dataclass(frozen=True)
class Promise:
    """What the advice said of a case, and the ratios that these words stand for."""

    words: str
    low: float
    high: float


#: By length and padding. "Small" has no number there; a quarter is what we take it for.
PROMISES = {
    (256, 0.3): Promise("a small gain", 1.0, 1.25),
    (4096, 0.0): Promise("up to twice as fast", 1.0, 2.0),
}

#: PyTorch's kernels of scaled_dot_product_attention by a part of their operators' names.
_KERNELS = {
    "_scaled_dot_product_attention_math": "math",
    "_scaled_dot_product_cudnn": "cuDNN",
    "_scaled_dot_product_efficient": "memory-efficient",
    "_scaled_dot_product_flash": "flash",
}

#: What is measured in every case, in the order of the table and the chart; the third is what the claim is about.
ROLES = ("eager", "default", "flash_attention_2", "recommended")
_EAGER, _DEFAULT, _FLASH, _RECOMMENDED = ROLES


@dataclass(frozen=True)
class Ratio:
    """How many times as fast one configuration is as another.

    interval: at 95 % over the blocks in which both ran; None where it was seen in single runs of the search: a hint.
    """

    value: float
    interval: tuple[float, float] | None
    blocks: int

    @property
    def is_tie(self) -> bool:
        """Whether it can't be told from 1."""
        low, high = self.interval or (self.value, self.value)
        return low <= 1 + TIE_ZONE and high >= 1 / (1 + TIE_ZONE)

    @property
    def payload(self) -> dict[str, Any]:
        """The ratio as JSON values."""
        return {"ratio": self.value, "interval": list(self.interval) if self.interval else None, "blocks": self.blocks}

    def __str__(self) -> str:
        """Return it for people; one that is a hint begins with ≈."""
        return f"≈{self.value:.2f}" if self.interval is None else f"{self.value:.2f} ({self.span})"

    @property
    def span(self) -> str:
        """The interval, or that there is none."""
        return f"{self.interval[0]:.2f}–{self.interval[1]:.2f}" if self.interval else "single runs, not confirmed"

    def beside(self, other: str) -> str:
        """Return it within a sentence: "3.66 × as fast as eager (3.64–3.68)", and whether it can be told from 1."""
        tie = ", which is no difference that can be told" if self.interval and self.is_tie else ""
        return f"{self.value:.2f} × as fast as {other} ({self.span}){tie}"


@dataclass(frozen=True)
class CaseResult:
    """What was measured in one case.

    roles: the configuration of each of ROLES; "recommended" is missing where nothing can be. verdict: of the
    recommendation. one_kv_head: all query heads share one key-value head (multi-query attention). planned: the most blocks.
    """

    case: Case
    study: int
    model: str
    environment: Environment
    workload: Workload
    facts: ModelFacts
    roles: Mapping[str, Configuration]
    verdict: str
    trials: tuple[Trial, ...]
    refusals: tuple[Reason, ...]
    one_kv_head: bool
    planned: int | None = None

    def trial(self, role: str) -> Trial | None:
        """Return the last search trial of a role's configuration that was timed, else the last one, else None."""
        wanted = self.roles.get(role)
        found = [t for t in self.trials if t.phase == "search" and wanted in (t.requested, t.ran)]
        timed = [t for t in found if t.ran == wanted and t.measurements]
        return next(reversed(timed or found), None)

    def tokens_per_s(self, role: str) -> float | None:
        """Return the median over the confirmation's blocks, else the search's."""
        blocks = [t.tokens_per_s for t in self._confirmed(role).values()]
        trial = self.trial(role)
        single = trial.tokens_per_s if trial is not None and trial.ran == self.roles[role] else 0.0
        return median(blocks) if blocks else single or None

    def ratio(self, role: str, over: str) -> Ratio | None:
        """Return how many times as fast one role is as another, block by block where both were confirmed."""
        ours, theirs = self._confirmed(role), self._confirmed(over)
        ratios = tuple(ours[n].tokens_per_s / theirs[n].tokens_per_s for n in sorted(ours.keys() & theirs.keys()))
        if len(ratios) >= LEAST_BLOCKS:
            comparison = Comparison(self.roles[role].key, self.roles[over].key, ratios, self.planned)
            return Ratio(comparison.ratio, comparison.interval, len(ratios))
        single, other = self.tokens_per_s(role), self.tokens_per_s(over)
        return Ratio(single / other, None, len(ratios)) if single and other else None

    def why_not(self, role: str) -> str:
        """Return why a role has no figure, "" where it has one."""
        if self.tokens_per_s(role):
            return ""
        if role not in self.roles:
            return "nothing can be recommended"
        trial = self.trial(role)
        if trial is not None:
            return f"{trial.outcome}: {trial.reason}" if trial.outcome is not Outcome.OK else trial.reason
        wanted = {f"{knob}={name}" for knob, name in self.roles[role].over(KNOBS)}
        refused = (r for r in self.refusals if wanted.issuperset(f"{r.subject} {r.about}".split()))
        return next((f"rule {r.rule}: {r.text}" for r in refused), "it was not tried: the time was over")

    @property
    def kernels(self) -> tuple[str, ...]:
        """The kernels of PyTorch's own attention that the default ran, as its profiled step shows."""
        trial = self.trial(_DEFAULT)
        operators = trial.reading.get("operators", ()) if trial is not None else ()
        return tuple(name for part, name in _KERNELS.items() if any(part in operator for operator in operators))

    @property
    def attention_share(self) -> float:
        """The share of attention in the operations that the work needs."""
        pairs = sum(n * n for n in self.workload.lengths) / (2 if self.facts.is_causal else 1)
        attention = 4.0 * pairs * attention_width(self.facts)
        return attention / useful_operations(self.facts, self.workload)

    @property
    def payload(self) -> dict[str, Any]:
        """The case as JSON values."""
        pairs = {f"{role} over {over}": self.ratio(role, over) for role, over in _PAIRS}
        return {
            "case": {"longest": self.case.longest, "padding": self.case.padding, "batch": self.case.batch},
            "study": self.study,
            "configurations": {
                role: {
                    "configuration": configuration.spelled,
                    "tokens_per_s": self.tokens_per_s(role),
                    "why_not": self.why_not(role),
                }
                for role, configuration in self.roles.items()
            },
            "ratios": {name: ratio.payload if ratio else None for name, ratio in pairs.items()},
            "verdict": self.verdict,
            "default_kernels": list(self.kernels),
            "attention_share": self.attention_share,
        }

    def _confirmed(self, role: str) -> dict[int, Trial]:
        """Return the trials of a role's configuration by the block of the confirmation in which it ran as itself."""
        wanted = self.roles.get(role)
        found = (t for t in self.trials if t.phase == "confirm" and t.requested == wanted == t.ran)
        return {t.block: t for t in found if t.block is not None and t.outcome is Outcome.OK and t.tokens_per_s}


#: The comparisons that say what the claim is worth.
_PAIRS = ((_FLASH, _EAGER), (_FLASH, _DEFAULT), (_DEFAULT, _EAGER), (_RECOMMENDED, _EAGER), (_RECOMMENDED, _DEFAULT))


def machine_for(device: str | None, threads: int = 1, *, own: bool = True) -> Machine:
    """Return the device to measure on. own: the model and the cases are the advice's own, which need a GPU.

    Raises BadInput where there is no GPU: the claim is about GPUs, and a CPU is for trying the command out.
    """
    machine = probe.machine(device, threads)
    if machine.problem:
        raise BadInput(machine.problem, machine.remedy)
    if not machine.environment.is_cuda and device is None:
        raise BadInput(
            "the advice is about GPUs, and there is none here that torch can use",
            "advisor probe says why; --device cpu with --model and --case tries the command out",
        )
    if not machine.environment.is_cuda and own:
        raise BadInput("the advice's own cases need a GPU", "on a CPU give --model and --case")
    return machine


def jobs(
    source: ModelSource, machine: Machine, budget: Budget, batches: int, timeout_s: float = 600.0
) -> Callable[[Case], Job]:
    """Return what makes the job of a case: within the tier exact, for the advice was about speed alone."""
    objective = Objective(quality=Tier.EXACT)
    return lambda case: Job(source, case.workload(batches), objective, budget, machine, trial_timeout_s=timeout_s)


def reproduce(
    cases: Sequence[Case], make_job: Callable[[Case], Job], store: Store, runner: Runner, listen: Listener
) -> list[CaseResult]:
    """Tune every case and return what was found. Interrupting it loses nothing: the same call goes on.

    make_job: the job of a case, its workload the case's; `also` is filled in here.
    """
    return [_measured(case, make_job(case), store, runner, listen) for case in cases]


def _measured(case: Case, job: Job, store: Store, runner: Runner, listen: Listener) -> CaseResult:
    facts = facts_for(job, runner)
    default = Configuration.of(baseline_choices(facts, job.workload))
    # Eager first: who comes second may be stopped early beside the first.
    roles = {
        _EAGER: default.replaced(attention="eager", packing="padded"),
        _DEFAULT: default,
        _FLASH: default.replaced(attention="flash_attention_2", packing="padded"),
    }
    also = tuple(configuration for configuration in roles.values() if configuration != default)
    study = tune(replace(job, also=also), store, runner, listen)
    record, verdict = store.study(study), "nothing"
    try:
        found = recommend(store, job.source, record, job.objective)
        verdict = found.verdict
        roles |= {_RECOMMENDED: found.configuration} if found.configuration is not None else {}
    except NothingAdmissible:
        pass  # said by the case: the default and the others have their reasons there
    config = job.source.config
    multi_query = config.get("multi_query") is True and not config.get("new_decoder_architecture")
    return CaseResult(
        case,
        study,
        job.source.name,
        record.environment,
        job.workload,
        facts,
        roles,
        verdict,
        tuple(store.trials(study, full=True)),
        tuple(store.refusals(study)),
        multi_query or facts.kv_heads == 1,
        job.budget.blocks,
    )


def _label(result: CaseResult, configuration: Configuration) -> str:
    """Return attention, packing and whatever else differs from the default."""
    default = result.roles[_DEFAULT]
    named, knobs = ("attention", "packing"), stated([configuration, default])
    other = [n for knob, n in configuration.over(knobs) if knob not in named and n != default.get(knob)]
    return " · ".join([*dict(configuration.over(named)).values(), *other])


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
            marks = ", ".join(role for role in roles if role in (_DEFAULT, _RECOMMENDED))
            name = _label(result, configuration) + (f" ({marks})" if marks else "")
            lines += _row(result, name, roles[0])
        lines.append("")
    return "\n".join(lines)


def _row(result: CaseResult, name: str, role: str) -> list[str]:
    speed, ratio = result.tokens_per_s(role), result.ratio(role, _EAGER)
    if speed is None:
        text = textwrap.shorten(result.why_not(role), 3 * WIDTH, placeholder="…")
        return [f"  {name}", *textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="    ")]
    shown = "1.00" if role == _EAGER else str(ratio or "–")
    if len(name) > 42:
        return [f"  {name}"[:WIDTH], f"  {'':42s}{speed:11,.0f}   {shown}"]
    return [f"  {name:42s}{speed:11,.0f}   {shown}"]


def verdict(results: Sequence[CaseResult]) -> str:
    """Return what the claim is worth on this GPU, in words computed from the figures: a paragraph a case, and why."""
    paragraphs = [_words(result) for result in results]
    paragraphs += [text for text in (_why(results), _default_words(results)) if text]
    return "\n\n".join(textwrap.fill(text, WIDTH) for text in paragraphs)


def _words(result: CaseResult) -> str:
    ratio, reason = result.ratio(_FLASH, _EAGER), result.why_not(_FLASH) or result.why_not(_EAGER)
    if ratio is None:
        return f"{result.case}: the claim can't be judged here: {textwrap.shorten(reason, 300, placeholder='…')}."
    text = f"{result.case}: flash_attention_2 is {ratio.beside('eager attention')}."
    promise = PROMISES.get((result.case.longest, result.case.padding))
    if promise is not None:
        text += f" The advice promised {promise.words}: {_held(ratio, promise)}."
    over = result.ratio(_FLASH, _DEFAULT)
    if over is not None and result.roles[_DEFAULT] != result.roles[_EAGER]:
        default = f"today's default, {result.roles[_DEFAULT]['attention']}"
        text += f" It is {over.beside(default)}."
    return f"{text} {_advice(result)}"


def _advice(result: CaseResult) -> str:
    best = result.ratio(_RECOMMENDED, _EAGER)
    if best is None:
        return "Nothing can be recommended."
    label = _label(result, result.roles[_RECOMMENDED])
    if result.roles[_RECOMMENDED] == result.roles[_DEFAULT]:
        return f"The default stays: {label}, {best.beside('eager')}."
    return f"Recommended is {label}: {best.beside('eager')}."


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
    found = [(result, ratio) for result in results if (ratio := result.ratio(_FLASH, _EAGER)) is not None]
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
    found = [r for r in results if r.roles[_DEFAULT]["attention"].startswith("sdpa") and r.kernels]
    if not found:
        return ""
    runs: dict[tuple[str, ...], list[CaseResult]] = {}
    for result in found:
        runs.setdefault(result.kernels, []).append(result)
    ran = "; ".join(f"{' and '.join(kernels)} at {_lengths(group)} tokens" for kernels, group in runs.items())
    text = f"Today's default is sdpa, not eager. The kernel that PyTorch picked for it here: {ran}."
    if not any("math" in kernels for kernels in runs):
        return text
    heads = "with this model's single key-value head (multi-query attention) " if found[0].one_kv_head else ""
    text += f" The math kernel is no fused one: {heads}sdpa writes all scores to memory, as eager does"
    slower = [
        r for r in found if "math" in r.kernels and (x := r.ratio(_DEFAULT, _EAGER)) and x.value < 1 and not x.is_tie
    ]
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
    ratios = [[result.ratio(role, _EAGER) for result in results] for role in ROLES]
    defaults = ", ".join(sorted({result.roles[_DEFAULT]["attention"] for result in results}))
    blocks = max((ratio.blocks for row in ratios for ratio in row if ratio), default=0)
    return bar_chart(
        f"{model}: speed over native (eager) attention",
        [f"{result.case.batch} × {result.case}" for result in results],
        ["eager, padded", f"the default ({defaults})", "flash_attention_2, padded", "recommended"],
        [[ratio.value if ratio else None for ratio in row] for row in ratios],
        [
            [ratio.interval if ratio and role != _EAGER else None for ratio in row]
            for role, row in zip(ROLES, ratios, strict=True)
        ],
        "times the speed of eager attention, padded (useful tokens/s)",
        f"{results[0].environment}. Last logits; error bars: 95 % over {blocks} blocks of fresh processes. "
        "Measured by advisor reproduce-seed.",
    )
