"""The script that `--format python` prints of work that trains: steps of an optimizer, their losses, and its own speed.

What other formats of such work need too, the samples of a step and the functions that make its calls, is here.
"""

from __future__ import annotations

from advisor.knobs import traits_of
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
from advisor.workloads import Running, Workload, kind_of

_TELL = 'print(f"step {number}: loss {values[0].item():.6f}, norm of the gradients {values[1].item():.6f}")'


def training_script(
    source: ModelSource,
    configuration: Configuration,
    workload: Workload,
    facts: ModelFacts,
    device: str,
    threads: int,
    caution: str,
) -> str:
    """Return a complete script that trains as measured, and prints the losses of its first steps and its speed.

    workload: as the configuration has it. threads: of the CPU; a GPU run does not set them. caution: for its reader, or "".
    """
    running = kind_of(workload).running(workload, facts)
    loading = ["from typing import Any", *loading_lines(source, configuration, facts, workload, device)]
    loading += [f"torch.set_num_threads({int(threads)!r})"] if device == "cpu" else []
    functions = function_sources(configuration, running, facts, (running.labelled, running.counted, running.name))
    head = quoted(f"{source.name}: {configuration} (written by advisor suggest).")
    return f'''"""{head}{f"{chr(10) * 2}{quoted(caution)}{chr(10)}" if caution else ""}"""

import os
import time

{indented(variable_lines(running))}

{indented(list(dict.fromkeys(loading)))}


{(chr(10) * 3).join(functions)}


{indented(sample_lines(configuration, workload, facts))}
passes = {_passes(workload)}


def run(use):
    """Do every step; call use(the step's number, its loss and the norm of its gradients) after each."""
    for number, step in enumerate(passes, 1):
{indented(_step_lines(configuration, running, facts, device), 8)}


def tell(number, values):
    """Print a step's loss."""
    {_TELL}


def drop(number, values):
    """Keep nothing."""


run(tell)  # warm-up
times = []
for _ in range(5):
    began = time.perf_counter()
    run(drop)
    times.append(time.perf_counter() - began)
print(f"{{{running.useful} / sorted(times)[2]:.1f}} {running.unit}")
'''


def variable_lines(running: Running) -> list[str]:
    """Return what sets the variables of the environment that the work was run with: torch looks at them when it is imported."""
    return [f"os.environ.setdefault({name!r}, {value!r})" for name, value in running.variables.items()]


def function_sources(
    configuration: Configuration, running: Running, facts: ModelFacts, names: tuple[str, ...]
) -> list[str]:
    """Return the source of the layout's function, and of these of the kind's module."""
    collation = collation_for(configuration, facts)
    own = [function_source(file_of(running.module), name) for name in names]
    return [function_source(file_of(collation.module), collation.name), *own]


def sample_lines(configuration: Configuration, workload: Workload, facts: ModelFacts) -> list[str]:
    """Return what makes the samples, and `steps`: the places of each step's in `sequences`, in the order they are taken in."""
    size, first = int(workload.size), int(min(16, facts.vocabulary - 1))
    lines = [
        "# Random token ids of the lengths that were measured: put your own into `sequences`.",
        "torch.manual_seed(0)",
        f"measured = {[int(length) for length in workload.lengths]!r}",
        f"sequences = [torch.randint({first}, {int(facts.vocabulary)}, (n,)) for n in measured]",
        "lengths = [len(tokens) for tokens in sequences]",
        f"steps = [list(range(len(lengths)))[i : i + {size}] for i in range(0, len(lengths), {size})]",
    ]
    if sorts(configuration, workload):
        lines += [
            "# Neighbours in length share a forward pass; a step has the same samples in whatever order.",
            "steps = [sorted(step, key=lambda i: -lengths[i]) for step in steps]",
        ]
    return lines


def sorts(configuration: Configuration, workload: Workload) -> bool:
    """Whether the samples of a step are taken by length. workload: as the configuration has it."""
    return traits_of(configuration).by_length and workload.batches(by_length=True) != workload.batches()


def pass_size(workload: Workload) -> int:
    """Return how many sequences a forward pass has. workload: as the configuration has it."""
    return max(map(len, workload.batches()))


def _passes(workload: Workload) -> str:
    """Return the forward passes of each step, as an expression."""
    size = pass_size(workload)
    if size >= workload.size:
        return "[[step] for step in steps]"
    return f"[[step[i : i + {size}] for i in range(0, len(step), {size})] for step in steps]"


def _step_lines(configuration: Configuration, running: Running, facts: ModelFacts, device: str) -> list[str]:
    """Return what does a step: make its calls, with labels, and run them with the function that was timed and judged."""
    making = [
        *call_lines(configuration, facts, "[sequences[i] for i in batch]"),
        f"made.append({running.labelled}(call, places))",
    ]
    on_device = "{name: value.to(model.device) if torch.is_tensor(value) else value for name, value in call.items()}"
    return [
        "made = []",
        f"for batch in step:\n{indented(making, 4)}",
        f"calls = [\n    {on_device}\n    for call in {running.counted}(made)\n]",
        f"values = {running.name}(model, calls)",
        *([] if device == "cpu" else ["torch.cuda.synchronize()"]),
        "use(number, values)",
    ]
