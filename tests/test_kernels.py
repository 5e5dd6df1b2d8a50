"""Liger's kernels: where they are refused, what proves that they ran, and that nothing of them stays."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from made_models import LLAMA_8B
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

from advisor.knobs import KNOBS, Reading, Situation, Verdict, effective_choices, tier_of, weights_of
from advisor.knobs.kernels_torch import knows, replaced, types_in
from advisor.networks.load_torch import statements
from advisor.nouns.configuration import Configuration
from advisor.nouns.environment import Environment
from advisor.nouns.objective import Tier
from advisor.show.source_lines import setup_of
from advisor.workloads.forward import Forward

GOLDEN = Path(__file__).parent / "environments"
KNOB = KNOBS["kernels"]
LIGER, NONE = KNOB.choices["liger"], KNOB.choices["none"]

#: Golden machines as they are, and with what Liger needs.
MACHINES = {path.stem: Environment.of(json.loads(path.read_text())) for path in sorted(GOLDEN.glob("*.json"))}
WITH_LIGER = {
    name: replace(each, packages={**each.packages, "liger-kernel": "0.8.5", "triton": "3.6.0"})
    for name, each in MACHINES.items()
}
WORK = Forward((64, 32, 48, 16), 2)
BERT = replace(LLAMA_8B, architecture="BertModel", model_type="bert", is_causal=False)


def said(configuration: dict[str, str], facts: Any = LLAMA_8B) -> dict[str, Verdict]:
    """Return the rules that Liger has against itself, by id."""
    plain = {"attention": "sdpa", "precision": "bf16", "quantization": "none", "packing": "padded", "kernels": "liger"}
    situation = Situation(Configuration.of({**plain, **configuration}), WORK, WITH_LIGER["h200"], facts)
    return {reason.rule: reason.verdict for reason in LIGER.why_not(situation)}


@pytest.mark.parametrize("name", sorted(MACHINES))
def test_liger_runs_where_triton_does(name: str) -> None:
    """No golden machine has the package; with it every GPU takes it, and a CPU does not, for the reason that is true."""
    without, having = LIGER.unavailable(MACHINES[name]), LIGER.unavailable(WITH_LIGER[name])

    assert without is not None
    assert without.rule == "K5"
    if MACHINES[name].is_cuda:
        assert having is None
        assert without.remedy in ("pip install liger-kernel", "pip install triton")
    else:
        assert having is not None
        assert having.remedy == "use a GPU"


def test_liger_needs_what_it_is_written_in() -> None:
    """Each package that is missing is named, and a GPU that triton makes no kernels for is refused."""
    has = WITH_LIGER["h200"]
    for package in ("triton", "liger-kernel"):
        lacking = replace(has, packages={name: version for name, version in has.packages.items() if name != package})
        reason = LIGER.unavailable(lacking)
        assert reason is not None
        assert (reason.rule, reason.remedy) == ("K5", f"pip install {package}")
    old = LIGER.unavailable(replace(has, compute_capability=(6, 1)))
    assert old is not None
    assert "7.0" in old.text


def test_what_liger_does_not_know_is_refused() -> None:
    """Encoders are, and a type of model that the installed Liger lacks. What was never looked up is tried: the proof says."""
    assert said({}, BERT) == {"K6": Verdict.INVALID}
    assert said({}, replace(LLAMA_8B, liger=False)) == {"K6": Verdict.INVALID}
    assert said({}, replace(LLAMA_8B, liger=True)) == said({}, LLAMA_8B) == {}
    assert said({"quantization": "nf4"}) == said({"packing": "packed"}) == {}


@pytest.mark.parametrize(
    "compilation", [name for name, choice in KNOBS["compilation"].choices.items() if choice.traits.compiles_model]
)
def test_liger_and_a_compiler_are_slow_together(compilation: str) -> None:
    """K4 is about the compilation, and refuses nothing."""
    assert said({"compilation": compilation}) == {"K4": Verdict.SLOW}


def test_liger_is_exact_and_shares_weights() -> None:
    """It changes no numbers beyond rounding, loads nothing anew, and is the whole process's; without it nothing is said."""
    plain = Configuration.of({"attention": "sdpa", "precision": "bf16", "quantization": "none", "packing": "padded"})
    liger = plain.replaced(kernels="liger")

    assert tier_of(liger.items(), LLAMA_8B) is Tier.EXACT
    assert weights_of(liger, switches_attention=True) == weights_of(plain, switches_attention=True)
    assert LIGER.traits.process_wide
    assert plain.replaced(kernels="none") == plain


def test_the_script_keeps_logits() -> None:
    """The lines that are printed are those that are run: after loading, before what compiles, and without Liger's losses."""
    told = Configuration.of(
        {
            "attention": "sdpa",
            "precision": "bf16",
            "quantization": "none",
            "packing": "padded",
            "kernels": "liger",
            "compilation": "compiled",
        }
    )
    setup = setup_of(told)

    assert "from liger_kernel.transformers import _apply_liger_kernel_to_instance" in setup.imports
    assert list(setup.after) == [
        (
            '_apply_liger_kernel_to_instance(model=getattr(model, "get_base_model", lambda: model)(), '
            "cross_entropy=False, fused_linear_cross_entropy=False)"
        ),
        "model.compile()",
    ]


FOUND = {"LigerRMSNorm": 5, "LigerSwiGLUMLP": 2, "apply_rotary_pos_emb": 1}


