"""Every way to compute attention: the rules that refuse it, the proof that it ran, and the two that are our own code."""

from __future__ import annotations

import ast
import inspect
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from made_models import LLAMA_8B
from torch.nn.attention import _fa4, varlen
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    CanineConfig,
    CanineModel,
    ElectraConfig,
    ElectraModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from advisor.knobs import KNOBS, Reading, Reason, Situation, Verdict, effective_choices
from advisor.knobs.attention import own_torch
from advisor.knobs.choice import Choice
from advisor.machine import probe
from advisor.networks import load_torch, switches_torch
from advisor.nouns.configuration import Configuration
from advisor.nouns.environment import Environment
from advisor.workloads.forward import Forward

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "environments"
CHOICES = KNOBS["attention"].choices

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")


def machine(name: str, compute_capability: tuple[int, int] | None = None, **packages: str | None) -> Environment:
    """Return a golden machine with other packages ("_" for "-", None for absent) or of another capability."""
    found = Environment.of(json.loads((GOLDEN / f"{name}.json").read_text()))
    given = {package.replace("_", "-"): version for package, version in packages.items()}
    kept = {package: version for package, version in {**found.packages, **given}.items() if version is not None}
    return replace(found, packages=kept, compute_capability=compute_capability or found.compute_capability)


H200 = machine("h200")
MACHINES = {
    "h200": H200,
    "cpu": machine("cpu"),
    "t4": machine("t4", triton="3.6.0"),
    "all": machine("h200", flash_attn_3="3.0.0", flash_attn_4="4.0.0b36", kernels="0.16.2"),
    "a100-all": machine("h200", (8, 0), flash_attn_3="3.0.0", flash_attn_4="4.0.0b36", kernels="0.16.2"),
    "t4-all": machine("h200", (7, 5), flash_attn_3="3.0.0", flash_attn_4="4.0.0b36", kernels="0.16.2"),
    "b200-all": machine("h200", (10, 0), flash_attn_3="3.0.0", flash_attn_4="4.0.0b36"),
    "only-4": machine("h200", flash_attn=None, flash_attn_4="4.0.0b36"),
    "overwritten": machine("h200", flash_attn_4="4.0.0b36+overwritten"),
    "b18": machine("h200", flash_attn_3="3.0.0", flash_attn_4="4.0.0b18"),
    "b18-overwritten": machine("h200", flash_attn_4="4.0.0b18+overwritten"),
    "b18-torch-2.10": machine("h200", torch="2.10.0+cu128", flash_attn_3="3.0.0", flash_attn_4="4.0.0b18"),
    "b200-b18": machine("h200", (10, 0), flash_attn_3="3.0.0", flash_attn_4="4.0.0b18"),
    "final": machine("h200", flash_attn_4="4.0.0"),
    "rtx5090-all": machine("h200", (12, 0), flash_attn_3="3.0.0", flash_attn_4="4.0.0b36"),
    "thor-all": machine("h200", (11, 0), flash_attn_4="4.0.0b18"),
    "rtx4090-all": machine("rtx4090", flash_attn_3="3.0.0", flash_attn_4="4.0.0b36"),
    "a100-mig-all": machine("a100-mig-1g.10gb", flash_attn_3="3.0.0", flash_attn_4="4.0.0b36"),
    "v100-all": machine("v100", flash_attn_4="4.0.0b36"),
    "t4-4": machine("t4", flash_attn_4="4.0.0b36"),
    "only-kernels": machine("h200", flash_attn=None, kernels="0.16.2"),
    "old-kernels-5.23": machine("h200", flash_attn=None, transformers="5.23.0", kernels="0.17.2"),
    "kernels-5.23": machine("h200", flash_attn=None, transformers="5.23.0", kernels="0.18.2"),
    "kernels-5.30": machine("h200", transformers="5.30.0", kernels="0.17.2"),
    "cuda-12": replace(machine("h200", torch="2.11.0+cu126"), cuda="12.6"),
    "torch-2.9": machine("h200", torch="2.9.1"),
    "torch-2.10": machine("h200", torch="2.10.0+cu128"),
    "no-triton": machine("h200", triton=None),
}

LLAMA = replace(LLAMA_8B, supports_flex=True)
BERT = replace(LLAMA, architecture="BertModel", model_type="bert", is_causal=False, fused_encoder=True, head_dim=64)
MODELS = {
    "llama": LLAMA,
    "bert": BERT,
    "longformer": replace(BERT, architecture="LongformerModel", model_type="longformer", fused_encoder=False),
    "softcap": replace(LLAMA, softcap=True),
    "alibi": replace(LLAMA, alibi=True),
    "no-sdpa": replace(LLAMA, supports_sdpa=False, default_attention="eager"),
    "no-flash": replace(LLAMA, supports_flash=False),
    "no-flex": replace(LLAMA, supports_flex=False),
    "own-attention": replace(LLAMA, switches_attention=False),
    "gpt-oss": replace(LLAMA, model_type="gpt_oss", head_dim=64),
    "sliding": replace(LLAMA, sliding_window=32),
    "head-8": replace(LLAMA, head_dim=8),
    "head-100": replace(LLAMA, head_dim=100),
    "head-192": replace(LLAMA, head_dim=192),
    "head-256": replace(LLAMA, head_dim=256),
    "head-320": replace(LLAMA, head_dim=320),
}
WORKLOADS = {
    "padded": Forward((64, 32, 48, 16), 2),
    "even": Forward((64, 64, 64, 64), 2),
    "one of two even": Forward((64, 64, 48, 16), 2),
    "pairs": Forward((64, 32, 64, 32), 2),
    "short": Forward((16, 16), 2),
}

