"""The rules of validity on golden machines: what must be refused is, and what is right is not."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_models import LLAMA_8B

from advisor.knobs import KNOBS, Reason, Situation, Verdict, tier_of
from advisor.nouns.configuration import Configuration
from advisor.nouns.environment import Environment
from advisor.nouns.objective import Tier
from advisor.workloads.forward import Forward

GOLDEN = Path(__file__).parent / "environments"
MACHINES = {path.stem: Environment.of(json.loads(path.read_text())) for path in sorted(GOLDEN.glob("*.json"))}

LLAMA = LLAMA_8B

MODELS = {
    "llama": LLAMA,
    "llama-fp32": replace(LLAMA, checkpoint_dtype="float32"),
    "gemma2": replace(LLAMA, architecture="Gemma2ForCausalLM", model_type="gemma2", head_dim=256, softcap=True,
                      supports_sdpa=False, default_attention="eager"),
    "softcap-sdpa": replace(LLAMA, softcap=True),
    "bloom": replace(LLAMA, architecture="BloomForCausalLM", model_type="bloom", alibi=True, supports_sdpa=False,
                     supports_flash=False, switches_attention=False, default_attention="eager"),
    "head-80": replace(LLAMA, head_dim=80),
    "head-72": replace(LLAMA, head_dim=72),
    "head-320": replace(LLAMA, head_dim=320),
    "head-100": replace(LLAMA, head_dim=100),
    "gpt-oss": replace(LLAMA, architecture="GptOssForCausalLM", model_type="gpt_oss", head_dim=64),
    "sliding": replace(LLAMA, sliding_window=512, layer_types=("sliding_attention",)),
    "hybrid": replace(LLAMA, layer_types=("full_attention", "linear_attention")),
    "gptq": replace(LLAMA, prequantized="gptq"),
    "awq": replace(LLAMA, prequantized="awq"),
    "fp8": replace(LLAMA, prequantized="fp8"),
    "mxfp4": replace(LLAMA, prequantized="mxfp4"),
    "no linears": replace(LLAMA, linear_parameters=0),
    "bert": replace(LLAMA, architecture="BertModel", model_type="bert", is_causal=False, max_positions=512, head="pooler"),
    "roberta": replace(LLAMA, architecture="RobertaModel", model_type="roberta", is_causal=False, position_offset=2),
    "opt": replace(LLAMA, architecture="OPTForCausalLM", model_type="opt", packed_row="wrong"),
    "esm": replace(LLAMA, architecture="EsmModel", model_type="esm", is_causal=False, packed_row="raises"),
    "modernbert": replace(LLAMA, architecture="ModernBertModel", model_type="modernbert", is_causal=False, sliding_window=16,
                          layer_types=("full_attention", "sliding_attention")),
    "modernbert-wide": replace(LLAMA, architecture="ModernBertModel", model_type="modernbert", is_causal=False,
                               sliding_window=64, layer_types=("full_attention", "sliding_attention")),
}  # fmt: skip

WORKLOADS = {
    "padded": Forward((64, 32, 48, 16), 2),
    "even": Forward((64, 64, 64, 64), 2),
    "long": Forward((2048, 512, 1024, 256), 2),
    "in order": Forward((64, 48, 32, 16), 2),
    "many": Forward((2048, 1024) * 16, 32),
    "scores": Forward((64, 32, 48, 16), 2, "scores"),
    "auto": Forward((64, 32, 48, 16), None),
}

FLASH = {"attention": "flash_attention_2"}

#: machine, model, workload, what differs from sdpa/bf16/none/padded, the knob whose choice has the reason, the rule.
EXPECTED = [
    ("t4", "llama", "padded", FLASH, "attention", "A1", Verdict.INVALID),
    ("v100", "llama", "padded", FLASH, "attention", "A1", Verdict.INVALID),
    ("h200", "llama", "padded", FLASH | {"precision": "fp32"}, "attention", "A4", Verdict.INVALID),
    ("h200", "llama", "padded", FLASH | {"precision": "tf32"}, "attention", "A4", Verdict.INVALID),
    ("h200", "head-320", "padded", FLASH, "attention", "A5", Verdict.INVALID),
    ("h200", "head-100", "padded", FLASH, "attention", "A5", Verdict.INVALID),
    ("h200", "bloom", "padded", FLASH, "attention", "A8", Verdict.INVALID),
    ("h200", "bloom", "padded", {}, "attention", "A9", Verdict.INVALID),
    ("h200", "gemma2", "padded", {}, "attention", "A9", Verdict.INVALID),
    ("h200", "softcap-sdpa", "padded", {}, "attention", "A11", Verdict.INVALID),
    ("h200", "bloom", "padded", FLASH, "attention", "A13", Verdict.INVALID),
    ("h200", "gpt-oss", "padded", FLASH, "attention", "A14", Verdict.ALIAS),
    ("cpu", "llama", "padded", FLASH, "attention", "A18", Verdict.INVALID),
    ("rtx4090", "llama", "padded", FLASH, "attention", "A18", Verdict.INVALID),
    ("h200", "sliding", "long", {}, "attention", "A28", Verdict.SLOW),
    ("h200", "llama", "long", {"attention": "eager"}, "attention", "A0", Verdict.SLOW),
    ("t4", "llama", "padded", {}, "precision", "D1", Verdict.INVALID),
    ("v100", "llama", "padded", {}, "precision", "D1", Verdict.INVALID),
    ("cpu", "llama-fp32", "padded", {"precision": "tf32"}, "precision", "D2", Verdict.INVALID),
    ("t4", "llama-fp32", "padded", {"precision": "tf32"}, "precision", "D2", Verdict.INVALID),
    ("h200", "llama", "padded", {"precision": "tf32", "quantization": "nf4"}, "precision", "D2", Verdict.INVALID),
    ("h200", "llama", "padded", {"precision": "fp16"}, "precision", "D3", Verdict.WARN),
    ("cpu", "llama", "padded", {"packing": "packed-cached"}, "packing", "P1", Verdict.WRONG),
    ("h200", "llama", "padded", {"packing": "packed-cached", "attention": "eager"}, "packing", "P1", Verdict.WRONG),
    ("h200", "llama", "padded", {"packing": "packed-2d-mask"}, "packing", "P2", Verdict.WRONG),
    ("h200", "llama", "padded", {"packing": "packed-cu-seq-lens-only"}, "packing", "P3", Verdict.WRONG),
    ("h200", "llama", "padded", {"packing": "packed"}, "packing", "P6", Verdict.SLOW),
    ("h200", "hybrid", "padded", {"packing": "packed"}, "packing", "P7", Verdict.INVALID),
    ("h200", "llama", "padded", FLASH, "attention", "P11", Verdict.WARN),
    ("h200", "llama", "padded", {}, "attention", "P12", Verdict.WARN),
    ("h200", "llama", "padded", {"packing": "sorted"}, "attention", "P12", Verdict.WARN),
    ("h200", "llama", "even", {"packing": "packed"}, "packing", "P14", Verdict.ALIAS),
    ("h200", "llama", "padded", {"packing": "packed-bool-mask", "attention": "eager"}, "packing", "P15", Verdict.WRONG),
    ("h200", "bloom", "padded", {"packing": "packed", "attention": "eager"}, "packing", "P16", Verdict.WRONG),
    ("h200", "llama", "padded", FLASH | {"packing": "packed-cached"}, "packing", "P17", Verdict.ALIAS),
    ("h200", "llama", "padded", {"packing": "packed-bool-mask"}, "packing", "P17", Verdict.ALIAS),
    ("h200", "llama", "even", {"packing": "sorted"}, "packing", "P18", Verdict.ALIAS),
    ("h200", "llama", "in order", {"packing": "sorted"}, "packing", "P18", Verdict.ALIAS),
    ("rtx4090", "llama", "padded", {"quantization": "nf4"}, "quantization", "Q0", Verdict.INVALID),
    ("v100", "llama", "padded", {"quantization": "int8", "precision": "fp16"}, "quantization", "Q2", Verdict.INVALID),
    ("h200", "llama", "padded", {"quantization": "nf4", "precision": "fp32"}, "quantization", "Q3", Verdict.SLOW),
    ("h200", "llama", "padded", {"quantization": "int8"}, "quantization", "Q5", Verdict.WARN),
    ("h200", "gptq", "padded", {"quantization": "nf4"}, "quantization", "Q16", Verdict.INVALID),
    ("h200", "gptq", "padded", {"quantization": "none"}, "quantization", "Q16", Verdict.INVALID),
    ("h200", "llama", "padded", {"quantization": "checkpoint"}, "quantization", "Q16", Verdict.INVALID),
    ("a100-mig-1g.10gb", "fp8", "padded", {"quantization": "checkpoint"}, "quantization", "Q7", Verdict.WARN),
    ("t4", "mxfp4", "padded", {"quantization": "none"}, "quantization", "Q16", Verdict.INVALID),
    ("v100", "mxfp4", "padded", {"quantization": "checkpoint"}, "quantization", "Q13", Verdict.WARN),
    ("h200", "awq", "padded", {"quantization": "checkpoint"}, "quantization", "Q15", Verdict.ALIAS),
    ("h200", "no linears", "padded", {"quantization": "nf4"}, "quantization", "Q22", Verdict.ALIAS),
    ("h200", "llama", "padded", {"quantization": "int8-no-outliers"}, "quantization", "Q23", Verdict.WARN),
    ("h200", "llama", "padded", FLASH | {"packing": "packed-two-rows"}, "packing", "P4", Verdict.WRONG),
    ("h200", "llama", "padded", {"packing": "packed-two-rows"}, "packing", "P17", Verdict.ALIAS),
    ("h200", "llama", "padded", FLASH | {"packing": "packed-zeros-in-mask"}, "packing", "P5", Verdict.WRONG),
    ("h200", "roberta", "padded", FLASH | {"packing": "packed-positions-from-0"}, "packing", "P8", Verdict.WRONG),
    ("h200", "bert", "padded", FLASH | {"packing": "packed-positions-from-0"}, "packing", "P17", Verdict.ALIAS),
    ("h200", "bert", "padded", {"packing": "packed-no-mask"}, "packing", "P19", Verdict.WRONG),
    ("h200", "bert", "padded", FLASH | {"packing": "packed-no-mask"}, "packing", "P17", Verdict.ALIAS),
    ("h200", "llama", "scores", {"packing": "packed"}, "packing", "P21", Verdict.INVALID),
    ("h200", "opt", "padded", {"packing": "packed"}, "packing", "P22", Verdict.WRONG),
    ("h200", "modernbert", "padded", {"packing": "packed"}, "packing", "P24", Verdict.WRONG),
    ("h200", "esm", "padded", {"packing": "packed"}, "packing", "P25", Verdict.INVALID),
    ("h200", "llama", "auto", {"batch": "16"}, "batch", "B2", Verdict.ALIAS),
    ("h200", "llama", "many", {"quantization": "nf4"}, "quantization", "Q20", Verdict.SLOW),
]

#: machine, model, workload, choices: right as they stand, so nothing may refuse them.
ADMISSIBLE = [
    ("h200", "llama", "padded", {}),
    ("h200", "llama", "padded", {"attention": "eager"}),
    ("h200", "llama", "padded", FLASH),
    ("h200", "llama", "padded", FLASH | {"packing": "packed"}),
    ("h200", "llama", "padded", FLASH | {"precision": "fp16", "packing": "packed"}),
    ("h200", "llama", "padded", {"packing": "sorted"}),
    ("h200", "llama", "padded", {"packing": "packed"}),
    ("h200", "llama", "even", FLASH),
    ("h200", "llama", "many", {"quantization": "nf4"}),
    ("h200", "llama", "padded", {"quantization": "int8", "precision": "fp16"}),
    ("h200", "llama-fp32", "padded", {"precision": "tf32"}),
    ("h200", "llama-fp32", "padded", {"precision": "fp32"}),
    ("h200", "head-80", "padded", FLASH),
    ("h200", "head-72", "padded", FLASH),
    ("h200", "head-320", "padded", {}),
    ("h200", "gemma2", "padded", {"attention": "eager"}),
    ("h200", "gemma2", "padded", FLASH | {"packing": "packed"}),
    ("h200", "bloom", "padded", {"attention": "eager"}),
    ("h200", "gpt-oss", "padded", {"attention": "eager"}),
    ("h200", "sliding", "long", FLASH | {"packing": "packed"}),
    ("h200", "hybrid", "padded", {"packing": "sorted"}),
    ("h200", "gptq", "padded", {"quantization": "checkpoint"}),
    ("h200", "llama", "padded", {"quantization": "int8-no-outliers", "precision": "fp16"}),
    ("h200", "llama", "padded", {"quantization": "nf4-double"}),
    ("h200", "bert", "padded", {"packing": "packed"}),
    ("h200", "bert", "padded", FLASH | {"packing": "packed"}),
    ("h200", "roberta", "padded", FLASH | {"packing": "packed"}),
    ("h200", "bert", "scores", {"packing": "packed"}),
    ("h200", "opt", "padded", FLASH | {"packing": "packed"}),
    ("h200", "modernbert", "padded", FLASH | {"packing": "packed"}),
    ("h200", "modernbert-wide", "padded", {"packing": "packed"}),
    ("rtx4090", "llama", "padded", {"packing": "packed"}),
    ("t4", "llama", "padded", {"precision": "fp16"}),
    ("t4", "llama", "padded", {"precision": "fp16", "quantization": "int8"}),
    ("v100", "llama", "padded", {"precision": "fp16", "quantization": "nf4"}),
    ("a100-mig-1g.10gb", "llama", "padded", FLASH | {"packing": "packed"}),
    ("cpu", "llama", "padded", {}),
    ("cpu", "llama-fp32", "padded", {"precision": "fp32", "packing": "packed"}),
]


def situation(machine: str, model: str, workload: str, choices: dict[str, str]) -> Situation:
    """Return a situation whose configuration is sdpa, bf16, unquantised and padded except for `choices`."""
    plain = {"attention": "sdpa", "precision": "bf16", "quantization": "none", "packing": "padded"}
    configuration = Configuration.of({**plain, **choices})
    return Situation(configuration, WORKLOADS[workload].under(configuration), MACHINES[machine], MODELS[model])


def reasons(where: Situation) -> dict[str, list[Reason]]:
    """Return what every knob's choice says against itself in this situation."""
    said: dict[str, list[Reason]] = {}
    for knob, name in where.configuration.over(KNOBS):
        choice = KNOBS[knob].choices[name]
        absent = choice.unavailable(where.environment)
        said[knob] = ([absent] if absent else []) + choice.why_not(where)
    return said


