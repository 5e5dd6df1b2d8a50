"""The charts, as plotly's JSON: traces and layout in plain values. Colours are names of the page's, which is light or dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from advisor.nouns.metrics import PEAK
from advisor.pages.comparison import ComparedStudies, Pair, mark_of, marks_of
from advisor.pages.points import Finalist, Point, Role, Step, tie_zone
from advisor.pages.study_report import StudyReport
from advisor.terminal import printable

Figure = dict[str, Any]

#: How each role is drawn: plotly's symbol, the page's colour, and the size in pixels.
MARKS: dict[Role, tuple[str, str, int]] = {
    Role.RIGHT: ("circle", "--right", 9),
    Role.REJECTED: ("x", "--rejected", 9),
    Role.DEFAULT: ("square", "--default", 13),
    Role.CHOSEN: ("star", "--chosen", 17),
}

#: Characters of a configuration that a chart's label shows; its table has all of them.
_LABEL = 44


def plain(text: str) -> str:
    """Return text that plotly takes as it is: it would read tags in it."""
    return printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _short(text: str) -> str:
    return plain(text if len(text) <= _LABEL else f"{text[: _LABEL - 1]}…")


def _memory_unit(sizes: Sequence[float]) -> tuple[str, int]:
    """Return the unit that bytes are drawn in, and how many it is."""
    return ("GiB", 2**30) if max(sizes, default=0) >= 2**30 else ("MiB", 2**20)


def memory_figure(report: StudyReport) -> Figure | None:
    """Return speed against peak memory, None where nothing has both."""
    points = [point for point in report.searched if point.peak_bytes]
    unit, size = _memory_unit([point.peak_bytes or 0 for point in points])
    return _scatter(report, points, lambda point: (point.peak_bytes or 0) / size, f"peak memory ({unit})", is_log=False)


def quality_figure(report: StudyReport) -> Figure | None:
    """Return speed against the quality figure, None where nothing has both."""
    points = [point for point in report.searched if point.quality is not None]
    values = [point.quality or 0.0 for point in points]
    is_log = bool(values) and min(values) > 0 and max(values) / min(values) > 20
    return _scatter(report, points, lambda point: point.quality or 0.0, report.quality_words, is_log=is_log)


def _scatter(
    report: StudyReport, points: Sequence[Point], across: Callable[[Point], float], title: str, *, is_log: bool
) -> Figure | None:
    """Return points by their speed. across: the other figure; is_log: whether that spans more than a decade."""
    if not points:
        return None
    x_range, y_range = (
        _padded([across(point) for point in points], is_log=is_log),
        _padded([p.speed or 0.0 for p in points]),
    )
    traces = [
        _trace(role, [point for point in points if point.role is role], across, title, report.speed_unit)
        for role in MARKS
        if any(point.role is role for point in points)
    ]
    labels = [_mark(point, across(point), x_range, is_log=is_log) for point in points if _is_marked(point)]
    x_axis = {**_axis(title), "range": x_range, **({"type": "log", "exponentformat": "power"} if is_log else {})}
    return {
        "data": traces,
        "layout": {
            **_layout(380),
            "xaxis": x_axis,
            "yaxis": {**_axis(report.speed_unit), "range": y_range},
            "annotations": labels,
        },
    }


def _is_marked(point: Point) -> bool:
    return point.is_default or point.role is Role.CHOSEN


def _trace(role: Role, points: Sequence[Point], across: Callable[[Point], float], title: str, unit: str) -> Figure:
    symbol, colour, size = MARKS[role]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": str(role),
        "x": [across(point) for point in points],
        "y": [point.speed for point in points],
        "text": [f"{plain(point.configuration)} (trial {point.number})" for point in points],
        "marker": {"symbol": symbol, "color": colour, "size": size, "line": {"width": 1, "color": "--paper"}},
        "hovertemplate": f"%{{text}}<br>%{{y:,.0f}} {plain(unit)}<br>{plain(title)}: %{{x:.3g}}<extra>{role}</extra>",
    }


def _mark(point: Point, x: float, x_range: list[float], *, is_log: bool) -> Figure:
    """Return the label of the default or of what is recommended, on the side of its point where there is room."""
    place = math.log10(x) if is_log else x
    is_left = place < sum(x_range) / 2
    is_chosen = point.role is Role.CHOSEN
    words = "recommended: the default" if is_chosen and point.is_default else str(point.role)
    words = "the default" if point.is_default and not is_chosen else words
    return _label((place, point.speed or 0.0), words, is_left=is_left, is_up=is_chosen)


def _label(place: tuple[float, float], words: str, *, is_left: bool, is_up: bool) -> Figure:
    """Return a label beside its point. is_left: whether the point is in the left half; is_up: above it, for two may be close."""
    return {
        "x": place[0],
        "y": place[1],
        "text": f"<b>{words}</b>",
        "align": "left",
        "showarrow": True,
        "arrowcolor": "--ink",
        "arrowwidth": 1,
        "arrowhead": 0,
        "standoff": 8,
        "ax": 18 if is_left else -18,
        "ay": -30 if is_up else 30,
        "xanchor": "left" if is_left else "right",
        "font": {"color": "--ink", "size": 13},
    }


def compared_figure(page: ComparedStudies) -> Figure | None:
    """Return what both measured: its speed in the second study by its speed in the first; None where that is nothing."""
    pairs = [pair for pair in page.pairs if pair.speed_ratio is not None]
    if not pairs:
        return None
    numbers = (page.first.study.id, page.second.study.id)
    x_range = _padded([pair.first.speed or 0.0 for pair in pairs])
    y_range = _padded([pair.second.speed or 0.0 for pair in pairs], room=0.25)
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
    return {
        "data": [trace for trace in traces if trace["x"]],
        "layout": {
            **_layout(420),
            "xaxis": {**_axis(f"{unit} in study {numbers[0]}"), "range": x_range},
            "yaxis": {**_axis(f"{unit} in study {numbers[1]}"), "range": y_range},
            "shapes": [same],
            "annotations": _pair_labels(pairs, sum(x_range) / 2, numbers),
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


def _pair_labels(pairs: Sequence[Pair], middle: float, numbers: tuple[int, int]) -> list[Figure]:
    """Return the labels of what is special, off the diagonal where the points are; no two in one half are as far off."""
    labels: dict[bool, list[Figure]] = {True: [], False: []}
    for pair in pairs:
        x, y = pair.first.speed or 0.0, pair.second.speed or 0.0
        if words := marks_of(pair, *numbers):
            beside = labels[x < middle]
            label = _label((x, y), words.replace(", ", ",<br>"), is_left=x < middle, is_up=x >= middle)
            beside.append({**label, "ay": label["ay"] * (1 + len(beside))})
    return [*labels[True], *labels[False]]


def blocks_figure(report: StudyReport) -> Figure | None:
    """Return the finalists' ratios with their intervals, the line at 1 and the tie zone; None where there were none."""
    finalists = report.finalists
    if not finalists:
        return None
    count, (low, high) = len(finalists), tie_zone()
    rows = list(range(count, 0, -1))
    ends = [value for each in finalists for value in (each.low or each.ratio, each.high or each.ratio, *each.blocks)]
    reach = _padded([*[value for value in ends if 0.05 < value < 20], 1.0])
    names = [_row_name(each, row) for each, row in zip(finalists, rows, strict=True)]
    band = {"type": "rect", "xref": "x", "yref": "paper", "x0": low, "x1": high, "y0": 0, "y1": 1, "line": {"width": 0}}
    one = {"type": "line", "xref": "x", "yref": "paper", "x0": 1, "x1": 1, "y0": 0, "y1": 1}
    y_axis = {
        "range": [0.4, count + 0.8],
        "showticklabels": False,
        "showgrid": False,
        "zeroline": False,
        "fixedrange": True,
    }
    return {
        "data": [_blocks_trace(finalists, rows), _ratios_trace(finalists, rows)],
        "layout": {
            **_layout(96 + 58 * count),
            "xaxis": {**_axis("× the default"), "range": reach},
            "yaxis": y_axis,
            "shapes": [
                {**band, "fillcolor": "--zone", "layer": "below"},
                {**one, "line": {"color": "--ink", "width": 1, "dash": "dash"}, "layer": "below"},
            ],
            "annotations": names,
            "margin": {"l": 14, "r": 14, "t": 10, "b": 52},
        },
    }


