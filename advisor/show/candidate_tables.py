"""A candidate's figures for people: in words, and as rows of the tables of runners-up and of what no other beats."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table

from advisor.advice.ranking import Candidate
from advisor.advice.recommendation import Recommendation, tie_set
from advisor.knobs import tier_of
from advisor.nouns.metrics import PEAK, Gauge, Metric, head, without_unit
from advisor.nouns.objective import Objective
from advisor.nouns.trial import Quality
from advisor.search.space import MEMORY_SHARE
from advisor.terminal import gib, many, percent
from advisor.workloads import kind_of


def figures_of(recommendation: Recommendation, chosen: Candidate) -> str:
    """Return what was measured of what is recommended: speed, what else was asked about, memory and quality, a line each."""
    trial, workload, objective = chosen.trial, recommendation.study.workload, recommendation.objective
    kind, parts = kind_of(workload), []
    if speed := trial.measurement(kind.speed.metric):
        low, high = speed.interval
        beside = (metric for metric in kind.measured(workload) if not metric.name)
        calls = objective.job_calls
        over = "" if calls is None else f", over {many(calls, 'call')}"
        texts = "".join(f", {metric.show(value)}" for metric in beside if (value := trial.value(metric.metric)))
        parts.append(
            f"{speed.median:,.0f} useful {kind.speed.unit} in the search{over} ({low:,.0f}–{high:,.0f}){texts}"
        )
    shown = [
        f"{metric.head if metric.is_latency else metric.name} {metric.show(value)}"
        for metric in kind.metrics
        if (value := trial.value(metric.metric)) and _is_told(metric, objective)
    ]
    parts += [", ".join(shown)] if shown else []
    parts += [f"reaches {recommendation.ceiling_words}"] if recommendation.ceiling_words else []
    if trial.is_launch_bound and trial.busy is not None:
        parts.append(
            f"the GPU computes {percent(trial.busy, 0)} of the time and waits for launches else: this was timed for longer"
        )
    allowed = (
        f" of the {gib(objective.max_memory_bytes)} allowed: it fits" if objective.max_memory_bytes is not None else ""
    )
    parts.append(f"peak {gib(trial.peak_bytes)}{allowed}, weights {gib(trial.weight_bytes)}")
    longest = recommendation.longest_tokens
    parts += [_room_words(recommendation, longest)] if longest is not None else []
    if chosen.quality:
        parts.append(f"{quality_words(chosen.quality)} against {chosen.quality.reference}")
    elif not recommendation.same_weights:
        parts.append("its quality was not measured with these weights")
    return "\n  ".join(parts)


def _room_words(recommendation: Recommendation, tokens: int) -> str:
    """Say how long all sequences of a step may be for it to fit."""
    study, allowed = recommendation.study, recommendation.objective.max_memory_bytes
    of_device = f"{percent(MEMORY_SHARE, 0)} of the device's {gib(study.environment.memory_bytes)}"
    within = of_device if allowed is None else f"the {gib(allowed)} allowed"
    most = f"of up to {tokens:,} tokens each fits" if tokens else "of 64 tokens each does not fit"
    return f"by arithmetic, a step of {many(study.workload.batch or 1, 'sequence')} {most} in {within}"


def _is_told(metric: Metric, objective: Objective) -> bool:
    """Whether a metric is told beside speed and memory: energy is, latency where it is asked about, and what is the aim."""
    if metric.is_speed or metric.gauge is Gauge.MEMORY:
        return False
    is_about = metric.is_latency and objective.max_latency_s is not None
    return is_about or metric.gauge is Gauge.ENERGY or metric == objective.aim


def quality_words(quality: Quality) -> str:
    """Return the figures of a quality in words: of embeddings those that say what a search with them would find."""
    embeds = quality.top10 is not None and quality.cosine is not None
    figures = [] if embeds else [f"rms {quality.rms:.1e}"]
    figures += [f"KL {quality.kl:.1e} nats"] if quality.kl is not None else []
    figures += [f"top-1 {percent(quality.top1, 2)}"] if quality.top1 is not None else []
    figures += [f"perplexity × {quality.perplexity_ratio:.4f}"] if quality.perplexity_ratio is not None else []
    figures += [f"cosine ≥ {quality.cosine:.6f}"] if quality.cosine is not None else []
    figures += [f"nearest ten {percent(quality.top10, 1)} the same"] if quality.top10 is not None else []
    figures += _of_training(quality)
    figures += [quality.quantised] if quality.quantised else []
    return ", ".join(figures)


def _of_training(quality: Quality) -> list[str]:
    """Return how far training goes astray, in words; nothing where nothing is trained."""
    if quality.gradient is None or quality.loss is None or quality.norm is None:
        return [f"training {quality.course}"] if quality.course else []
    steps = f"{quality.steps} step{'s' if quality.steps != 1 else ''}"
    return [
        f"first gradients {quality.gradient:.1e} off",
        f"loss of {steps} {quality.loss:.1e} nats off",
        f"their norm {quality.norm:.1e} off",
    ]


class Figures:
    """A table of candidates, whose heads and figures are whole on any screen: words give way to them, at last labels do.

    heads: of the label, the figures and, after these, words; rows: likewise. figures: how many of the columns are figures.
    """

    def __init__(self, heads: Sequence[str], rows: Sequence[Sequence[str]], figures: int, title: str = "") -> None:
        """Keep what it is made of."""
        self.heads, self.rows, self.figures, self.title = heads, rows, figures, title

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table as it fits a screen. A label is copied: it is broken where there is no room for it alone."""
        columns = list(zip(self.heads, *self.rows, strict=True))
        natural = [max(map(cell_len, cells)) for cells in columns]
        least = [max((cell_len(word) for cell in cells for word in cell.split()), default=0) for cells in columns]
        words = range(self.figures + 1, len(columns))
        room = options.max_width - 2 * (len(columns) - 1) - sum(natural[1 : self.figures + 1])
        is_whole = natural[0] + sum(least[n] for n in words) <= room
        table = Table(box=None, pad_edge=False, header_style="bold", title=self.title or None, title_justify="left")
        for number, head_ in enumerate(self.heads):
            is_fixed = number in range(1, self.figures + 1) or (number == 0 and is_whole)
            kept = natural[number] if is_fixed else None
            width = least[number] if number in words and not is_whole else None
            table.add_column(head_, no_wrap=is_fixed, overflow="fold", min_width=kept, max_width=width)
        for row in self.rows:
            table.add_row(*map(escape, row))
        yield table


