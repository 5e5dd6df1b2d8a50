"""Lines of Python to paste: what loads a model as a configuration says, and what makes the calls of it.

Nothing is written twice: the keyword arguments are the choices' own expressions and the batching is the source of the
function that the worker called, read from its file without importing torch.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from advisor.errors import BadInput
from advisor.knobs import Batching, Collation, call_arguments, choices_of, collation_of, traits_of
from advisor.nouns.configuration import Configuration
from advisor.nouns.model import ModelFacts, ModelSource
from advisor.workloads import Preparation, Workload, auto_class, kind_of

#: Of a kind of work that does nothing with a model after it is loaded.
_UNPREPARED = Preparation()


def loading_lines(
    source: ModelSource,
    configuration: Configuration,
    facts: ModelFacts,
    workload: Workload,
    device: str,
    around: Setup | None = None,
) -> list[str]:
    """Return the imports, the functions and statements before loading, those that load the model, and those after.

    around: what stands around it, None for all that the configuration and the kind of work ask for.
    """
    auto = auto_class(workload.needs, facts.logits_class)
    if not auto:
        raise BadInput(f"no class of transformers is known that gives this model's {workload.output}", "tune it again")
    if around is None:
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


def setup_of(configuration: Configuration, prepared: Preparation = _UNPREPARED, *, by_trainer: bool = False) -> Setup:
    """Return what a configuration asks for around loading. prepared: what the kind of work does after it.

    by_trainer: without what transformers' Trainer does, which is told by its arguments (`Choice.trainer`).
    """
    choices = [choice for choice in choices_of(configuration) if not (by_trainer and choice.trainer)]
    imports = {line for choice in choices for line in choice.imports} | set(prepared.imports)
    functions = dict.fromkeys([*(function for choice in choices for function in choice.functions), *prepared.functions])
    before = dict.fromkeys(line for choice in choices for line in choice.before)
    after = dict.fromkeys(line for choice in choices for line in choice.after)
    on_model = dict.fromkeys(line for choice in choices for line in choice.on_model)
    arguments: dict[str, str] = {}
    for choice in choices:
        arguments |= choice.load(configuration)
    sources = tuple(function_source(file_of(module), name) for module, name in functions)
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


def function_source(file: Path, name: str) -> str:
    """Return the source of a function in a file, read without importing it, without what linters are told."""
    text = file.read_text(encoding="utf-8")
    function = next(node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef) and node.name == name)
    return re.sub(r"  # (type: ignore|noqa).*", "", ast.get_source_segment(text, function) or "")


def file_of(module: str) -> Path:
    """Return the file of a module, which is not imported: it may load torch."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise BadInput(
            f"the lines to paste are in the module {module}, which is not to be found", "put it on PYTHONPATH"
        )
    return Path(spec.origin)


def collation_for(configuration: Configuration, facts: ModelFacts) -> Collation:
    """Return the function that makes a batch, as the worker called it."""
    batching = Batching(
        0,
        causal=facts.is_causal,
        first_position=facts.position_offset,
        apart=traits_of(configuration).tells_apart,
        left=facts.pads_left,
    )
    return collation_of(configuration, batching)


def batching_words(configuration: Configuration, facts: ModelFacts, workload: Workload) -> str:
    """Return the batching a configuration needs, in a sentence."""
    if workload.trains and traits_of(configuration).by_length:
        return "sort the sequences of each step by length, longest first, so that neighbours share a forward pass"
    count = configuration.get("batch", "")
    size = f"{count} sequence{'s' if count != '1' else ''} a batch; " if count else ""
    return f"{size}{collation_for(configuration, facts).words}"


def call_lines(configuration: Configuration, facts: ModelFacts, batch: str) -> list[str]:
    """Return what makes the call of a batch, as the worker makes it: without what the model does not take.

    batch: its sequences, as an expression; `call` and `places` are there then.
    """
    collation = collation_for(configuration, facts)
    lines = [f"call, places = {collation.name}({', '.join([batch, *_collate_arguments(collation, facts)])})"]
    if dropped := _dropped(collation, facts):
        lines.append(f"for name in {dropped!r}:\n    del call[name]")
    if added := call_arguments(configuration):
        lines.append(f"call |= {{{', '.join(f'{name!r}: {text}' for name, text in added.items())}}}")
    return lines


def quoted(text: str) -> str:
    """Return text that is safe between three double quotes: whatever a model is called, it stays a text."""
    return repr(text)[1:-1].replace('"', r"\"")


def indented(statements: list[str], indent: int = 0) -> str:
    """Join statements, each of a line or more, under an indentation."""
    return "\n".join(" " * indent + line for statement in statements for line in statement.splitlines())


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