def name_of(case: object) -> str | None:
    """Name a case of the tables by its parts."""
    return "+".join(case.values()) or "plain" if isinstance(case, dict) else None


@pytest.mark.parametrize(("machine", "model", "workload", "choices", "knob", "rule", "verdict"), EXPECTED, ids=name_of)
def test_the_right_choice_names_the_rule(
    machine: str, model: str, workload: str, choices: dict[str, str], knob: str, rule: str, verdict: Verdict
) -> None:
    """Where a rule of levers.md applies, the choice that it is about says so under its id and with its verdict."""
    said = {reason.rule: reason.verdict for reason in reasons(situation(machine, model, workload, choices))[knob]}

    assert said.get(rule) == verdict, said


@pytest.mark.parametrize(("machine", "model", "workload", "choices"), ADMISSIBLE, ids=name_of)
def test_a_right_configuration_is_not_refused(machine: str, model: str, workload: str, choices: dict[str, str]) -> None:
    """A configuration that runs and is right there has no reason that refuses it."""
    said = reasons(situation(machine, model, workload, choices))

    assert [reason for knob in said.values() for reason in knob if reason.verdict.refuses] == []


def test_old_flash_attention_can_not_cap_scores() -> None:
    """Softcap with flash-attn before 2.6 is refused as A12, and flash-attn before 2.3.3 as A18."""
    where = situation("h200", "gemma2", "padded", FLASH)
    packages = where.environment.packages
    old = replace(where, environment=replace(where.environment, packages={**packages, "flash-attn": "2.5.9"}))
    older = replace(where.environment, packages={**packages, "flash-attn": "2.3.2"})

    assert "A12" in {reason.rule for reason in reasons(old)["attention"]}
    assert "A12" not in {reason.rule for reason in reasons(where)["attention"]}
    absent = KNOBS["attention"].choices["flash_attention_2"].unavailable(older)
    assert absent is not None
    assert absent.rule == "A18"


