"""torchao's choices: what refuses them, what proves them, and real trials of those that a CPU runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from made_models import LLAMA_8B

from advisor.knobs import KNOBS, Reading, Situation, Term, Verdict, share_words
from advisor.knobs.choice import Reason
from advisor.machine import probe
from advisor.measure import fp32_torch
from advisor.measure.figures_torch import _brought_dependence
from advisor.measure.messages import (
    Gate,
    ReferenceAsked,
    ReferenceWritten,
    Timing,
    TrialAsked,
    TrialDone,
)
from advisor.measure.runner import LocalRunner, read_facts
from advisor.measure.stopping import Stopping
from advisor.models.checkpoint import find_model
from advisor.networks.readback_torch import linears_of, weight_bytes_of
from advisor.nouns.configuration import Configuration
from advisor.nouns.environment import Environment
from advisor.nouns.model import ModelFacts
from advisor.nouns.objective import Tier
from advisor.nouns.trial import Outcome, Trial
from advisor.quality.judge import depends_on_batch, tier_reached, wrong
from advisor.search.cost import predicted_cost, weight_bytes
from advisor.show.as_data import said
from advisor.workloads.forward import Forward

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "environments"
MODELS = ROOT / "tests" / "models"
CHOICES = {name: choice for name, choice in KNOBS["quantization"].choices.items() if name.startswith("torchao-")}
DYNAMIC_FP8 = ("torchao-fp8-dynamic-row", "torchao-fp8-dynamic-tensor")
ON_CPU = ("torchao-int8", "torchao-int8-dynamic", "torchao-fp8")
BASE = Configuration.of({"attention": "sdpa", "precision": "fp32", "quantization": "none", "packing": "padded"})


def machine(name: str, torchao: str | None = "0.18.0", **more: Any) -> Environment:
    """Return a golden machine with torchao."""
    found = Environment.of(json.loads((GOLDEN / f"{name}.json").read_text()))
    given = {"accelerate": "1.15.0", **({} if torchao is None else {"torchao": torchao})}
    return replace(found, packages={**found.packages, **given}, **more)


def reasons(name: str, where: Environment, facts: Any = LLAMA_8B, many: bool = False, **choices: str) -> list[Reason]:
    """Return what a choice says against itself there; in bf16 where nothing else is asked for."""
    configuration = BASE.replaced(quantization=name, **{"precision": "bf16", **choices})
    workload = Forward((8192,) * 4, 4) if many else Forward((64, 32), 2)
    return CHOICES[name].why_not(Situation(configuration, workload, where, facts))


def rules(
    name: str, where: Environment, facts: Any = LLAMA_8B, many: bool = False, **choices: str
) -> dict[str, Verdict]:
    """Return the same by rule."""
    return {reason.rule: reason.verdict for reason in reasons(name, where, facts, many, **choices)}


# ---------------------------------------------------------------------------------------------------------------- rules

UNAVAILABLE = {
    "h200": {},
    "rtx4090": {},
    "a100-mig-1g.10gb": dict.fromkeys(DYNAMIC_FP8, "Q8"),
    "t4": {"torchao-int4": "Q10", **dict.fromkeys(DYNAMIC_FP8, "Q8")},
    "v100": {"torchao-int4": "Q10", **dict.fromkeys(DYNAMIC_FP8, "Q8")},
    "cpu": {"torchao-int4": "Q10", **dict.fromkeys(DYNAMIC_FP8, "Q8")},
}


@pytest.mark.parametrize("name", sorted(UNAVAILABLE))
def test_what_a_machine_lacks_is_said_by_its_rule(name: str) -> None:
    """Dynamic fp8 needs compute capability 8.9, int4's kernel 8.0; int8, and fp8 of weights alone, run everywhere."""
    found = {choice: CHOICES[choice].unavailable(machine(name)) for choice in CHOICES}

    assert {choice: reason.rule for choice, reason in found.items() if reason is not None} == UNAVAILABLE[name]
    assert all(reason.verdict is Verdict.INVALID for reason in found.values() if reason is not None)


@pytest.mark.parametrize("version", [None, "0.15.0"])
def test_without_a_torchao_that_transformers_takes_the_command_is_said(version: str | None) -> None:
    """A missing torchao and one that is too old are refused alike, with what installs one."""
    for choice in CHOICES.values():
        reason = choice.unavailable(machine("h200", version))
        assert reason is not None
        assert (reason.rule, reason.remedy) == ("Q0", "pip install 'torchao>=0.16'")