#: Rule, verdict, choice, where it applies, where it does not: machine, model, workload, and knobs unlike bf16/none/padded.
RULES: list[tuple[str, Verdict, str, tuple[Any, ...], tuple[Any, ...]]] = [
    ("A0", Verdict.SLOW, "sdpa-math", ("h200", "llama", "even", {}), ()),
    ("A1", Verdict.INVALID, "torch_varlen", ("t4", "llama", "even", {}), ("h200", "llama", "even", {})),
    ("A1", Verdict.INVALID, "hub-flash-attn2", ("t4-all", "llama", "even", {}), ("all", "llama", "even", {})),
    ("A2", Verdict.INVALID, "flash_attention_3", ("t4-all", "llama", "even", {}), ("a100-all", "llama", "even", {})),
    ("A2", Verdict.INVALID, "flash_attention_4", ("a100-all", "llama", "even", {}), ("all", "llama", "even", {})),
    *[
        ("A2", Verdict.INVALID, "flash_attention_4", (place, "llama", "even", {}), (new, "llama", "even", {}))
        for place, new in (("rtx4090-all", "rtx5090-all"), ("a100-mig-all", "b200-all"), ("v100-all", "all"), ("t4-4", "all"))
    ],
    ("A2", Verdict.INVALID, "hub-vllm-flash-attn3", ("t4-all", "llama", "even", {}), ("all", "llama", "even", {})),
    ("A3", Verdict.SLOW, "flash_attention_3", ("a100-all", "llama", "even", {}), ("all", "llama", "even", {})),
    ("A3", Verdict.SLOW, "hub-vllm-flash-attn3", ("a100-all", "llama", "even", {}), ("all", "llama", "even", {})),
    *[
        ("A4", Verdict.INVALID, name, ("all", "llama", "even", {"precision": precision}), ("all", "llama", "even", {}))
        for name in ("flash_attention_3", "flash_attention_4", "hub-flash-attn2", "hub-vllm-flash-attn3", "torch_varlen")
        for precision in ("fp32", "tf32")
    ],
    *[
        ("A5", Verdict.INVALID, name, ("all", model, "even", {}), ("all", "head-256", "even", {}))
        for name in ("flash_attention_3", "flash_attention_4", "hub-flash-attn2", "hub-vllm-flash-attn3", "torch_varlen")
        for model in ("head-100", "head-320")
    ],
    ("A6", Verdict.INVALID, "flash_attention_4", ("b200-all", "head-192", "even", {}), ("all", "head-192", "even", {})),
    ("A6", Verdict.INVALID, "flash_attention_4", ("rtx5090-all", "head-256", "even", {}),
     ("rtx5090-all", "head-192", "even", {})),
    ("A6", Verdict.INVALID, "sdpa-flash-fa4", ("b200-b18", "head-192", "even", {}), ("b18", "head-192", "even", {})),
    *[
        ("A8", Verdict.INVALID, name, ("all", "no-flash", "even", {}), ("all", "llama", "even", {}))
        for name in ("flash_attention_3", "flash_attention_4", "hub-flash-attn2", "hub-vllm-flash-attn3", "torch_varlen")
    ],
    *[
        (rule, Verdict.INVALID, f"sdpa-{kernel}", ("h200", model, "even", {}), ("h200", "llama", "even", {}))
        for kernel in ("flash", "efficient", "cudnn", "math")
        for rule, model in (("A9", "no-sdpa"), ("A11", "softcap"))
    ],
    ("A10", Verdict.INVALID, "flex_attention", ("h200", "no-flex", "even", {}), ("h200", "llama", "even", {})),
    ("A12", Verdict.INVALID, "torch_varlen", ("h200", "softcap", "even", {}), ("h200", "llama", "even", {})),
    ("A13", Verdict.INVALID, "torch_varlen", ("h200", "alibi", "even", {}), ("h200", "llama", "even", {})),
    ("A13", Verdict.INVALID, "flash_attention_4", ("all", "alibi", "even", {}), ("all", "llama", "even", {})),
    ("A14", Verdict.ALIAS, "flash_attention_3", ("all", "gpt-oss", "even", {}), ("all", "llama", "even", {})),
    ("A14", Verdict.ALIAS, "hub-flash-attn2", ("all", "gpt-oss", "even", {}), ("all", "llama", "even", {})),
    ("A14", Verdict.INVALID, "torch_varlen", ("h200", "gpt-oss", "even", {}), ("h200", "llama", "even", {})),
    ("A14", Verdict.INVALID, "flex_attention", ("cpu", "gpt-oss", "even", {}), ("h200", "gpt-oss", "even", {})),
    ("A18", Verdict.INVALID, "flash_attention_3", ("h200", "llama", "even", {}), ("all", "llama", "even", {})),
    ("A18", Verdict.INVALID, "flash_attention_4", ("h200", "llama", "even", {}), ("all", "llama", "even", {})),
    ("A18", Verdict.INVALID, "hub-flash-attn2", ("cpu", "llama", "even", {}), ("all", "llama", "even", {})),
    ("A19", Verdict.ALIAS, "flash_attention_2", ("only-kernels", "llama", "even", {}), ("h200", "llama", "even", {})),
    ("A19", Verdict.ALIAS, "flash_attention_2", ("kernels-5.23", "llama", "even", {}),
     ("old-kernels-5.23", "llama", "even", {})),
    ("A19", Verdict.ALIAS, "flash_attention_3", ("only-kernels", "llama", "even", {}), ("all", "llama", "even", {})),
    ("A20", Verdict.WARN, "flash_attention_2", ("all", "llama", "even", {}), ("h200", "llama", "even", {})),
    ("A20", Verdict.WARN, "flash_attention_4", ("all", "llama", "even", {}), ("only-4", "llama", "even", {})),
    ("A20", Verdict.INVALID, "flash_attention_4", ("overwritten", "llama", "even", {}), ("all", "llama", "even", {})),
    ("A20", Verdict.INVALID, "sdpa-flash-fa4", ("b18-overwritten", "llama", "even", {}), ("b18", "llama", "even", {})),
    ("A21", Verdict.INVALID, "hub-flash-attn2", ("h200", "llama", "even", {}), ("only-kernels", "llama", "even", {})),
    ("A21", Verdict.INVALID, "hub-flash-attn2", ("old-kernels-5.23", "llama", "even", {}),
     ("kernels-5.23", "llama", "even", {})),
    ("A21", Verdict.INVALID, "hub-vllm-flash-attn3", ("kernels-5.30", "llama", "even", {}), ("all", "llama", "even", {})),
    ("A23", Verdict.INVALID, "torch_varlen", ("h200", "own-attention", "even", {}), ("h200", "llama", "even", {})),
    ("A25", Verdict.INVALID, "sdpa-flash", ("t4", "llama", "even", {}), ("h200", "llama", "even", {})),
    ("A25", Verdict.INVALID, "sdpa-flash", ("h200", "llama", "padded", {}), ("h200", "llama", "even", {})),
    ("A25", Verdict.INVALID, "sdpa-flash", ("h200", "llama", "pairs", {}), ("h200", "llama", "pairs", {"packing": "sorted"})),
    ("A25", Verdict.INVALID, "sdpa-flash", ("h200", "llama", "padded", {"packing": "packed"}), ("h200", "llama", "even", {})),
    ("A25", Verdict.INVALID, "sdpa-flash", ("h200", "llama", "even", {"precision": "tf32"}),
     ("h200", "llama", "even", {"precision": "fp16"})),
    ("A25", Verdict.INVALID, "sdpa-flash", ("h200", "head-320", "even", {}), ("h200", "head-256", "even", {})),
    ("A25", Verdict.INVALID, "sdpa-flash", ("h200", "sliding", "even", {}), ("h200", "sliding", "short", {})),
    ("A25", Verdict.INVALID, "sdpa-efficient", ("cpu", "llama", "even", {}), ("h200", "llama", "padded", {})),
    ("A25", Verdict.INVALID, "sdpa-efficient", ("t4", "llama", "even", {}), ("t4", "llama", "padded", {"precision": "fp16"})),
    ("A25", Verdict.INVALID, "sdpa-efficient", ("h200", "llama", "one of two even", {}),
     ("h200", "llama", "one of two even", {"packing": "packed"})),
    ("A25", Verdict.INVALID, "sdpa-efficient", ("h200", "llama", "pairs", {"packing": "sorted"}), ("h200", "llama", "pairs", {})),
    ("A27", Verdict.INVALID, "sdpa-cudnn", ("cpu", "llama", "even", {}), ("h200", "llama", "padded", {})),
    ("A27", Verdict.INVALID, "sdpa-cudnn", ("t4", "llama", "even", {}), ("h200", "llama", "even", {})),
    ("A27", Verdict.INVALID, "sdpa-cudnn", ("h200", "head-100", "even", {}), ("h200", "llama", "even", {})),
    ("A27", Verdict.INVALID, "sdpa-cudnn", ("h200", "head-320", "even", {}), ("h200", "llama", "even", {})),
    ("A27", Verdict.INVALID, "sdpa-cudnn", ("h200", "llama", "even", {"precision": "fp32"}), ("h200", "llama", "even", {})),
    ("A27", Verdict.WARN, "sdpa-cudnn", ("h200", "head-256", "even", {}), ("h200", "llama", "even", {})),
    ("A28", Verdict.SLOW, "sdpa-efficient", ("h200", "sliding", "even", {}), ("h200", "sliding", "short", {})),
    ("A28", Verdict.INVALID, "torch_varlen", ("torch-2.10", "sliding", "even", {}), ("h200", "sliding", "even", {})),
    ("A29", Verdict.ALIAS, "sdpa-flash", ("cpu", "llama", "even", {}), ("h200", "llama", "even", {})),
    ("A30", Verdict.INVALID, "flex_attention", ("no-triton", "llama", "even", {}), ("h200", "llama", "even", {})),
    ("A30", Verdict.INVALID, "flex_attention", ("h200", "head-8", "even", {}), ("h200", "llama", "even", {})),
    ("A30", Verdict.INVALID, "flex_attention", ("cpu", "llama", "even", {}), ("h200", "llama", "even", {})),
    ("A31", Verdict.INVALID, "torch_varlen", ("cpu", "llama", "even", {}), ("h200", "llama", "even", {})),
    ("A31", Verdict.INVALID, "torch_varlen", ("torch-2.9", "llama", "even", {}), ("torch-2.10", "llama", "even", {})),
    *[
        ("A32", Verdict.INVALID, name, (place, "llama", "even", {}), (right, "llama", "even", {}))
        for name, place, right in (
            ("sdpa-flash-fa4", "cpu", "b18"),
            ("sdpa-flash-fa4", "h200", "b18"),
            ("sdpa-flash-fa4", "all", "b18"),
            ("sdpa-flash-fa4", "final", "b18"),
            ("sdpa-flash-fa4", "b18-torch-2.10", "b200-b18"),
            ("sdpa-flash-fa4", "rtx4090-all", "b18"),
            ("sdpa-flash-fa4", "a100-mig-all", "b18"),
            ("sdpa-flash-fa4", "t4-4", "b18"),
            ("sdpa-flash-fa4", "v100-all", "b18"),
            ("sdpa-flash-fa4", "rtx5090-all", "b18"),
            ("sdpa-flash-fa4", "thor-all", "b18"),
            ("sdpa-flash-fa3", "h200", "all"),
            ("sdpa-flash-fa3", "b200-b18", "b18"),
            ("sdpa-flash-fa3", "rtx4090-all", "b18"),
            ("sdpa-flash-fa3", "b18-torch-2.10", "b18"),
        )
    ],
    *[
        ("A25", Verdict.INVALID, name, ("b18", model, workload, knobs), ("b18", "llama", "even", {}))
        for name in ("sdpa-flash-fa3", "sdpa-flash-fa4")
        for model, workload, knobs in (
            ("llama", "padded", {}),
            ("llama", "padded", {"packing": "packed"}),
            ("llama", "even", {"precision": "fp32"}),
            ("sliding", "even", {}),
        )
    ],
    ("B1", Verdict.INVALID, "bettertransformer", ("cpu", "llama", "padded", {}), ("cpu", "bert", "padded", {})),
    ("B1", Verdict.INVALID, "bettertransformer", ("cpu", "longformer", "padded", {}), ("h200", "bert", "padded", {})),
    ("B1", Verdict.INVALID, "bettertransformer", ("cpu", "bert", "padded", {"packing": "packed"}),
     ("cpu", "bert", "padded", {"packing": "sorted"})),
    ("B1", Verdict.INVALID, "bettertransformer", ("h200", "bert", "padded", {"quantization": "int8"}),
     ("h200", "bert", "padded", {"precision": "fp32"})),
    ("P11", Verdict.WARN, "hub-flash-attn2", ("all", "llama", "padded", {}), ("all", "llama", "even", {})),
    ("P19", Verdict.WRONG, "flex_attention", ("h200", "bert", "padded", {"packing": "packed"}),
     ("h200", "llama", "padded", {"packing": "packed"})),
    ("P20", Verdict.INVALID, "torch_varlen", ("h200", "llama", "padded", {}),
     ("h200", "llama", "padded", {"packing": "packed"})),
    ("P20", Verdict.INVALID, "torch_varlen", ("h200", "llama", "padded", {"packing": "sorted"}),
     ("h200", "llama", "pairs", {"packing": "sorted"})),
]  # fmt: skip


