"""Submission: a tune that is asked for and runs later, on whatever host: a model, options by name, a priority, as JSON values."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from advisor.asking.options import DEVICE, EFFORT, ON, THREADS, objective_options
from advisor.asking.question import Effort, Question, effort_of, kind_of, question_of
from advisor.errors import BadInput, named
from advisor.nouns.near import meant
from advisor.nouns.option import Option
from advisor.nouns.reading import read_duration, read_latency, shown
from advisor.workloads import Kind, kind_named, names

#: Priorities that there are: a higher one is tuned first.
LEAST_PRIORITY, MOST_PRIORITY = -1000, 1000

#: What a submission's payload may hold at most, in bytes: some ten thousand lengths.
MOST_BYTES = 256 * 1024

#: What a model on the hub is called (huggingface_hub's `validate_repo_id`).
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(?:/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)

#: What the one who runs the daemon decides, and no request: a pickle can run code.
OPERATORS = frozenset({"allow_pickle"})


@dataclass(frozen=True)
class Again:
    """A stored study that a slot measures again in idle time, for versions of its device changed: nobody asks for it.

    study: its number; environment: the key of the one that it is measured in; changed: the versions, in words.
    """

    study: int
    environment: str
    changed: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """What it is, for a list of jobs."""
        return f"measured again: {', '.join(self.changed)}"

    @property
    def payload(self) -> dict[str, Any]:
        """It as JSON values."""
        known = {"study": self.study, "environment": self.environment, "changed": list(self.changed)}
        return {**known, "words": self.words}

    @classmethod
    def of(cls, payload: Mapping[str, Any] | None) -> Again | None:
        """Build one from the payload of a job that is stored; None from none."""
        if payload is None:
            return None
        return cls(int(payload["study"]), str(payload["environment"]), tuple(map(str, payload["changed"])))


@dataclass(frozen=True)
class Submission:
    """A tune that is asked for.

    model: a hub id, or a path on the hosts that tune; given: what is asked of the options of `tune`, by name, as JSON values;
    priority: a higher one is tuned first; device_class: where it is to run (`Environment.device_class`), "" until it is placed.
    again: what it measures again, None for what somebody submits: then nothing is given.
    """

    model: str
    given: Mapping[str, Any] = field(default_factory=dict)
    priority: int = 0
    device_class: str = ""
    again: Again | None = None

    @property
    def payload(self) -> dict[str, Any]:
        """The submission as JSON values."""
        return {
            "model": self.model,
            "given": dict(self.given),
            "priority": self.priority,
            "device_class": self.device_class,
            **({} if self.again is None else {"again": self.again.payload}),
        }

    @classmethod
    def of(cls, payload: Mapping[str, Any]) -> Submission:
        """Build one from a payload that somebody sent. Raises BadInput, naming what can't be."""
        if unknown := sorted(set(payload) - {"model", "given", "priority", "device_class"}):
            raise BadInput(f"a job has no {shown(unknown[0])}", "it has model, given and priority")
        model, given = payload.get("model"), payload.get("given", {})
        if not isinstance(model, str) or not model.strip() or len(model) > 1000:
            raise BadInput(f"model must be a hub id or a path, not {shown(model)}")
        if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
            raise BadInput(f"given must be options by name, not {shown(given)}")
        device_class = payload.get("device_class", "")
        if not isinstance(device_class, str):
            raise BadInput(f"device_class must be a text, not {shown(device_class)}")
        return cls(model, dict(given), _priority(payload.get("priority", 0)), device_class)

    @property
    def question(self) -> Question:
        """What is asked. Raises BadInput."""
        return question_of(self.model, self.given)

    def effort(self, question: Question) -> Effort:
        """How much it may spend. Raises BadInput."""
        return effort_of(self.given, question.objective)

    def checked(self, *, model_root: Path | None, most_budget_s: float, is_operator: bool = False) -> Submission:
        """Return it as it is to be stored. Raises BadInput for what is not understood, and for what the daemon does not let in.

        model_root: models of its host lie under it, None where only hub ids are let in; most_budget_s: seconds that a job may
        spend, also where it names no end of its own, 0 for any. is_operator: whoever asks has the
        database in hand, and decides alone.
        """
        if len(json.dumps(self.payload)) > MOST_BYTES:
            raise BadInput(f"a job takes at most {MOST_BYTES // 1024} KiB", "fewer lengths say the same")
        self.refuse_unknown()
        question = self.question
        seconds = self.effort(question).budget.seconds
        if is_operator:
            return self
        if taken := sorted(OPERATORS & {name for name, value in self.given.items() if value}):
            raise BadInput(f"{named(taken[0])} is decided by who runs the daemon, not by a request")
        if most_budget_s and seconds is not None and seconds > most_budget_s:
            raise BadInput(
                f"{named('budget')}: {seconds:g} s is more than the {most_budget_s:g} s that a job may spend here"
            )
        bound = {"budget": f"{most_budget_s:g}s"} if most_budget_s and seconds is None else {}
        return replace(self, model=let_in(self.model, model_root), given={**self.given, **bound})

    def refuse_unknown(self, what: str = "a job") -> None:
        """Raise BadInput for options that it has not. what: it is, in words."""
        options = _options(kind_of(self.given))
        known = {option.name for option in options} | {"workload"}
        for name, value in self.given.items():
            if name == DEVICE.name and value is not None:
                raise BadInput(
                    f"{named('device')} is a machine's own, and {what} is for any", f"{named('on')} names a device"
                )
            if name == "lengths_from" and value is not None:
                raise BadInput(
                    f"{named('lengths_from')} names a file of this machine", f"{named('lengths')} is the same on any"
                )
            if name not in known and value is not None:
                raise BadInput(f"{what} has no option {shown(name)}", meant(name, sorted(known), most=1))
        for option in options:  # as in a text: who writes 20 may mean minutes
            value = self.given.get(option.name)
            if option.read in (read_duration, read_latency) and isinstance(value, (int, float)):
                option.read(str(value), option.name)


