"""What a config.json declares, as far as that can be told without torch: limits, heads, and what to tell of it."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from advisor.errors import BadInput, named
from advisor.nouns.model import ModelSource, first_position

#: The ends of class names whose heads advisor does not run.
_UNSERVED = (
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForQuestionAnsweringSimple",
    "ForMultipleChoice",
    "ForNextSentencePrediction",
    "ForPreTraining",
    "DoubleHeadsModel",
    "ForVisualQuestionAnswering",
    "ForMaskGeneration",
    "ForImageClassification",
    "ForObjectDetection",
    "ForSemanticSegmentation",
    "ForCTC",
    "ForAudioClassification",
    "ForSpeechSeq2Seq",
    "ForVision2Seq",
    "ForImageTextRetrieval",
    "ForEntityClassification",
    "ForRelationExtraction",
)

#: Where transformers lists its kinds of models.
_TABLES = ("auto_mappings.py", "configuration_auto.py")

#: The kinds of models that are encoders unless they are set up to be decoders (`is_decoder`).
_ENCODERS = frozenset(
    {
        "albert", "bert", "big_bird", "camembert", "convbert", "data2vec-text", "deberta", "deberta-v2", "distilbert",
        "electra", "ernie", "esm", "eurobert", "flaubert", "fnet", "funnel", "ibert", "layoutlm", "longformer", "luke",
        "megatron-bert", "mobilebert", "modernbert", "mpnet", "nomic_bert", "nystromformer", "rembert", "roberta",
        "roberta-prelayernorm", "roformer", "splinter", "squeezebert", "xlm", "xlm-roberta", "xlm-roberta-xl", "xmod",
    }
)  # fmt: skip

#: Where configurations declare their positions, and above what that is a sentinel for "none".
_LIMITS = ("max_position_embeddings", "n_positions", "max_sequence_length")
_NO_LIMIT = 10**9

#: The kinds without a limit on positions: relative ones, ALiBi, a state, or none at all.
_UNBOUNDED = frozenset(
    {
        "bloom",
        "falcon_mamba",
        "funnel",
        "inkling_text",
        "inkling2_text",
        "inkling2_loop_text",
        "jamba",
        "mamba",
        "mamba2",
        "mpt",
        "mt5",
        "nemotron_h",
        "recurrent_gemma",
        "rwkv",
        "t5",
        "umt5",
        "xlnet",
        "xlstm",
    }
)


def max_positions(config: Mapping[str, Any]) -> int | None:
    """Return the longest sequence that a configuration declares, or None where it declares none or has no such limit.

    What is not certain without the class is left to its facts: relative positions, ALiBi and states have no limit, a scaled
    rope has its factor more, and values below one or absurdly large stand for "none".
    """
    if _is_unbounded(config):
        return None
    unused = first_position(config)
    for part in (part for part in (config.get("text_config"), config) if isinstance(part, Mapping)):
        for entry in _LIMITS:
            value = part.get(entry)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                return _scaled(int(value), part) - unused if 0 < value < _NO_LIMIT else None
    return None


def _is_unbounded(config: Mapping[str, Any]) -> bool:
    """Whether no table and no rope bounds the positions of a model, whatever its configuration declares."""
    kind = config.get("model_type")
    if kind in ("deberta", "deberta-v2"):
        return config.get("position_biased_input") is False
    return kind in _UNBOUNDED or config.get("alibi") is True or config.get("position_embedding_type") == "alibi"


def _scaled(declared: int, config: Mapping[str, Any]) -> int:
    """Return the positions of a rope that was scaled: the original ones times the factor, where that is more."""
    found = [declared]
    for rope in (config.get("rope_parameters"), config.get("rope_scaling")):
        settings = [rope, *rope.values()] if isinstance(rope, dict) else []
        for part in (part for part in settings if isinstance(part, dict)):
            factor, original = part.get("factor"), part.get("original_max_position_embeddings") or declared
            if isinstance(factor, (int, float)) and factor > 1 and isinstance(original, int):
                found.append(int(original * factor))
    return max(found)


def is_encoder(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is an encoder's: such a model has no next token to ask for."""
    names = architectures(config)
    if any(name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for name in names):
        return False
    masked = any(name.endswith("ForMaskedLM") for name in names)
    return masked or (config.get("model_type") in _ENCODERS and not config.get("is_decoder"))


def unserved_head(config: Mapping[str, Any]) -> str:
    """Return the class in config.json whose head advisor does not run, "" where there is none such."""
    return next((name for name in architectures(config) if name.endswith(_UNSERVED)), "")