def said(name: str, where: tuple[Any, ...]) -> list[Reason]:
    """Return what a choice of attention says against itself there."""
    place, model, workload, knobs = where
    plain = {"attention": name, "precision": "bf16", "quantization": "none", "packing": "padded"}
    environment = MACHINES[place]
    found = Situation(Configuration.of({**plain, **knobs}), WORKLOADS[workload], environment, MODELS[model])
    absent = CHOICES[name].unavailable(environment)
    return ([absent] if absent else []) + CHOICES[name].why_not(found)


def case_name(case: object) -> str | None:
    """Name a case by what it sets."""
    return "+".join(str(part) for part in case if part and part != "even") if isinstance(case, tuple) else None


@pytest.mark.parametrize(("rule", "verdict", "name", "where", "elsewhere"), RULES, ids=case_name)
def test_a_rule_speaks_where_it_applies_and_nowhere_else(
    rule: str, verdict: Verdict, name: str, where: tuple[Any, ...], elsewhere: tuple[Any, ...]
) -> None:
    """A choice says its rule, with its verdict, where it applies; where it does not, nothing refuses and the rule is silent."""
    assert (rule, verdict) in {(reason.rule, reason.verdict) for reason in said(name, where)}
    if elsewhere:
        assert (rule, verdict) not in {(reason.rule, reason.verdict) for reason in said(name, elsewhere)}


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("sdpa-flash", ("h200", "llama", "even", {})),
        ("sdpa-flash", ("h200", "bert", "even", {"precision": "fp16"})),
        ("sdpa-efficient", ("h200", "llama", "padded", {"precision": "fp32"})),
        ("sdpa-cudnn", ("h200", "llama", "padded", {"packing": "packed"})),
        ("sdpa-math", ("cpu", "llama", "padded", {})),
        ("flash_attention_3", ("all", "softcap", "padded", {"packing": "packed"})),
        ("flash_attention_4", ("b200-all", "head-256", "padded", {"packing": "packed"})),
        ("flash_attention_4", ("all", "gpt-oss", "padded", {})),
        ("flash_attention_4", ("only-4", "softcap", "padded", {"packing": "packed", "precision": "fp16"})),
        ("flash_attention_4", ("rtx5090-all", "head-192", "even", {})),
        ("flash_attention_4", ("thor-all", "llama", "padded", {"packing": "packed"})),
        ("flash_attention_2", ("overwritten", "llama", "padded", {})),
        ("sdpa-flash-fa4", ("b18", "llama", "even", {})),
        ("sdpa-flash-fa4", ("b200-b18", "head-256", "even", {"precision": "fp16"})),
        ("sdpa-flash-fa4", ("b18", "llama", "pairs", {"packing": "sorted"})),
        ("sdpa-flash-fa3", ("all", "llama", "even", {})),
        ("hub-flash-attn2", ("only-kernels", "llama", "padded", {"packing": "packed"})),
        ("hub-vllm-flash-attn3", ("all", "gpt-oss", "padded", {})),
        ("torch_varlen", ("h200", "llama", "padded", {"packing": "packed"})),
        ("torch_varlen", ("torch-2.10", "bert", "even", {"precision": "fp16"})),
        ("flex_attention", ("h200", "softcap", "padded", {"packing": "packed", "precision": "fp32"})),
        ("bettertransformer", ("cpu", "bert", "padded", {"precision": "fp32"})),
        ("bettertransformer", ("h200", "bert", "even", {"packing": "sorted", "precision": "fp16"})),
    ],
    ids=case_name,
)
def test_what_runs_is_not_refused(name: str, where: tuple[Any, ...]) -> None:
    """A choice that runs and is right somewhere has no reason there that refuses it."""
    assert [reason for reason in said(name, where) if reason.verdict.refuses] == []


