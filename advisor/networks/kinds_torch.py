"""Whether transformers can run a model on token ids alone: asked of its class and of a forward pass, not of a list of names.

The pass runs on device meta, where nothing is computed and a model of any size is one of shapes; where the class looks at
values on the way, on a copy with real weights if that is small. What does not run is refused in a line of our own: the
exception that a class ends in tells its author what went wrong, and nobody what to do.
"""

from __future__ import annotations

import copy
import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForTextEncoding
from transformers.initialization import no_init_weights
from transformers.utils import import_utils

from advisor.errors import BadInput
from advisor.nouns.model import ModelFiles
from advisor.workloads import Head, Needs, auto_class

#: A copy with values is made of models up to this many parameters (0.6 GB in fp32, a second or two): larger ones are not tried.
MOST_COPIED = 150_000_000

#: What torch says where an operation wants a value that a tensor without memory has not.
_WANTS_VALUES = ("meta", "item()", "data-dependent", "no data")

#: How many tokens the pass has: a number that is no model's width, so that its shapes tell which axes are tokens.
TOKENS = 23

#: Words in the names of arguments that are inputs of another kind than text.
_OTHER_INPUTS = re.compile(
    r"pixel|image|video|audio|box|feat|speech|visual|query_embeds|input_values|spectro|waveform|points"
)


def built(source: ModelFiles, config: Any, auto: Any, dtype: torch.dtype, device: str = "meta") -> Any:
    """Return the model of a configuration, in evaluation mode. Raises BadInput where transformers can't build it."""
    try:
        # On device meta there is nothing to draw, and trying takes seconds.
        drawn = no_init_weights() if device == "meta" else nullcontext()
        with torch.device(device), drawn:
            model = auto.from_config(copy.deepcopy(config), dtype=dtype)
        model.tie_weights()
        return model.eval()
    except ImportError as error:
        missing = re.search(r"requires the (\S+) library", str(error))
        package = f"the package {missing.group(1)}" if missing else "a package"
        raise BadInput(
            f"transformers needs {package} for a {config.model_type} model, which is not installed here",
            f"pip install {missing.group(1)}" if missing else "",
        ) from None
    except Exception:  # noqa: BLE001  (whatever a class raises: its settings contradict one another or lack one)
        raise _unbuildable(source, config.model_type) from None


def read_config(source: ModelFiles) -> Any:
    """Return the model's configuration object, fresh. Raises BadInput where transformers refuses its config.json."""
    try:
        return AutoConfig.from_pretrained(source.path, trust_remote_code=False)
    except Exception:  # noqa: BLE001
        raise _unbuildable(source, "such a") from None


def _unbuildable(source: ModelFiles, kind: str) -> BadInput:
    code = f"from transformers import *; AutoModel.from_config(AutoConfig.from_pretrained({str(source.path)!r}))"
    text = f"transformers {transformers.__version__} can't build {kind} model from what its config.json says"
    return BadInput(text, f'python -c "{code}" shows where it fails')


def _half(config: Any) -> str:
    """Return the class that config.json names where that is the encoder of an encoder-decoder alone, else ""."""
    names = getattr(config, "architectures", None) or []
    encoder = AutoModelForTextEncoding._model_mapping.get(type(config), None)
    name = encoder.__name__ if encoder is not None else ""
    return name if name in names and name.endswith("EncoderModel") else ""


def logits_class(config: Any) -> str:
    """Return the Auto class that gives a model's logits, an encoder's from its masked-language head; "" where none does."""
    if type(config) in AutoModelForCausalLM._model_mapping and not is_encoder(config):
        return "AutoModelForCausalLM"
    return "AutoModelForMaskedLM" if type(config) in AutoModelForMaskedLM._model_mapping else ""


def is_encoder(config: Any) -> bool:
    """Whether the model is one that also has a class for causal language modelling, but is not set up to be one."""
    return type(config) in AutoModelForMaskedLM._model_mapping and not getattr(config, "is_decoder", False)