def refuse_foreign(source: ModelSource) -> None:
    """Raise BadInput where a model's class comes with it as Python code."""
    unknown = [name for name in architectures(source.config) if not _is_known(name)]
    if unknown and "auto_map" in source.config:
        raise BadInput(
            f"{source.name}: its class {unknown[0]} comes with the model as Python code, and that is never run"
        )


def notes_on(source: ModelSource) -> list[str]:
    """Return what a reader must know of what is measured in a model's name, where that is not all that its files say."""
    config, notes = source.config, []
    names = architectures(config)
    if "auto_map" in config:
        own = f"its {names[0]}" if names else "its class"
        notes.append(f"the model brings Python code of its own, which is never run: {own} is transformers' own")
    elif unknown := [name for name in names if not _is_known(name)]:
        notes.append(
            f"config.json names the class {unknown[0]}, which transformers does not have: its own was measured"
        )
    if source.has_random_weights and isinstance(config.get("quantization_config"), dict):
        method = str(config["quantization_config"].get("quant_method", "quantised"))[:40]
        notes.append(
            f"the weights were drawn UNQUANTISED: this config.json is a {method} checkpoint's, whose speed was not "
            "measured; give the checkpoint itself for that"
        )
    if kernel := _hub_kernel(config):
        notes.append(f"config.json asks for the attention {kernel!r}, code from the hub: it was not loaded")
    return notes


def _hub_kernel(config: Mapping[str, Any]) -> str | None:
    """Return the implementation of attention that a configuration asks for where that is a repository on the hub."""
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    for part in parts:
        for entry in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal"):
            asked = part.get(entry)
            for name in asked.values() if isinstance(asked, dict) else [asked]:
                if isinstance(name, str) and set(name) & set("/|"):
                    return name[:80]
    return None


def _is_known(name: str) -> bool:
    """Whether the installed transformers names such a class somewhere in its lists, or can't be read."""
    file = _lists()
    try:
        seen = file.stat()
    except OSError:
        return True
    return not file.is_file() or _is_named(name, file, seen.st_mtime_ns, seen.st_size)


@cache
def _lists() -> Path:
    """Return the file in which the installed transformers lists its classes."""
    found = importlib.util.find_spec("transformers")
    return Path(found.origin).parent / "models" / "auto" / "modeling_auto.py" if found and found.origin else Path()


@lru_cache(maxsize=256)
def _is_named(name: str, file: Path, written_ns: int, size: int) -> bool:
    """Whether a class is named in the lists as they were written then: reading them takes longer than most answers."""
    if f'"{name}"' in file.read_text(encoding="utf-8"):
        return True
    # A class in none of the lists of tasks (GPT2DoubleHeadsModel), in the file of the kind that its name begins with.
    kinds = file.parent.parent.glob("*/modeling_*.py")
    files = [f for f in kinds if name.lower().startswith(f.stem.removeprefix("modeling_").replace("_", ""))]
    return any(f"class {name}(" in f.read_text(encoding="utf-8") for f in files)


def refuse_unpadded(name: str, *, pads: bool, batch: int | None) -> None:
    """Raise BadInput where a batch of several needs a pad token that the model has not: before each of them fails for it.

    pads: see ModelFacts; batch: how many sequences at once, None where that is to be found.
    """
    if not pads and batch != 1:
        text = f"{name} finds the end of a sequence by its pad token, and its config.json names none"
        raise BadInput(text, f"{named('batch', 1)}, or set pad_token_id there")


def architectures(config: Mapping[str, Any]) -> list[str]:
    """Return the names of the classes that a configuration names."""
    names = config.get("architectures")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def refuse_unknown(source: ModelSource) -> None:
    """Raise BadInput where the installed transformers has no such kind of model: then its code would come with the model.

    That is read from transformers' files, for importing it takes seconds. Where they can't be read, the worker will tell.
    """
    found = importlib.util.find_spec("transformers")
    tables = Path(found.origin).parent / "models" / "auto" if found and found.origin else Path()
    texts = [file.read_text(encoding="utf-8") for name in _TABLES if (file := tables / name).is_file()]
    kind = source.config["model_type"]
    if not texts or any(f'"{kind}"' in text for text in texts):
        return
    what = f"{source.name}: its model_type {kind!r}"
    if "auto_map" in source.config:
        raise BadInput(f"{what} needs Python code that comes with the model, and that is never run")
    raise BadInput(f"{what} is unknown to the installed transformers", "pip install -U transformers")
