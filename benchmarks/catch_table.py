"""Is what is silently wrong, or silently something else, refused, and caught where it is forced? A table, rule by rule.

Every rule of levers.md (A.7) whose verdict is WRONG or ALIAS has a row, and so has every rule of ours with these verdicts.
Refused: `build_space` is asked about the very combination; no GPU and no torch are needed. Forced: the rule is ignored, as
`--ignore-rule` does, and `tune` runs the combination in a real worker on a small model; what caught it is read from the
trial, the numerics gate (wrong_output, with its figures) or the proof (what ran is not what was asked for). What the gate has
to catch is run in bf16 and behind nf4 too, where floors and quantisation hide errors: the independence probe has to see what
leaks there, and the layout in fp32 what is wrong without reading anything (positions, windows).

    python benchmarks/catch_table.py                                       on this CPU, to stdout
    python benchmarks/catch_table.py --write docs/catches.md               and into the document
    python benchmarks/catch_table.py --device cuda:0                       on a GPU, FlashAttention's rows included

Exits with status 1 where something is neither refused nor caught.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from advisor.errors import AdvisorError
from advisor.knobs import KNOBS, Choice, baseline_choices, register
from advisor.machine import probe
from advisor.measure.messages import Answer, FactsRead, Request
from advisor.measure.runner import LocalRunner, Runner
from advisor.models.checkpoint import find_model
from advisor.nouns.configuration import Configuration
from advisor.nouns.environment import Environment, Machine
from advisor.nouns.model import ModelFacts
from advisor.nouns.objective import Budget, Objective, Tier
from advisor.nouns.trial import Outcome, Trial
from advisor.quality.judge import wrong
from advisor.quality.limits import LAYOUT_LIMIT
from advisor.search.space import build_space
from advisor.show.support import LLAMA, MACHINES
from advisor.storage.store import Store
from advisor.study.opening import facts_for
from advisor.study.tune import tune
from advisor.study.tuning import Job
from advisor.workloads import Workload
from advisor.workloads.forward import Forward
from advisor.workloads.train import Training

SHIPPED = Path(__file__).parent.parent / "tests" / "models" / "causal"
ENCODER = SHIPPED.with_name("encoder")

_H200, _CPU = MACHINES["NVIDIA H200"], MACHINES["CPU"]

#: transformers 5.17 with a version of `kernels` that it takes, and without flash-attn.
_HUB_ONLY = replace(
    _H200, packages={"torch": "2.11.0", "transformers": "5.17.0", "kernels": "0.16.1", "triton": "3.6.0"}
)

_BERT = replace(LLAMA, architecture="BertForMaskedLM", model_type="bert", is_causal=False)

PADDED = Forward((40, 12, 25, 9, 33, 17), 3)
EVEN = Forward((24,) * 6, 3)
ANY_BATCH = replace(PADDED, batch=None)

#: Two steps of three sequences: of all weights, and of adapters.
TRAINED = Training((40, 12, 25, 9, 33, 17), 3)
ADAPTED = replace(TRAINED, method="lora")

_FLASH = {"attention": "flash_attention_2"}

#: Where floors and quantisation hide errors, by the words of the table: what the gate has to catch is run there too.
HIDING = {"bf16": {"precision": "bf16"}, "behind nf4": {"precision": "bf16", "quantization": "nf4"}}


@dataclass(frozen=True)
class Asked:
    """A combination that the space is asked about: choices that differ from the default, and where.

    rule: the id that has to refuse it, where it is not the row's own.
    """

    choices: Mapping[str, str]
    environment: Environment = _CPU
    facts: ModelFacts = LLAMA
    workload: Workload = PADDED
    rule: str = ""


@dataclass(frozen=True)
class Forced:
    """A combination that is run although it is refused.

    bench: the key of BENCHES; by: what has to catch it, "gate" or "proof", or "same" where it is a duplicate under another
    name: then it has to be right. device: "cpu" or "cuda" where it can be provoked there alone; also: other rules in its way.
    """

    bench: str
    choices: Mapping[str, str]
    by: str = "gate"
    device: str = ""
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """A rule: its id, its condition in words, and how it is shown.

    elsewhere: why it concerns nothing that advisor runs ("" where it does); unnamed: a text that no choice's lines contain, so
    that the condition can't be asked for; unforced: why nothing is forced; runs: why it is not refused beforehand, in words,
    where that is so by intent: then what is forced is all that keeps it from being believed. warned: the space warns of it.
    """

    rule: str
    condition: str
    elsewhere: str = ""
    asked: tuple[Asked, ...] = ()
    forced: tuple[Forced, ...] = ()
    unnamed: str = ""
    unforced: str = ""
    runs: str = ""
    warned: bool = False


def _packed(name: str, attention: str = "sdpa") -> dict[str, str]:
    return {"attention": attention, "packing": name}


_ON_GPU, _GENERATION = "needs FlashAttention: in the GPU sitting", "generation"

ROWS = (
    Row("P1", "packed, with the default cache, sdpa or eager",
        asked=(Asked(_packed("packed-cached")), Asked(_packed("packed-cached", "eager"), _H200)),
        forced=(Forced("causal", _packed("packed-cached")), Forced("causal", _packed("packed-cached", "eager")))),
    Row("P2", "packed, with a 2D mask of ones, sdpa or eager",
        asked=(Asked(_packed("packed-2d-mask")), Asked(_packed("packed-2d-mask", "eager"), _H200)),
        forced=(Forced("causal", _packed("packed-2d-mask")), Forced("causal", _packed("packed-2d-mask", "eager")))),
    Row("P3", "packed, with cu_seq_lens and no positions, sdpa or eager",
        asked=(Asked(_packed("packed-cu-seq-lens-only")), Asked(_packed("packed-cu-seq-lens-only", "eager"), _H200)),
        forced=(Forced("causal", _packed("packed-cu-seq-lens-only")),
                Forced("causal", _packed("packed-cu-seq-lens-only", "eager")))),
    Row("P4", "packed in two rows without cu_seq_lens, FlashAttention",
        asked=(Asked(_packed("packed-two-rows", "flash_attention_2"), _H200),),
        forced=(Forced("causal-bf16", _packed("packed-two-rows", "flash_attention_2"), device="cuda"),)),
    Row("P5", "packed, with a mask that has zeros",
        asked=(Asked(_packed("packed-zeros-in-mask", "flash_attention_2"), _H200), Asked(_packed("packed-zeros-in-mask"))),
        forced=(Forced("causal", _packed("packed-zeros-in-mask")),
                Forced("causal-bf16", _packed("packed-zeros-in-mask", "flash_attention_2"), device="cuda"))),
    Row("P8", "packed, positions from 0 where the model's start at padding_idx + 1",
        asked=(Asked(_packed("packed-positions-from-0"), facts=replace(_BERT, position_offset=2)),
               Asked(_packed("packed-positions-from-0"), facts=replace(LLAMA, position_offset=2))),
        forced=(Forced("roberta", _packed("packed-positions-from-0")),)),
    Row("P14", "packed, where the list has no pads",
        asked=(Asked(_packed("packed"), workload=EVEN),), forced=(Forced("causal-even", _packed("packed"), "same"),)),
    Row("P15", "packed, with a 4D bool mask, eager",
        asked=(Asked(_packed("packed-bool-mask", "eager")),), forced=(Forced("causal", _packed("packed-bool-mask", "eager")),)),
    Row("P16", "packed, with ALiBi",
        asked=(Asked(_packed("packed", "eager"), facts=replace(LLAMA, alibi=True)),),
        forced=(Forced("bloom", _packed("packed", "eager")),)),
    Row("P17", "packed in another form that gives the same work",
        asked=(Asked(_packed("packed-bool-mask")), Asked(_packed("packed-two-rows")),
               Asked(_packed("packed-2d-mask", "flash_attention_2"), _H200)),
        forced=(Forced("causal", _packed("packed-bool-mask"), "same"), Forced("causal", _packed("packed-two-rows"), "same"),
                Forced("causal-bf16", _packed("packed-cached", "flash_attention_2"), "same", "cuda"),
                Forced("causal-bf16", _packed("packed-2d-mask", "flash_attention_2"), "same", "cuda"),
                Forced("causal-bf16", _packed("packed-cu-seq-lens-only", "flash_attention_2"), "same", "cuda"))),
    Row("P18", "sorted, where that saves no pads",
        asked=(Asked({"packing": "sorted"}, workload=EVEN),), forced=(Forced("causal-even", {"packing": "sorted"}, "proof"),)),
    Row("P19", "packed as for decoders on an encoder, sdpa or eager",
        asked=(Asked(_packed("packed-no-mask"), facts=_BERT), Asked(_packed("packed-no-mask", "eager"), _H200, _BERT),
               Asked(_packed("packed", "flex_attention"), facts=replace(_BERT, supports_flex=True))),
        forced=(Forced("bert", _packed("packed-no-mask")), Forced("bert", _packed("packed-no-mask", "eager")),
                *(Forced(f"encoder-{bench}", _packed("packed-no-mask"))
                  for bench in ("hidden", "pooled", "bf16-hidden", "bf16-pooled")))),
    Row("P22", "packed, where a small copy of the class does not keep sequences apart (OPT), sdpa or eager",
        asked=(Asked(_packed("packed"), facts=replace(LLAMA, packed_row="wrong")),
               Asked(_packed("packed"), facts=replace(_BERT, packed_row="wrong"))),
        forced=(Forced("opt", _packed("packed")), Forced("opt", _packed("packed", "eager")))),
    Row("P24", "packed, on an encoder with windows (ModernBERT), sdpa or eager",
        asked=(Asked(_packed("packed"), facts=replace(_BERT, sliding_window=8, layer_types=("sliding_attention",))),),
        forced=(Forced("modernbert", _packed("packed")), Forced("modernbert", _packed("packed", "eager")))),
    Row("T3", "packed, with labels at sequences' first tokens, in training",
        asked=(Asked(_packed("packed-taught-across"), workload=TRAINED),
               Asked(_packed("packed-taught-across", "flash_attention_2"), _H200, workload=ADAPTED)),
        forced=(Forced("causal-train", _packed("packed-taught-across")),)),
    Row("T4", "as many sequences a forward pass as a step has",
        asked=(Asked({"micro_batch": "micro-4"}, workload=TRAINED),),
        forced=(Forced("causal-train", {"micro_batch": "micro-4"}, "proof"),)),
    Row("D4", "products in bf16, where the weights are in it",
        asked=(Asked({"autocast": "autocast-bf16", "precision": "bf16"}, _H200, workload=TRAINED),),
        forced=(Forced("causal-train", {"autocast": "autocast-bf16", "precision": "bf16"}, "same"),)),
    Row("O3", "an optimizer in 8 bits, of adapters alone",
        asked=(Asked({"optimizer": "adamw_8bit"}, _H200, workload=ADAPTED),), unforced="needs a GPU"),
    Row("B2", "a batch larger than the list",
        asked=(Asked({"batch": "16"}, workload=ANY_BATCH),), forced=(Forced("causal-any", {"batch": "16"}, "proof"),)),
    Row("G1", "padding on the right in generate()", elsewhere=_GENERATION),
    Row("A14", "attention sinks, FlashAttention-2",
        asked=(Asked(_FLASH, _H200, replace(LLAMA, model_type="gpt_oss", head_dim=64)),),
        unforced="needs the kernels that transformers replaces it by, from the hub; what read them back would be E1's proof"),
    Row("A15", "trained with a dropout of scores, by FlashAttention-3, 4 or varlen_attn",
        asked=(Asked(_packed("packed", "torch_varlen"), _H200, replace(LLAMA, drops_attention=True), TRAINED),),
        unforced="needs a GPU"),
    Row("A19", "FlashAttention asked for, its package absent, kernels from the hub usable",
        asked=(Asked(_FLASH, _HUB_ONLY),), unforced="needs kernels from the hub and its network, on a GPU"),
    Row("A23", "set_attn_implementation on a class that does not follow it",
        asked=(Asked({"attention": "torch_varlen", "packing": "packed"}, _H200, replace(LLAMA, switches_attention=False)),),
        forced=(Forced("falcon-trusted", {}, "proof"),)),
    Row("A24", "chunks longer than one token after others, pads on the right", elsewhere="generation: no cache to go on from"),
    Row("A29", "a kernel of sdpa pinned that is the automatic one",
        asked=(Asked({"attention": "sdpa-flash"}, workload=EVEN),),
        forced=(Forced("causal-even", {"attention": "sdpa-flash"}, "proof", "cpu", ("A25",)),)),
    Row("Q6", "bitsandbytes with a static cache", elsewhere=_GENERATION),
    Row("Q7", "an fp8 checkpoint below compute capability 8.9", warned=True, runs="no: it runs, with a warning",
        asked=(Asked({"quantization": "checkpoint"}, _CPU, replace(LLAMA, prequantized="fp8")),),
        forced=(Forced("fp8", {}, "proof", "cpu"),)),
    Row("Q11", "torchao int4, a layer not divisible by the group",
        asked=(Asked({"quantization": "torchao-int4"}, _H200, replace(LLAMA, hidden_size=4160)),),
        unforced="needs a GPU"),
    Row("Q13", "an mxfp4 checkpoint without its kernels", warned=True, runs="no: it runs, with a warning",
        asked=(Asked({"quantization": "checkpoint"}, _CPU, replace(LLAMA, prequantized="mxfp4")),),
        forced=(Forced("mxfp4", {}, "proof", "cpu"),)),
    Row("Q15", "an AWQ checkpoint in bf16",
        asked=(Asked({"quantization": "checkpoint", "precision": "bf16"}, _H200, replace(LLAMA, prequantized="awq")),),
        unforced="needs gptqmodel and a GPU"),
    Row("Q22", "quantised, where the model has no linear layer",
        asked=(Asked({"quantization": "int8"}, _H200, replace(LLAMA, linear_parameters=0)),),
        unforced="no small model without linear layers is at hand"),
    Row("C1", "FlashAttention with a static cache and fullgraph", elsewhere=_GENERATION),
    Row("C2", "compiled, with layers offloaded", elsewhere=_GENERATION),
    Row("C6", "continuous batching that changes sdpa for FlashAttention", elsewhere=_GENERATION),
    Row("C8", "continuous batching that drops logits processors", elsewhere=_GENERATION),
    Row("C9", "attention named paged|sdpa", unnamed="paged|",
        forced=(Forced("causal", {"attention": "made-up-paged"}, "proof"),)),
    Row("K1", "use_kernels, where a kernel is missing", unnamed="use_kernels", unforced="no choice asks for it"),
    Row("E1", "whatever else runs as something else", runs="no: known once it has run, and refused from then on",
        forced=(Forced("causal", {"attention": "made-up-kernel"}, "proof"),)),
)  # fmt: skip


# --------------------------------------------------------------------------------------------------------- refused?


def refusal(row: Row, asked: Asked) -> str:
    """Return the id under which the space refuses a combination, "" where it lets it through.

    Only this combination is looked at, so that the id is its own and no other one's.
    """
    default = Configuration.of(baseline_choices(asked.facts, asked.workload))
    wanted = default.replaced(**asked.choices)
    only = tuple((knob, (name,)) for knob, name in wanted.items())
    objective = Objective(quality=Tier.FOUR_BIT, only=only)
    space = build_space(asked.facts, asked.workload, asked.environment, objective, asked.environment.memory_bytes)
    subjects = {f"{knob}={name}" for knob, name in wanted.items()}
    said = {reason.rule for reason in space.refusals if reason.subject in subjects}
    rule = asked.rule or row.rule
    return rule if wanted not in space.admissible and rule in said else ""


def warning(row: Row, asked: Asked) -> bool:
    """Whether the space lets a combination through and warns of it under the row's id."""
    wanted = Configuration.of(baseline_choices(asked.facts, asked.workload)).replaced(**asked.choices)
    space = build_space(asked.facts, asked.workload, asked.environment, Objective(), asked.environment.memory_bytes)
    return wanted in space.admissible and row.rule in {reason.rule for reason in space.warnings}


