"""The chart of two studies, as plotly's JSON: the speed of what both measured, in the one by the other."""

from __future__ import annotations

from collections.abc import Sequence

from advisor.pages.comparison import ComparedStudies, Pair, mark_of, marks_of
from advisor.pages.drawing import MARKS, Figure, axis, labels, layout, padded, plain
from advisor.pages.points import Role


def compared_figure(page: ComparedStudies) -> Figure | None:
    """Return what both measured: its speed in the second study by its speed in the first; None where that is nothing."""
    pairs = [pair for pair in page.pairs if pair.speed_ratio is not None]
    if not pairs:
        return None
    numbers = (page.first.study.id, page.second.study.id)
    x_range = padded([pair.first.speed or 0.0 for pair in pairs])
    y_range = padded([pair.second.speed or 0.0 for pair in pairs])
    reach = [min(x_range[0], y_range[0]), max(x_range[1], y_range[1])]
    line = {"color": "--soft", "width": 1, "dash": "dash"}
    same = {
        "type": "line",
        "x0": reach[0],
        "x1": reach[1],
        "y0": reach[0],
        "y1": reach[1],
        "line": line,
        "layer": "below",
    }
    unit = page.first.speed_unit
    traces = [_pairs_trace([p for p in pairs if mark_of(p) is role], role, numbers) for role in MARKS]
    places = [(pair.first.speed or 0.0, pair.second.speed or 0.0) for pair in pairs]
    words = [marks_of(pair, *numbers).replace(", ", ",<br>").replace(" in ", "<br>in ") for pair in pairs]
    named = [(place, text) for place, text in zip(places, words, strict=True) if text]
    return {
        "data": [trace for trace in traces if trace["x"]],
        "layout": {
            **layout(420),
            "xaxis": axis(f"{unit} in study {numbers[0]}", x_range),
            "yaxis": axis(f"{unit} in study {numbers[1]}", y_range),
            "shapes": [same],
            "annotations": labels(named, places, x_range, y_range),
        },
    }


def _pairs_trace(pairs: Sequence[Pair], role: Role, numbers: tuple[int, int]) -> Figure:
    symbol, colour, size = MARKS[role]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [pair.first.speed for pair in pairs],
        "y": [pair.second.speed for pair in pairs],
        "text": [f"{plain(pair.first.configuration)}: × {pair.speed_ratio:.2f}" for pair in pairs],
        "marker": {"symbol": symbol, "color": colour, "size": size, "line": {"width": 1, "color": "--paper"}},
        "hovertemplate": f"%{{text}}<br>study {numbers[0]}: %{{x:,.0f}}, study {numbers[1]}: %{{y:,.0f}}<extra></extra>",
    }
