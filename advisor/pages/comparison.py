"""What two studies look like beside each other: what differs between them, where that is not fair, and what both measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from advisor.nouns.environment import Environment
from advisor.pages.points import Point, Role
from advisor.pages.study_report import StudyReport
from advisor.storage.study_record import StudyRecord
from advisor.terminal import gib, many
from advisor.workloads import kind_of


@dataclass(frozen=True)
class Pair:
    """A configuration that both measured: its points, and the second's speed and peak over the first's, None where unknown."""

    first: Point
    second: Point
    speed_ratio: float | None
    peak_ratio: float | None


@dataclass(frozen=True)
class ComparedStudies:
    """Two studies. differences: name, the first's, the second's; unfair: why their figures are not to be compared, in words.

    pairs: what both measured, the highest ratio first; alone: how many configurations only one of them measured. has_one_unit:
    whether their speeds are of one unit; without that there are no ratios.
    """

    first: StudyReport
    second: StudyReport
    differences: tuple[tuple[str, str, str], ...]
    unfair: tuple[str, ...]
    pairs: tuple[Pair, ...]
    alone: tuple[int, int]
    has_one_unit: bool

    @property
    def title(self) -> str:
        """The page's title."""
        return f"Studies {self.first.study.id} and {self.second.study.id} compared"

    @property
    def both(self) -> tuple[StudyReport, StudyReport]:
        """The two reports."""
        return self.first, self.second

    @property
    def legend(self) -> tuple[tuple[str, str], ...]:
        """The marks that the chart shows, and what each is in words."""
        seen = {mark_of(pair) for pair in self.pairs}
        words = {Role.CHOSEN: "recommended by either", Role.DEFAULT: "the default", Role.RIGHT: "others"}
        return tuple((str(role), text) for role, text in words.items() if role in seen)

    @property
    def summary(self) -> str:
        """The chart of what both measured, in words."""
        faster = sum(pair.speed_ratio is not None and pair.speed_ratio > 1 for pair in self.pairs)
        first, second = self.first.study.id, self.second.study.id
        return (
            f"Scatter chart of {many(len(self.pairs), 'configuration')}, their speed in study {first} across and in study "
            f"{second} upward: {faster} are faster in study {second}. The table below has the same figures."
        )


def compared(first: StudyReport, second: StudyReport) -> ComparedStudies:
    """Return two studies beside each other."""
    has_one_unit = kind_of(first.study.workload).speed == kind_of(second.study.workload).speed
    of_first, of_second = ({point.key: point for point in report.searched} for report in (first, second))
    pairs = [
        _pair(point, of_second[key], has_one_unit=has_one_unit) for key, point in of_first.items() if key in of_second
    ]
    return ComparedStudies(
        first=first,
        second=second,
        differences=tuple(_differences(first.study, second.study)),
        unfair=tuple(_unfair(first.study, second.study)),
        pairs=tuple(sorted(pairs, key=lambda pair: -(pair.speed_ratio or 0.0))),
        alone=(len(of_first) - len(pairs), len(of_second) - len(pairs)),
        has_one_unit=has_one_unit,
    )


def _pair(first: Point, second: Point, *, has_one_unit: bool) -> Pair:
    speeds = second.speed / first.speed if first.speed and second.speed and has_one_unit else None
    peaks = second.peak_bytes / first.peak_bytes if first.peak_bytes and second.peak_bytes else None
    return Pair(first, second, speeds, peaks)


def mark_of(pair: Pair) -> Role:
    """Return what a configuration is drawn as: recommended by either study, the default, or another one."""
    roles = {pair.first.role, pair.second.role}
    is_default = pair.first.is_default or pair.second.is_default
    return Role.CHOSEN if Role.CHOSEN in roles else Role.DEFAULT if is_default else Role.RIGHT


def marks_of(pair: Pair, first: int, second: int) -> str:
    """Return what a configuration is in two studies of these numbers, "" where it is nothing special."""
    chosen = [
        str(number) for point, number in ((pair.first, first), (pair.second, second)) if point.role is Role.CHOSEN
    ]
    words = f"recommended in {' and '.join(chosen)}" if chosen else ""
    default = "the default" if pair.first.is_default or pair.second.is_default else ""
    return ", ".join(filter(None, (words, default)))


def _terms(study: StudyRecord) -> dict[str, str]:
    """Return all that two studies can differ in, by name."""
    objective = {name: value for name, value in study.objective.payload.items() if value}
    return {
        "model": study.model_name,
        "weights": study.weights_digest,
        **_workload_terms(study),
        **{f"objective: {name.replace('_', ' ')}": str(value) for name, value in objective.items()},
        **_environment_terms(study.environment),
        "measured": f"{study.finished_at or study.started_at:%Y-%m-%d %H:%M} UTC",
    }


def _workload_terms(study: StudyRecord) -> dict[str, str]:
    workload = study.workload
    described = {f"workload: {name}": str(value) for name, value in workload.described.items()}
    return {"kind of work": kind_of(workload).name, **described}


def _environment_terms(environment: Environment) -> dict[str, str]:
    limits: Mapping[str, object] = {
        "device": environment.device_name,
        "device memory": gib(environment.memory_bytes),
        "driver": environment.driver,
        "CUDA": environment.cuda,
        "MIG": environment.mig_profile,
        "power limit": f"{environment.power_limit_w} W" if environment.power_limit_w else None,
        "threads": environment.threads or None,
    }
    return {**{name: str(value) for name, value in limits.items() if value is not None}, **environment.packages}


def _differences(first: StudyRecord, second: StudyRecord) -> list[tuple[str, str, str]]:
    ours, theirs = _terms(first), _terms(second)
    names = dict.fromkeys([*ours, *theirs])
    found = [(name, ours.get(name, "–"), theirs.get(name, "–")) for name in names if ours.get(name) != theirs.get(name)]
    if first.workload.lengths != second.workload.lengths and not any(name.startswith("workload") for name, *_ in found):
        found.append(("workload: lengths of its sequences", "its own", "its own"))
    return found


def _unfair(first: StudyRecord, second: StudyRecord) -> list[str]:
    """Return why speeds, or what is said of quality, are not to be compared."""
    found, one, other = [], first.environment, second.environment
    if one.device_name != other.device_name:
        found.append(f"They ran on other devices: {one.device_name} and {other.device_name}.")
    elif _limits(one) != _limits(other):
        found.append("The device had other limits: memory, power, MIG or threads are not the same.")
    if first.workload.payload != second.workload.payload:
        found.append(f"They ran other workloads: {first.workload}; and {second.workload}.")
    elif first.workload_key != second.workload_key:
        found.append("The models have other shapes.")
    if first.model_name != second.model_name:
        found.append(f"They ran other models: {first.model_name} and {second.model_name}.")
    if first.weights_digest != second.weights_digest:
        found.append("They ran other weights: speeds of equal shapes can be compared, quality can't.")
    return found


def _limits(environment: Environment) -> tuple[object, ...]:
    return environment.memory_bytes, environment.power_limit_w, environment.mig_profile, environment.threads
