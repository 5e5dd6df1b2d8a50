"""What people see of jobs: a table, and a line for each change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.markup import escape
from rich.table import Table

from advisor.show.console import console
from advisor.terminal import duration

_COLOURS = {"queued": "dim", "running": "bold", "done": "green", "failed": "red", "cancelled": "yellow"}


def print_jobs(jobs: Sequence[Mapping[str, Any]]) -> None:
    """Print jobs as a table; of one alone, all that is known of it."""
    out = console(stderr=False)
    if not jobs:
        out.print("no jobs: advisor submit MODEL")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    has_priority = any(job.get("priority") for job in jobs)
    numbers = (*(["prio"] if has_priority else []), "trials", "study", "age")
    for name in ("job", "state", "model", *numbers):
        table.add_column(name, overflow="fold", justify="right" if name in numbers else "left")
    for job in jobs:
        colour = _COLOURS[job["state"]]
        table.add_row(
            escape(job["id"]),
            f"[{colour}]{job['state']}[/]",
            escape(_short(job["model"])),
            *([str(job.get("priority", ""))] if has_priority else []),
            str(job.get("trials", "")) or "",
            "" if job["study"] is None else str(job["study"]),
            duration((datetime.now(UTC) - datetime.fromisoformat(job["submitted_at"])).total_seconds()),
        )
    out.print(table)
    for job in jobs:
        if text := _about(job):
            out.print(f"{escape(job['id'])}: {escape(text)}")


def change(job: Mapping[str, Any]) -> str:
    """Return a line of how a job stands: it changes when something happened."""
    parts = [job["id"], job["state"], _short(job["model"])]
    if job.get("priority"):
        parts.append(f"priority {job['priority']}")
    if job["study"] is not None:
        parts.append(f"study {job['study']}, {trials_words(job)}")
    if text := _about(job):
        parts.append(text)
    return " · ".join(parts)


def trials_words(job: Mapping[str, Any]) -> str:
    """Return how many trials were run while a job ran, and how many its study has by now where others added some."""
    count, whole = int(job.get("trials") or 0), int(job.get("study_trials") or 0)
    words = f"{count} trial{'' if count == 1 else 's'}"
    return f"{words} of its study's {whole} by now" if whole > count else words


def _about(job: Mapping[str, Any]) -> str:
    """Return what there is to say of a job beside its state: what it measures again, waits for, found by then; how it ended."""
    again, why, answer = (job.get("again") or {}).get("words"), job.get("why"), job.get("answer")
    is_open = job["state"] in ("queued", "running")
    said = (again, why, answer and f"so far {answer}") if is_open else (again, answer or why)
    return "; ".join(str(words) for words in said if words)


def _short(model: str) -> str:
    return model if len(model) <= 40 else f"…{model[-39:]}"
