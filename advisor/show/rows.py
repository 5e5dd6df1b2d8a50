"""What commands tell as rows, for a spreadsheet or a data frame: a flat mapping each, with units in the columns' names."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from advisor.advice.ranking import Candidate
from advisor.advice.recommendation import Recommendation
from advisor.knobs import KNOBS
from advisor.machine.probe import Availability
from advisor.study.history import Listed
from advisor.terminal import in_a_line

Row = Mapping[str, Any]


def as_csv(rows: Sequence[Row]) -> str:
    """Return rows as CSV with a header of all their columns, in the order in which they first come; no rows: "".

    What is not known is an empty cell. A text is one line: what is one value can't look like several rows.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if not columns:
        return ""
    written = io.StringIO()
    writer = csv.DictWriter(written, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return written.getvalue()


def _cell(value: Any) -> Any:
    """Return a value as a cell; a text that a spreadsheet would take for a formula is quoted with an apostrophe."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, str):
        text = in_a_line(value)
        return f"'{text}" if text[:1] in ("=", "+", "@", "-") and text not in ("-", "+") else text
    return value


def candidate_rows(recommendation: Recommendation) -> list[Row]:
    """Return a row for every configuration that was measured, what is recommended first, then in the one order."""
    chosen = [] if recommendation.chosen is None else [recommendation.chosen]
    measured = (*chosen, *recommendation.runners_up, *recommendation.rejected)
    return [_candidate_row(each, recommendation) for each in measured]


def _candidate_row(found: Candidate, recommendation: Recommendation) -> Row:
    told, quality = found.payload, found.payload["quality"] or {}
    low, high = told["ratio_interval"] or (None, None)
    figures = {metric.metric: told.get(metric.metric) for metric in found.metrics}
    return {
        "configuration": told["label"],
        "recommended": found is recommendation.chosen,
        "is_default": found.is_default,
        "verdict": told["verdict"],
        "ratio": told["ratio"],
        "ratio_low": low,
        "ratio_high": high,
        "blocks": told["blocks"],
        "search_ratio": told["search_ratio"],
        **figures,
        "peak_bytes": told["peak_bytes"],
        "weight_bytes": told["weight_bytes"],
        "tier": told["tier"],
        "tier_reached": told["tier_reached"],
        **{name: quality.get(name) for name in ("rms", "kl", "top1", "perplexity_ratio", "cosine", "top10")},
        "objections": "; ".join(found.objections),
        "study": recommendation.study.id,
        "number": found.trial.number,
        "stale": "; ".join(recommendation.stale),
        **_calls(recommendation.objective.job_calls),
    }


def _calls(calls: int | None) -> Row:
    """Return the column that says over how many calls rates and ratios are; none where they are of work without end."""
    return {} if calls is None else {"calls": calls}


def trial_rows(listed: Iterable[Listed]) -> list[Row]:
    """Return a row for every trial, of all studies."""
    return [
        {
            "study": each.study.id,
            "number": trial.number,
            "model": each.study.model_name,
            "workload": str(each.study.workload),
            "device": str(each.study.environment),
            "configuration": str(trial.requested),
            "ran": str(trial.ran),
            "phase": trial.phase,
            "block": trial.block,
            "outcome": str(trial.outcome),
            "ratio": each.ratios.get(trial.number),
            **{measured.metric: measured.median for measured in trial.measurements},
            "peak_bytes": trial.peak_bytes,
            "reason": trial.reason,
            **_calls(each.calls),
        }
        for each in listed
        for trial in each.figured
    ]


def choice_rows(availability: Iterable[Availability]) -> list[Row]:
    """Return a row for every choice: whether it can be made here, and what would make it so."""
    return [
        {
            "knob": each.knob,
            "choice": each.choice,
            "advised": KNOBS[each.knob].choices[each.choice].traits.advised,
            "available": each.reason is None,
            "rule": each.reason.rule if each.reason else None,
            "reason": each.reason.text if each.reason else None,
            "remedy": each.reason.remedy if each.reason else None,
        }
        for each in availability
    ]
