"""Documents to paste: a configuration as YAML for a config file, and as lines of a shell that make its environment.

What data can't say (statements around loading, functions of our own) stands in the YAML under keys of its own and in its head;
of an environment only what the measured run set is exported, and what no variable can say is told in a comment.
"""

from __future__ import annotations

import json
import re
from shlex import quote
from typing import Any

from advisor.knobs import choices_of
from advisor.nouns.environment import Environment
from advisor.show.as_data import said
from advisor.show.carried import Carried
from advisor.show.source_lines import batching_words, checkpoint_of, setup_of
from advisor.terminal import in_a_line
from advisor.workloads import auto_class, kind_of

#: Packages that every configuration is loaded with.
_ALWAYS = ("torch", "transformers", "accelerate")

#: A version that can be pinned once its build is taken off. A stored row can say anything.
_VERSION = re.compile(r"[0-9][0-9A-Za-z.]{0,60}")


def yaml_document(carried: Carried, device: str) -> str:
    """Return a configuration as a YAML document: what `yaml.safe_load` reads, and in comments what data can't say."""
    import yaml

    payload = configuration_payload(carried, device)
    more = []
    if payload["before_loading"] or payload["after_loading"]:
        more.append("before_loading and after_loading are Python: no data says them; run them around from_pretrained")
    if payload["functions"]:
        more.append(f"they call {', '.join(payload['functions'])}, whose source --format python prints")
    if payload["not_as_data"]:
        more.append("not_as_data: arguments of from_pretrained that only Python can say")
    if carried.recommendation.source.has_random_weights:
        more.append("the model is a config.json: its weights were drawn at random, and from_pretrained can't load it")
    text = yaml.safe_dump(payload, sort_keys=False, allow_unicode=False, width=120)
    return "\n".join([*carried.head(*more), text])


def configuration_payload(carried: Carried, device: str) -> dict[str, Any]:
    """Return a configuration and its proof as values of JSON."""
    recommendation, configuration = carried.recommendation, carried.configuration
    source, facts, study = recommendation.source, recommendation.facts, recommendation.study
    prepared = kind_of(study.workload).preparation(study.workload, facts, source.files, device)
    data, around = said(configuration), setup_of(configuration, prepared)
    names = [name for choice in choices_of(configuration) for _, name in choice.functions]
    payload = {
        "model": checkpoint_of(source),
        "class": auto_class(study.workload.needs, facts.logits_class),
        "device": device,
        "threads": carried.threads or None,
        "model_kwargs": data.model_kwargs,
        "call_kwargs": data.call_kwargs,
        "not_as_data": list(data.unsaid),
        "batching": {"name": carried.layout, "words": batching_words(configuration, facts, study.workload)},
        "batch_size": carried.workload.size,
        "before_loading": list(around.before),
        "after_loading": list(around.after),
        "functions": list(dict.fromkeys([*names, *(name for _, name in prepared.functions)])),
        "proof": _proof(carried),
    }
    return dict(json.loads(json.dumps(payload)))  # words of ours become plain text, which any writer takes


def _proof(carried: Carried) -> dict[str, Any]:
    """Return what was measured of it, when and on what."""
    recommendation, found = carried.recommendation, carried.found.payload
    study = recommendation.study
    return {
        "configuration": found["configuration"],
        "verdict": str(recommendation.verdict),
        "ratio": found["ratio"],
        "ratio_interval": found["ratio_interval"],
        "search_ratio": found["search_ratio"],
        "blocks": found["blocks"],
        "tier": found["tier"],
        "quality": found["quality"],
        "same_weights": recommendation.same_weights,
        "study": study.id,
        "trial": found["trial"],
        "measured_at": (study.finished_at or study.started_at).isoformat(),
        "device_name": study.environment.device_name,
        "versions": dict(study.environment.packages),
    }


def environment_lines(carried: Carried, device: str) -> str:
    """Return lines for a shell: what to export, and the packages to install in the versions that were measured."""
    environment, configuration = carried.recommendation.study.environment, carried.configuration
    facts, work = carried.recommendation.facts, carried.workload
    kind = kind_of(work)
    needed = kind.preparation(work, facts, carried.recommendation.source.files, device).packages
    own = [*needed, *(package for choice in choices_of(configuration) for package in choice.packages)]
    always, pins, told = _pins(environment, own)
    statements = setup_of(configuration).before
    unsaid = [f"no variable says this, it is to be run in Python before loading: {line}" for line in statements]
    variables = [f"{name}={quote(value)}" for name, value in kind.running(work, facts).variables.items()]
    on_gpu = ["CUDA_DEVICE_ORDER=PCI_BUS_ID", *variables]
    exports = on_gpu if device != "cpu" else [f"OMP_NUM_THREADS={carried.threads}"]
    installs = [f"pip install {' '.join(map(quote, always))}"] if always else []
    # Apart and after torch: some are built against the torch that is there.
    installs += [f"pip install --no-build-isolation {' '.join(map(quote, pins))}"] if pins else []
    comments = [f"# {in_a_line(line)}" for line in told]
    lines = [*carried.head(*unsaid), *(f"export {line}" for line in exports), *comments, *installs]
    return "\n".join([*lines, ""])


def _pins(environment: Environment, own: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Return the requirements that all need, those of the configuration alone, and what is to be told of their builds."""
    found: dict[str, str] = {}
    told = []
    for package in dict.fromkeys([*_ALWAYS, *own]):
        version, _, build = environment.packages.get(package, "").partition("+")
        if not version:
            told += [f"{package} is needed too; its version was not recorded"] if package in own else []
        elif _VERSION.fullmatch(version):
            found[package] = f"{package}=={version}"
            told += [f"{package} {version} was {_build(build, environment)}"] if build else []
        else:
            told.append(f"{package}: its version, {version}, can't be pinned")
    always = [pin for package, pin in found.items() if package in _ALWAYS]
    return always, [pin for package, pin in found.items() if package not in _ALWAYS], told


def _build(build: str, environment: Environment) -> str:
    """Return a build of a package, in words."""
    if build == "cpu":
        return "the build for the CPU"
    return f"the build for CUDA {environment.cuda} ({build})" if environment.cuda else f"the build {build}"
