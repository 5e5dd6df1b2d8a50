"""The lines to paste: Python source that loads and calls a model as a configuration says.

Nothing is written twice: the keyword arguments are the choices' own expressions and the batching is the source of the
function that the worker called, read from its file without importing torch.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from advisor.advice.recommendation import Recommendation
from advisor.errors import BadInput
from advisor.knobs import Batching, Collation, advised, call_arguments, choices_of, collation_of, traits_of
from advisor.nouns.configuration import Configuration
from advisor.nouns.model import ModelFacts, ModelSource
from advisor.workloads import Preparation, Running, Workload, auto_class, kind_of, plain

#: Of a kind of work that does nothing with a model after it is loaded.
_UNPREPARED = Preparation()


def loading_lines(
    source: ModelSource, configuration: Configuration, facts: ModelFacts, workload: Workload, device: str
) -> list[str]:
    """Return the imports, the functions and statements before loading, those that load the model, and those after."""
    auto = auto_class(workload.needs, facts.logits_class)
    if not auto:
        raise BadInput(f"no class of transformers is known that gives this model's {workload.output}", "tune it again")
    around = setup_of(configuration, kind_of(workload).preparation(workload, facts, source.files, device))
    imports = {"import torch", *around.imports}
    if source.has_random_weights:
        imports |= {f"from transformers import AutoConfig, {auto}"}
        load = _drawing_lines(source, auto, around.arguments, facts.checkpoint_dtype, device)
    else:
        imports |= {f"from transformers import {auto}"}
        given = _called(repr(checkpoint_of(source)), around.arguments, device_map=repr(device))
        load = [f"model = {auto}.from_pretrained({given}).eval()"]
    return [*sorted(imports), *around.functions, *around.before, *load, *around.after]


@dataclass(frozen=True)
class Setup:
    """What stands around loading a model, as Python source.

    imports: of all of it; functions: their sources; before, after: statements; arguments: of from_pretrained, as expressions.
    """

    imports: frozenset[str]
    functions: tuple[str, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]
    arguments: dict[str, str]


def setup_of(configuration: Configuration, prepared: Preparation = _UNPREPARED) -> Setup:
    """Return what a configuration asks for around loading. prepared: what the kind of work does after it."""
    choices = choices_of(configuration)
    imports = {line for choice in choices for line in choice.imports} | set(prepared.imports)
    functions = dict.fromkeys([*(function for choice in choices for function in choice.functions), *prepared.functions])
    before = dict.fromkeys(line for choice in choices for line in choice.before)
    after = dict.fromkeys(line for choice in choices for line in choice.after)
    on_model = dict.fromkeys(line for choice in choices for line in choice.on_model)
    arguments: dict[str, str] = {}
    for choice in choices:
        arguments |= choice.load(configuration)
    sources = tuple(function_source(_file_of(module), name) for module, name in functions)
    return Setup(frozenset(imports), sources, tuple(before), (*after, *prepared.statements, *on_model), arguments)


def checkpoint_of(source: ModelSource) -> str:
    """Return what a library is to load a model by: its folder, or the name of the hub."""
    return source.path if Path(source.name).exists() else source.name


def _called(first: str, arguments: dict[str, str], **more: str) -> str:
    """Return what stands between the parentheses of a call."""
    return ", ".join([first, *(f"{name}={text}" for name, text in {**arguments, **more}.items())])


def _drawing_lines(
    source: ModelSource, auto: str, arguments: dict[str, str], checkpoint_dtype: str, device: str
) -> list[str]:
    """Return the statements that draw random weights in the checkpoint's dtype, then convert or quantise them."""
    own, wanted = f"torch.{checkpoint_dtype}", arguments["dtype"]
    kept = {name: text for name, text in arguments.items() if name not in ("dtype", "quantization_config")}
    drops = "quantization_config" in source.config  # packed and scaled weights can't be drawn
    lines = [
        f"config = AutoConfig.from_pretrained({source.path!r})",
        *(["del config.quantization_config"] if drops else []),
        "torch.manual_seed(0)",
        f"with torch.device({device!r}):\n    model = {auto}.from_config({_called('config', kept, dtype=own)}).eval()",
    ]
    if wanted != own or "quantization_config" in arguments:
        again = "config" if drops else f"AutoConfig.from_pretrained({source.path!r})"
        given = {"config": again, "state_dict": "state", **arguments}
        lines += [
            f'state = {{name: tensor.to("cpu", {wanted}) for name, tensor in model.state_dict().items()}}',
            f"model = type(model).from_pretrained({_called('None', given, device_map=repr(device))}).eval()",
        ]
    return lines