def _options(kind: Kind) -> tuple[Option, ...]:
    return (*kind.options, *objective_options(kind), *EFFORT, ON, THREADS)


def options_of_requests() -> list[Option]:
    """Return the options that a request may give, of every kind of work, each once."""
    refused = OPERATORS | {"lengths_from"}
    every = {option.name: option for kind in map(kind_named, reversed(names())) for option in _options(kind)}
    return [option for name, option in sorted(every.items()) if name not in refused]


def is_hub_id(model: str) -> bool:
    """Whether a model on the hub can be called so."""
    return _HUB_ID.fullmatch(model) is not None and ".." not in model


def let_in(model: str, root: Path | None) -> str:
    """Return the model that a request names, if it may: a hub id, or what lies under a folder when links are resolved.

    Raises BadInput, with the same words for every path that it may not name; a folder of this name where the daemon was started
    is such a path.
    """
    is_here = root is not None and _is_there(root / model)
    if is_hub_id(model) and not is_here and not _is_there(Path(model)):
        return model
    elsewhere = BadInput(f"{shown(model)} is no hub id, and no model that lies where this daemon's models are")
    if root is None:
        raise elsewhere
    try:
        base = root.resolve(strict=True)
        path = (base / Path(model)).resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
        raise elsewhere from None
    if base not in path.parents:
        raise elsewhere
    return str(path)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or holds what no path may
        return False


def _priority(value: Any) -> int:
    """Return a priority. Raises BadInput."""
    try:
        number = int(value) if isinstance(value, (int, str)) and not isinstance(value, bool) else None
    except ValueError:
        number = None
    if number is None or not LEAST_PRIORITY <= number <= MOST_PRIORITY:
        bounds = f"{LEAST_PRIORITY} to {MOST_PRIORITY}"
        raise BadInput(f"{named('priority')} must be a whole number from {bounds}, not {shown(value)}")
    return number