def test_a_reason_names_the_other_choice_and_the_command() -> None:
    """A reason that rests on another knob says which choice it is about; a missing package's holds the command."""
    about = {
        ("sdpa-flash", "padded", "packing"): "packing=padded",
        ("torch_varlen", "padded", "packing"): "packing=padded",
    }
    for (name, workload, _), expected in about.items():
        assert expected in {reason.about for reason in said(name, ("h200", "llama", workload, {}))}
    assert {reason.about for reason in said("torch_varlen", ("h200", "llama", "even", {"precision": "fp32"}))} == {
        "precision=fp32"
    }
    commands = {
        ("flash_attention_3", "h200"): "pip install flash-attn-3",
        ("flash_attention_4", "h200"): 'pip install "flash-attn-4[cu13]"',
        ("flash_attention_4", "cuda-12"): "pip install flash-attn-4",
        ("flash_attention_4", "overwritten"): "pip install --force-reinstall --no-deps flash-attn-4==4.0.0b36",
        ("sdpa-flash-fa4", "h200"): 'pip install "flash-attn-4[cu13]"',
        ("sdpa-flash-fa4", "all"): "choose flash_attention_4, or pip install flash-attn-4==4.0.0b18",
        (
            "flash_attention_2",
            "only-4",
        ): "pip install flash-attn --no-build-isolation, then pip install --force-reinstall"
        " --no-deps flash-attn-4==4.0.0b36",
        ("hub-flash-attn2", "h200"): "pip install 'kernels>=0.16.0,<0.17.0'",
        ("hub-flash-attn2", "old-kernels-5.23"): "pip install 'kernels>=0.18.2,<0.19.0'",
        ("hub-flash-attn2", "kernels-5.30"): "pip install 'kernels>=0.18.2,<0.19.0'",
        ("flash_attention_2", "only-kernels"): "choose hub-flash-attn2, or pip install flash-attn",
    }
    for (name, place), command in commands.items():
        absent = CHOICES[name].unavailable(MACHINES[place])
        assert absent is not None
        assert absent.remedy.startswith(command)
    unknown = CHOICES["hub-flash-attn2"].unavailable(MACHINES["kernels-5.30"])
    assert unknown is not None
    assert "the newest that is known" in unknown.text


def test_flash_tells_sequences_apart() -> None:
    """FlashAttention in any form keeps packed sequences apart without a mask; nothing else does."""
    assert {name for name in CHOICES if CHOICES[name].traits.tells_apart} == {
        "flash_attention_2",
        "flash_attention_3",
        "flash_attention_4",
        "hub-flash-attn2",
        "hub-vllm-flash-attn3",
        "torch_varlen",
    }


# What a profile shows. On a GPU the names are those of torch's operators and of the packages' kernels.

SOFTMAX = ["aten::linear", "aten::bmm", "aten::softmax", "aten::_softmax"]
CUDA = ["aten::linear", "cudaLaunchKernel", "sm90_xmma_gemm_bf16bf16"]
SDPA = [*CUDA, "aten::scaled_dot_product_attention"]
SDPA_FLASH = [
    *SDPA,
    "aten::_scaled_dot_product_flash_attention",
    "aten::_flash_attention_forward",
    "void pytorch_flash::flash_fwd_kernel<pytorch_flash::Flash_fwd_kernel_traits>",
]
SDPA_CUDNN = [*SDPA, "aten::_scaled_dot_product_cudnn_attention", "cudnn_generated_fort_native_sdpa_sm90_flash_fprop"]
SDPA_EFFICIENT = [*SDPA, "aten::_scaled_dot_product_efficient_attention", "fmha_cutlassF_bf16_aligned_64x128_rf_sm80"]
SDPA_MATH = [*SDPA, "aten::_scaled_dot_product_attention_math", "aten::_safe_softmax"]
FLASH_2 = [
    *CUDA,
    "flash_attn::_flash_attn_varlen_forward",
    "void flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128>>",
]
FLASH_3 = [
    *CUDA,
    "void cutlass::device_kernel<flash::enable_sm90_or_later<flash::FlashAttnFwdSm90<CollectiveMainloop>>>",
]
FLASH_4 = [
    *CUDA,
    "kernel_cutlass_kernel_flash_attncuteflash_fwd_sm90FlashAttentionForwardSm90_object_at__tensorptrbf16",
]
VARLEN = [*CUDA, "torch_attn::_varlen_attn", "aten::_flash_attention_forward", "void pytorch_flash::flash_fwd_kernel<>"]
FLEX = [*CUDA, "## Call CompiledFxGraph fz ##", "triton_tem_fused_flex_attention_0"]
FLEX_CPU = ["aten::linear", "## Call CompiledFxGraph fz ##", "Torch-Compiled Region: 0/0"]
#: Of what is compiled on a CPU no name is left but torch's products: no mask, no scores, no softmax.
MELTED = ["aten::bmm", "aten::mm", "## Call CompiledFxGraph fz ##", "Torch-Compiled Region: 0/0"]
FUSED = [
    "aten::linear",
    "aten::_nested_tensor_from_mask",
    "aten::_transformer_encoder_layer_fwd",
    "aten::_masked_softmax",
]
#: Without a GPU's kernels, as a block reads: a generation that has no operators shows by its autograd functions alone.
FLASH_4_UNSEEN = ["aten::linear", "cudaLaunchKernelExC", "FlashAttnVarlenFunc", "aten::empty"]
SDPA_FLASH_4 = [*SDPA, "aten::_scaled_dot_product_flash_attention", FLASH_4[-1]]
SDPA_FLASH_3 = [*SDPA, "aten::_scaled_dot_product_flash_attention", "flash_attn_3::fwd", FLASH_3[-1]]
ALL = ("flash", "efficient", "cudnn", "math")


def reading(
    implementation: str,
    operators: Sequence[str],
    allowed: Sequence[str] = ALL,
    automatic: Sequence[str] = (),
    flash_impl: str = "",
) -> Reading:
    """Return what a worker would have read."""
    kernel_s = 0.001 * any("ernel" in name for name in operators)
    read = Reading({"": implementation}, {"bfloat16": 1}, {"Linear": 1}, operators, {}, kernel_s=kernel_s)
    return replace(read, sdp_kernels=allowed, automatic=automatic, flash_impl=flash_impl)


