"""Measurements for others: studies as lines of JSON, out of one database and into another.

The first line says what wrote the others, and what a configuration has where it says nothing. Then one line an object:
environments, what plain work reaches there (ceilings), models (what is known of them, no weights), workloads (lengths, no
texts), and studies with their trials, comparisons and refusals, all by keys that are the same in every database. What follows
from samples is computed again on arrival. No host and no owner leaves; of a model's path only its last part does, and home
directories are cut from error texts.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from typing import Any, TextIO

from advisor import environments, rows, trial_rows
from advisor.answer import SearchEnd
from advisor.checked import is_text, shortened, test_of
from advisor.configuration import IMPLIED, Configuration, canonical_json, key_of
from advisor.environment import Environment
from advisor.errors import BadInput
from advisor.knobs import Verdict
from advisor.measurement import Comparison, Measurement
from advisor.model import ModelFacts
from advisor.objective import Objective
from advisor.parcel import Link, Parcel, study_key
from advisor.store import Store
from advisor.study_record import STATES
from advisor.suggest import keep_answers
from advisor.trial import Outcome, Quality
from advisor.workloads import workload_of

#: What these lines look like; another number is another advisor's. In the first, configurations were not sparse.
FORMAT, FORMATS = 2, (1, 2)

#: What one import takes, far above what a tune writes: characters of a line, samples of a measurement, and rows of a study.
LINE_MOST, SAMPLES_MOST = 2**25, 100_000
ROWS_MOST = {"trials": 100_000, "comparisons": 10_000, "refusals": 100_000}

Values = dict[str, Any]

#: What every object's line holds, by column: what kind of value, and "?" where it may be null.
_SHAPES: dict[str, dict[str, str]] = {
    "environment": {"key": "text", "payload": "object", "first_seen": "moment"},
    "ceilings": {"environment": "text", "payload": "object", "measured_at": "moment"},
    "model": {"architecture_key": "text", "weights_digest": "text", "name": "text", "facts": "object?"},
    "workload": {"key": "text", "kind": "text", "architecture_key": "text", "payload": "object"},
    "study": {
        "key": "text", "environment": "text", "architecture_key": "text", "weights_digest": "text", "workload": "text",
        "objective": "object", "objective_key": "text", "budget": "object", "seed": "whole", "state": "text",
        "started_at": "moment", "finished_at": "moment?", "admissible": "whole?", "facts": "object?",
        "trials": "whole", "comparisons": "whole", "refusals": "whole",
    },
    "trial": {
        "study": "text", "number": "whole", "phase": "text", "block": "whole?", "requested": "object",
        "effective": "object?", "outcome": "text", "reason": "text", "attempts": "whole", "started_at": "moment",
        "finished_at": "moment?", "load_s": "real?", "first_call_s": "real?", "measure_s": "real?", "wall_s": "real?",
        "peak_bytes": "bytes?", "weight_bytes": "bytes?", "quality": "object?", "reading": "object?",
        "reused_from": "list?", "measurements": "list", "advisor_version": "text",
    },
    "measurement": {"metric": "text", "unit": "text", "phase": "text", "samples": "list", "device_state": "object"},
    "comparison": {
        "study": "text", "candidate": "object", "baseline": "object", "block_ratios": "list", "made_at": "moment",
        "planned": "whole?",
    },
    "refusal": {
        "study": "text", "subject": "text", "about": "text", "rule": "text", "verdict": "text", "reason": "text",
        "remedy": "text",
    },
}  # fmt: skip


#: What came later, by object: it is left out where it says nothing, and null in lines that do not have it.
_LATER = {"comparison": ("planned",)}

#: Where an object is stored.
_TABLES = {
    "environment": "environments",
    "ceilings": "ceilings",
    "model": "models",
    "workload": "workloads",
    "study": "studies",
    "trial": "trials",
    "comparison": "comparisons",
    "refusal": "refusals",
}

#: The objects that belong to one study, in the order of their lines.
_PARTS = ("trial", "comparison", "refusal")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


#: How to tell that a value is of a kind.
_KINDS: dict[str, Callable[[Any], bool]] = {
    "text": lambda value: is_text(value) and "\0" not in value,
    "object": lambda value: isinstance(value, dict),
    "list": lambda value: isinstance(value, list),
    "real": _is_number,
    "whole": lambda value: type(value) is int and -(2**31) <= value < 2**31,
    "bytes": lambda value: type(value) is int and 0 <= value < 2**63,
    "moment": lambda value: isinstance(value, str) and datetime.fromisoformat(value).tzinfo is not None,
}


@dataclass(frozen=True)
class Imported:
    """How many rows of which tables were new here, and how many were known: their study, or what it shares, was here."""

    new: Counter[str]
    known: Counter[str]


# ----------------------------------------------------------------------------------------------------------------- out


def export_lines(store: Store, study_ids: Iterable[int] | None = None) -> Iterator[str]:
    """Yield the lines for these studies, or all: the same lines for the same rows, whatever the database.

    Studies whose trials these reuse come along. Raises NotMeasured for an id that no study has.
    """
    parcels, told = store.pack(study_ids), set()
    implied = {knob: choice for knob, choice in IMPLIED.items() if choice}
    yield canonical_json({"advisor": rows.version(), "format": FORMAT, "implied": implied})
    for parcel in parcels:
        for line in _about(parcel):
            if line not in told:
                told.add(line)
                yield line
        yield from _study_lines(parcel)


def _about(parcel: Parcel) -> Iterator[str]:
    """Yield the lines that several studies can share."""
    yield _line("environment", parcel.environment)
    if parcel.ceilings is not None:
        yield _line("ceilings", {"environment": parcel.environment["key"], **parcel.ceilings})
    yield _line("model", {**parcel.model, "name": _public_name(parcel.model["name"])})
    yield _line("workload", parcel.workload)


def _study_lines(parcel: Parcel) -> Iterator[str]:
    about = {
        "key": parcel.key,
        "environment": parcel.environment["key"],
        "workload": parcel.workload["key"],
        "architecture_key": parcel.model["architecture_key"],
        "weights_digest": parcel.model["weights_digest"],
    }
    parts = dict(zip(_PARTS, (parcel.trials, parcel.comparisons, parcel.refusals), strict=True))
    yield _line("study", {**about, **parcel.study, **{f"{name}s": len(found) for name, found in parts.items()}})
    for name, found in parts.items():
        for row in found:
            more = {"reason": _without_homes(row["reason"])} if name == "trial" else {}
            silent = {column for column in _LATER.get(name, ()) if row[column] is None}
            said = {column: value for column, value in row.items() if column not in silent}
            yield _line(name, {"study": parcel.key, **said, **more})


def _line(name: str, values: Mapping[str, Any]) -> str:
    moments = {column: value.isoformat() for column, value in values.items() if isinstance(value, datetime)}
    return canonical_json({"object": name, **values, **moments})


def _public_name(name: str) -> str:
    """Return a model's name, of a path its last part: where people keep their models is nobody's business."""
    is_path = name.startswith(("/", ".", "~")) or "\\" in name or name.count("/") > 1
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1] if is_path else name


def _without_homes(text: str) -> str:
    return re.sub(r"/(?:home|Users)/[^/\s'\":]+|/root(?=/)", "~", text)


# ------------------------------------------------------------------------------------------------------------------ in


def bounded_lines(stream: TextIO) -> Iterator[str]:
    """Yield a stream's lines; of one that is longer than is taken only the beginning, which is refused then."""
    while line := stream.readline(LINE_MOST + 1):
        yield line


