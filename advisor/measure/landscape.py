"""A recorded landscape: every admissible configuration of one workload, measured once. `advisor.measure.replay` replays it.

The search can be judged without a GPU, over many seeds and against others, because an exhaustive run is kept as a file
(tests/landscapes/*.json): "keep an exhaustive recorded dataset and simulate strategies on it" (arXiv 2509.26300). What is
replayed is drawn from the recorded samples, so that seeds differ as runs do. Samples of one process vary less than runs of
several: a replay is a little surer of itself than a GPU.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from advisor.errors import BadInput
from advisor.knobs import KNOBS, weights_of
from advisor.nouns.configuration import Configuration, canonical_json
from advisor.nouns.environment import Environment
from advisor.nouns.measurement import Measurement
from advisor.nouns.model import ModelFacts
from advisor.nouns.objective import Objective
from advisor.nouns.trial import Outcome, Quality, Trial
from advisor.workloads import Workload, workload_of

#: The version of the file's layout.
FORMAT = 1

#: The knobs that there were when the first landscapes were recorded, which do not name theirs.
_FIRST_KNOBS = ("attention", "precision", "quantization", "packing", "batch")

#: The plain numbers of a row: seconds and bytes, as in the trial.
_FIGURES = ("wall_s", "load_s", "first_call_s", "measure_s", "peak_bytes", "weight_bytes")


class Study(Protocol):
    """What a landscape needs to know of a study; the store's record of one has it."""

    @property
    def model_name(self) -> str:
        """The model as the user wrote it."""

    @property
    def facts(self) -> ModelFacts | None:
        """What a worker read of it."""

    @property
    def workload(self) -> Workload:
        """What it was run on."""

    @property
    def environment(self) -> Environment:
        """Where it was run."""

    @property
    def objective(self) -> Objective:
        """What was wanted of it."""


@dataclass(frozen=True)
class Landscape:
    """One workload with all its configurations measured.

    provenance: words by name (command, date, versions); baseline: what transformers does when told nothing; trials: one for
    each requested configuration, the baseline among them, in the order in which they were measured.
    """

    model: str
    architecture_key: str
    facts: ModelFacts
    workload: Workload
    environment: Environment
    objective: Objective
    baseline: Configuration
    trials: tuple[Trial, ...]
    provenance: Mapping[str, str]

    def __post_init__(self) -> None:
        """Refuse what can't be replayed: no baseline, a configuration twice, a trial that is not over."""
        requested = [trial.requested for trial in self.trials]
        if len(set(requested)) != len(requested):
            raise BadInput("a landscape holds every configuration once")
        if self.baseline not in requested:
            raise BadInput("a landscape needs the default's trial")
        if any(trial.outcome is Outcome.RUNNING for trial in self.trials):
            raise BadInput("a landscape holds finished trials alone")

    @classmethod
    def of_study(
        cls, study: Study, trials: Sequence[Trial], *, architecture_key: str, provenance: Mapping[str, str]
    ) -> Landscape:
        """Build one from a study and its trials: the search's finished ones, and the last where one was tried again.

        The study's first trial is the default's. Readings and device states are left out. Raises BadInput where nothing can
        be replayed.
        """
        last = {t.requested: t for t in trials if t.phase == "search" and t.outcome is not Outcome.RUNNING}
        if not last or study.facts is None:
            raise BadInput("the study has no finished trial, or nothing is known of its model")
        kept = sorted(last.values(), key=lambda trial: trial.number)
        return cls(
            model=study.model_name,
            architecture_key=architecture_key,
            facts=study.facts,
            workload=study.workload,
            environment=study.environment,
            objective=study.objective,
            baseline=next(iter(last)),
            trials=tuple(_bare(trial, number, kept) for number, trial in enumerate(kept)),
            provenance=dict(provenance),
        )

    @classmethod
    def of(cls, payload: Mapping[str, Any]) -> Landscape:
        """Build one from its payload; raises BadInput for a file of another version or none at all."""
        if payload.get("format") != FORMAT:
            raise BadInput(f"a landscape of format {payload.get('format')!r}, and this advisor reads {FORMAT}")
        try:
            return cls(
                model=payload["model"],
                architecture_key=payload["architecture_key"],
                facts=ModelFacts.of(payload["facts"]),
                workload=workload_of(payload["workload"]),
                environment=Environment.of(payload["environment"]),
                objective=_as_recorded(Objective.of(payload["objective"]), payload.get("knobs", _FIRST_KNOBS)),
                baseline=Configuration.of(payload["baseline"]),
                provenance=dict(payload["provenance"]),
                trials=tuple(_trial_of(number, row) for number, row in enumerate(payload["rows"])),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"the landscape can't be read: {type(error).__name__}: {error}") from None

    @property
    def payload(self) -> dict[str, Any]:
        """The landscape as JSON values."""
        return {
            "format": FORMAT,
            "model": self.model,
            "architecture_key": self.architecture_key,
            "facts": self.facts.payload,
            "workload": self.workload.payload,
            "environment": self.environment.payload,
            "objective": self.objective.payload,
            "knobs": list(KNOBS),
            "baseline": dict(self.baseline),
            "provenance": dict(self.provenance),
            "rows": [_row_of(trial) for trial in self.trials],
        }

    @property
    def text(self) -> str:
        """The landscape as a file: canonical JSON with an entry or a row on each line, so that a diff can be read."""
        *head, (_, rows) = self.payload.items()
        lines = [f' "{name}": {canonical_json(value)},' for name, value in head]
        return "\n".join(
            ["{", *lines, ' "rows": [', ",\n".join(f"  {canonical_json(row)}" for row in rows), " ]", "}\n"]
        )

    @cached_property
    def by_configuration(self) -> dict[Configuration, Trial]:
        """The trials by what was requested."""
        return {trial.requested: trial for trial in self.trials}

    @property
    def exhaustive_s(self) -> float:
        """Device seconds that measuring everything took."""
        return sum(trial.wall_s or 0.0 for trial in self.trials)

    def load_s(self, configuration: Configuration, after: Trial | None) -> float:
        """Return the seconds that loading takes for a configuration, when another trial was run before it.

        None where the weights are loaded already: an exhaustive run goes through all that share them first, another order
        pays for every change. They are gone after a failure, which ends the worker.
        """
        weights = self._weights(configuration)
        if after is not None and not after.outcome.is_failure and self._weights(after.requested) == weights:
            return 0.0
        return self._loads.get(weights, 0.0)

    def seconds(self, configuration: Configuration, after: Trial | None) -> float:
        """Return the device seconds of a trial that is run after another: as recorded, but with the load that it needs."""
        trial = self.by_configuration[configuration]
        recorded = trial.wall_s or 0.0
        return recorded if trial.load_s is None else recorded - trial.load_s + self.load_s(configuration, after)

    def _weights(self, configuration: Configuration) -> tuple[tuple[str, str], ...]:
        return weights_of(configuration, switches_attention=self.facts.switches_attention)

    @cached_property
    def _loads(self) -> dict[tuple[tuple[str, str], ...], float]:
        """The longest load that was recorded of each set of weights: the others found them loaded."""
        found: dict[tuple[tuple[str, str], ...], float] = {}
        for trial in self.trials:
            weights = self._weights(trial.requested)
            found[weights] = max(found.get(weights, 0.0), trial.load_s or 0.0)
        return found

    def drawn(self, configuration: Configuration, seed: str) -> Trial:
        """Return the recorded trial with its samples drawn anew, with replacement; KeyError where it was not recorded.

        The same rounds are drawn of every metric, where they have as many samples: a slow round is slow in all of them.
        """
        trial = self.by_configuration[configuration]
        drawn = []
        for measurement in trial.measurements:
            # Seeded by text, so that a draw depends on what is drawn and not on what was drawn before it.
            source, samples = random.Random(f"{seed} {configuration.key}"), measurement.samples
            drawn.append(replace(measurement, samples=tuple(source.choices(samples, k=len(samples)))))
        return replace(trial, measurements=tuple(drawn))