def refuse_unprintable(configuration: Configuration) -> None:
    """Raise BadInput where there are no lines to paste: for a form that is there to be caught, or an unknown choice."""
    if not advised(configuration):
        raise BadInput(f"--format python: there are no lines to paste for {configuration}", "leave --format out")


def function_source(file: Path, name: str) -> str:
    """Return the source of a function in a file, read without importing it, without what linters are told."""
    text = file.read_text(encoding="utf-8")
    function = next(node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef) and node.name == name)
    return re.sub(r"  # (type: ignore|noqa).*", "", ast.get_source_segment(text, function) or "")


def _file_of(module: str) -> Path:
    """Return the file of a module, which is not imported: it may load torch."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise BadInput(
            f"the lines to paste are in the module {module}, which is not to be found", "put it on PYTHONPATH"
        )
    return Path(spec.origin)


def _collation(configuration: Configuration, facts: ModelFacts) -> Collation:
    """Return the function that makes a batch, as the worker called it."""
    batching = Batching(
        0,
        causal=facts.is_causal,
        first_position=facts.position_offset,
        apart=traits_of(configuration).tells_apart,
        left=facts.pads_left,
    )
    return collation_of(configuration, batching)


def batching_words(configuration: Configuration, facts: ModelFacts) -> str:
    """Return the batching a configuration needs, in a sentence."""
    count = configuration.get("batch", "")
    size = f"{count} sequence{'s' if count != '1' else ''} a batch; " if count else ""
    return f"{size}{_collation(configuration, facts).words}"


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
    order = "sorted(range(len(lengths)), key=lambda i: -lengths[i])" if by_length else "list(range(len(lengths)))"
    running = kind_of(workload).running(workload, facts)
    loading = loading_lines(source, configuration, facts, workload, device)
    if device == "cpu":
        loading.append(f"torch.set_num_threads({int(threads)!r})")
    loading = list(dict.fromkeys(["from typing import Any", *loading]))
    head = _quoted(f"{source.name}: {configuration} (written by advisor suggest).")
    return f'''"""{head}{f"{chr(10) * 2}{_quoted(caution)}{chr(10)}" if caution else ""}"""

import time

{_lines(loading)}


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
{_lines(_loop_lines(configuration, running, facts, device), 8)}


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


def _quoted(text: str) -> str:
    """Return text that is safe between three double quotes: whatever a model is called, it stays a text."""
    return repr(text)[1:-1].replace('"', r"\"")


def _lines(statements: list[str], indent: int = 0) -> str:
    """Join statements, each of a line or more, under an indentation."""
    return "\n".join(" " * indent + line for statement in statements for line in statement.splitlines())


def _sources(configuration: Configuration, running: Running, facts: ModelFacts) -> list[str]:
    """Return the source of the functions that the loop calls: the layout's, and the one that was timed and judged."""
    collation = _collation(configuration, facts)
    called = ((collation.module, collation.name), (running.module, running.name))
    return [function_source(_file_of(module), name) for module, name in called]


def _loop_lines(configuration: Configuration, running: Running, facts: ModelFacts, device: str) -> list[str]:
    """Return what is done with each batch: make the call, leave out what the model does not take, hand results on."""
    collation = _collation(configuration, facts)
    arguments = ", ".join(["[sequences[i] for i in batch]", *_collate_arguments(collation, facts)])
    lines = [f"call, places = {collation.name}({arguments})"]
    if dropped := _dropped(collation, facts):
        lines.append(f"for name in {dropped!r}:\n    del call[name]")
    if added := call_arguments(configuration):
        lines.append(f"call |= {{{', '.join(f'{name!r}: {text}' for name, text in added.items())}}}")
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


def _collate_arguments(collation: Collation, facts: ModelFacts) -> list[str]:
    """Return what the function is given, in the order of its arguments; nothing for a first position of 0."""
    first = [f"first_position={int(facts.position_offset)}"] if facts.position_offset else []
    spelled = {"pad_token_id": [_PADS_WITH], "dtype": ["model.dtype"], "first_position": first}
    return [text for name in collation.given for text in spelled[name]]


#: What batches are padded with: the id that was judged, see `advisor.networks.call_torch.pad_token_of`.
_PADS_WITH = 'max(getattr(model.config, "pad_token_id", None) or 0, 0)'


def _dropped(collation: Collation, facts: ModelFacts) -> list[str]:
    """Return the arguments of a batch that the model's forward does not take."""
    dropped = [argument for argument in collation.makes if argument not in facts.accepts]
    if "cu_seq_lens_q" in dropped:
        dropped += ["cu_seq_lens_k", "max_length_q", "max_length_k"]
    return dropped + (["use_cache"] if "no_use_cache" in facts.accepts else [])