def what_ran(read: Reading) -> str:
    """Return the choice of attention that a trial is stored under."""
    return effective_choices(read, WORKLOADS["even"])["attention"]


HUB = "kernels-community/"

#: What was read, the choice that ran, and the choices whose proof it brings.
READINGS: list[tuple[str, Reading, str, set[str]]] = [
    ("eager", reading("eager", SOFTMAX), "eager", {"eager"}),
    ("eager on a GPU", reading("eager", [*SOFTMAX, *CUDA]), "eager", {"eager"}),
    ("eager, compiled", replace(reading("eager", MELTED), uncompiled=SOFTMAX), "eager", {"eager"}),
    ("eager, compiled on a GPU", reading("eager", [*CUDA, "triton_per_fused__softmax_add_0"]), "eager", {"eager"}),
    (
        "held to math, compiled",
        replace(reading("sdpa", MELTED, ["math"], SDPA_FLASH), uncompiled=SDPA_MATH),
        "sdpa-math",
        {"sdpa", "sdpa-math"},
    ),
    (
        "sdpa picks math, compiled",
        replace(reading("sdpa", MELTED), uncompiled=SDPA_MATH),
        "sdpa",
        {"sdpa", "sdpa-math"},
    ),
    ("sdpa, flash", reading("sdpa", SDPA_FLASH), "sdpa", {"sdpa", "sdpa-flash"}),
    ("sdpa, cudnn", reading("sdpa", SDPA_CUDNN), "sdpa", {"sdpa", "sdpa-cudnn"}),
    ("sdpa, efficient", reading("sdpa", SDPA_EFFICIENT), "sdpa", {"sdpa", "sdpa-efficient"}),
    ("held to flash", reading("sdpa", SDPA_FLASH, ["flash"], SDPA_CUDNN), "sdpa-flash", {"sdpa", "sdpa-flash"}),
    (
        "held to efficient",
        reading("sdpa", SDPA_EFFICIENT, ["efficient"], SDPA_CUDNN),
        "sdpa-efficient",
        {"sdpa", "sdpa-efficient"},
    ),
    ("held to cudnn", reading("sdpa", SDPA_CUDNN, ["cudnn"], SDPA_EFFICIENT), "sdpa-cudnn", {"sdpa", "sdpa-cudnn"}),
    ("held to math", reading("sdpa", SDPA_MATH, ["math"], SDPA_FLASH), "sdpa-math", {"sdpa", "sdpa-math"}),
    ("math without a name", reading("sdpa", SDPA, ["math"], SDPA_FLASH), "sdpa-math", {"sdpa", "sdpa-math"}),
    (
        "held to what is picked anyway",
        reading("sdpa", SDPA_CUDNN, ["cudnn"], SDPA_CUDNN),
        "sdpa",
        {"sdpa", "sdpa-cudnn"},
    ),
    ("two kernels allowed", reading("sdpa", SDPA_FLASH, ["flash", "math"], SDPA_CUDNN), "sdpa", {"sdpa", "sdpa-flash"}),
    ("flash-attn", reading("flash_attention_2", FLASH_2), "flash_attention_2", {"flash_attention_2"}),
    ("flash-attn-3", reading("flash_attention_3", FLASH_3), "flash_attention_3", {"flash_attention_3"}),
    ("flash-attn-4", reading("flash_attention_4", FLASH_4), "flash_attention_4", {"flash_attention_4"}),
    (
        "flash-attn-4, kernels unseen",
        reading("flash_attention_4", FLASH_4_UNSEEN),
        "flash_attention_4",
        {"flash_attention_4"},
    ),
    (
        "sdpa switched to FA4",
        reading("sdpa", SDPA_FLASH_4, ["flash"], SDPA_FLASH_4, "FA4"),
        "sdpa-flash-fa4",
        {"sdpa-flash-fa4"},
    ),
    (
        "sdpa switched to FA4, kernels unseen",
        replace(reading("sdpa", SDPA_FLASH_4[:-1], ["flash"], SDPA_CUDNN, "FA4"), kernel_s=0.0),
        "sdpa-flash-fa4",
        {"sdpa-flash-fa4"},
    ),
    (
        "sdpa switched to FA3",
        reading("sdpa", SDPA_FLASH_3, ["flash"], SDPA_CUDNN, "FA3"),
        "sdpa-flash-fa3",
        {"sdpa-flash-fa3"},
    ),
    ("flash-attn from the Hub", reading(f"{HUB}flash-attn2", FLASH_2), "hub-flash-attn2", {"hub-flash-attn2"}),
    ("FA3 from the Hub", reading(f"{HUB}vllm-flash-attn3", FLASH_3), "hub-vllm-flash-attn3", {"hub-vllm-flash-attn3"}),
    ("varlen", reading("torch_varlen", VARLEN), "torch_varlen", {"torch_varlen"}),
    ("flex", reading("flex_attention", FLEX), "flex_attention", {"flex_attention"}),
    ("flex on a CPU", reading("flex_attention", FLEX_CPU), "flex_attention", {"flex_attention"}),
    ("fused layers", reading("sdpa", FUSED), "bettertransformer", {"bettertransformer"}),
    ("fused layers over sdpa", reading("sdpa", [*FUSED, *SDPA_EFFICIENT]), "bettertransformer", {"bettertransformer"}),
]


@pytest.mark.parametrize(("read", "ran", "proven"), [case[1:] for case in READINGS], ids=[case[0] for case in READINGS])
def test_a_profile_proves_what_ran(read: Reading, ran: str, proven: set[str]) -> None:
    """What ran is told by what was read back and launched, and it brings the proof of nothing else."""
    assert KNOBS["attention"].effective(read) == ran
    assert what_ran(read) == ran
    assert {name for name, choice in CHOICES.items() if choice.proof(read) is None} == proven


@pytest.mark.parametrize(
    ("claimed", "operators", "ran"),
    [
        ("flash_attention_2", SDPA_FLASH, "sdpa"),
        ("flash_attention_3", SDPA_CUDNN, "sdpa"),
        ("flash_attention_4", SOFTMAX, "eager"),
        (f"{HUB}flash-attn2", SDPA_FLASH, "sdpa"),
        ("torch_varlen", SDPA_FLASH, "sdpa"),
        ("torch_varlen", FLASH_2, "torch_varlen (unproven)"),
        ("flex_attention", SDPA_EFFICIENT, "sdpa"),
        ("flex_attention", [*SOFTMAX, *FLEX_CPU], "eager"),
        ("flex_attention", [*CUDA, "## Call CompiledFxGraph fz ##"], "flex_attention (unproven)"),
        ("eager", SDPA_FLASH, "sdpa"),
        ("sdpa", SOFTMAX, "eager"),
    ],
    ids=lambda case: case if isinstance(case, str) else "",
)
def test_what_was_not_launched_is_not_believed(claimed: str, operators: list[str], ran: str) -> None:
    """A configuration that names an implementation proves nothing when the operators are another's."""
    assert what_ran(reading(claimed, operators)) == ran