def read_landscapes(folder: Path) -> dict[str, Landscape]:
    """Return the landscapes of a folder by their files' names; none where there is no file or no folder."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            found[path.stem] = Landscape.of(json.loads(path.read_text(encoding="utf-8")))
        except (BadInput, ValueError) as error:
            raise BadInput(f"{path.name}: {error}") from None
    return found


def _as_recorded(objective: Objective, knobs: Sequence[str]) -> Objective:
    """Return an objective that leaves alone the knobs that there were not when it was recorded: nobody turned them."""
    since = [knob for knob in KNOBS.values() if knob.name not in knobs and knob.implied]
    return replace(objective, only=(*objective.only, *((knob.name, (knob.implied,)) for knob in since)))


def _bare(trial: Trial, number: int, among: Sequence[Trial]) -> Trial:
    """Return the trial as a file keeps it: without the readings, which are long and say nothing of speed.

    What ran under another name and was measured before was not judged again: it has the quality and peak of what ran.
    """
    same = next((t for t in among if t.requested == trial.ran and t.outcome is Outcome.OK and t.quality), trial)
    if trial.reused_from is not None:
        trial = replace(trial, quality=trial.quality or same.quality, peak_bytes=trial.peak_bytes or same.peak_bytes)
    by_name = sorted(trial.measurements, key=lambda measurement: measurement.metric)  # as canonical JSON has them
    measurements = tuple(replace(m, device_state={}, phase="search") for m in by_name)
    return replace(trial, number=number, reading={}, reused_from=None, attempts=1, measurements=measurements)


def _row_of(trial: Trial) -> dict[str, Any]:
    return {
        "requested": dict(trial.requested),
        "effective": dict(trial.effective) if trial.effective else None,
        "outcome": str(trial.outcome),
        "reason": trial.reason,
        **{name: getattr(trial, name) for name in _FIGURES},
        "quality": trial.quality.payload if trial.quality else None,
        "measurements": {m.metric: {"unit": m.unit, "samples": list(m.samples)} for m in trial.measurements},
    }


def _trial_of(number: int, row: Mapping[str, Any]) -> Trial:
    return Trial(
        number=number,
        requested=Configuration.of(row["requested"]),
        effective=Configuration.of(row["effective"]) if row["effective"] else None,
        outcome=Outcome(row["outcome"]),
        reason=row["reason"],
        quality=Quality.of(row["quality"]),
        measurements=tuple(
            Measurement(metric, found["unit"], tuple(found["samples"])) for metric, found in row["measurements"].items()
        ),
        **{name: row[name] for name in _FIGURES},
    )