def test_a_pair_rule_names_the_other_choice() -> None:
    """A reason that depends on another knob says on which choice, so that the pair can be refused and not the knob."""
    where = situation("h200", "llama", "padded", FLASH | {"precision": "fp32"})
    said = {reason.rule: reason for reason in reasons(where)["attention"]}

    assert said["A4"].about == "precision=fp32"
    assert said["A4"].remedy


def test_remedies_are_commands_where_a_package_is_missing() -> None:
    """A missing package's reason holds the command that installs it."""
    for knob, name in (("attention", "flash_attention_2"), ("quantization", "nf4"), ("quantization", "int8")):
        absent = KNOBS[knob].choices[name].unavailable(MACHINES["rtx4090"])

        assert absent is not None
        assert absent.remedy.startswith("pip install ")


def test_tiers_follow_the_worst_choice() -> None:
    """A configuration's tier is the worst of its choices', and a checkpoint's own dtype or a wider one is exact."""
    plain = {"attention": "sdpa", "packing": "packed", "quantization": "none"}
    expected = {
        ("llama", "bf16"): Tier.EXACT,
        ("llama", "fp32"): Tier.EXACT,
        ("llama", "fp16"): Tier.DTYPE,
        ("llama-fp32", "tf32"): Tier.DTYPE,
        ("llama-fp32", "bf16"): Tier.DTYPE,
    }

    assert {
        (model, name): tier_of({**plain, "precision": name}.items(), MODELS[model]) for model, name in expected
    } == expected
    assert tier_of({**plain, "quantization": "int8"}.items(), LLAMA) == Tier.EIGHT_BIT
    assert tier_of({**plain, "quantization": "nf4", "precision": "fp16"}.items(), LLAMA) == Tier.FOUR_BIT