def _row_name(finalist: Finalist, row: int) -> Figure:
    words = _short(finalist.configuration)
    return {
        "xref": "paper",
        "x": 0,
        "xanchor": "left",
        "y": row + 0.36,
        "text": f"<b>{words}</b>" if finalist.is_chosen else words,
        "showarrow": False,
        "font": {"color": "--ink", "size": 12},
    }


def _ratios_trace(finalists: Sequence[Finalist], rows: Sequence[int]) -> Figure:
    above = [(each.high or each.ratio) - each.ratio for each in finalists]
    below = [each.ratio - (each.low or each.ratio) for each in finalists]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [each.ratio for each in finalists],
        "y": list(rows),
        "text": [f"{plain(each.configuration)}: {plain(each.verdict)}" for each in finalists],
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": above,
            "arrayminus": below,
            "color": "--chosen",
            "thickness": 2,
        },
        "marker": {
            "symbol": ["star" if each.is_chosen else "diamond" for each in finalists],
            "size": [15 if each.is_chosen else 11 for each in finalists],
            "color": "--chosen",
        },
        "hovertemplate": "%{text}<br>%{x:.3f} × the default<extra></extra>",
    }


def _blocks_trace(finalists: Sequence[Finalist], rows: Sequence[int]) -> Figure:
    pairs = [(ratio, row) for each, row in zip(finalists, rows, strict=True) for ratio in each.blocks]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [ratio for ratio, _ in pairs],
        "y": [row - 0.2 for _, row in pairs],
        "marker": {"symbol": "line-ns-open", "size": 8, "color": "--right", "line": {"width": 1.5}},
        "hovertemplate": "one block: %{x:.3f} × the default<extra></extra>",
    }