@pytest.mark.parametrize("name", ["torchao-int4", "torchao-fp8-dynamic-row"])
def test_what_takes_bf16_alone_says_so_of_the_precision(name: str) -> None:
    """The pair is refused, and neither of the two by itself."""
    found = {reason.rule: reason for reason in reasons(name, machine("h200"), precision="fp16")}

    assert found["Q24"].about == "precision=fp16"
    assert found["Q24"].remedy == "choose bf16"
    assert "Q24" not in rules(name, machine("h200"))


def test_layers_that_would_be_skipped_are_an_alias() -> None:
    """Torchao leaves layers whose sizes do not fit as they are: int4 by groups of 128, dynamic fp8 by 16."""
    odd, odder = replace(LLAMA_8B, hidden_size=4160), replace(LLAMA_8B, hidden_size=4100)

    assert rules("torchao-int4", machine("h200"), odd)["Q11"] is Verdict.ALIAS
    assert "Q11" not in rules("torchao-fp8-dynamic-row", machine("h200"), odd)
    assert rules("torchao-fp8-dynamic-row", machine("h200"), odder)["Q11"] is Verdict.ALIAS
    assert "Q11" not in rules("torchao-int8", machine("h200"), odder)


def test_dynamic_ones_are_slow_where_nothing_is_compiled() -> None:
    """On a GPU an input is quantised by many small kernels unless they are compiled into few; on a CPU nothing is launched."""
    for name in ("torchao-int8-dynamic", *DYNAMIC_FP8):
        found = {reason.rule: reason for reason in reasons(name, machine("h200"))}
        assert (found["Q25"].verdict, found["Q25"].about) == (Verdict.SLOW, "compilation=off")
        assert "Q25" not in rules(name, machine("h200"), compilation="compiled-regional")
        assert "Q25" not in rules(name, machine("cpu"))
    for name in ("torchao-int8", "torchao-int4", "torchao-fp8"):
        assert "Q25" not in rules(name, machine("h200"))


def test_what_is_turned_into_floats_again_is_slow_with_many_tokens() -> None:
    """Rules Q3 and Q20 are of weights alone: products of dynamic ones are in 8 bits, whatever the precision."""
    for name in CHOICES:
        is_dynamic = "dynamic" in name
        assert ("Q20" in rules(name, machine("h200"), many=True)) is not is_dynamic
        assert ("Q3" in rules(name, machine("h200"), precision="fp32")) is not is_dynamic


def test_fp8_by_rows_is_warned_of_under_one_cuda() -> None:
    """Rule Q9: of CUDA 12.9 alone."""
    assert rules("torchao-fp8-dynamic-row", machine("h200", cuda="12.9"))["Q9"] is Verdict.WARN
    assert "Q9" not in rules("torchao-fp8-dynamic-row", machine("h200", cuda="13.0"))
    assert "Q9" not in rules("torchao-fp8-dynamic-tensor", machine("h200", cuda="12.9"))


def test_a_quantised_checkpoint_and_a_model_without_linear_layers_are_refused() -> None:
    """There is nothing to quantise for any of them."""
    for name in CHOICES:
        assert rules(name, machine("h200"), replace(LLAMA_8B, prequantized="gptq"))["Q16"] is Verdict.INVALID
        assert rules(name, machine("h200"), replace(LLAMA_8B, linear_parameters=0))["Q22"] is Verdict.ALIAS


def test_compiled_dynamic_fp8_is_expected_to_be_the_fastest_on_a_gpu() -> None:
    """As on an H200: 176 ms where bf16 took 324, 273 compiled, and fp8 uncompiled 365."""

    def cost(**choices: str) -> float:
        configuration = BASE.replaced(precision="bf16", **choices)
        return predicted_cost(Situation(configuration, Forward((2048,) * 8, 8), machine("h200"), LLAMA_8B))

    fp8 = "torchao-fp8-dynamic-row"
    assert (
        cost(quantization=fp8, compilation="compiled") < cost(compilation="compiled") < cost() < cost(quantization=fp8)
    )


