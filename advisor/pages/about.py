"""What a study was about, in words: the model, the workload, what was asked, the device, and the versions."""

from __future__ import annotations

from collections.abc import Mapping

from advisor.nouns.metrics import seconds
from advisor.nouns.model import is_drawn
from advisor.nouns.objective import Objective
from advisor.storage.study_record import StudyRecord
from advisor.terminal import gib, many


def about(study: StudyRecord) -> tuple[tuple[str, str], ...]:
    """Return what a study was about, term by term."""
    environment, objective = study.environment, study.objective
    weights = "drawn at random" if is_drawn(study.weights_digest) else study.weights_digest
    shown: Mapping[str, str] = {
        "Model": study.model_name,
        "Weights": weights,
        "Workload": str(study.workload),
        "Made the best of": objective.aim.words,
        "Asked": asked_words(objective),
        "Device": _device(study),
        "Versions": ", ".join(f"{name} {version}" for name, version in environment.packages.items()),
        "Measured": _when(study),
        "Environment": study.environment_key,
    }
    return tuple((term, words) for term, words in shown.items() if words)


def asked_words(objective: Objective) -> str:
    """Return within what limits the best was looked for."""
    limits = [f"quality {objective.quality}"]
    limits += [f"within {gib(objective.max_memory_bytes)}"] if objective.max_memory_bytes is not None else []
    limits += (
        [f"slowest batch within {seconds(objective.max_latency_s)}"] if objective.max_latency_s is not None else []
    )
    limits += [f"over {many(objective.calls, 'call')}"] if objective.calls is not None else []
    limits += [f"only {knob} {', '.join(names)}" for knob, names in objective.only]
    limits += [f"rules ignored: {', '.join(objective.ignored_rules)}"] if objective.ignored_rules else []
    limits += ["lossy choices allowed unjudged"] if objective.allow_unjudged else []
    return "; ".join(limits)


def _device(study: StudyRecord) -> str:
    environment = study.environment
    parts = [environment.device_class]
    parts += [f"driver {environment.driver}"] if environment.driver else []
    parts += [f"CUDA {environment.cuda}"] if environment.cuda and environment.is_cuda else []
    parts += [f"limit {environment.power_limit_w} W"] if environment.power_limit_w else []
    parts += [f"{environment.threads} thread{'s' * (environment.threads != 1)}"] if environment.threads else []
    return ", ".join(parts)


def _when(study: StudyRecord) -> str:
    when = study.finished_at or study.started_at
    return f"{when:%Y-%m-%d %H:%M} UTC, {study.state}"