def names(text: str) -> list[str]:
    """Return the choices whose lines contain a text."""
    configuration = Configuration.of({name: next(iter(knob.choices)) for name, knob in KNOBS.items()})
    return [
        f"{choice.knob}={choice.name}"
        for knob in KNOBS.values()
        for choice in knob.choices.values()
        if text in "\n".join([choice.name, *choice.load(configuration).values(), *choice.before, *choice.after])
    ]


def refused(row: Row) -> tuple[bool, str]:
    """Return whether a row's condition is kept from running, or said beforehand, and how in words."""
    if row.unnamed:
        found = names(row.unnamed)
        return not found, f"named by {', '.join(found)}" if found else "no choice asks for it"
    if row.runs:
        said = not row.warned or all(warning(row, asked) for asked in row.asked)
        return said, row.runs if said else "no"
    ids = [refusal(row, asked) for asked in row.asked]
    return bool(ids) and all(ids), ", ".join(dict.fromkeys(found or "**not refused**" for found in ids))


# ---------------------------------------------------------------------------------------------------------- forced


def _config(folder: Path, name: str, config: Mapping[str, Any]) -> str:
    """Write a config.json whose weights are drawn."""
    file = folder / name / "config.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(config), encoding="utf-8")
    return str(file)


def _small(kind: str, architecture: str, **more: Any) -> dict[str, Any]:
    """Return a small configuration. Its weights are drawn wide, so that what attends to what can be seen in the output."""
    return {
        "model_type": kind,
        "architectures": [architecture],
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "vocab_size": 512,
        "max_position_embeddings": 130,
        "initializer_range": 0.1,
        "dtype": "float32",
        **more,
    }


