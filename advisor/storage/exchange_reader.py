"""Lines of an export read into studies, whole ones, with every value looked at. What is stored of them is `exchange`'s.

A key is made again of what it names, and compared: no line passes for another one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from advisor.errors import BadInput
from advisor.knobs import Verdict
from advisor.nouns.answer import SearchEnd
from advisor.nouns.checked import shortened, test_of
from advisor.nouns.configuration import IMPLIED, Configuration, canonical_json, key_of
from advisor.nouns.environment import Environment
from advisor.nouns.measurement import Comparison, Measurement
from advisor.nouns.model import ModelFacts
from advisor.nouns.objective import Objective
from advisor.nouns.trial import Outcome, Quality
from advisor.storage import environments, trial_rows, workload_words
from advisor.storage.exchange_format import FORMAT, FORMATS, PARTS, TABLES, Values, is_number, shaped
from advisor.storage.parcel import Link, Parcel, study_key
from advisor.storage.study_record import STATES
from advisor.workloads import workload_of

#: What one import takes, far above what a tune writes: characters of a line, samples of a measurement, and rows of a study.
LINE_MOST, SAMPLES_MOST = 2**25, 100_000
ROWS_MOST = {"trials": 100_000, "comparisons": 10_000, "refusals": 100_000}


@dataclass
class Reading:
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
        if name not in TABLES:
            raise BadInput(f"{name!r} is no object of this format")
        values = shaped(name, values)
        if name not in PARTS:
            self.refuse_half()
        getattr(self, f"_take_{name}")(values)
        self.read[TABLES[name]] += 1
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
        self.workloads[values["key"]] = {**values, "kind": workload.kind, **workload_words.told(workload)}

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
        self.study, self.parts = values, {name: {} for name in PARTS}

    def _take_trial(self, values: Values) -> None:
        _check_trial(values)
        self._take_part("trial", values["number"], values)

    def _take_comparison(self, values: Values) -> None:
        if not all(map(is_number, values["block_ratios"])):
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
            *(f"{name}s" for name in PARTS),
        )
        return Parcel(
            study["key"],
            self.environments[study["environment"]],
            self.ceilings.get(study["environment"]),
            self.models[study["architecture_key"], study["weights_digest"]],
            self.workloads[study["workload"]],
            {name: value for name, value in study.items() if name not in beside},
            *(list(self.parts[name].values()) for name in PARTS),
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
        shaped("measurement", each)
        if len(each["samples"]) > SAMPLES_MOST:
            raise BadInput(f"a measurement of {len(each['samples']):,} samples, and at most {SAMPLES_MOST:,} are taken")
        if not all(map(is_number, each["samples"])):
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