@pytest.mark.parametrize("name", sorted(MACHINES))
def test_golden_machines_round_trip(name: str) -> None:
    """A golden machine is exactly an Environment's payload, so its key is the one the store would use."""
    payload = json.loads((GOLDEN / f"{name}.json").read_text())

    assert Environment.of(payload).payload == payload
    assert Environment.of(payload).key == MACHINES[name].key


configurations = st.fixed_dictionaries({name: st.sampled_from(sorted(knob.choices)) for name, knob in KNOBS.items()})
workloads = st.builds(Forward, st.lists(st.integers(1, 9000), min_size=1, max_size=40).map(tuple), st.integers(1, 16))


@given(configurations, workloads, st.sampled_from(sorted(MACHINES)), st.sampled_from(sorted(MODELS)))
def test_rules_answer_for_every_combination(
    choices: dict[str, str], workload: Forward, machine: str, model: str
) -> None:
    """No combination of choices, model, machine and workload makes a rule fail; every reason can be read and traced."""
    where = Situation(Configuration.of(choices), workload, MACHINES[machine], MODELS[model])

    for knob, said in reasons(where).items():
        for reason in said:
            assert re.fullmatch(r"[A-Z]\d+", reason.rule)
            assert reason.text.strip()
            assert isinstance(reason.verdict, Verdict)
            assert not reason.about or reason.about.split("=")[0] != knob
        choice = KNOBS[knob].choices[choices[knob]]
        assert all(rate > 0 for rate in choice.rates(where).values())
        assert all(isinstance(value, str) for value in choice.load(where.configuration).values())