def test_what_one_kernel_computes_does_not_melt() -> None:
    """A compiler calls sdpa's kernels as they are: one that shows uncompiled alone is not what a graph, of torch's cache, did."""
    for claimed, shown in (("sdpa", SDPA_FLASH), ("flash_attention_2", FLASH_2), ("torch_varlen", VARLEN)):
        read = replace(reading(claimed, MELTED), uncompiled=shown)
        assert what_ran(read) == f"{claimed} (unproven)"
        assert CHOICES[claimed].proof(read) == "nothing that was launched shows what computed attention"
    assert what_ran(reading("eager", MELTED)) == "eager (unproven)"


def test_a_generation_is_told_from_the_others() -> None:
    """FlashAttention-2's operator is no proof of FlashAttention-4, nor is a switch of torch's without its kernel."""
    four, switched = CHOICES["flash_attention_4"].proof, CHOICES["sdpa-flash-fa4"].proof
    assert "flash_attn::_flash_attn_varlen_forward" in str(four(reading("flash_attention_4", FLASH_2)))
    assert four(reading("flash_attention_4", FLASH_4)) is None

    own = "torch's own FlashAttention-2 was launched"
    assert switched(reading("sdpa", SDPA_FLASH, ["flash"], (), "FA4")) == own
    assert switched(reading("sdpa", SDPA_FLASH_4, ["flash"])) == "torch's flash kernel is its own"
    assert switched(reading("sdpa", SDPA_FLASH_3, ["flash"], (), "FA3")) == "torch's flash kernel is FA3"
    unknown = reading("sdpa", [*SDPA_FLASH_4[:-1], "some_kernel"], ["flash"], (), "FA4")
    assert switched(unknown) == "no kernel of FlashAttention-4 was launched"
    assert switched(reading("sdpa", SDPA_CUDNN, ["flash"], (), "FA4")) == "sdpa launched its kernel cudnn"
    assert "switched to FA4" in str(CHOICES["torch_varlen"].proof(reading("torch_varlen", VARLEN, flash_impl="FA4")))


def test_torch_switches_and_switches_back() -> None:
    """What a choice switches in torch, the next configuration's statements switch back; torch's own is what it starts with."""
    calls = []

    class Switch:
        def remove(self) -> None:
            calls.append("removed")

    def switch() -> Switch:
        calls.append("switched")
        return Switch()

    torch.nn.attention.register_flash_attention_impl("FA4", register_fn=switch)
    try:
        assert switches_torch.flash_impl() == ""
        load_torch.statements([CHOICES["sdpa-flash-fa4"]])
        assert (switches_torch.flash_impl(), switches_torch.allowed_kernels()) == ("FA4", ("flash",))
        load_torch.statements([CHOICES["sdpa"]])
        assert (switches_torch.flash_impl(), switches_torch.allowed_kernels()) == ("", ALL)
        assert calls == ["switched", "removed"]
    finally:
        torch.nn.attention.register_flash_attention_impl("FA4", register_fn=_fa4.register_flash_attention_fa4)


def test_an_unknown_implementation_keeps_its_name() -> None:
    """What is no choice is told as it was read back, alone or beside others."""
    assert KNOBS["attention"].effective(reading(f"{HUB}flash-attn4", FLASH_4)) == f"{HUB}flash-attn4"
    mixed = replace(reading("sdpa", SDPA_FLASH), attention={"": "sdpa", "vision_config": "eager"})
    assert KNOBS["attention"].effective(mixed) == "eager+sdpa"


# Real runs on a CPU.