@pytest.mark.parametrize(
    ("found", "operators", "ran", "words"),
    [
        (FOUND, ["aten::linear", "LigerRMSNormFunction"], "liger", None),
        (FOUND, ["aten::linear", "_rms_norm_forward_kernel", "_triton_rope"], "liger", None),
        (FOUND, ["Torch-Compiled Region: 0/0"], "liger", None),
        (FOUND, ["aten::linear", "aten::rsqrt"], "none", "none of Liger's functions was launched"),
        ({}, ["aten::linear", "aten::rsqrt"], "none", "Liger replaced nothing in this model, without a word"),
        (None, ["aten::linear"], "none", "Liger replaced nothing in this model, without a word"),
    ],
    ids=["functions", "kernels", "compiled", "not launched", "not replaced", "never read"],
)
def test_a_reading_proves_liger(
    found: dict[str, int] | None, operators: list[str], ran: str, words: str | None
) -> None:
    """It takes what was replaced and what was launched; and where Liger is in the model, nobody is told that it is not."""
    own = {} if found is None else {"kernels": found}
    reading = Reading({"": "sdpa"}, {"bfloat16": 1}, {"Linear": 1}, operators, {}, own=own)

    assert KNOB.effective(reading) == ran
    assert LIGER.proof(reading) == words
    assert (NONE.proof(reading) is None) is not bool(found)
    stored = effective_choices(reading, WORK)["kernels"]
    assert stored == ("none (unproven)" if found and ran == "none" else ran)


def test_a_loss_that_is_compiled_hides_no_layers() -> None:
    """What ran of layers is seen beside it: a region proves neither Liger nor autocast, and one of layers does."""
    shown = ["Torch-Compiled Region: 0/0", "aten::mm"]
    found = {"kernels": FOUND, "autocast": "torch.bfloat16"}
    for asked, said in (("compiled-loss", "none of Liger's functions was launched"), ("compiled-regional", None)):
        own = {**found, "compilation": {"asked": asked, "modules": 1}}
        reading = Reading({"": "sdpa"}, {"bfloat16": 1}, {"Linear": 1}, shown, {}, own=own, compiled_regions=1)

        assert LIGER.proof(reading) == said
        assert (KNOBS["autocast"].choices["autocast-bf16"].proof(reading) is None) is (said is None)


def test_the_table_of_types_is_read_of_the_source() -> None:
    """The keys of Liger's table are found in its source, with a type in the annotation and without; elsewhere none are."""
    for annotation in ("", ": dict[str, Callable]"):
        table = f"MODEL_TYPE_TO_APPLY_LIGER_FN{annotation} = {{\n    \"llama\": apply_llama,\n    'qwen3_moe': f,\n}}\n"
        assert types_in(f'A = {{"x": 1}}\n{table}B = {{\n    "y": 2,\n}}\n') == {"llama", "qwen3_moe"}
    assert types_in("OTHER = {}\n") == frozenset()


HAS_LIGER = importlib.util.find_spec("liger_kernel") is not None


def llama() -> LlamaForCausalLM:
    """Return a small decoder."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, **sizes)).eval()


def patched(model: Any) -> None:
    """Do what the worker does to a loaded model."""
    names = statements([LIGER])
    assert KNOB.undo is not None
    KNOB.undo(model)
    for line in LIGER.on_model:
        exec(line, {**names, "model": model})


def test_nothing_is_ligers_where_nothing_was_replaced() -> None:
    """A model as it was loaded has nothing of Liger's, and taking back leaves its functions and its output alone."""
    model, ids = llama(), torch.arange(16).view(2, 8)
    norm, rope = modeling_llama.LlamaRMSNorm, modeling_llama.apply_rotary_pos_emb
    with torch.inference_mode():
        before = model(ids).logits
        assert KNOB.undo is not None
        KNOB.undo(model)
        assert replaced(model) == {}
        assert torch.equal(model(ids).logits, before)
    assert (modeling_llama.LlamaRMSNorm, modeling_llama.apply_rotary_pos_emb) == (norm, rope)


@pytest.mark.skipif(not HAS_LIGER, reason="no liger-kernel")
def test_liger_replaces_and_is_taken_back() -> None:
    """What the installed Liger puts into a model and its class's module is counted, and is gone afterwards: no GPU is needed."""
    assert knows("llama") is True
    assert knows("bert") is False
    model, ids = llama(), torch.arange(16).view(2, 8)
    norm, rope = modeling_llama.LlamaRMSNorm, modeling_llama.apply_rotary_pos_emb
    with torch.inference_mode():
        before = model(ids).logits
        patched(model)
        assert replaced(model) == FOUND
        assert modeling_llama.apply_rotary_pos_emb is not rope
        assert KNOB.undo is not None
        KNOB.undo(model)
        assert replaced(model) == {}
        assert torch.equal(model(ids).logits, before)
    assert (modeling_llama.LlamaRMSNorm, modeling_llama.apply_rotary_pos_emb) == (norm, rope)


@pytest.mark.gpu
@pytest.mark.skipif(not (HAS_LIGER and torch.cuda.is_available()), reason="no GPU, or no liger-kernel")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_liger_runs_on_a_gpu(dtype: torch.dtype) -> None:
    """It runs, gives logits near torch's, and what is read and launched proves it, with a GPU's kernels and without."""
    model, ids = llama().to("cuda", dtype), torch.arange(64, device="cuda").view(2, 32)
    with torch.inference_mode():
        expected = model(ids).logits
        patched(model)
        output = model(ids).logits
        for activities in ([torch.profiler.ProfilerActivity.CPU], None):
            with torch.profiler.profile(activities=activities) as profile:
                model(ids)
                torch.cuda.synchronize()
            operators = sorted({event.key[:200] for event in profile.key_averages()})
            own = {"kernels": replaced(model)}
            assert LIGER.proof(Reading({"": "sdpa"}, {}, {}, operators, {}, own=own)) is None, operators
        assert KNOB.undo is not None
        KNOB.undo(model)
        assert torch.equal(model(ids).logits, expected)
    assert float((output - expected).abs().max()) <= 0.02 * float(expected.abs().max())