def test_launches_cost_most_where_inputs_are_quantised_uncompiled() -> None:
    """What is compiled launches no more than without; the rest of them takes torchao's tensors apart in Python."""

    def rate(name: str, **choices: str) -> float:
        configuration = BASE.replaced(quantization=name, precision="bf16", **choices)
        where = Situation(configuration, Forward((64,), 1), machine("h200"), LLAMA_8B)
        return CHOICES[name].rates(where)[Term.LAUNCHES]

    assert (
        rate("torchao-fp8-dynamic-row")
        < rate("torchao-int8")
        < rate("torchao-int8", compilation="compiled-regional")
        == 1.0
    )


def test_tiers_and_independence_are_as_the_scales_say() -> None:
    """int4 is of the tier 4bit, the others 8bit; one scale for all inputs of a layer depends on the whole batch."""
    tiers = {name: choice.tier(LLAMA_8B) for name, choice in CHOICES.items()}

    assert {name for name, tier in tiers.items() if tier is Tier.FOUR_BIT} == {"torchao-int4"}
    assert {name for name in CHOICES if depends_on_batch(BASE.replaced(quantization=name))} == {
        "torchao-fp8-dynamic-tensor"
    }


def test_what_is_asked_for_is_data_too() -> None:
    """Formats that hold data have what asks for each; torchao's settings for the whole process are left out everywhere."""
    for name in CHOICES:
        found = said(BASE.replaced(quantization=name, precision="bf16"))
        settings = found.model_kwargs["quantization_config"]["quant_type"]["default"]
        assert not found.unsaid
        assert settings["_version"] == 2
        assert settings["_data"]["set_inductor_config"] is False


# ---------------------------------------------------------------------------------------------------------------- proof


def reading(linears: dict[str, int], **more: Any) -> Reading:
    """Return a reading with these linear layers."""
    return Reading({"": "sdpa"}, {"bfloat16": 1}, linears, ["aten::scaled_dot_product_attention"], {}, **more)


def test_every_choice_reads_back_as_itself_alone() -> None:
    """No two are named alike, and one's proof holds for none of the others."""
    for name, choice in CHOICES.items():
        found = reading({choice.traits.linear: 9, "Linear": 1})
        assert KNOBS["quantization"].effective(found) == name
        assert [other for other, one in CHOICES.items() if one.proof(found) is None] == [name]


def test_layers_that_were_skipped_are_counted() -> None:
    """Where fewer than half were quantised the choice is not proven, and says how many were."""
    few = reading({"Linear:Float8Tensor:row:dynamic-row": 28, "Linear": 85})
    enough = reading({"Linear:Float8Tensor:row:dynamic-row": 112, "Linear": 1})

    assert CHOICES["torchao-fp8-dynamic-row"].proof(few) == "only 28 of 113 linear layers quantised"
    assert CHOICES["torchao-fp8-dynamic-row"].proof(enough) is None
    assert share_words(enough) == "112 of 113 linear layers quantised"