def profiled(model: Any, **call: Any) -> tuple[Any, list[str]]:
    """Return the model's output and the names of the operators launched, as the worker reads them."""
    with torch.inference_mode(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        output = model(**call)
    return output, sorted({event.key for event in profile.key_averages()})


@pytest.fixture
def kernels() -> Iterator[Callable[[Sequence[str]], None]]:
    """Give what executes statements that switch kernels, and allow all kernels again afterwards."""

    def execute(lines: Sequence[str]) -> None:
        exec("\n".join(lines), {"torch": torch})

    yield execute
    for name in ("flash", "mem_efficient", "cudnn", "math"):
        getattr(torch.backends.cuda, f"enable_{name}_sdp")(True)


@pytest.mark.parametrize(("name", "ran"), [("sdpa-math", "sdpa-math"), ("sdpa-flash", "sdpa")])
def test_a_kernel_is_held_on_a_cpu(name: str, ran: str, kernels: Callable[[Sequence[str]], None]) -> None:
    """The statements steer the CPU's kernels too: math is launched alone, and flash is what sdpa picks by itself."""
    model = AutoModelForCausalLM.from_pretrained(
        ROOT / "tests" / "models" / "causal", attn_implementation="sdpa"
    ).eval()
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    call = {"input_ids": torch.arange(12).view(2, 6), "attention_mask": mask, "use_cache": False}
    expected, automatic = profiled(model, **call)
    kernels(CHOICES[name].before)
    output, operators = profiled(model, **call)
    read = reading("sdpa", operators, [name.removeprefix("sdpa-")], automatic)

    assert what_ran(read) == ran
    assert CHOICES[name].proof(read) is None
    assert torch.allclose(output.logits[mask.bool()], expected.logits[mask.bool()], atol=1e-4)


FLEX_SCRIPT = """
import json, torch
from transformers import BertConfig, BertModel
from transformers.masking_utils import AttentionMaskInterface
torch.manual_seed(0)
# Without pads an encoder needs no mask: one thing less to compile.
AttentionMaskInterface.register("flex_attention", lambda *_, **__: None)
model = BertModel(BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                             intermediate_size=32, initializer_range=0.5)).eval()
ids = torch.arange(32).view(2, 16)
with torch.inference_mode():
    expected = model(ids).last_hidden_state
    model.set_attn_implementation("flex_attention")
    output = model(ids).last_hidden_state
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        model(ids)
print(json.dumps({"error": float((output - expected).abs().max()), "read": model.config._attn_implementation,
                  "operators": sorted({event.key for event in profile.key_averages()})}))
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="flex_attention is compiled with g++ on a CPU")
def test_flex_attention_is_proven_on_a_cpu() -> None:
    """A real run of flex_attention brings its proof and no other's. It compiles for some 20 s where nothing is cached."""
    ran = subprocess.run([sys.executable, "-c", FLEX_SCRIPT], capture_output=True, text=True, check=True, timeout=280)
    found = json.loads(ran.stdout.splitlines()[-1])
    read = reading(found["read"], found["operators"])

    assert found["error"] < 1e-5
    assert {name for name, choice in CHOICES.items() if choice.proof(read) is None} == {"flex_attention"}


# torch's varlen_attn, whose place a few lines of torch take: a CPU has no such kernel.


def attended(  # noqa: PLR0917
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts_q: torch.Tensor,
    starts_k: torch.Tensor,
    left: int,
    right: int,
    scale: float | None,
) -> torch.Tensor:
    """Attend sequence by sequence with a window, aligned at the end as FlashAttention does; [tokens, heads, head size]."""
    groups, size = query.shape[1] // key.shape[1], query.shape[2]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    output = torch.empty_like(query)
    bounds = zip(starts_q.tolist(), starts_q[1:].tolist(), starts_k.tolist(), starts_k[1:].tolist(), strict=False)
    for q0, q1, k0, k1 in bounds:
        distance = torch.arange(k1 - k0)[None] - (torch.arange(q1 - q0) + (k1 - k0) - (q1 - q0))[:, None]
        seen = ((left < 0) | (-distance <= left)) & ((right < 0) | (distance <= right))
        scores = torch.einsum("qhd,khd->hqk", query[q0:q1], key[k0:k1]) * (size**-0.5 if scale is None else scale)
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        output[q0:q1] = torch.einsum("hqk,khd->qhd", weights, value[k0:k1])
    return output


def varlen_2_10(  # noqa: PLR0917
    query: Any,
    key: Any,
    value: Any,
    cu_seq_q: Any,
    cu_seq_k: Any,
    max_q: int,
    max_k: int,
    is_causal: bool = False,
    return_aux: Any = None,
) -> torch.Tensor:
    """Stand in for torch 2.10's function."""
    return attended(query, key, value, cu_seq_q, cu_seq_k, -1, 0 if is_causal else -1, None)


def varlen_2_11(
    query: Any,
    key: Any,
    value: Any,
    cu_seq_q: Any,
    cu_seq_k: Any,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> torch.Tensor:
    """Stand in for torch 2.11's function."""
    return attended(query, key, value, cu_seq_q, cu_seq_k, *window_size, scale)


def varlen_2_13(
    query: Any,
    key: Any,
    value: Any,
    cu_seq_q: Any,
    cu_seq_k: Any,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: Any = None,
    block_table: Any = None,
    num_splits: int | None = None,
) -> torch.Tensor:
    """Stand in for torch 2.12's and 2.13's function, which refuses fewer key heads unless told of them."""
    assert enable_gqa == (query.shape[1] != key.shape[1])
    assert max_q == int(cu_seq_q.diff().max())
    return attended(query, key, value, cu_seq_q, cu_seq_k, *window_size, scale)


STAND_INS = {"2.10": varlen_2_10, "2.11": varlen_2_11, "2.12": varlen_2_13, "2.13": varlen_2_13}


def test_the_stand_in_has_the_signature_of_the_torch_installed() -> None:
    """What the tests put in varlen_attn's place takes the very arguments that this torch's takes."""
    stand_in = STAND_INS[".".join(torch.__version__.split(".")[:2])]  # a torch without one needs one

    def arguments(function: Callable[..., Any]) -> list[tuple[str, Any]]:
        return [(name, parameter.kind) for name, parameter in inspect.signature(function).parameters.items()]

    assert arguments(stand_in) == arguments(varlen.varlen_attn)


def source_of(choice: Choice) -> str:
    """Return the choice's imports and functions as a script has them: source taken from its file, nothing around it."""
    lines = list(choice.imports)
    for module, name in choice.functions:
        text = (ROOT / f"{module.replace('.', '/')}.py").read_text()
        node = next(part for part in ast.parse(text).body if isinstance(part, ast.FunctionDef) and part.name == name)
        lines.append(ast.get_source_segment(text, node) or "")
    return "\n".join(lines)


@pytest.fixture(params=["2.10", "2.11", "2.13"])
def varlen_torch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Put a stand-in for varlen_attn in its place, run the choice's lines as a script would, and give torch's version."""
    monkeypatch.setattr(varlen, "varlen_attn", STAND_INS[request.param])
    choice = CHOICES["torch_varlen"]
    exec("\n".join([source_of(choice), *choice.before]), {})
    return str(request.param)


LENGTHS = (5, 1, 9, 3)


def sequences() -> list[torch.Tensor]:
    """Return token ids of four lengths."""
    torch.manual_seed(0)
    return [torch.randint(3, 60, (length,)) for length in LENGTHS]


def packed() -> dict[str, Any]:
    """Return the arguments of a packed call."""
    ends = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    return {
        "input_ids": torch.cat(sequences())[None],
        "position_ids": torch.cat([torch.arange(length) for length in LENGTHS])[None],
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": max(LENGTHS),
        "max_length_k": max(LENGTHS),
    }


SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "initializer_range": 0.3,
}


def llama() -> Any:
    """Return a small decoder with two key heads for four query heads."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SMALL, num_key_value_heads=2)).eval()


def bert(kind: Any = BertModel, **settings: Any) -> Any:
    """Return a small encoder."""
    torch.manual_seed(0)
    return kind(BertConfig(**{**SMALL, **settings})).eval()


@torch.inference_mode()
def alone(model: Any) -> torch.Tensor:
    """Return the first output for every sequence by itself under eager, one after the other: [tokens, ...]."""
    model.set_attn_implementation("eager")
    return torch.cat([model(ids[None])[0][0] for ids in sequences()])


@pytest.mark.parametrize("make", [llama, bert], ids=["decoder with grouped heads", "encoder"])
@pytest.mark.parametrize("positions_only", [False, True], ids=["cu_seq_lens", "positions"])
def test_varlen_attention_keeps_packed_sequences_apart(
    make: Callable[[], Any], positions_only: bool, varlen_torch: str
) -> None:
    """A packed call gives every sequence what it gets alone, whether it brings cu_seq_lens or only positions."""
    model, call = make(), packed()
    expected = alone(model)
    if positions_only:
        call = {name: call[name] for name in ("input_ids", "position_ids")}
    model.set_attn_implementation("torch_varlen")
    arguments = call if isinstance(model, BertModel) else {**call, "use_cache": False}
    with torch.inference_mode():
        output = model(**arguments)[0][0]

    assert torch.allclose(output, expected, atol=1e-5)


@pytest.mark.parametrize("make", [llama, bert], ids=["decoder", "encoder"])
def test_varlen_attention_takes_rows_of_equal_length(make: Callable[[], Any], varlen_torch: str) -> None:
    """Without pads every row is a sequence, a mask of ones is no mask, and one zero in it is refused."""
    model, ids = make(), torch.arange(24).view(3, 8)
    with torch.inference_mode():
        expected = model(ids)[0]
        model.set_attn_implementation("torch_varlen")
        output = model(ids, attention_mask=torch.ones_like(ids))[0]
        mask = torch.ones_like(ids)
        mask[0, 0] = 0
        with pytest.raises(ValueError, match="does not take a mask: pack the batch"):
            model(ids, attention_mask=mask)

    assert torch.allclose(output, expected, atol=1e-5)


def test_varlen_attention_slides(varlen_torch: str) -> None:
    """A window shorter than a sequence is passed on where varlen_attn takes one; torch 2.10's is refused in words."""
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=4)).eval()
    expected, call = alone(model), packed()
    model.set_attn_implementation("torch_varlen")
    with torch.inference_mode():
        if varlen_torch == "2.10":
            with pytest.raises(ValueError, match=r"use torch 2\.11 or newer"):
                model(**call, use_cache=False)
        else:
            assert torch.allclose(model(**call, use_cache=False)[0][0], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [({"softcap": 30.0}, "softcap"), ({"s_aux": torch.ones(4)}, "s_aux"), ({"dropout": 0.1}, "dropout")],
    ids=lambda case: case if isinstance(case, str) else "",
)
def test_varlen_attention_refuses_what_the_kernel_does_not_compute(
    arguments: dict[str, Any], word: str, varlen_torch: str
) -> None:
    """Softcap, attention sinks and dropout are refused by name instead of being left out."""
    states = torch.ones(1, 4, 3, 8)

    with pytest.raises(ValueError, match=word):
        own_torch.varlen_attention(torch.nn.Module(), states, states, states, None, **arguments)


