"""Answer: a recommendation as Python and notebooks see it, with a short repr, HTML, rows for a data frame, and its script."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from html import escape
from typing import Any

from advisor.advice.recommendation import Recommendation
from advisor.nouns.metrics import head, without_unit
from advisor.workloads import kind_of


@dataclass(frozen=True, repr=False)
class Answer(Recommendation):
    """What to run and why: a :class:`~advisor.advice.recommendation.Recommendation` that notebooks can show.

    `configuration` (None where nothing may be recommended), `verdict`, `notes`, `command` (what goes on), and of the default
    `chosen.comparison.ratio` and `.interval`; `rows` for a data frame, `script` to run, `payload` for JSON.
    """

    @classmethod
    def of(cls, found: Recommendation) -> Answer:
        """Return a recommendation as an answer."""
        return cls(**{field.name: getattr(found, field.name) for field in fields(found)})

    def __repr__(self) -> str:
        """Return it in a line."""
        return f"<{self}>"

    @property
    def device(self) -> str:
        """What torch calls the kind of device that was measured on: "cuda" or "cpu"."""
        return "cuda" if self.study.environment.is_cuda else "cpu"

    @property
    def rows(self) -> list[Mapping[str, Any]]:
        """A flat mapping for every configuration that was measured, what is recommended first: for `pandas.DataFrame`."""
        from advisor.show.rows import candidate_rows

        return candidate_rows(self)

    @property
    def script(self) -> str:
        """The complete script that runs what is recommended; "" where nothing is."""
        from advisor.show.script import recommended_script

        return "" if self.chosen is None else recommended_script(self, self.device)

    def _repr_html_(self) -> str:
        """Return it as notebooks show it: what is recommended, in a sentence, and the table of what was measured."""
        from rich.text import Text

        from advisor.show.headline import headline

        sentence = " ".join(Text.from_markup(headline(self)).plain.split())
        notes = "".join(f"<li>{escape(note)}</li>" for note in self.notes)
        speed, aim = kind_of(self.study.workload).speed, self.objective.aim
        metrics = [metric.metric for metric in dict.fromkeys((speed, aim)) if metric.metric not in _LAST]
        work = f"{self.source.name} · {self.study.workload} · {self.study.environment}"
        return (
            f"<div><p><strong>{escape(sentence)}</strong><br><small>{escape(work)}</small></p>"
            f"{f'<ul>{notes}</ul>' if notes else ''}{_table(self.rows, metrics)}</div>"
        )


#: What the table in a notebook shows of a row beside its figures, and how a column is headed; the rest is in `rows`.
_SHOWN = {
    "configuration": "configuration",
    "ratio": "× default",
    "ratio_low": "from",
    "ratio_high": "to",
    "search_ratio": "× default in the search",
}
_LAST = {"peak_bytes": "peak, GiB", "tier": "tier", "objections": "not recommended because"}


def _table(rows: list[Mapping[str, Any]], metrics: Iterable[str]) -> str:
    heads = {**_SHOWN, **{metric: head(metric) for metric in metrics}, **_LAST}
    shown = [name for name in heads if any(row.get(name) not in (None, "") for row in rows)]
    first = "".join(f'<th scope="col">{escape(heads[name])}</th>' for name in shown)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(name, row.get(name))}</td>' for name in shown)}</tr>" for row in rows)
    return f"<table><thead><tr>{first}</tr></thead><tbody>{body}</tbody></table>"


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name == "peak_bytes":
        return f"{value / 2**30:.2f}"
    if isinstance(value, float):
        return f"{value:.2f}" if name in _SHOWN else escape(without_unit(name, value))
    return escape(str(value))