@pytest.fixture
def tensors() -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Give what makes torchao's weights, those too whose products a CPU can't compute."""
    torchao = pytest.importorskip("torchao.quantization")
    fp8 = pytest.importorskip("torchao.quantization.quantize_.workflows.float8.float8_tensor")
    int8 = pytest.importorskip("torchao.quantization.quantize_.workflows.int8.int8_tensor")

    def of_fp8(granularity: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        inputs = fp8.QuantizeTensorToFloat8Kwargs(granularity=granularity)
        return lambda weight: fp8.Float8Tensor.from_hp(weight, granularity=granularity, act_quant_kwargs=inputs)

    inputs = int8.QuantizeTensorToInt8Kwargs(granularity=torchao.PerRow())
    return {
        "torchao-int8": lambda weight: int8.Int8Tensor.from_hp(weight, torchao.PerRow()),
        "torchao-int8-dynamic": lambda weight: int8.Int8Tensor.from_hp(
            weight, torchao.PerRow(), act_quant_kwargs=inputs
        ),
        "torchao-fp8": lambda weight: fp8.Float8Tensor.from_hp(weight, granularity=torchao.PerRow()),
        "torchao-fp8-dynamic-row": of_fp8(torchao.PerRow()),
        "torchao-fp8-dynamic-tensor": of_fp8(torchao.PerTensor()),
    }


@pytest.mark.parametrize("name", [name for name in CHOICES if name != "torchao-int4"])
def test_a_layer_is_named_by_what_its_weights_hold(name: str, tensors: dict[str, Any]) -> None:
    """The class of the layer stays torch's: the tensor's own class and settings are its name, and their bytes are counted."""
    model = torch.nn.Sequential(torch.nn.Linear(128, 64, bias=False), torch.nn.Linear(64, 16, bias=False)).bfloat16()
    model[0].weight = torch.nn.Parameter(tensors[name](model[0].weight.detach()), requires_grad=False)

    assert linears_of(model) == {CHOICES[name].traits.linear: 1, "Linear": 1}
    assert 0 <= weight_bytes_of(model) - (128 * 64 + 2 * 64 * 16) <= 5 * 64  # a scale of 4 bytes a row, and a zero
    depends = _brought_dependence(model)
    assert depends == (("the scale of the checkpoint's inputs",) if name == "torchao-fp8-dynamic-tensor" else ())


def test_quantised_weights_are_not_widened(tensors: dict[str, Any]) -> None:
    """They say that they are of floats, and are none: a reference in fp32 leaves them as they are."""
    model = torch.nn.Linear(128, 64).bfloat16()
    model.weight = torch.nn.Parameter(tensors["torchao-int8"](model.weight.detach()), requires_grad=False)
    with fp32_torch.in_fp32(model, "cpu"):
        assert model.bias.dtype == torch.float32
        assert linears_of(model) == {"Linear:Int8Tensor:row": 1}
        assert model.weight.dtype == torch.bfloat16
    assert model.bias.dtype == torch.bfloat16


def test_int8_in_fp16_overflows_where_fp16_does_not() -> None:
    """Rule Q26: products with whole numbers are rounded to fp16 before their scale makes them small."""
    api = pytest.importorskip("torchao.quantization")
    layer = torch.nn.Linear(4096, 8, bias=False).half()
    torch.nn.init.constant_(layer.weight, 0.02)
    inputs = torch.full((1, 4096), 2.0, dtype=torch.float16)
    before = layer(inputs)
    for config in (api.Int8WeightOnlyConfig, api.Int8DynamicActivationInt8WeightConfig):
        quantised = torch.nn.Linear(4096, 8, bias=False).half()
        quantised.load_state_dict(layer.state_dict())
        api.quantize_(quantised, config(version=2, set_inductor_config=False))
        assert torch.isinf(quantised(inputs)).all()
    assert before.max() < 200
    for name in ("torchao-int8", "torchao-int8-dynamic"):
        assert rules(name, machine("cpu"), precision="fp16")["Q26"] is Verdict.WARN
        assert "Q26" not in rules(name, machine("cpu"))


# --------------------------------------------------------------------------------------------------------------- trials


class Bench:
    """One shipped model in a worker, with its reference written."""

    def __init__(self, runner: LocalRunner, folder: Path, model: str, output: str, path: str = "") -> None:
        """Write the reference."""
        self.runner = runner
        self.source = find_model(str(MODELS / model / path))
        self.workload = Forward((48, 19, 33, 64, 25, 40), 3, output)
        self.facts = read_facts(self.runner, self.source, self.workload)
        common = {"source": self.source.files, "facts": self.facts, "workload": self.workload}
        self.common = {**common, "sample": tuple(range(6))}
        asked = ReferenceAsked(**self.common, path=str(folder / f"{model}{path}.pt"), configuration=BASE)
        reference = self.runner.run(asked, 120)
        assert isinstance(reference, ReferenceWritten), reference
        self.gate = Gate(path=asked.path, reference=reference.words, known={"layout": 0.0, "layout_words": "as it is"})

    def trial(self, **choices: str) -> tuple[TrialDone, Trial]:
        """Return what came of a trial, and it as one that is judged."""
        configuration = BASE.replaced(**choices)
        timing = Timing(stopping=Stopping(least=3, most=3, seconds=1.0, least_long=3, seconds_long=1.0))
        asked = TrialAsked(**self.common, configuration=configuration, gate=self.gate, timing=timing)
        came = self.runner.run(asked, 280)
        assert isinstance(came, TrialDone), came
        return came, Trial(1, configuration, came.effective or configuration, came.outcome, quality=came.quality)


def is_right(trial: Trial, facts: ModelFacts) -> bool:
    """Whether nothing is wrong with a trial's output, and its figures are those that 8 bits may have."""
    assert trial.quality is not None
    return wrong(trial, None, facts) == () and tier_reached(trial.quality, trial.ran, facts) is Tier.EIGHT_BIT


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Give a folder with a device lock of its own."""
    folder = tmp_path_factory.mktemp("torchao")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADVISOR_LOCK_DIR", str(folder))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield folder


@pytest.fixture(scope="module")
def runner(place: Path) -> Iterator[LocalRunner]:
    """Give the one worker that may hold the device."""
    pytest.importorskip("torchao")
    found = LocalRunner(probe.machine("cpu"), lambda _: None)
    yield found
    found.close()


@pytest.fixture(scope="module")
def causal(runner: LocalRunner, place: Path) -> Bench:
    """Give the shipped decoder."""
    return Bench(runner, place, "causal", "last-logits")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ON_CPU)
def test_a_trial_of_it_is_proven_right_and_counted(causal: Bench, name: str, precision: str) -> None:
    """It ran as itself on all linear layers but the output's, is right within 8 bits, and takes the bytes it is said to."""
    came, trial = causal.trial(quantization=name, precision=precision)
    (none, _) = causal.trial(precision=precision)

    assert (came.outcome, came.alias) == (Outcome.OK, "")
    assert came.effective == trial.requested
    assert came.reading["linears"] == {CHOICES[name].traits.linear: 28, "Linear": 1}
    assert trial.quality is not None
    assert trial.quality.quantised == "28 of 29 linear layers quantised"
    assert trial.quality.neighbours == 0.0
    assert is_right(trial, causal.facts)
    size = {"fp32": 4, "bf16": 2}[precision]
    quantised = causal.facts.linear_parameters - causal.facts.vocabulary * causal.facts.hidden_size
    expected = weight_bytes(causal.facts, causal.workload, trial.requested)
    assert came.weight_bytes is not None
    assert none.weight_bytes is not None
    assert (
        expected <= came.weight_bytes <= expected + 5 / 64 * quantised
    )  # no row is shorter than 64: scales, and zeros
    assert none.weight_bytes - came.weight_bytes > 0.9 * (size - 1) * quantised


