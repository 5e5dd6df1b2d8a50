"""The script that `--format python` prints: it does the work as it was measured, and prints its own speed."""

from __future__ import annotations

from advisor.advice.recommendation import Recommendation
from advisor.errors import BadInput
from advisor.knobs import advised, traits_of
from advisor.nouns.configuration import Configuration
from advisor.nouns.model import ModelFacts, ModelSource
from advisor.show.source_lines import (
    call_lines,
    collation_for,
    file_of,
    function_source,
    indented,
    loading_lines,
    quoted,
)
from advisor.show.training_script import training_script
from advisor.workloads import Running, Workload, kind_of, plain


def refuse_unprintable(configuration: Configuration) -> None:
    """Raise BadInput where there are no lines to paste: for a form that is there to be caught, or an unknown choice."""
    if not advised(configuration):
        raise BadInput(f"--format python: there are no lines to paste for {configuration}", "leave --format out")


def script_for(
    source: ModelSource,
    configuration: Configuration,
    workload: Workload,
    facts: ModelFacts,
    device: str,
    threads: int = 1,
    caution: str = "",
) -> str:
    """Return a complete script that runs the workload as measured and prints its speed.

    threads: of the CPU; a GPU run does not set them. caution: what its reader must know of it, in a line, "" for nothing.
    """
    workload, by_length = workload.under(configuration), traits_of(configuration).by_length
    if workload.trains:
        return training_script(source, configuration, workload, facts, device, threads, caution)
    order = "sorted(range(len(lengths)), key=lambda i: -lengths[i])" if by_length else "list(range(len(lengths)))"
    running = kind_of(workload).running(workload, facts)
    loading = loading_lines(source, configuration, facts, workload, device)
    if device == "cpu":
        loading.append(f"torch.set_num_threads({int(threads)!r})")
    loading = list(dict.fromkeys(["from typing import Any", *loading]))
    head = quoted(f"{source.name}: {configuration} (written by advisor suggest).")
    return f'''"""{head}{f"{chr(10) * 2}{quoted(caution)}{chr(10)}" if caution else ""}"""

import time

{indented(loading)}


{(chr(10) * 3).join(_sources(configuration, running, facts))}


# Random token ids of the lengths that were measured: put your own into `sequences`.
torch.manual_seed(0)
measured = {[int(length) for length in workload.lengths]!r}
sequences = [torch.randint({int(min(16, facts.vocabulary - 1))}, {int(facts.vocabulary)}, (n,)) for n in measured]
lengths = [len(tokens) for tokens in sequences]
order = {order}
batches = [order[i : i + {int(workload.size)}] for i in range(0, len(order), {int(workload.size)})]


@torch.inference_mode()
def run(use):
    """Call use(place in `sequences`, {running.result}) for every sequence; what it keeps, stays in memory."""
    for batch in batches:
{indented(_loop_lines(configuration, running, facts, device), 8)}


def drop(place, result):
    """Keep nothing."""


run(drop)  # warm-up
times = []
for _ in range(5):
    began = time.perf_counter()
    run(drop)
    times.append(time.perf_counter() - began)
print(f"{{{running.useful} / sorted(times)[2]:.1f}} {running.unit}")
'''


def recommended_script(recommendation: Recommendation, device: str) -> str:
    """Return the script of what is recommended; it says where nobody measured the quality of the weights that it loads."""
    assert recommendation.chosen is not None
    study = recommendation.study
    threads, configuration = study.environment.threads or 1, recommendation.chosen.configuration
    where = (study.workload, recommendation.facts, device, threads)
    return script_for(recommendation.source, configuration, *where, caution_of(recommendation))


def caution_of(recommendation: Recommendation) -> str:
    """Return what the reader of any lines to paste must know: whose weights were measured, what was changed since, or "".

    And what looked better than what is confirmed: of that the lines are not.
    """
    if recommendation.stale:
        caution = "; ".join(filter(None, (recommendation.stale_words, recommendation.origin)))
        return f"{caution[:1].upper()}{caution[1:]}. To measure it again: {recommendation.command}"
    if recommendation.same_weights:
        chosen, best = recommendation.chosen, recommendation.best
        if best is None or chosen is None or chosen.comparison is None:
            return ""
        looked = f"What looked better in the search, {best.configuration}, is not confirmed"
        return f"{looked}. To go on: {recommendation.command}"
    unknown = f"the quality of {recommendation.source.name}'s own was not measured"
    caution = f"{recommendation.origin}; {unknown}. To measure it: {recommendation.command}"
    return f"{caution[:1].upper()}{caution[1:]}"


def _sources(configuration: Configuration, running: Running, facts: ModelFacts) -> list[str]:
    """Return the source of the functions that the loop calls: the layout's, and the one that was timed and judged."""
    collation = collation_for(configuration, facts)
    called = ((collation.module, collation.name), (running.module, running.name))
    return [function_source(file_of(module), name) for module, name in called]


def _loop_lines(configuration: Configuration, running: Running, facts: ModelFacts, device: str) -> list[str]:
    """Return what is done with each batch: make the call, leave out what the model does not take, hand results on."""
    lines = call_lines(configuration, facts, "[sequences[i] for i in batch]")
    lines.append(
        "call = {name: value.to(model.device) if torch.is_tensor(value) else value for name, value in call.items()}"
    )
    lines.append(f"values = {running.name}(model, call, places, {running.positions!r}{plain(running.given)})")
    lines += [] if device == "cpu" else ["torch.cuda.synchronize()"]
    if running.by_sequence:
        lines.append("for i, result in zip(batch, values):\n    use(i, result)")
    else:
        lines.append("for i, (row, start, end) in zip(batch, places):\n    use(i, values[row, start:end])")
    return [*lines, "del values"]