def import_lines(store: Store, lines: Iterable[str]) -> Imported:
    """Store what `export_lines` wrote, study by study; what is here already stays as it is. Doing it twice adds nothing.

    Raises BadInput with the number of the line that can't be understood: whole studies before it are stored, and nothing of
    the one it belongs to.
    """
    reading, iterator = _Reading(), iter(lines)
    for number in count(1):
        with _damaged(number):
            line = next(iterator, None)  # which fails where it is no text
            if line is None:
                reading.end()
            parcel = None if line is None else reading.take(line)
        if line is None:
            break
        if parcel is not None:
            reading.links += parcel.links
            reading.new += store.unpack(parcel)
    store.link(reading.links)
    keep_answers(store)
    return Imported(+reading.new, reading.read - reading.new)


@contextmanager
def _damaged(number: int) -> Iterator[None]:
    """Say of which line it is that it can't be understood."""
    try:
        yield
    except (BadInput, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        said = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise BadInput(f"line {number}: {' '.join(said.split())[:200]}") from error


@dataclass
class _Reading:
    """What was read so far: what studies share, by key, and the study whose lines are coming."""

    environments: dict[str, Values] = field(default_factory=dict)
    ceilings: dict[str, Values] = field(default_factory=dict)
    models: dict[tuple[str, str], Values] = field(default_factory=dict)
    workloads: dict[str, Values] = field(default_factory=dict)
    links: list[Link] = field(default_factory=list)
    read: Counter[str] = field(default_factory=Counter)
    new: Counter[str] = field(default_factory=Counter)
    has_begun: bool = False
    study: Values | None = None
    parts: dict[str, dict[Any, Values]] = field(default_factory=dict)

    def take(self, line: str) -> Parcel | None:
        """Read one line, and return the study that is whole by now, if one is."""
        if len(line) > LINE_MOST:
            raise BadInput(f"it is longer than the {LINE_MOST:,} characters that advisor takes")
        try:
            values = json.loads(line)
        except ValueError:
            raise BadInput("it is no whole line of JSON, which advisor export writes") from None
        canonical_json(values).encode()  # raises ValueError for what has no place in a database
        if not isinstance(values, dict):
            raise BadInput("it is no object")
        if not self.has_begun:
            self.has_begun = _is_header(values)
            return None
        name = values.pop("object", None)
        if name not in _TABLES:
            raise BadInput(f"{name!r} is no object of this format")
        values = _shaped(name, values)
        if name not in _PARTS:
            self.refuse_half()
        getattr(self, f"_take_{name}")(values)
        self.read[_TABLES[name]] += 1
        return self._whole()

    def end(self) -> None:
        """See that something came, and that nothing is missing."""
        if not self.has_begun:
            raise BadInput("this is no export of advisor")
        self.refuse_half()

    def refuse_half(self) -> None:
        """Raise BadInput where the study that is coming is not whole."""
        if self.study is not None:
            missing = {f"{name}s": self.study[f"{name}s"] - len(rows) for name, rows in self.parts.items()}
            lacks = ", ".join(f"{count} {name}" for name, count in missing.items() if count)
            raise BadInput(f"the study before it lacks {lacks}")

    def _take_environment(self, values: Values) -> None:
        _check_key(Environment.of(values["payload"]).key, values["key"])
        self.environments[values["key"]] = values

    def _take_ceilings(self, values: Values) -> None:
        environments.check_ceilings(values["payload"])
        self.ceilings[values.pop("environment")] = values

    def _take_model(self, values: Values) -> None:
        _check_facts(values["facts"])
        self.models[values["architecture_key"], values["weights_digest"]] = values

    def _take_workload(self, values: Values) -> None:
        workload = workload_of(values["payload"])
        _check_key(workload.key_for(values["architecture_key"]), values["key"])
        self.workloads[values["key"]] = {**values, "kind": workload.kind}

    def _take_study(self, values: Values) -> None:
        if values["environment"] not in self.environments or values["workload"] not in self.workloads:
            raise BadInput("its environment or its workload is not among the lines before it")
        if (values["architecture_key"], values["weights_digest"]) not in self.models:
            raise BadInput("its model is not among the lines before it")
        if values["state"] not in STATES:
            raise BadInput(f"a study is one of {', '.join(STATES)}, not {values['state']!r}")
        for name, most in ROWS_MOST.items():
            if not 0 <= values[name] <= most:
                raise BadInput(f"a study of {values[name]:,} {name}, and at most {most:,} are taken")
        Objective.of(values["objective"])
        _check_facts(values["facts"])
        _check_key(key_of(values["objective"]), values["objective_key"])
        keys = ("environment", "architecture_key", "weights_digest", "workload", "objective_key")
        _check_key(study_key(*(values[name] for name in keys)), values["key"])
        if (end := SearchEnd.of(values["budget"].get("end"))) is not None:
            values["budget"] = {**values["budget"], "end": end.payload}  # its configurations as they are spelled here
        self.study, self.parts = values, {name: {} for name in _PARTS}

    def _take_trial(self, values: Values) -> None:
        _check_trial(values)
        self._take_part("trial", values["number"], values)

    def _take_comparison(self, values: Values) -> None:
        if not all(map(_is_number, values["block_ratios"])):
            raise BadInput("block_ratios are numbers")
        candidate, baseline = (_configuration(values[side]).key for side in ("candidate", "baseline"))
        Comparison(candidate, baseline, tuple(values["block_ratios"]), values["planned"])
        # As they are spelled: what comes to the same, once what is implied is left out, is made one where it is stored.
        self._take_part("comparison", canonical_json([values["candidate"], values["baseline"]]), values)

    def _take_refusal(self, values: Values) -> None:
        Verdict(values["verdict"])
        self._take_part("refusal", (values["subject"], values["about"], values["rule"]), values)

    def _take_part(self, name: str, key: Any, values: Values) -> None:
        if self.study is None or values.pop("study") != self.study["key"]:
            raise BadInput(f"a {name} that does not belong to the study before it")
        if key in self.parts[name]:
            raise BadInput(f"this {name} comes twice")
        self.parts[name][key] = values

    def _whole(self) -> Parcel | None:
        """Return the study that is coming, if all of it has come."""
        study = self.study
        if study is None or any(len(rows) < study[f"{name}s"] for name, rows in self.parts.items()):
            return None
        self.study = None
        beside = (
            "key",
            "environment",
            "workload",
            "architecture_key",
            "weights_digest",
            *(f"{name}s" for name in _PARTS),
        )
        return Parcel(
            study["key"],
            self.environments[study["environment"]],
            self.ceilings.get(study["environment"]),
            self.models[study["architecture_key"], study["weights_digest"]],
            self.workloads[study["workload"]],
            {name: value for name, value in study.items() if name not in beside},
            *(list(self.parts[name].values()) for name in _PARTS),
        )


def _is_header(values: Values) -> bool:
    if "advisor" not in values or "format" not in values:
        raise BadInput("this is no export of advisor")
    if values["format"] not in FORMATS:
        raise BadInput(f"advisor {values['advisor']} wrote this in format {values['format']}, which is not {FORMAT}")
    implied = values.get("implied", {})
    if not test_of("Mapping[str, str]")(implied):
        raise BadInput(f"implied can't be {shortened(implied)}")
    for knob, choice in implied.items():
        if (here := IMPLIED.get(knob, choice)) != choice:
            raise BadInput(
                f"a configuration that says nothing of {knob} has {choice} there, and {here or 'nothing'} here"
            )
    return True


def _shaped(name: str, values: Values) -> Values:
    """Return an object's columns, moments as such. Raises BadInput where one is missing, too many or of a wrong kind."""
    shape, values = _SHAPES[name], {**dict.fromkeys(_LATER.get(name, ())), **values}
    if shape.keys() != values.keys():
        raise BadInput(f"a {name} with wrong columns: {', '.join(sorted(shape.keys() ^ values.keys()))}")
    for column, kind in shape.items():
        is_null = values[column] is None and kind.endswith("?")
        if not is_null and not _KINDS[kind.removesuffix("?")](values[column]):
            raise BadInput(f"{column} of a {name} is no {kind.removesuffix('?')}")
    moments = {column for column, kind in shape.items() if kind.startswith("moment") and values[column] is not None}
    return {**values, **{column: datetime.fromisoformat(values[column]).astimezone(UTC) for column in moments}}


def _check_key(made: str, written: str) -> None:
    if made != written:
        raise BadInput(f"its key {written} is not that of what it says ({made})")


def _configuration(choices: Mapping[str, Any]) -> Configuration:
    if not all(isinstance(name, str) for name in choices.values()):
        raise BadInput("a choice is a name")
    return Configuration.of(choices)


def _check_trial(values: Values) -> None:
    """Raise for a trial that could not be read again."""
    Outcome(values["outcome"])
    for side in ("requested", "effective"):
        if values[side] is not None:
            _configuration(values[side])
    Quality.of(values["quality"])
    trial_rows.check_columns(values)
    trial_rows.check_reading(values["reading"] or {})
    for each in values["measurements"]:
        _shaped("measurement", each)
        if len(each["samples"]) > SAMPLES_MOST:
            raise BadInput(f"a measurement of {len(each['samples']):,} samples, and at most {SAMPLES_MOST:,} are taken")
        if not all(map(_is_number, each["samples"])):
            raise BadInput("samples are numbers")
        trial_rows.check_device_state(each["metric"], each["device_state"])
        Measurement(**{**each, "samples": tuple(each["samples"])})
    if len({each["metric"] for each in values["measurements"]}) < len(values["measurements"]):
        raise BadInput("a metric comes twice")
    source = values["reused_from"]
    if source is not None and [type(part) for part in source] != [str, int]:
        raise BadInput("reused_from is a study's key and a trial's number")


def _check_facts(payload: Values | None) -> None:
    """Raise Malformed for facts with a value that can't be; those of another version are none of ours to judge."""
    if payload is not None:
        with suppress(TypeError, KeyError):
            ModelFacts.of(payload)