def auto_of(needs: Needs, config: Any) -> Any:
    """Return transformers' Auto class that gives what is needed. Raises BadInput where the model has no such head.

    Encoder-decoders are refused too: they need tokens for two sides.
    """
    if half := _half(config):
        raise BadInput(
            f"{half} is one half of an encoder-decoder, and transformers' AutoModel makes both: advisor runs neither"
        )
    if getattr(config, "is_encoder_decoder", False):
        raise BadInput(f"a {config.model_type} model is an encoder with a decoder: advisor runs either, not both")
    logits = logits_class(config)
    predicts = logits == "AutoModelForCausalLM"
    if needs.head is Head.LANGUAGE and (not logits or (needs.next_token and not predicts)):
        what = "predicts no next token" if logits else "gives no logits"
        raise BadInput(f"a {config.model_type} model {what}", needs.otherwise)
    auto = getattr(transformers, auto_class(needs, logits))
    if type(config) not in auto._model_mapping:
        raise BadInput(f"transformers has no class that gives {needs.head.gives} of a {config.model_type} model")
    return auto


def text_call(model: Any, tokens: int, device: str) -> dict[str, Any]:
    """Return the arguments of a call with one sequence of this many token ids, and a mask where the class takes one."""
    parameters = inspect.signature(model.forward).parameters
    ids = torch.ones((1, tokens), dtype=torch.long, device=device)
    call: dict[str, Any] = {"input_ids": ids}
    if "attention_mask" in parameters:
        call["attention_mask"] = torch.ones_like(ids)
    if "use_cache" in parameters:
        call["use_cache"] = False
    return call


@contextmanager
def as_traced() -> Iterator[None]:
    """Let transformers believe that it is being traced: then it asks no tensor for values, which device meta has not."""
    own = import_utils.is_tracing
    modules = [m for m in list(sys.modules.values()) if vars(m).get("is_tracing") is own]
    for module in modules:
        module.is_tracing = lambda *_: True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module in modules:
            module.is_tracing = own  # type: ignore[attr-defined]