def test_a_trial_of_another_choice_between_leaves_no_trace(causal: Bench) -> None:
    """What torchao would set for the whole process is left alone: fp32 after it is fp32, to the last bit."""
    before, _ = causal.trial(precision="fp32")
    causal.trial(quantization="torchao-int8-dynamic")
    after, _ = causal.trial(precision="fp32")

    assert before.quality is not None
    assert after.quality is not None
    assert after.quality.kl == before.quality.kl
    assert after.reading["float32_matmul"] == "highest"


@pytest.mark.parametrize("name", ON_CPU)
def test_an_encoder_is_quantised_too(runner: LocalRunner, place: Path, name: str) -> None:
    """BERT's layers are torch's, and its inputs have pads."""
    bench = Bench(runner, place, "encoder", "pooled")
    came, trial = bench.trial(quantization=name)

    assert (came.outcome, came.alias) == (Outcome.OK, "")
    assert is_right(trial, bench.facts)


@pytest.mark.slow
@pytest.mark.parametrize("compilation", ["compiled-regional", "compiled"])
@pytest.mark.parametrize("name", ON_CPU)
def test_it_is_compiled(causal: Bench, name: str, compilation: str) -> None:
    """Torch's compiler takes torchao's weights, layer by layer and as a whole: proven as both, and right."""
    came, trial = causal.trial(quantization=name, compilation=compilation)

    assert (came.outcome, came.alias) == (Outcome.OK, "")
    assert came.effective == trial.requested
    assert trial.quality is not None
    assert trial.quality.quantised == "28 of 29 linear layers quantised"
    assert is_right(trial, causal.facts)


@pytest.mark.parametrize("name", ON_CPU)
def test_drawn_weights_are_quantised_too(runner: LocalRunner, place: Path, name: str) -> None:
    """A model without weights has them drawn and quantised alike."""
    bench = Bench(runner, place, "causal", "last-logits", "config.json")
    came, _ = bench.trial(quantization=name)

    assert (came.outcome, came.alias) == (Outcome.OK, "")
    assert came.reading["linears"] == {CHOICES[name].traits.linear: 28, "Linear": 1}