def _roberta(folder: Path) -> str:
    more = {"pad_token_id": 1, "type_vocab_size": 1, "bos_token_id": 0, "eos_token_id": 2}
    return _config(folder, "roberta", _small("roberta", "RobertaForMaskedLM", **more))


def _bert(folder: Path) -> str:
    return _config(folder, "bert", _small("bert", "BertForMaskedLM"))


def _falcon(folder: Path) -> str:
    more = {
        "alibi": False,
        "multi_query": True,
        "new_decoder_architecture": False,
        "parallel_attn": True,
        "bias": False,
    }
    return _config(folder, "falcon", _small("falcon", "FalconForCausalLM", **more))


def _opt(folder: Path) -> str:
    more = {"ffn_dim": 128, "word_embed_proj_dim": 64, "init_std": 0.1}
    return _config(folder, "opt", _small("opt", "OPTForCausalLM", **more))


def _modernbert(folder: Path) -> str:
    more = {
        "local_attention": 16,
        "layer_types": ["full_attention", "sliding_attention"],
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "cls_token_id": 1,
        "sep_token_id": 2,
    }
    return _config(folder, "modernbert", _small("modernbert", "ModernBertForMaskedLM", **more))


def _bloom(folder: Path) -> str:
    return _config(folder, "bloom", _small("bloom", "BloomForCausalLM", n_head=4, n_layer=2))


