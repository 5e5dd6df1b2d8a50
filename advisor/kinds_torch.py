"""Whether transformers can run a model on token ids alone: asked of its class and of a forward pass, not of a list of names.

The pass runs on device meta, where nothing is computed and a model of any size is one of shapes; where the class looks at
values on the way, on a copy with real weights if that is small. What does not run is refused in a line of our own: the
exception that a class ends in tells its author what went wrong, and nobody what to do.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForTextEncoding

from advisor.errors import BadInput
from advisor.workloads.forward import LOGITS, auto_class

#: A copy with real weights is made of models up to this many parameters (1.6 GB in fp32): larger ones are run unasked.
MOST_COPIED = 400_000_000

#: How many tokens the pass has.
TOKENS = 16

#: Arguments of a forward that are not inputs of another kind than token ids.
_TEXT = re.compile(
    r"input_ids|attention_mask|token_type_ids|position_ids|inputs_embeds|past_key_values|labels?|kwargs|args|self|.*_mask"
    r"|use_cache|cache_.*|output_.*|return_.*|logits_to_keep|head_mask|encoder_.*|decoder_.*|.*_positions|mems|langs|lengths"
    r"|state|cache|num_logits.*|.*_labels?|seq_idx|perm_mask|target_mapping|input_mask|cu_seq_lens.*|max_length_.*"
)

#: What torch says where an operation wants a value that a tensor without memory has not.
_WANTS_VALUES = ("meta", "item()", "data-dependent", "no data")


def built(source: Mapping[str, Any], config: Any, auto: Any, dtype: torch.dtype, device: str = "meta") -> Any:
    """Return the model of a configuration, in evaluation mode. Raises BadInput where transformers can't build it."""
    try:
        with torch.device(device):
            return auto.from_config(copy.deepcopy(config), dtype=dtype).eval()
    except ImportError as error:
        missing = re.search(r"requires the (\S+) library", str(error))
        package = f"the package {missing.group(1)}" if missing else "a package"
        raise BadInput(f"transformers needs {package} for a {config.model_type} model, which is not installed here",
                       f"pip install {missing.group(1)}" if missing else "") from None  # fmt: skip
    except Exception:  # noqa: BLE001  (whatever a class raises: its settings contradict one another or lack one)
        raise _unbuildable(source, config.model_type) from None


def read_config(source: Mapping[str, Any]) -> Any:
    """Return the model's configuration object, fresh. Raises BadInput where transformers refuses its config.json."""
    try:
        return AutoConfig.from_pretrained(source["path"], trust_remote_code=False)
    except Exception:  # noqa: BLE001
        raise _unbuildable(source, "such a") from None


def _unbuildable(source: Mapping[str, Any], kind: str) -> BadInput:
    code = f"from transformers import *; AutoModel.from_config(AutoConfig.from_pretrained({str(source['path'])!r}))"
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


def auto_of(output: str, config: Any) -> Any:
    """Return transformers' Auto class that gives this output. Raises BadInput where the model has no such head.

    Encoder-decoders are refused too: they need tokens for two sides.
    """
    if half := _half(config):
        raise BadInput(
            f"{half} is one half of an encoder-decoder, and transformers' AutoModel makes both: advisor runs neither"
        )
    if getattr(config, "is_encoder_decoder", False):
        raise BadInput(f"a {config.model_type} model is an encoder with a decoder: advisor runs either, not both")
    logits = logits_class(config)
    if (output in LOGITS and not logits) or (output == "last-logits" and logits != "AutoModelForCausalLM"):
        raise BadInput(f"a {config.model_type} model gives no {output}: ask for hidden, pooled or scores")
    auto = getattr(transformers, auto_class(output, logits))
    if type(config) not in auto._model_mapping:
        gives = "scores" if output == "scores" else "hidden states"
        raise BadInput(f"transformers has no class that gives {gives} of a {config.model_type} model")
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


def refuse_unrunnable(source: Mapping[str, Any], model: Any, config: Any, auto: Any, output: str) -> bool:
    """Raise BadInput where the model does not run on token ids alone, or gives something else than what is asked for.

    model: on device meta. Returns whether it runs there: what it computes can be counted then.
    """
    name = getattr(model, "main_input_name", "input_ids")
    if name != "input_ids" or "input_ids" not in inspect.signature(model.forward).parameters:
        raise BadInput(f"{type(model).__name__} reads {name}, not token ids: advisor runs models of text")
    required = _required(model)
    if required:
        raise _needs_more(model, required)
    if getattr(config.get_text_config(), "vocab_size", None) is None:
        raise BadInput(
            f"{type(model).__name__} has no vocabulary: it reads characters or bytes, and advisor gives it tokens"
        )
    try:
        outputs = _passed(model, "meta")
    except Exception as error:  # noqa: BLE001
        if not _wants_values(error):
            raise _needs_more(model, _others(model)) from None
    else:
        _refuse_shape(model, outputs, output)
        return True
    if sum(p.numel() for p in model.parameters()) <= MOST_COPIED:
        _try_copy(source, config, auto, output)
    return False


def _try_copy(source: Mapping[str, Any], config: Any, auto: Any, output: str) -> None:
    """Run a copy with real weights on the CPU; refuse as :func:`refuse_unrunnable` does."""
    with torch.random.fork_rng([]):
        model = built(source, config, auto, torch.float32, "cpu")
    try:
        outputs = _passed(model, "cpu")
    except Exception:  # noqa: BLE001
        raise _needs_more(model, _others(model)) from None
    _refuse_shape(model, outputs, output)


def _passed(model: Any, device: str) -> Any:
    with torch.inference_mode():
        return model(**text_call(model, TOKENS, device))


def _wants_values(error: Exception) -> bool:
    """Whether a pass on device meta failed for that device alone."""
    return isinstance(error, NotImplementedError) or any(word in str(error) for word in _WANTS_VALUES)


def _required(model: Any) -> list[str]:
    """Return what a class's forward can't be called without, besides token ids."""
    parameters = inspect.signature(model.forward).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    bare = [p.name for p in parameters if p.default is inspect.Parameter.empty and p.kind in positional]
    return [name for name in bare if name != "input_ids"]


def _others(model: Any) -> list[str]:
    """Return the arguments of a class's forward that are inputs of another kind than text."""
    return [name for name in inspect.signature(model.forward).parameters if not _TEXT.fullmatch(name)]


def _needs_more(model: Any, names: list[str]) -> BadInput:
    name = type(model).__name__
    if names:
        return BadInput(
            f"{name} does not run on token ids alone, it also reads {', '.join(names[:3])}: advisor gives it ids"
        )
    return BadInput(f"{name} does not run on token ids alone with the settings of this config.json",
                    "see that its sizes fit one another")  # fmt: skip


def _refuse_shape(model: Any, outputs: Any, output: str) -> None:
    """Refuse a class that gives no logits, or no hidden state a token."""
    name = "logits" if output in (*LOGITS, "scores") else "last_hidden_state"
    values = getattr(outputs, name, None)
    words = {"logits": "logits", "last_hidden_state": "hidden states"}[name]
    if not torch.is_tensor(values):
        raise BadInput(f"{type(model).__name__} gives no {words}: advisor can't tell what its output is")
    if output != "scores" and (values.dim() != 3 or values.shape[:2] != (1, TOKENS)):
        raise BadInput(
            f"{type(model).__name__} gives {words} of shape {list(values.shape)} for {TOKENS} tokens, not one a token"
        )