def runners_up(recommendation: Recommendation) -> Figures:
    """Return what else may be recommended, the best five."""
    metrics = _columns(recommendation)
    tied, rows = {candidate.configuration for candidate in tie_set(recommendation)}, []
    for candidate in recommendation.runners_up[:5]:
        note = "as good as the recommendation" if candidate.configuration in tied else ""
        note = "the default" if candidate.is_default else note
        rows.append([str(candidate.configuration), _ratio_words(candidate), *_cells(candidate, metrics), note])
    heads = ["runner-up", "× default", *(head(metric) for metric in metrics), "note"]
    return Figures(heads, rows, 1 + len(metrics))


def pareto_table(recommendation: Recommendation) -> Figures:
    """Return what no other beats in speed, memory and quality at once."""
    metrics, rows = _columns(recommendation), []
    for candidate in recommendation.pareto:
        quality, tier = candidate.quality, tier_of(candidate.configuration.items(), recommendation.facts)
        figures = [_ratio_words(candidate), *_cells(candidate, metrics)]
        words = quality_words(quality).partition(", top-1")[0] if quality else "–"
        rows.append([str(candidate.configuration), *figures, words, str(tier)])
    heads = ["configuration", "× default", *(head(metric) for metric in metrics), "against the reference", "tier"]
    return Figures(heads, rows, 1 + len(metrics), "no other beats these in speed, memory and quality")


def _columns(recommendation: Recommendation) -> list[str]:
    """Return the metrics that a table of candidates shows: speed, what was asked for, what is only shown, and peak memory."""
    objective, workload = recommendation.objective, recommendation.study.workload
    shown = [
        metric.metric
        for metric in kind_of(workload).measured(workload)
        if metric.is_speed
        or not metric.name
        or (metric.is_latency and objective.max_latency_s is not None)
        or (metric == objective.aim and metric.metric != PEAK)
    ]
    return [*shown, PEAK]


def _cells(candidate: Candidate, metrics: Iterable[str]) -> list[str]:
    return [without_unit(metric, candidate.trial.value(metric)) for metric in metrics]


def _ratio_words(candidate: Candidate) -> str:
    if candidate.comparison:
        (low, high), blocks = candidate.comparison.interval, len(candidate.comparison.block_ratios)
        return f"{candidate.comparison.ratio:.2f} ({f'{low:.2f}–{high:.2f}' if blocks > 1 else 'one block'})"
    if candidate.is_default:
        return "1.00"
    return f"≈{candidate.search_ratio:.2f}" if candidate.search_ratio else "–"
