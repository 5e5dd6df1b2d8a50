"""The daemon's board and the page of a job: payloads of jobs and slots -> what is shown. Nothing is read or decided here."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from advisor.pages.live import ago, moment_of
from advisor.pages.short import best_so_far
from advisor.pages.study_report import StudyReport
from advisor.show.job_table import trials_words
from advisor.terminal import duration

#: Jobs of one page.
PAGE = 50

#: What the states of a job are called in a sentence. In a word a job's and a slot's are what the API calls them.
JOB_SENTENCES = {
    "queued": "This job is queued",
    "running": "This job is running",
    "done": "This job is done",
    "failed": "This job has failed",
    "cancelled": "This job was cancelled",
}

#: Characters of a job's flags that a list shows; its own page has all of them.
_FLAGS = 120

Payload = Mapping[str, Any]


@dataclass(frozen=True)
class Device:
    """A slot. device: its name and what stays of it through upgrades; why: what it waits for."""

    name: str
    host: str
    device: str
    state: str
    why: str
    job: str | None
    busy: str
    version: str


@dataclass(frozen=True)
class Job:
    """A job. flags: what is asked, as the command line spells it; about: why, or what it found.

    tune_flags: the same flags but for the device, which is a host's own. device: that runs it or ran it, or whose kind it waits
    for; when: since when, or how long it took; moments: each with its name. study: None before that is opened; trials: how many
    were run while it ran, and of how many, in words. is_again: whether a slot measures it again by itself.
    """

    id: str
    model: str
    flags: str
    tune_flags: str
    priority: int
    state: str
    about: str
    device: str
    slot: str | None
    when: str
    moments: tuple[tuple[str, datetime], ...]
    study: int | None
    trials: str
    is_again: bool = False

    @property
    def is_open(self) -> bool:
        """Whether it waits or runs, and can be cancelled."""
        return self.state in ("queued", "running")

    @property
    def submit_command(self) -> str:
        """The command line that submits the same."""
        priority = f" --priority {self.priority}" if self.priority else ""
        return f"advisor submit {shlex.quote(self.model)} {self.flags}".strip() + priority

    @property
    def tune_command(self) -> str:
        """The command line that tunes the same where it is typed."""
        return f"advisor tune {shlex.quote(self.model)} {self.tune_flags}".strip()

    @property
    def short_flags(self) -> str:
        """What is asked, short enough for a list."""
        return self.flags if len(self.flags) <= _FLAGS else f"{self.flags[: _FLAGS - 1]}…"


@dataclass(frozen=True)
class Board:
    """All that the board shows. depths: how many jobs wait for each kind of device; newer, older: the pages beside this one."""

    jobs: tuple[Job, ...]
    devices: tuple[Device, ...]
    depths: tuple[tuple[str, int], ...]
    state: str | None
    newer: str | None
    older: str | None

    @property
    def title(self) -> str:
        """The page's title."""
        return "Jobs"

    @property
    def filters(self) -> tuple[tuple[str, str, bool], ...]:
        """The lists that there are: its words, where it is, and whether it is this one."""
        named = [("all", "/", None), *((state, f"/?state={state}", state) for state in JOB_SENTENCES)]
        return tuple((words, place, state == self.state) for words, place, state in named)

    @property
    def said(self) -> str:
        """How the daemon stands, in words."""
        there = [device for device in self.devices if device.state != "gone"]
        busy, waits = sum(device.state == "busy" for device in there), sum(count for _, count in self.depths)
        if not there:
            slots = "No slot is there: advisor serve or advisor worker brings one."
        else:
            slots = f"{busy} of {_many(len(there), 'slot')} busy."
        return f"{_many(waits, 'job')} queued. {slots}"


@dataclass(frozen=True)
class JobPage:
    """A job's page. best: the best so far, in words; report: of its study, None where nothing of it has ended: why says that."""

    job: Job
    best: str = ""
    report: StudyReport | None = None
    terms: tuple[tuple[str, str], ...] = field(default=())

    @property
    def title(self) -> str:
        """The page's title."""
        return f"Job {self.job.id}: {self.job.model}"

    @property
    def said(self) -> str:
        """How the job stands, in words."""
        job = self.job
        trials = f", {job.trials} so far" if job.is_open and job.study is not None else ""
        return f"{JOB_SENTENCES.get(job.state, f'This job is {job.state}')}{trials}."


