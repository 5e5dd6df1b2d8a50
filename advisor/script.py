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


def loading_lines(
    source: ModelSource, configuration: Configuration, facts: ModelFacts, output: str, device: str
) -> list[str]:
    """Return the imports, the statements before loading, and those that load the model."""
    choices = [choice_of(knob, name) for knob, name in configuration.items()]
    auto = "AutoModel" if output == "hidden" else "AutoModelForCausalLM"
    imports = {line for choice in choices for line in choice.imports}
    before = dict.fromkeys(line for choice in choices for line in choice.before)
    arguments: dict[str, str] = {}
    for choice in choices:
        arguments |= choice.load(configuration)
    if source.has_random_weights:
        imports |= {"import torch", f"from transformers import AutoConfig, {auto}"}
        load = _drawing_lines(source, auto, arguments, facts.checkpoint_dtype, device)
    else:
        imports |= {"import torch", f"from transformers import {auto}"}
        name = source.path if Path(source.name).exists() else source.name
        load = [f"model = {auto}.from_pretrained({_called(repr(name), arguments, device_map=repr(device))}).eval()"]
    return [*sorted(imports), *before, *load]


def _called(first: str, arguments: dict[str, str], **more: str) -> str:
    """Return what stands between the parentheses of a call."""
    return ", ".join([first, *(f"{name}={text}" for name, text in {**arguments, **more}.items())])


def _drawing_lines(
    source: ModelSource, auto: str, arguments: dict[str, str], checkpoint_dtype: str, device: str
) -> list[str]:
    """Return the statements that draw random weights in the checkpoint's dtype, then convert or quantise them."""
    own, wanted = f"torch.{checkpoint_dtype}", arguments["dtype"]
    kept = {name: text for name, text in arguments.items() if name not in ("dtype", "quantization_config")}
    lines = [
        f"config = AutoConfig.from_pretrained({source.path!r})",
        "torch.manual_seed(0)",
        f"with torch.device({device!r}):\n    model = {auto}.from_config({_called('config', kept, dtype=own)}).eval()",
    ]
    if wanted != own or "quantization_config" in arguments:
        given = {"config": f"AutoConfig.from_pretrained({source.path!r})", "state_dict": "state", **arguments}
        lines += [
            f'state = {{name: tensor.to("cpu", {wanted}) for name, tensor in model.state_dict().items()}}',
            f"model = type(model).from_pretrained({_called('None', given, device_map=repr(device))}).eval()",
        ]
    return lines


def collate_source(packing: str) -> str:
    """Return the source of the function that makes a batch under a packing choice."""
    name = "collate_packed" if packing.startswith("packed") else "collate_padded"
    text = _PACKING.read_text(encoding="utf-8")
    function = next(node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef) and node.name == name)
    return ast.get_source_segment(text, function) or ""


def batching_words(packing: str) -> str:
    """Return the batching a configuration needs, in a sentence."""
    if packing == "packed":
        return "lay each batch in one row without pads, positions starting again, use_cache=False, no attention_mask"
    if packing == "sorted":
        return "sort all sequences by length, longest first, and batch neighbours; put the results back in order"
    return "batches as they come, padded to the longest"


def script_for(
    source: ModelSource,
    configuration: Configuration,
    workload: Workload,
    facts: ModelFacts,
    device: str,
    threads: int = 1,
) -> str:
    """Return a complete script that runs the workload as measured and prints its useful tokens per second.

    threads: of the CPU; a GPU run does not set them.
    """
    by_length = configuration["packing"] == "sorted"
    order = "sorted(range(len(lengths)), key=lambda i: -lengths[i])" if by_length else "list(range(len(lengths)))"
    loading = loading_lines(source, configuration, facts, workload.output, device)
    if device == "cpu":
        loading.append(f"torch.set_num_threads({threads})")
    return f'''"""{_quoted(f"{source.name}: {configuration} (written by advisor suggest).")}"""

import time

{_lines(loading)}


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
{_lines(_loop_lines(configuration["packing"], workload.output, facts, device), 8)}
    return results


run()  # warm-up
times = []
for _ in range(5):
    began = time.perf_counter()
    run()
    times.append(time.perf_counter() - began)
print(f"{{sum(lengths) / sorted(times)[2]:.1f}} tokens/s")
'''


def _quoted(text: str) -> str:
    """Return text that is safe between three double quotes: whatever a model is called, it stays a text."""
    return repr(text)[1:-1].replace('"', r"\"")


def _lines(statements: list[str], indent: int = 0) -> str:
    """Join statements, each of a line or more, under an indentation."""
    return "\n".join(" " * indent + line for statement in statements for line in statement.splitlines())


def _loop_lines(packing: str, output: str, facts: ModelFacts, device: str) -> list[str]:
    """Return what is done with each batch: make the call, leave out what the model does not take, keep the results."""
    packed = packing.startswith("packed")
    collate = (
        "collate_packed([sequences[i] for i in batch])"
        if packed
        else "collate_padded([sequences[i] for i in batch], 0)"
    )
    keeps = output == "last-logits" and "logits_to_keep" in facts.accepts
    lines = [f"call = {collate}"]
    if packed and not keeps:
        lines.append('ends = call["cu_seq_lens_q"][1:].tolist()')
    if keeps:
        lines.append('call["logits_to_keep"] = ' + ('call["cu_seq_lens_q"][1:].long() - 1' if packed else "1"))
    dropped = [name for name in ("attention_mask", "position_ids")[packed:] if name not in facts.accepts]
    if packed and "cu_seq_lens_q" not in facts.accepts:
        dropped += ["cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"]
    if dropped:
        lines.append(f"for name in {dropped!r}:\n    del call[name]")
    lines += [
        "call = {name: value.to(model.device) if torch.is_tensor(value) else value for name, value in call.items()}",
        "outputs = model(**call)",
        f"for row, i in enumerate(batch):\n    results[i] = {_result_expression(output, packed=packed, keeps=keeps)}",
    ]
    return lines if device == "cpu" else [*lines, "torch.cuda.synchronize()"]


def _result_words(output: str) -> str:
    return {"last-logits": "the last logits", "all-logits": "all logits", "hidden": "the hidden states"}[output]


def _result_expression(output: str, *, packed: bool, keeps: bool) -> str:
    values = "outputs.last_hidden_state" if output == "hidden" else "outputs.logits"
    if output == "last-logits":
        if not packed:
            return f"{values}[row, -1]"
        return f"{values}[0, row]" if keeps else f"{values}[0, ends[row] - 1]"
    return f"{values}[0, ends[row] - lengths[i] : ends[row]]" if packed else f"{values}[row, -lengths[i] :]"
