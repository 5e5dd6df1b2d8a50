"""Sent: an answer as text for whoever asked from another host, in any form that the command line has."""

from __future__ import annotations

import io

from advisor.advice.recommendation import Recommendation
from advisor.errors import BadInput, named
from advisor.show.console import SafeConsole
from advisor.show.formats import FORMATS
from advisor.show.headline import summary
from advisor.show.report import print_recommendation
from advisor.show.rows import as_csv, candidate_rows

#: Columns of a line that may be asked for.
LEAST_COLUMNS, MOST_COLUMNS = 40, 500


def answer_text(
    recommendation: Recommendation,
    device: str,
    form: str,
    columns: int,
    *,
    pareto: bool = False,
    refusals: bool = False,
) -> str:
    """Return an answer as text; where there is nothing to paste, what is missing of it. Raises BadInput for no form of it."""
    if form == "csv":
        return as_csv(candidate_rows(recommendation))
    if form == "text":
        out = io.StringIO()
        width = min(max(columns, LEAST_COLUMNS), MOST_COLUMNS)
        paper = SafeConsole(
            file=out, width=width, highlight=False, soft_wrap=False, color_system=None, force_terminal=False
        )
        print_recommendation(recommendation, device, pareto=pareto, refusals=refusals, out=paper)
        return out.getvalue()
    if form not in FORMATS:
        raise BadInput(f"{named('format')} is text, json, csv, {', '.join(FORMATS)}")
    return FORMATS[form].write(recommendation, device) if recommendation.chosen is not None else summary(recommendation)