def hand_experts_on(model: Any) -> dict[int, int]:
    """Let the experts of a model on device meta, where nothing can be routed, hand their input on.

    Returns how often each ran, by the module's id, filled as they run.
    """
    executed: dict[int, int] = {}

    def stand_in(module: Any) -> Any:
        def forward(hidden: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            executed[id(module)] = executed.get(id(module), 0) + 1
            return hidden

        return forward

    for module, _ in expert_modules(model):
        module.forward = stand_in(module)
    return executed


def expert_modules(model: Any) -> Iterator[tuple[Any, int]]:
    """Yield the modules that hold all routed experts of a layer in parameters of their own, and how many elements those are."""
    for name, module in model.named_modules():
        if "expert" in type(module).__name__.lower() and "shared" not in name:
            elements = sum(p.numel() for p in module.parameters(recurse=False) if p.dim() == 3)
            if elements:
                yield module, elements


def refuse_unrunnable(
    source: ModelFiles, model: Any, config: Any, auto: Any, needs: Needs, seen: AbstractContextManager[Any]
) -> bool:
    """Raise BadInput where the model does not run on token ids alone, or gives something else than what is asked for.

    model: on device meta, its experts handing on. seen: around its pass there, to count what it computes. Returns whether it
    runs there.
    """
    _refuse_inputs(model, config)
    try:
        with seen:
            outputs = _passed(model, "meta")
    except Exception as error:  # noqa: BLE001
        if _others(model) and not _wants_values(error):
            raise _needs_more(model, _others(model)) from None
        _try_copy(source, model, config, auto, needs)
        return False
    _refuse_shape(model, outputs, needs)
    return True


def _refuse_inputs(model: Any, config: Any) -> None:
    """Refuse what a class's signature already says: other inputs than token ids, or more of them."""
    name = getattr(model, "main_input_name", "input_ids")
    parameters = inspect.signature(model.forward).parameters
    if name != "input_ids" or "input_ids" not in parameters:
        reads = name if name != "input_ids" else ", ".join(list(parameters)[:2])
        raise BadInput(f"{type(model).__name__} reads {reads}, not token ids: advisor runs models of text")
    if required := _required(model):
        raise _needs_more(model, required)
    if getattr(config.get_text_config(), "vocab_size", None) is None:
        raise BadInput(
            f"{type(model).__name__} has no vocabulary: it reads characters or bytes, and advisor gives it tokens"
        )


def _wants_values(error: Exception) -> bool:
    """Whether a pass on device meta failed for that device alone."""
    return isinstance(error, NotImplementedError) or any(word in str(error) for word in _WANTS_VALUES)


def _try_copy(source: ModelFiles, model: Any, config: Any, auto: Any, needs: Needs) -> None:
    """Run a copy of few layers, or else the whole if that is small, with values on the CPU; refuse as what called this does.

    What can't be tried whole, and reads nothing else than text by its signature, is let pass.
    """
    for small in (shallow(config), config):
        decisive = small is config or bool(_others(model))
        try:
            copied = with_values(source, small, auto)
            if copied is None:
                continue
            outputs = _passed(copied, "cpu")
        except Exception:  # noqa: BLE001  (of few layers it may not run, although the whole does)
            if decisive:
                raise _needs_more(model, _others(model)) from None
            continue
        _refuse_shape(model, outputs, needs)
        return


def shallow(config: Any) -> Any:
    """Return a copy of a configuration with few layers and a small vocabulary, as far as it can have them."""
    small = copy.deepcopy(config)
    text = small.get_text_config()
    with suppress(Exception):
        text.num_hidden_layers = min(text.num_hidden_layers, 2)
        text.vocab_size = min(text.vocab_size, max(1024, (text.pad_token_id or 0) + 1))
    return small


def with_values(source: ModelFiles, config: Any, auto: Any, most: int = MOST_COPIED) -> Any:
    """Return a model with drawn weights on the CPU, None where it has more than `most`; the caller's seeds stay."""
    if sum(p.numel() for p in built(source, config, auto, torch.float32).parameters()) > most:
        return None
    with torch.random.fork_rng([]):
        return built(source, config, auto, torch.float32, "cpu")


def takes_row(source: ModelFiles, config: Any, auto: Any, tokens: int) -> bool:
    """Whether a row of this many tokens, with positions that start again, runs: tried on a copy of few layers."""
    try:
        model = with_values(source, shallow(config), auto)
        call: dict[str, Any] = {
            "input_ids": torch.ones((1, tokens), dtype=torch.long),
            "position_ids": torch.arange(tokens)[None] % 8,
        }
        if "use_cache" in inspect.signature(model.forward).parameters:
            call["use_cache"] = False
        if is_encoder(config) and "attention_mask" in inspect.signature(model.forward).parameters:
            call["attention_mask"] = torch.zeros((1, 1, tokens, tokens))  # an encoder's pack is told apart by its mask
        with torch.inference_mode():
            model(**call)
    except Exception:  # noqa: BLE001  (a buffer that is too short: whatever the class makes of it)
        return False
    return True


def _passed(model: Any, device: str) -> Any:
    with torch.inference_mode(), as_traced() if device == "meta" else nullcontext():
        return model(**text_call(model, TOKENS, device))


def _required(model: Any) -> list[str]:
    """Return what a class's forward can't be called without, besides token ids."""
    parameters = inspect.signature(model.forward).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    bare = [p.name for p in parameters if p.default is inspect.Parameter.empty and p.kind in positional]
    return [name for name in bare if name != "input_ids"]


def _others(model: Any) -> list[str]:
    """Return the arguments of a class's forward that are inputs of another kind than text."""
    return [name for name in inspect.signature(model.forward).parameters if _OTHER_INPUTS.search(name)]


def _needs_more(model: Any, names: list[str]) -> BadInput:
    name = type(model).__name__
    if names:
        return BadInput(
            f"{name} does not run on token ids alone, it also reads {', '.join(names[:3])}: advisor gives it ids"
        )
    return BadInput(
        f"{name} does not run on token ids alone with the settings of this config.json",
        "see that its sizes fit one another",
    )


def _refuse_shape(model: Any, outputs: Any, needs: Needs) -> None:
    """Refuse a class that gives no logits, or no hidden state a token."""
    name = "last_hidden_state" if needs.head is Head.NONE else "logits"
    values = getattr(outputs, name, None)
    words = name if name == "logits" else needs.head.gives
    if not torch.is_tensor(values):
        raise BadInput(f"{type(model).__name__} gives no {words}: advisor can't tell what its output is")
    if needs.head is not Head.CLASSIFICATION and (values.dim() != 3 or values.shape[:2] != (1, TOKENS)):
        raise BadInput(
            f"{type(model).__name__} gives {words} of shape {list(values.shape)} for {TOKENS} tokens, not one a token"
        )