def test_varlen_attention_scales_as_told(varlen_torch: str) -> None:
    """A scale unlike 1/√(head size) reaches the scores, in torch 2.10 through the query."""
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 6, 8)
    output, weights = own_torch.varlen_attention(torch.nn.Module(), query, key, value, None, 0.7, is_causal=False)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=0.7).transpose(1, 2)

    assert weights is None
    assert torch.allclose(output, expected, atol=1e-5)


# torch's fused encoder layers.


def right_padded() -> dict[str, torch.Tensor]:
    """Return a batch with pads on the right."""
    ids = torch.nn.utils.rnn.pad_sequence(sequences(), batch_first=True, padding_value=1)
    return {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < torch.tensor(LENGTHS)[:, None]).long()}


def fused(model: Any) -> Any:
    """Run the choice's lines as a script would and return the model."""
    choice = CHOICES["bettertransformer"]
    names = {"model": model}
    exec("\n".join([source_of(choice), *choice.after]), names)
    return names["model"]


def roberta() -> Any:
    """Return a small RoBERTa with a head that reads the first position."""
    torch.manual_seed(0)
    return RobertaForSequenceClassification(RobertaConfig(**SMALL, pad_token_id=1)).eval()


def electra() -> Any:
    """Return a small ELECTRA, whose embeddings are narrower than its layers."""
    torch.manual_seed(0)
    return ElectraModel(ElectraConfig(**SMALL, embedding_size=16)).eval()


ENCODERS = {
    "BertModel": bert,
    "BertForMaskedLM": lambda: bert(BertForMaskedLM),
    "BertForSequenceClassification": lambda: bert(BertForSequenceClassification),
    "with relu": lambda: bert(hidden_act="relu"),
    "RobertaForSequenceClassification": roberta,
    "ElectraModel": electra,
}


@pytest.mark.parametrize("name", ENCODERS)
def test_fused_layers_equal_the_models_own(name: str) -> None:
    """With pads on the right and without, real tokens and heads get what sdpa gives them, and the proof is there."""
    model, call = ENCODERS[name](), right_padded()
    assert own_torch.is_fusable(model)
    size = sum(part.numel() for part in model.parameters())
    with torch.inference_mode():
        expected, full = model(**call)[0], model(call["input_ids"])[0]
    model = fused(model)
    output, operators = profiled(model, **call)
    read = reading("sdpa", operators, ALL)
    real = call["attention_mask"].bool() if output[0].dim() == 3 else torch.ones(len(LENGTHS), dtype=torch.bool)

    assert torch.allclose(output[0][real], expected[real], atol=1e-5)
    assert torch.allclose(profiled(model, input_ids=call["input_ids"])[0][0], full, atol=1e-5)
    assert what_ran(read) == "bettertransformer"
    assert {name for name, choice in CHOICES.items() if choice.proof(read) is None} == {"bettertransformer"}
    assert sum(part.numel() for part in model.parameters()) == size


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_fused_layers_run_in_16_bits(dtype: torch.dtype) -> None:
    """In 16 bits the fused layers are as near to fp32 as the model's own."""
    model, call = bert(), right_padded()
    real = call["attention_mask"].bool()
    with torch.inference_mode():
        expected = model(**call)[0][real]
        own = model.to(dtype)(**call)[0][real].float()
        error = (fused(model)(**call)[0][real].float() - expected).abs().mean()

    assert error <= 2 * (own - expected).abs().mean()


def test_fused_layers_refuse_other_masks() -> None:
    """Pads on the left, and a mask that keeps packed sequences apart, end in an error and never in wrong numbers."""
    model = fused(bert())
    left = {name: tensor.flip(1) for name, tensor in right_padded().items()}
    document = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    blocks = torch.zeros(1, 1, len(document), len(document)).masked_fill(document[:, None] != document, -torch.inf)
    with torch.inference_mode():
        with pytest.raises(RuntimeError, match="left-aligned"):
            model(**left)
        with pytest.raises(ValueError, match="hides pads and nothing else"):
            model(packed()["input_ids"], attention_mask=blocks)


def test_only_checked_encoders_are_fused() -> None:
    """On the device "meta" as elsewhere: BERT's kin can be fused; decoders, odd heads and other attentions can't."""
    with torch.device("meta"):
        can = [ENCODERS[name]() for name in ENCODERS]
        can_not = [
            llama(),
            bert(is_decoder=True),
            bert(num_attention_heads=1),
            bert(hidden_act="gelu_new"),
            CanineModel(CanineConfig(**SMALL)),  # its parts have BERT's names, and it attends within blocks
        ]

    assert [own_torch.is_fusable(model) for model in can] == [True] * len(can)
    assert [own_torch.is_fusable(model) for model in can_not] == [False] * len(can_not)


# On a GPU, whatever is installed there.


def this_gpu() -> Environment:
    """Return the GPU's environment."""
    versions = probe.packages()
    name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    memory, cuda = torch.cuda.mem_get_info()[1], torch.version.cuda
    return Environment("cuda", name, capability, memory, cuda=cuda, packages=versions)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", [name for name in CHOICES if not name.startswith("hub-")])
def test_a_gpu_runs_and_proves_it(name: str, kernels: Callable[[Sequence[str]], None]) -> None:
    """Every choice that is not refused here runs without pads in bf16, near eager, and brings its proof."""
    choice, environment = CHOICES[name], this_gpu()
    if (absent := choice.unavailable(environment)) is not None:
        pytest.skip(absent.text)
    torch.manual_seed(0)
    settings = {
        "vocab_size": 64,
        "hidden_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 256,
        "initializer_range": 0.05,
    }
    model: Any = (
        BertModel(BertConfig(**settings))
        if name == "bettertransformer"
        else LlamaForCausalLM(
            LlamaConfig(**settings, num_key_value_heads=4 if name == "sdpa-efficient" else 2)
        )  # rule A25
    )
    model = model.to("cuda", torch.bfloat16).eval()
    ids = torch.randint(0, 64, (4, 128), device="cuda")
    names: dict[str, Any] = {"torch": torch}
    with torch.inference_mode():
        model.set_attn_implementation("eager")
        expected = model(ids)[0]
        exec("\n".join([source_of(choice), *choice.before]), names)
        model.set_attn_implementation(ast.literal_eval(choice.load(Configuration.of({}))["attn_implementation"]))
        names["model"] = model
        exec("\n".join(choice.after), names)
        model = names["model"]
        output = model(ids)[0]
        with torch.profiler.profile() as profile:
            model(ids)
            torch.cuda.synchronize()
    launched = sorted({event.key[:200] for event in profile.key_averages()})
    read = reading(model.config._attn_implementation, launched, flash_impl=switches_torch.flash_impl())
    switches_torch.restore_flash()

    assert choice.proof(read) is None, [key for key in read.operators if "attention" in key or "flash" in key]
    assert float((output - expected).abs().max()) <= 0.02 * float(expected.abs().max())