def _in_bf16(shipped: Path, folder: Path) -> str:
    """A shipped model's weights, rounded: FlashAttention computes in 16 bit, and the gate's limits are wider there."""
    import torch
    from safetensors.torch import load_file, save_file

    target = folder / f"{shipped.name}-bf16"
    if target.exists():
        return str(target)
    shutil.copytree(shipped, target)
    config = json.loads((shipped / "config.json").read_text(encoding="utf-8")) | {"dtype": "bfloat16"}
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for file in shipped.glob("*.safetensors"):
        tensors = {name: value.to(torch.bfloat16) for name, value in load_file(file).items()}
        save_file(tensors, target / file.name, metadata={"format": "pt"})
    return str(target)


def _in_fp8(folder: Path) -> str:
    """The shipped model's linear layers in 8-bit floats, a scale per block of 64 × 64, as a checkpoint brings them."""
    import torch
    from safetensors.torch import load_file, save_file

    target, block = folder / "causal-fp8", 64
    target.mkdir()
    config = json.loads((SHIPPED / "config.json").read_text(encoding="utf-8")) | {"dtype": "bfloat16"}
    config["quantization_config"] = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [block, block],
    }
    tensors = {}
    for name, value in load_file(SHIPPED / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            tensors[name] = value.to(torch.bfloat16)
            continue
        rows, columns = value.shape
        blocks = value.reshape(rows // block, block, columns // block, block)
        scale = blocks.abs().amax(dim=(1, 3)) / torch.finfo(torch.float8_e4m3fn).max
        tensors[name] = (blocks / scale[:, None, :, None]).reshape(rows, columns).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scale
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(target)


def _in_mxfp4(folder: Path) -> str:
    """A small gpt-oss whose experts are in 4 bit, two to a byte, with a scale for 32."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    target = folder / "mxfp4"
    target.mkdir()
    more = {
        "head_dim": 16,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "intermediate_size": 64,
        "sliding_window": 128,
        "layer_types": ["full_attention"] * 2,
        "dtype": "bfloat16",
        "max_position_embeddings": 4096,
    }
    config = _small("gpt_oss", "GptOssForCausalLM", **more)
    torch.manual_seed(0)
    path = _config(folder, "mxfp4-plain", config)
    state = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path), dtype=torch.bfloat16).state_dict()
    tensors = {}
    for name, value in state.items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            tensors[name] = value.clone()
            continue
        experts, columns, rows = value.shape
        tensors[f"{name}_blocks"] = torch.randint(0, 256, (experts, rows, columns // 32, 16), dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(120, 124, (experts, rows, columns // 32), dtype=torch.uint8)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(target)


class _Trusting:
    """A runner that believes of every class that it switches attention on a loaded model: what rule A23 is about."""

    interrupted = ""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner

    def run(self, request: Request, timeout_s: float) -> Answer:
        """Run it; facts come back changed."""
        answer = self.runner.run(request, timeout_s)
        if not isinstance(answer, FactsRead):
            return answer
        return FactsRead(facts=replace(answer.facts, switches_attention=True))

    def restart(self) -> None:
        """Pass it on."""
        self.runner.restart()

    def close(self) -> None:
        """Pass it on."""
        self.runner.close()


@dataclass(frozen=True)
class Bench:
    """A small model and the work that rules are forced on. model: makes it in a folder and returns its name."""

    model: Callable[[Path], str]
    workload: Workload = PADDED
    runner: Callable[[Runner], Runner] = field(default=lambda runner: runner)


def _shipped(folder: Path) -> str:
    return str(SHIPPED)


BENCHES = {
    "causal": Bench(_shipped),
    "causal-even": Bench(_shipped, EVEN),
    "causal-any": Bench(_shipped, ANY_BATCH),
    "causal-train": Bench(_shipped, TRAINED),
    "causal-bf16": Bench(partial(_in_bf16, SHIPPED)),
    "encoder-hidden": Bench(lambda _: str(ENCODER), replace(PADDED, output="hidden")),
    "encoder-pooled": Bench(lambda _: str(ENCODER), replace(PADDED, output="pooled")),
    "encoder-bf16-hidden": Bench(partial(_in_bf16, ENCODER), replace(PADDED, output="hidden")),
    "encoder-bf16-pooled": Bench(partial(_in_bf16, ENCODER), replace(PADDED, output="pooled")),
    "roberta": Bench(_roberta, replace(PADDED, output="all-logits")),
    "bert": Bench(_bert, replace(PADDED, output="all-logits")),
    "bloom": Bench(_bloom),
    "opt": Bench(_opt),
    "modernbert": Bench(_modernbert, replace(PADDED, output="all-logits")),
    "falcon-trusted": Bench(_falcon, runner=_Trusting),
    "fp8": Bench(_in_fp8),
    "mxfp4": Bench(_in_mxfp4),
}

#: A module of choices that say they are something and run as sdpa: `ADVISOR_PLUGINS` makes the worker know them.
_MADE_UP = '''"""Made-up choices for the catch table: they run as sdpa under another name."""
from advisor.knobs.choice import Choice
CHOICES = [
    Choice("attention", "made-up-kernel", "made up", load=lambda _: {"attn_implementation": "'sdpa'"}),
    Choice("attention", "made-up-paged", "made up", load=lambda _: {"attn_implementation": "'paged|sdpa'"}),
]
'''


@contextmanager
def _made_up(folder: Path) -> Iterator[None]:
    """Make the made-up choices known to this process and to the workers that it starts, for a while."""
    file = folder / "made_up_names.py"
    file.write_text(_MADE_UP, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    choices: list[Choice] = module.CHOICES
    before = {name: os.environ.get(name) for name in ("ADVISOR_PLUGINS", "PYTHONPATH")}
    os.environ["ADVISOR_PLUGINS"] = ",".join(filter(None, (before["ADVISOR_PLUGINS"], file.stem)))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(folder), before["PYTHONPATH"])))
    try:
        for choice in choices:
            register(choice)
        yield
    finally:
        for choice in choices:
            KNOBS[choice.knob].choices.pop(choice.name, None)
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@dataclass(frozen=True)
class Caught:
    """What became of a forced combination: "gate", "proof", "same" (it ran as itself and is right) or "nothing".

    moved: how far (σ) outputs moved in the independence probe, by HIDING's keys; layout: the worst sequence's rms (σ) in fp32.
    None where that was not looked at.
    """

    forced: Forced
    by: str
    figure: str
    moved: Mapping[str, float | None] = field(default_factory=dict)
    layout: float | None = None

    @property
    def is_right(self) -> bool:
        """Whether that is what it has to be."""
        return self.by == self.forced.by

    @property
    def is_seen(self) -> bool:
        """Whether what hides behind 16 bits and 4 is seen all the same: by the probe wherever it was run, or by the layout."""
        leaks = self.moved.get("bf16") is not None and all(moved != 0 for moved in self.moved.values())
        return leaks or (self.layout is not None and self.layout > LAYOUT_LIMIT)


def caught(forced: Forced, trial: Trial | None, default: Trial | None, facts: ModelFacts) -> Caught:
    """Read from a trial what caught it."""
    if trial is None:
        return Caught(forced, "nothing", "it was not tried")
    rms = f"rms {trial.quality.rms:.1e}" if trial.quality is not None else ""
    if trial.outcome is Outcome.WRONG_OUTPUT:
        parts = trial.reason.split("; ")
        return Caught(
            forced, "gate", next((part for part in parts if part.startswith("rms")), parts[0]).replace(" error", "")
        )
    if trial.effective is not None and trial.effective != trial.requested:
        ran = [f"{knob} {name}" for knob, name in trial.effective.over(KNOBS) if trial.requested[knob] != name]
        return Caught(forced, "proof", f"{', '.join(ran)} ran")
    if trial.outcome in (Outcome.OK, Outcome.PRUNED) and trial.quality is not None and not wrong(trial, default, facts):
        return Caught(forced, "same", rms)
    return Caught(forced, "nothing", f"{trial.outcome}: {trial.reason[:120]}")


def _hidden(forced: Forced, default: Configuration) -> dict[str, Configuration]:
    """Return what a combination that the gate has to catch is run as besides, by the keys of HIDING."""
    if forced.by != "gate":
        return {}
    return {name: default.replaced(**{**forced.choices, **more}) for name, more in HIDING.items()}


def _moved(trial: Trial | None) -> float | None:
    """Return how far an output moved when only its neighbours' or the pads' contents changed."""
    quality = trial.quality if trial is not None else None
    if quality is None or (quality.neighbours is None and quality.pads is None):
        return None
    return max(quality.neighbours or 0.0, quality.pads or 0.0)


def force(rows: Sequence[Row], machine: Machine, folder: Path) -> dict[str, list[Caught]]:
    """Run everything that can be forced on this device, and return by rule what caught it."""
    found: dict[str, list[Caught]] = {row.rule: [] for row in rows}
    wanted = [(row, f) for row in rows for f in row.forced if f.device in ("", machine.environment.device)]
    with Store.open(f"sqlite:///{folder}/catches.db", write=True) as store, _made_up(folder):
        for name in dict.fromkeys(forced.bench for _, forced in wanted):
            mine = [(row, forced) for row, forced in wanted if forced.bench == name]
            for (row, _), result in zip(mine, _on_bench(BENCHES[name], mine, machine, store, folder), strict=True):
                print(f"{row.rule}: {dict(result.forced.choices)}: {result.by} ({result.figure})", file=sys.stderr)
                found[row.rule].append(result)
    return found


def _on_bench(
    bench: Bench, wanted: Sequence[tuple[Row, Forced]], machine: Machine, store: Store, folder: Path
) -> list[Caught]:
    """Tune one model with these rules ignored, the forced combinations first, and see what became of each."""
    rules = sorted({"S1", *(rule for row, forced in wanted for rule in (row.rule, *forced.also))})
    objective = Objective(quality=Tier.FOUR_BIT, ignored_rules=tuple(rules), allow_unjudged=True)
    runner = bench.runner(LocalRunner(machine))
    try:
        job = Job(find_model(bench.model(folder)), bench.workload, objective, Budget(trials=1, blocks=0), machine)
        facts = facts_for(job, runner)
        default = Configuration.of(baseline_choices(facts, bench.workload))
        asked = [default.replaced(**forced.choices) for _, forced in wanted]
        hidden = [_hidden(forced, default) for _, forced in wanted]
        every = [*asked, *(configuration for more in hidden for configuration in more.values())]
        also = tuple(dict.fromkeys(configuration for configuration in every if configuration != default))
        # Nothing else is in the space: it is looked through after every trial.
        only = tuple((knob, tuple(dict.fromkeys(c[knob] for c in (default, *every)))) for knob in default)
        job = replace(
            job, also=also, objective=replace(objective, only=only), budget=Budget(trials=1 + len(also), blocks=0)
        )
        study = tune(job, store, runner, lambda _: None)
    except AdvisorError as error:  # such a model can't be loaded here at all
        return [Caught(forced, "nothing", " ".join(str(error).split())[:160]) for _, forced in wanted]
    finally:
        runner.close()
    trials = {trial.requested: trial for trial in store.trials(study)}
    found = []
    for (_, forced), configuration, more in zip(wanted, asked, hidden, strict=True):
        trial = trials.get(configuration)
        layout = trial.quality.layout if trial is not None and trial.quality is not None else None
        moved = {name: _moved(trials.get(as_hidden)) for name, as_hidden in more.items()}
        found.append(replace(caught(forced, trial, trials.get(default), facts), moved=moved, layout=layout))
    return found


# ----------------------------------------------------------------------------------------------------------- table


def _line(row: Row, found: Sequence[Caught]) -> str:
    if row.elsewhere:
        return f"| {row.rule} | {row.condition} | not forward: {row.elsewhere} | | | | |"
    by = "; ".join(dict.fromkeys(_words(result) for result in found)) or row.unforced or _later(row)
    figures = "; ".join(dict.fromkeys(result.figure for result in found))
    cells = [row.rule, row.condition, refused(row)[1], by, figures, *_seen_words(found)]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _seen_words(found: Sequence[Caught]) -> tuple[str, str]:
    """Return what the probe and the layout see of what the gate has to catch, the least of several combinations."""
    gated = [result for result in found if result.forced.by == "gate"]
    probed = []
    for name in HIDING:
        moved = [result.moved[name] for result in gated if result.moved.get(name) is not None]
        if moved:
            probed.append(f"{name} {min(moved):.1e} σ" if min(moved) else f"{name}: reads nothing")
    layouts = [result.layout for result in gated if result.layout is not None]
    return ", ".join(probed), f"{min(layouts):.1e} σ" if layouts else ""


def _words(result: Caught) -> str:
    if not result.is_right:
        return f"**{result.by}**, not {result.forced.by}"
    return {"gate": "the gate", "proof": "the proof", "same": "nothing to catch: the same work, and right"}[result.by]


def _later(row: Row) -> str:
    devices = {"cuda": "on a GPU only", "cpu": "on a CPU only", "": "not forced in this run"}
    return "; ".join(sorted({devices[forced.device] for forced in row.forced}))


def summary(rows: Sequence[Row], found: Mapping[str, Sequence[Caught]]) -> tuple[str, bool]:
    """Return the last line, and whether everything is refused or caught."""
    forward = [row for row in rows if not row.elsewhere]
    kept = [row for row in forward if not row.runs]
    stopped = sum(refused(row)[0] for row in kept)
    results = [result for row in forward for result in found.get(row.rule, ())]
    bad = [result for result in results if result.forced.by != "same"]
    same = [result for result in results if result.forced.by == "same"]
    counts = (sum(result.is_right for result in bad), sum(result.is_right for result in same))
    text = f"Of {len(rows)} rules {len(forward)} concern what advisor runs. "
    text += f"{stopped} of {len(kept)} are refused, or no choice asks for them; "
    text += (
        f"{len(forward) - len(kept)} are known only once they have run. {len(results)} combinations were forced, some "
    )
    text += f"of one rule with more than one attention or output: {counts[0]} of {len(bad)} wrong ones were caught"
    text += f", and {counts[1]} of {len(same)} duplicates are right." if same else "."
    gated = [result for result in bad if result.forced.by == "gate"]
    seen = sum(result.is_seen for result in gated)
    text += f" By the probe in bf16 and behind nf4, or by the layout in fp32: {seen} of {len(gated)}."
    warned = all(refused(row)[0] for row in forward if row.runs)
    return text, warned and (stopped, *counts, seen) == (len(kept), len(bad), len(same), len(gated))


def document(machine: Machine, found: Mapping[str, Sequence[Caught]], command: str) -> str:
    """Return the table as a Markdown document. command: what made it."""
    head = f"""# What is silently wrong, and what catches it

Generated on {datetime.now(UTC).date()}, on {machine.environment}, by `{command}`.

Every rule whose verdict is WRONG (it runs, and its output is wrong without a word) or ALIAS (it silently becomes another
configuration). *Refused*: `build_space` says no to the very combination, under this id, before any time is spent. *Forced*:
the rule is ignored, as `--ignore-rule` does, and a real worker runs the combination on a small model: the numerics gate finds
the output wrong, or the proof finds that something else ran. Figures: the rms error in standard deviations of the reference
and the limit it broke, or what ran instead; P19's are those of the BERT of drawn weights (logits), then of the shipped encoder
(hidden states and embeddings, in fp32 and in bf16).

What the gate has to catch is run twice more, in bf16 and in bf16 behind nf4. *Probe*: how far a sequence's output moves there
when only its neighbours' or the pads' contents change, the least of a row's combinations; it must not move by a bit. *Layout*:
the rms of the sequence that is furthest from itself alone when the same call is made with weights in fp32 (limit
{LAYOUT_LIMIT:.0e}); what is wrong without reading anything, positions and windows, is seen there alone. (Longrope's switch has
no rule: docs/families.md, phi3.)

| rule | condition | refused with | forced: caught by | figure | by the probe | by the layout in fp32 |
|---|---|---|---|---|---|---|
"""
    return head + "\n".join(_line(row, found.get(row.rule, ())) for row in ROWS) + f"\n\n{summary(ROWS, found)[0]}\n"


def main() -> int:
    """Build the table and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda:0 (default: %(default)s)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the document there")
    parser.add_argument("--rule", action="append", default=[], metavar="ID", help="force these rules only")
    options = parser.parse_args()
    machine = probe.machine(options.device)
    rows = [row for row in ROWS if not options.rule or row.rule in options.rule]
    with tempfile.TemporaryDirectory(prefix="advisor-catches-") as name:
        found = force(rows, machine, Path(name))
    text = document(machine, found, f"python benchmarks/catch_table.py {shlex.join(sys.argv[1:])}".strip())
    if options.write:
        options.write.write_text(text, encoding="utf-8")
    print(text)
    return 0 if summary(ROWS, found)[1] else 1


if __name__ == "__main__":
    sys.exit(main())
