"""A candidate's figures for people: in words, and as rows of the tables of runners-up and of what no other beats."""

from __future__ import annotations

from collections.abc import Iterable

from rich.markup import escape
from rich.table import Table

from advisor.advice.ranking import Candidate
from advisor.advice.recommendation import Recommendation, tie_set
from advisor.knobs import tier_of
from advisor.nouns.metrics import PEAK, Gauge, Metric, head, without_unit
from advisor.nouns.objective import Objective
from advisor.nouns.trial import Quality
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
    if chosen.quality:
        parts.append(f"{quality_words(chosen.quality)} against {chosen.quality.reference}")
    elif not recommendation.same_weights:
        parts.append("its quality was not measured with these weights")
    return "\n  ".join(parts)


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
    figures += [quality.quantised] if quality.quantised else []
    return ", ".join(figures)


def runners_up(recommendation: Recommendation) -> Table:
    """Return what else may be recommended, the best five."""
    metrics = _columns(recommendation)
    heads = [head(metric) for metric in metrics]
    table = Table("runner-up", "× default", *heads, "note", box=None, pad_edge=False, header_style="bold")
    table.columns[0].no_wrap = True  # a label is copied
    tied = {candidate.configuration for candidate in tie_set(recommendation)}
    for candidate in recommendation.runners_up[:5]:
        note = "as good as the recommendation" if candidate.configuration in tied else ""
        note = "the default" if candidate.is_default else note
        cells = _cells(candidate, metrics)
        table.add_row(escape(str(candidate.configuration)), _ratio_words(candidate), *cells, note)
    return table


def pareto_table(recommendation: Recommendation) -> Table:
    """Return what no other beats in speed, memory and quality at once."""
    metrics = _columns(recommendation)
    heads = [head(metric) for metric in metrics]
    table = Table(
        "no other beats it in speed, memory and quality",
        "× default",
        *heads,
        "against the reference",
        "tier",
        box=None,
        pad_edge=False,
        header_style="bold",
    )
    table.columns[0].no_wrap = True
    for candidate in recommendation.pareto:
        quality, tier = candidate.quality, tier_of(candidate.configuration.items(), recommendation.facts)
        table.add_row(
            escape(str(candidate.configuration)),
            _ratio_words(candidate),
            *_cells(candidate, metrics),
            quality_words(quality).partition(", top-1")[0] if quality else "–",
            str(tier),
        )
    return table


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
