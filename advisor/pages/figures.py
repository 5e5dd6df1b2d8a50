"""The charts of one study, as plotly's JSON: speed against memory and quality, the finalists' ratios, and the search's path."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from advisor.nouns.metrics import PEAK
from advisor.pages.drawing import MARKS, Figure, axis, labels, layout, log_axis, memory_unit, padded, plain, short
from advisor.pages.points import Finalist, Point, Role, Step, tie_zone
from advisor.pages.study_report import StudyReport


def memory_figure(report: StudyReport) -> Figure | None:
    """Return speed against peak memory, None where nothing has both."""
    points = report.in_memory_chart
    unit, size = memory_unit([point.peak_bytes or 0 for point in points])
    return _scatter(report, points, lambda point: (point.peak_bytes or 0) / size, f"peak memory ({unit})", is_log=False)


def quality_figure(report: StudyReport) -> Figure | None:
    """Return speed against the quality figure, None where nothing has both."""
    points = report.in_quality_chart
    values = [point.quality or 0.0 for point in points]
    is_log = bool(values) and min(values) > 0 and max(values) / min(values) > 20
    return _scatter(report, points, lambda point: point.quality or 0.0, report.quality_words, is_log=is_log)


def _scatter(
    report: StudyReport, points: Sequence[Point], across: Callable[[Point], float], title: str, *, is_log: bool
) -> Figure | None:
    """Return points by their speed. across: the other figure; is_log: whether that spans more than a decade."""
    if not points:
        return None
    x_range = padded([across(point) for point in points], is_log=is_log)
    y_range = padded([point.speed or 0.0 for point in points])
    traces = [
        _trace(role, [point for point in points if point.role is role], across, title, report.speed_unit)
        for role in MARKS
        if any(point.role is role for point in points)
    ]
    places = [(math.log10(across(point)) if is_log else across(point), point.speed or 0.0) for point in points]
    named = [(place, _name(point)) for place, point in zip(places, points, strict=True) if _is_marked(point)]
    x_axis = log_axis(title, x_range) if is_log else axis(title, x_range)
    return {
        "data": traces,
        "layout": {
            **layout(380),
            "xaxis": x_axis,
            "yaxis": axis(report.speed_unit, y_range),
            "annotations": labels(named, places, x_range, y_range),
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


def _name(point: Point) -> str:
    """Return what the default or what is recommended is called in a chart: in lines that there is room for on a narrow screen."""
    is_chosen = point.role is Role.CHOSEN
    words = "recommended:<br>the default" if is_chosen and point.is_default else str(point.role)
    return "the default" if point.is_default and not is_chosen else words


def blocks_figure(report: StudyReport) -> Figure | None:
    """Return the finalists' ratios with their intervals, the line at 1 and the tie zone; None where there were none."""
    finalists = report.finalists
    if not finalists:
        return None
    count, (low, high) = len(finalists), tie_zone()
    rows = list(range(count, 0, -1))
    ends = [value for each in finalists for value in (each.low or each.ratio, each.high or each.ratio, *each.blocks)]
    reach = padded([*[value for value in ends if 0.05 < value < 20], 1.0])
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
            **layout(96 + 58 * count),
            "xaxis": axis("× the default", reach),
            "yaxis": y_axis,
            "shapes": [
                {**band, "fillcolor": "--zone", "layer": "below"},
                {**one, "line": {"color": "--ink", "width": 2, "dash": "dash"}, "layer": "between"},
            ],
            "annotations": names,
            "margin": {"l": 14, "r": 14, "t": 10, "b": 52},
        },
    }


def _row_name(finalist: Finalist, row: int) -> Figure:
    words = short(finalist.configuration)
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
        name, scale = memory_unit([step.value or 0.0 for step in seen])
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
            **layout(340),
            "xaxis": {**axis("trial of the search"), "tickformat": "d"},
            "yaxis": axis(unit, padded(values)),
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
