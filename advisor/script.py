"""The lines to paste: Python source that loads and calls a model as a configuration says.

Nothing is written twice: the keyword arguments are the choices' own expressions and the batching is the source of the
function that the worker called, read from its file without importing torch.
"""

from __future__ import annotations

import ast
from pathlib import Path

from advisor import knobs
from advisor.configuration import Configuration
from advisor.knobs import choice_of
from advisor.model import ModelFacts, ModelSource
from advisor.workloads import Workload

_PACKING = Path(knobs.__file__).with_name("packing_torch.py")


def loading_lines(source: ModelSource, configuration: Configuration, output: str, device: str) -> list[str]:
    """Return the imports, the statements before loading, and the line that loads the model."""
    choices = [choice_of(knob, name) for knob, name in configuration.items()]
    auto = "AutoModel" if output == "hidden" else "AutoModelForCausalLM"
    imports = dict.fromkeys(line for choice in choices for line in choice.imports)
    before = dict.fromkeys(line for choice in choices for line in choice.before)
    arguments: dict[str, str] = {}
    for choice in choices:
        arguments |= choice.load(configuration)
    if source.has_random_weights:
        auto_import = f"from transformers import AutoConfig, {auto}"
        config = f"AutoConfig.from_pretrained({source.path!r})"
        called = ", ".join([config, *(f"{name}={text}" for name, text in arguments.items() if name != "quantization_config")])
        load = f"with torch.device({device!r}):\n    model = {auto}.from_config({called}).eval()"
    else:
        auto_import = f"from transformers import {auto}"
        called = ", ".join([repr(source.path if Path(source.name).exists() else source.name),
                            *(f"{name}={text}" for name, text in arguments.items()), f"device_map={device!r}"])  # fmt: skip
        load = f"model = {auto}.from_pretrained({called}).eval()"
    return [*sorted({"import torch", *imports, auto_import}), *before, load]


def collate_source(packing: str) -> str:
    """Return the source of the function that makes a batch under a packing choice."""
    name = "collate_packed" if packing.startswith("packed") else "collate_padded"
    text = _PACKING.read_text(encoding="utf-8")
    function = next(node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef) and node.name == name)
    source = ast.get_source_segment(text, function) or ""
    return source.replace("  # type: ignore[no-untyped-def]", "")


def batching_words(packing: str) -> str:
    """Return the batching a configuration needs, in a sentence."""
    if packing == "packed":
        return "lay each batch in one row without pads, positions starting again, use_cache=False, no attention_mask"
    if packing == "sorted":
        return "sort all sequences by length, longest first, and batch neighbours; put the results back in order"
    return "batches as they come, padded to the longest"


def script_for(source: ModelSource, configuration: Configuration, workload: Workload, facts: ModelFacts, device: str) -> str:
    """Return a complete script that runs the workload as measured and prints its useful tokens per second."""
    packed = configuration["packing"].startswith("packed")
    order = "sorted(range(len(lengths)), key=lambda i: -lengths[i])" if configuration["packing"] == "sorted" else "list(range(len(lengths)))"
    made = "collate_packed([sequences[i] for i in batch])" if packed else "collate_padded([sequences[i] for i in batch], 0)"
    synchronize = "\n        torch.cuda.synchronize()" if device != "cpu" else ""
    threads = "\ntorch.set_num_threads(1)" if device == "cpu" else ""
    keeps = "logits_to_keep" in facts.accepts and workload.output == "last-logits"
    keep = '        call["logits_to_keep"] = ' + ('call["cu_seq_lens_q"][1:].long() - 1' if packed else "1") if keeps else ""
    drop = "" if "cu_seq_lens_q" in facts.accepts or not packed else (
        '        for name in ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"):\n            del call[name]')  # fmt: skip
    return f'''"""{source.name.replace(chr(34), "'")}: {configuration} (written by advisor suggest)."""

import time

{chr(10).join(loading_lines(source, configuration, workload.output, device))}{threads}


{collate_source(configuration["packing"])}


# The lengths that were measured, with random token ids: put your own token ids into `sequences`.
lengths = {list(workload.lengths)!r}
torch.manual_seed(0)
sequences = [torch.randint({min(16, facts.vocabulary - 1)}, {facts.vocabulary}, (n,)) for n in lengths]
order = {order}
batches = [order[i : i + {workload.batch}] for i in range(0, len(order), {workload.batch})]


@torch.inference_mode()
def run():
    """Return {_result_words(workload.output)} of every sequence, in the order of `sequences`."""
    results = [None] * len(sequences)
    for batch in batches:
        call = {made}
        ends = torch.tensor([lengths[i] for i in batch]).cumsum(0)
{keep}
{drop}
        call = {{name: value.to(model.device) if torch.is_tensor(value) else value for name, value in call.items()}}
        outputs = model(**call)
        for row, i in enumerate(batch):
            results[i] = {_result_expression(workload.output, packed=packed, keeps=keeps)}{synchronize}
    return results


run()  # warm-up
times = []
for _ in range(5):
    began = time.perf_counter()
    run()
    times.append(time.perf_counter() - began)
print(f"{{sum(lengths) / sorted(times)[2]:.1f}} tokens/s")
'''


def _result_words(output: str) -> str:
    return {"last-logits": "the last logits", "all-logits": "all logits", "hidden": "the hidden states"}[output]


def _result_expression(output: str, *, packed: bool, keeps: bool) -> str:
    values = "outputs.last_hidden_state" if output == "hidden" else "outputs.logits"
    if output == "last-logits":
        if not packed:
            return f"{values}[row, -1]"
        return f"{values}[0, row]" if keeps else f"{values}[0, ends[row] - 1]"
    return f"{values}[0, ends[row] - lengths[i] : ends[row]]" if packed else f"{values}[row, -lengths[i] :]"