def board_of(
    jobs: Sequence[Payload],
    slots: Sequence[Payload],
    depths: Mapping[str, int],
    *,
    state: str | None = None,
    first: int = 0,
    bests: Mapping[str, str] | None = None,
    now: datetime | None = None,
) -> Board:
    """Return the board. jobs: those from the `first` on, one more than a page where there are older ones; bests: by job's id."""
    at, devices = now or datetime.now(UTC), {str(slot["name"]): device_of(slot) for slot in slots}
    shown = tuple(job_of(job, devices, (bests or {}).get(str(job["id"]), ""), at) for job in jobs[:PAGE])
    return Board(
        jobs=shown,
        devices=tuple(devices.values()),
        depths=tuple(depths.items()),
        state=state,
        newer=_page(state, max(0, first - PAGE)) if first else None,
        older=_page(state, first + PAGE) if len(jobs) > PAGE else None,
    )


def job_page_of(
    job: Payload, slots: Sequence[Payload], report: StudyReport | None = None, now: datetime | None = None
) -> JobPage:
    """Return the page of a job. report: of its study, None where there is none yet."""
    at, answer = now or datetime.now(UTC), str(job.get("answer") or "")
    best = best_so_far(report) if report is not None and (not answer or job["state"] == "running") else ""
    shown = job_of(job, {str(slot["name"]): device_of(slot) for slot in slots}, "", at)
    terms = {
        "Priority": str(shown.priority),
        "Time": shown.when,
        "Trials so far" if shown.is_open else "Trials": shown.trials if shown.study is not None else "",
        "Best so far" if shown.is_open else "Best found": best,
        "Answer so far" if shown.is_open else "Answer": answer,
        "Device": shown.device,
        "Slot": shown.slot or "",
    }
    return JobPage(shown, best, report, tuple((term, words) for term, words in terms.items() if words))


def device_of(slot: Payload) -> Device:
    """Return a slot as it is shown."""
    state = str(slot["state"])
    return Device(
        name=str(slot["name"]),
        host=str(slot["host"]),
        device=str(slot["device_class"]),
        state=state,
        why=str(slot["why"] or ""),
        job=slot["job"] or None,
        busy=duration(float(slot["busy_s"])),
        version=str(slot["advisor_version"]),
    )


def job_of(job: Payload, devices: Mapping[str, Device], best: str, now: datetime) -> Job:
    """Return a job as it is shown. best: the best so far, in words."""
    state, slot, again = str(job["state"]), job["slot"], job.get("again") or {}
    named = ("submitted", "submitted_at"), ("started", "started_at"), ("ended", "finished_at")
    moments = {words: moment for words, name in named if (moment := moment_of(job[name])) is not None}
    found = f"best so far: {best}" if best else ""
    said = (job["why"], found) if state in ("queued", "running") else (job.get("answer"), job["why"])
    at = devices[slot].device if slot in devices and state != "queued" else str(job["device_class"])
    return Job(
        id=str(job["id"]),
        model=str(job["model"]),
        flags=flags_of(job["given"]),
        tune_flags=flags_of({name: value for name, value in job["given"].items() if name != "on"}),
        priority=int(job["priority"]),
        state=state,
        about="; ".join(str(words) for words in (again.get("words"), *said) if words),
        device=at,
        slot=slot if slot in devices and state != "queued" else None,
        when=_when(state, moments, now),
        moments=tuple(moments.items()),
        study=job["study"],
        trials=trials_words(job),
        is_again=bool(again),
    )


def flags_of(given: Mapping[str, Any]) -> str:
    """Return what is asked as the command line spells it."""
    return " ".join(_flag(name, value) for name, value in given.items() if not _is_nothing(value))


def _is_nothing(value: Any) -> bool:
    """Whether an option is as good as not given; 0 is given."""
    return value is None or value is False or value in ([], {})


def _flag(name: str, value: Any) -> str:
    flag = "--" + name.replace("_", "-")
    if value is True:
        return flag
    if isinstance(value, Mapping):
        return " ".join(f"{flag} {shlex.quote(f'{knob}={_listed(choices)}')}" for knob, choices in value.items())
    if isinstance(value, list) and any(isinstance(each, str) for each in value):
        return " ".join(f"{flag} {shlex.quote(str(each))}" for each in value)
    return f"{flag} {shlex.quote(_listed(value))}"


def _listed(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _when(state: str, moments: Mapping[str, datetime], now: datetime) -> str:
    """Return since when a job waits or runs, or how long it took and how long that is past, in words."""
    submitted, started, ended = (moments.get(name) for name in ("submitted", "started", "ended"))
    if state == "running" and started is not None:
        return f"running for {ago(started, now)}"
    if state == "queued" or ended is None:
        return f"submitted {ago(submitted or now, now)} ago"
    took = f"took {ago(started, ended)}, " if started is not None else ""
    return f"{took}ended {ago(ended, now)} ago"


def _page(state: str | None, first: int) -> str:
    asked = {**({"state": state} if state else {}), **({"first": first} if first else {})}
    return f"/?{urlencode(asked)}" if asked else "/"


def _many(count: int, name: str) -> str:
    return f"{count} {name}{'' if count == 1 else 's'}"