def path_figure(report: StudyReport) -> Figure | None:
    """Return the best so far by the trial's number, with each trial's own value and the default's line."""
    steps, aim = report.path, report.study.objective.aim
    seen = [step for step in steps if step.value is not None]
    if len(seen) < 2:
        return None
    unit, scale = aim.unit, 1
    if aim.metric == PEAK:
        name, scale = _memory_unit([step.value or 0.0 for step in seen])
        unit = f"peak memory ({name})"
    best = [step for step in steps if step.best is not None]
    trials = _steps_trace(seen, [(step.value or 0.0) / scale for step in seen], "markers", "--right")
    trials["marker"] = {"symbol": "circle-open", "size": 7, "color": "--right"}
    line = _steps_trace(best, [(step.best or 0.0) / scale for step in best], "lines", "--chosen")
    line["line"] = {"shape": "hv", "color": "--chosen", "width": 3}
    values = [value for trace in (trials, line) for value in trace["y"]]
    shapes = []
    if report.default_value is not None:
        level = report.default_value / scale
        values.append(level)
        stroke = {"color": "--default", "width": 2, "dash": "dash"}
        shapes = [
            {
                "type": "line",
                "xref": "paper",
                "x0": 0,
                "x1": 1,
                "y0": level,
                "y1": level,
                "line": stroke,
                "layer": "below",
            }
        ]
    return {
        "data": [trials, line] if best else [trials],
        "layout": {
            **_layout(340),
            "xaxis": {**_axis("trial of the search"), "tickformat": "d"},
            "yaxis": {**_axis(unit), "range": _padded(values)},
            "shapes": shapes,
        },
    }


def _steps_trace(steps: Sequence[Step], values: Sequence[float], mode: str, colour: str) -> Figure:
    name = "best so far" if mode == "lines" else "this trial"
    return {
        "type": "scatter",
        "mode": mode,
        "x": [step.number for step in steps],
        "y": list(values),
        "text": [f"{step.spent_s:,.0f} s measured" for step in steps],
        "hovertemplate": f"trial %{{x}}: %{{y:.4g}}, {name}<br>%{{text}}<extra></extra>",
    }


def _padded(values: Sequence[float], *, is_log: bool = False, room: float = 0.14) -> list[float]:
    """Return the range of an axis, or of its logarithm. room: for marks at both ends, as a share of its span."""
    shown = [math.log10(value) for value in values] if is_log else list(values)
    low, high = min(shown), max(shown)
    more = room * (high - low) or 0.1 * abs(high) or 1.0
    return [low - more, high + more]


def _axis(title: str) -> Figure:
    return {
        "title": {"text": plain(title), "font": {"color": "--ink", "size": 13}, "standoff": 8},
        "color": "--ink",
        "gridcolor": "--line",
        "zeroline": False,
        "automargin": True,
        "fixedrange": True,
        "nticks": 6,
        "tickfont": {"color": "--ink", "size": 12},
    }


def _layout(height: int) -> Figure:
    return {
        "height": height,
        "showlegend": False,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "color": "--ink"},
        "margin": {"l": 56, "r": 14, "t": 14, "b": 52},
        "dragmode": False,
        "hoverlabel": {"bgcolor": "--paper", "bordercolor": "--ink", "font": {"color": "--ink"}},
    }
