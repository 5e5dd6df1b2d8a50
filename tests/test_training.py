"""Training: what a step is, that every configuration does the same one, that it is given back, and what is caught."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace as replace_struct
from torch.profiler import ProfilerActivity, profile

import advisor
from advisor.errors import BadInput
from advisor.faces.cli import run
from advisor.knobs import KNOBS, Batching, Situation, baseline_choices, collate, function_of, traits_of
from advisor.measure import proof_torch
from advisor.measure.course_torch import COURSE_STEPS, reference_course
from advisor.measure.figures_torch import figures_of
from advisor.measure.messages import Gate, Subject
from advisor.measure.proof_torch import Profiled, launched_of
from advisor.measure.session_torch import Session
from advisor.models.checkpoint import find_model
from advisor.networks import switches_torch
from advisor.networks.call_torch import accepted
from advisor.nouns.configuration import Configuration
from advisor.nouns.measurement import Measurement
from advisor.nouns.metrics import ASSUMED_BESIDE_BYTES, METRICS, default_metric
from advisor.nouns.model import ModelFacts
from advisor.nouns.objective import Objective, Tier
from advisor.nouns.trial import Outcome, Quality, Trial
from advisor.quality.judge import wrong
from advisor.quality.limits import COARSE, COURSE_MOST, FULL
from advisor.search.cost import predicted_bytes
from advisor.search.late import BEST, opened
from advisor.search.room import longest_that_fits
from advisor.search.space import build_space, refusals_of
from advisor.show.support import LLAMA, MACHINES
from advisor.storage.store import Store
from advisor.workloads import kind_of, workload_of
from advisor.workloads.runtime import Call
from advisor.workloads.train import Accumulated, Training
from advisor.workloads.train_around_torch import blocking, without_dropout
from advisor.workloads.train_torch import IGNORED, TrainingRuntime, with_labels

ROOT = Path(__file__).parent.parent
CAUSAL = ROOT / "tests" / "models" / "causal"
H200, CPU = MACHINES["NVIDIA H200"], MACHINES["CPU"]
LENGTHS = (40, 12, 25, 9, 33, 17, 8, 21)
WORK = Training(LENGTHS, 4)
PLAIN = Configuration.of(baseline_choices(replace(LLAMA, checkpoint_dtype="float32"), WORK))


@pytest.fixture(scope="module", autouse=True)
def _here(tmp_path_factory: pytest.TempPathFactory, one_thread: None, offline: None) -> Iterator[None]:
    """Keep what is measured in a database of these tests, and the device's lock too."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("training")
        patch.setenv("ADVISOR_DATABASE_URL", f"sqlite:///{folder}/advisor.db")
        patch.setenv("ADVISOR_LOCK_DIR", str(folder))
        yield


# ---------------------------------------------------------------------------------------------------------- the work


def test_the_work_is_a_value() -> None:
    """It is written and read again, and its flags are the question that it is."""
    lora = Training(LENGTHS, 4, "lora", 8, ("k_proj", "q_proj"))

    assert workload_of(json.loads(json.dumps(lora.payload))) == lora
    assert lora.flags == (
        "--lengths 40,12,25,9,33,17,8,21 --batch 4 --workload train --method lora --rank 8 --targets k_proj,q_proj"
    )
    assert kind_of(lora).name == "train"
    assert lora.key_for("a") != WORK.key_for("a")


def test_another_method_is_further_than_another_rank_or_other_modules() -> None:
    """What was measured of rank 64 is nearer to rank 16 than all weights are, or a base in few bits; it differs in its rank."""
    asked, full, qlora = Training(LENGTHS, 4, "lora"), Training(LENGTHS, 4), Training(LENGTHS, 4, "qlora")
    rank, targets = replace(asked, rank=64), replace(asked, targets=("o_proj",))
    near, far = [asked.distance(each) for each in (rank, targets)], [asked.distance(each) for each in (full, qlora)]

    assert asked.distance(asked) == 0.0 < min(near)
    assert max(near) < min(far)
    assert {name for name, value in asked.described.items() if rank.described[name] != value} == {"rank"}
    assert {name for name, value in asked.described.items() if targets.described[name] != value} == {"targets"}
    assert full.described["method"] == "full"


@pytest.mark.parametrize("name", ["at-once", "micro-1", "micro-2", "micro-4"])
@pytest.mark.parametrize("by_length", [False, True])
def test_a_step_has_the_same_sequences_however_it_is_computed(name: str, *, by_length: bool) -> None:
    """Micro-batches are within their step, and longest first where they are sorted; the work is stored by one key."""
    under = WORK.under(PLAIN.replaced(micro_batch=name))
    batches = under.batches(by_length=by_length)
    joined = [number for batch in batches for number in batch]

    assert {*joined[:4]} == {0, 1, 2, 3}
    assert {*joined[4:]} == {4, 5, 6, 7}
    assert max(map(len, batches)) == {"at-once": 4}.get(name, int(name[-1]) if name[-1].isdigit() else 4)
    assert under.key_for("a") == WORK.key_for("a")
    if by_length and isinstance(under, Accumulated):
        assert [LENGTHS[n] for n in joined[:4]] == sorted(LENGTHS[:4], reverse=True)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"batch": "auto"}, "decides what is learned, and is yours to say"),
        ({"batch": "eight"}, "must be a whole number"),
        ({"lengths": [1, 4]}, "one token nothing is learned.*at least 2 tokens"),
        ({"method": "half"}, "must be one of full, lora, qlora"),
        ({"targets": "q_proj"}, "goes with --method lora or qlora|goes with method lora or qlora"),
        ({"rank": 8}, "goes with --method lora or qlora|goes with method lora or qlora"),
        ({"method": "lora", "targets": "all-linear,q_proj"}, "it goes with no other name"),
        ({"method": "lora", "rank": 0}, "must be at least 1"),
        ({"method": "lora", "targets": "q proj"}, "takes names of modules"),
        ({"method": "lora", "rank": 100_000}, "at most 8192"),
        ({"method": "qlora"}, "has weights in 4 or 8 bits, and quality='dtype' admits neither"),
    ],
)
def test_what_is_no_training_is_refused(given: dict[str, Any], said: str) -> None:
    """In a line that says what is wrong."""
    asked = {"lengths": 16, "padding": 0.3, "batch": 4, "workload": "train", "device": "cpu", **given}
    if isinstance(given.get("lengths"), list):
        del asked["padding"]

    with pytest.raises(BadInput, match=said):
        advisor.suggest(str(CAUSAL), **asked)


def test_adapters_of_no_module_are_refused_before_anything_is_measured() -> None:
    """A name that the model has nowhere: in a line that says which it has. Of facts without names nothing is said."""
    asked = {"lengths": 16, "padding": 0.3, "batch": 2, "workload": "train", "device": "cpu", "method": "lora"}
    with pytest.raises(BadInput, match=r"no module of that name that an adapter could stand beside.*it has .*q_proj"):
        advisor.tune(str(CAUSAL), targets="q_proj,nope", **asked)  # type: ignore[arg-type]

    of_class = replace(LLAMA, weighed=("lm_head", "model.layers.*.self_attn.q_proj"))
    for target, is_there in (("self_attn.q_proj", True), ("layers.3.self_attn.q_proj", True), ("mlp.q_proj", False)):
        work = Training(LENGTHS, 4, "lora", targets=(target,))
        kind_of(work).refuse(work, LLAMA, "a model")
        with nullcontext() if is_there else pytest.raises(BadInput, match=rf"targets {target}: a model has no module"):
            kind_of(work).refuse(work, of_class, "a model")


# ---------------------------------------------------------------------------------------------------------- the step


@pytest.fixture(scope="module")
def model() -> Any:
    """Load the shipped model in fp32, as it is trained."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(CAUSAL, attn_implementation="sdpa").train()


def facts() -> ModelFacts:
    """What is known of the shipped model, as far as a runtime asks."""
    return replace(LLAMA, vocabulary=2048, hidden_size=256, checkpoint_dtype="float32", accepts=LLAMA.accepts)


def runtime() -> TrainingRuntime:
    """How it is trained."""
    made = kind_of(WORK).runtime(WORK, facts())
    assert isinstance(made, TrainingRuntime)
    return made


def tokens() -> list[torch.Tensor]:
    """Draw the ids of every sequence."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(16, 2048, (n,), generator=generator) for n in LENGTHS]


def calls(configuration: Configuration) -> list[Call]:
    """Return the forward passes of a configuration."""
    batching, batches = Batching(0, left=True), WORK.under(configuration).batches()

    def laid_out(sequences: Any) -> Any:
        arguments, places = collate(configuration, sequences, batching)
        return accepted(arguments, facts().accepts), places

    return runtime().calls(tokens(), batches, laid_out)


def optimizer_for(model: Any) -> None:
    """Give a model the optimizer that Trainer would."""
    exec(KNOBS["optimizer"].choices[PLAIN["optimizer"]].on_model[0], {"model": model, "torch": torch})


def test_labels_leave_out_pads_and_first_tokens() -> None:
    """Nothing predicts a sequence's first token, and pads teach nothing; all else has its own id."""
    for choices in ({}, {"packing": "packed"}):
        (call, _) = calls(PLAIN.replaced(**choices))
        labels, ids = with_labels(call.arguments, list(call.places))["labels"], call.arguments["input_ids"]

        assert int((labels != IGNORED).sum()) == sum(LENGTHS[:4]) - 4
        assert all(int(labels[row, start]) == IGNORED for row, start, _ in call.places)
        assert torch.equal(labels[labels != IGNORED], ids[labels != IGNORED])


def test_every_configuration_does_the_same_step_and_all_is_given_back(model: Any) -> None:
    """Losses and gradients' norms of two steps are those of one document at a time; weights and random state come back."""
    optimizer_for(model)
    ours, before = runtime(), {name: value.clone() for name, value in model.state_dict().items()}
    random, kept = torch.get_rng_state(), ours.kept(model, "cpu")
    reference = ours.reference_course(model, tokens(), "cpu", steps=2)
    for choices in (
        {},
        {"packing": "packed"},
        {"micro_batch": "micro-2", "packing": "packed"},
        {"micro_batch": "micro-1"},
    ):
        ours.give_back(model, kept, "cpu")
        found = ours.course(model, calls(PLAIN.replaced(**choices)), "cpu", steps=2)
        apart = ours.deviations(found, reference)

        assert max(apart.values()) < 1e-4, choices
        assert found["losses"][0] != found["losses"][1]
    assert any(not torch.equal(before[name], value) for name, value in model.state_dict().items())
    torch.rand(3)
    ours.give_back(model, kept, "cpu")

    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
    assert not model.optimizer.state
    assert torch.equal(random, torch.get_rng_state())


def subject(configuration: Configuration = PLAIN) -> Subject:
    """Return the shipped model, to be trained."""
    known = replace(facts(), checkpoints=True, switches_attention=True)
    return Subject(
        source=find_model(str(CAUSAL)).files,
        facts=known,
        workload=WORK,
        configuration=configuration,
        sample=(0, 1, 2, 3),
    )


def test_the_reference_computes_layers_again_where_there_is_no_memory_to_keep_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On an H200 sdpa in fp32 kept 8 GiB of scores a layer of 8,192 tokens: no training was judged. The course is the same."""
    session, random = Session(lambda _: None), torch.get_rng_state()
    kept = reference_course(session, subject())
    own, asked = TrainingRuntime.course, []

    def short_of_memory(self: Any, model: Any, *given: Any, **more: Any) -> Any:
        torch.rand(3)
        asked.append(model.is_gradient_checkpointing)  # memory that ends can't be had on a machine that others use
        if not model.is_gradient_checkpointing:
            raise torch.OutOfMemoryError
        return own(self, model, *given, **more)

    monkeypatch.setattr(TrainingRuntime, "course", short_of_memory)
    again = reference_course(session, subject())

    assert asked == [False, True]
    assert torch.equal(random, torch.get_rng_state())
    assert kept is not None
    assert again is not None
    assert runtime().deviations(again, kept) == dict.fromkeys(("gradient", "loss", "norm"), 0.0)
    assert len(again["losses"]) == len(kept["losses"]) == COURSE_STEPS


def test_what_torch_picks_is_asked_of_the_model_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under autocast, with layers computed again: else fp32 has other kernels, and a step may not fit (as on an H200)."""
    configuration = PLAIN.replaced(
        attention="sdpa-math", autocast="autocast-bf16", checkpointing="checkpointed", compilation="compiled-loss"
    )
    asked, session = subject(configuration), Session(lambda _: None)
    session.load(asked, configuration)
    seen = []

    def looked(session: Session, *_: Any, **__: Any) -> Profiled:
        held, loss = session.model, session.model.loss_function
        seen.append((held.autocast, held.is_gradient_checkpointing, hasattr(loss, "_torchdynamo_orig_callable")))
        return Profiled([], 0.0)

    monkeypatch.setattr(proof_torch, "profiled", looked)
    monkeypatch.setattr(switches_torch, "allowed_kernels", lambda: ["math"])
    proof_torch.picked_by_torch(session, Call({}, (), ()), asked)
    proof_torch.operators_uncompiled(session, Call({}, (), ()), asked)
    looked(session)
    switches_torch.allow_kernels(switches_torch.KERNELS)  # picked_by_torch gave back what it was told

    assert seen == [(torch.bfloat16, True, False)] * 2 + [(torch.bfloat16, True, True)]


def quantised(session: Session, name: str) -> tuple[Any, Configuration]:
    """Load the shipped model in few bits, with adapters of all its layers; return it and what it is."""
    work = Training(LENGTHS, 4, "qlora", targets=("all-linear",))
    configuration = Configuration.of(baseline_choices(facts(), work)).replaced(quantization=name, precision="fp32")
    session.load(replace_struct(subject(configuration), workload=work), configuration)
    return session.model, configuration


@pytest.mark.parametrize("name", ["torchao-int8", "torchao-int8-dynamic", "torchao-fp8", "nf4", "int8"])
def test_layers_that_no_gradient_passes_are_found(name: str) -> None:
    """Torchao's with quantised inputs raise nothing: adapters of all layers get gradients around them, of another loss."""
    session = Session(lambda _: None)
    loaded, _ = quantised(session, name)
    if not name.endswith("dynamic"):
        runtime().refuse_blocked(loaded, "cpu")
        return
    assert loaded(input_ids=tokens()[0][None]).logits.requires_grad
    with pytest.raises(ValueError, match=r"no gradient passes its linear layers \(Linear of Int8Tensor\)"):
        runtime().refuse_blocked(loaded, "cpu")


def test_gradients_are_asked_for_without_a_reference_too() -> None:
    """Where --allow-unjudged is the only way, what teaches nothing is wrong all the same."""
    session = Session(lambda _: None)
    for name in ("torchao-int8", "torchao-int8-dynamic"):
        _, configuration = quantised(session, name)
        asked = replace_struct(subject(configuration), workload=Training(LENGTHS, 4, "qlora", targets=("all-linear",)))
        found = partial(
            figures_of, session, asked, Gate(path=None, reference="not judged: it does not fit"), configuration
        )
        with (
            runtime().mode(),
            pytest.raises(ValueError, match="no gradient passes") if "dyn" in name else nullcontext(),
        ):
            assert found()[0].gradient is None


class Router(torch.nn.Linear):
    """As Llama 4's and PhiMoE's, which are linear layers and give more than one tensor."""

    def forward(self, given: torch.Tensor) -> Any:
        """Return scores and what was chosen."""
        scores = super().forward(given)
        return scores.sigmoid(), scores.argmax(-1)


def test_layers_of_floats_and_what_does_not_run_alone_are_no_block() -> None:
    """A class's own linear layer gives what it likes, zeros among it; what does not run by itself says nothing."""

    class Odd(torch.nn.Linear):
        def forward(self, given: torch.Tensor, more: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return super().forward(given) + more

    zeros, odd = torch.nn.Linear(4, 4), Odd(4, 4)
    torch.nn.init.zeros_(zeros.weight)
    odd.weight = torch.nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    held = torch.nn.ModuleList([zeros, Router(4, 4), odd])
    held.dtype = torch.float32  # type: ignore[assignment]

    assert blocking(held, "cpu") == []


def test_shares_in_a_configuration_are_dropped_with_the_others(model: Any) -> None:
    """Falcon reads its dropout from its configuration in every pass: two equal runs differed, and its layout was called wrong."""
    model.config.hidden_dropout = 0.3
    with without_dropout(model):
        assert model.config.hidden_dropout == 0.0
    assert model.config.hidden_dropout == 0.3
    del model.config.hidden_dropout


def test_what_the_gate_looks_at_is_no_end_of_training() -> None:
    """Bitsandbytes repacks 4 bits in a CPU's pass of evaluation, for good, and no gradient passes them any more.

    It was in the gate: 20 steps without a gradient had losses within 0.02 nats, and were twice as fast.
    """
    from bitsandbytes.nn.modules import has_avx512bf16

    session = Session(lambda _: None)
    loaded, configuration = quantised(session, "nf4")
    (call, *_) = calls(PLAIN)
    runtime().by_sequence(loaded, call, "cpu", [0])
    runtime().refuse_blocked(loaded, "cpu")
    if not has_avx512bf16():
        return  # such a CPU repacks nothing
    loaded.eval()
    with torch.no_grad():
        loaded(input_ids=tokens()[0][None])
    loaded.train()
    with pytest.raises(ValueError, match="Linear4bit"):
        runtime().refuse_blocked(loaded, "cpu")
    work = Training(LENGTHS, 4, "qlora")
    rules = KNOBS["quantization"].choices["nf4"].why_not(Situation(configuration, work, CPU, facts()))
    assert [reason.rule for reason in rules if "evaluation" in reason.text] == ["Q28"]


@pytest.mark.parametrize(("norm", "is_wrong"), [(0.044, False), (1.0, True)])
def test_a_lossy_choice_that_learns_another_thing_is_wrong(norm: float, *, is_wrong: bool) -> None:
    """Gradients of four bits point elsewhere, and are as long as they were: without any their norm is 100 % off."""
    configuration = PLAIN.replaced(quantization="nf4")
    quality = Quality(
        0.06, 0.5, 0.01, 0.9, 8, probed="pads", gradient=1.3, loss=0.04, norm=norm, steps=20, reference="fp32, eager"
    )
    found = wrong(Trial(1, configuration, configuration, Outcome.OK, quality=quality), None, facts())

    assert ["norm is 100.0% off" in text for text in found] == [True] * is_wrong


@pytest.mark.parametrize("fault", ["a mean for each pass", "no clipping of pads", "a rate twice as high"])
def test_a_step_that_is_another_one_is_seen(model: Any, fault: str) -> None:
    """Rule T2, pads that are taught, and an optimizer that learns otherwise: each goes astray by more than is allowed."""
    optimizer_for(model)
    ours = runtime()
    kept = ours.kept(model, "cpu")
    reference = ours.reference_course(model, tokens(), "cpu", steps=6)
    ours.give_back(model, kept, "cpu")
    made = calls(PLAIN.replaced(micro_batch="micro-2"))
    if fault == "no clipping of pads":
        made = [replace(each, arguments={**each.arguments, "labels": each.arguments["input_ids"]}) for each in made]
    if fault == "a rate twice as high":
        model.optimizer.param_groups[0]["lr"] *= 2
    steps = ours.timed(made)
    if fault == "a mean for each pass":
        for step in steps:
            for part in step.parts:  # type: ignore[attr-defined]
                part.arguments["num_items_in_batch"] = (part.arguments["labels"][..., 1:] != IGNORED).sum() * 2
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patch:
        patch.setattr(ours, "timed", lambda _: steps)
        found = ours.deviations(ours.course(model, made, "cpu", steps=6), reference)
    ours.give_back(model, kept, "cpu")
    quality = Quality(0.0, 0.0, 0.0, 1.0, 8, reference="fp32", probed="pads", steps=6, **found)
    trial = Trial(1, PLAIN, PLAIN, Outcome.OK, quality=quality)

    assert any("training goes astray" in text for text in wrong(trial, None, facts()))
    assert not wrong(replace(trial, quality=replace(quality, gradient=1e-6, loss=1e-6, norm=1e-6)), None, facts())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own, while it traces
def test_a_loss_that_is_compiled_is_the_same_one(model: Any) -> None:
    """Two steps of several sizes have the losses and gradients of what is not compiled, and it is seen to have run."""
    choice = KNOBS["compilation"].choices["compiled-loss"]
    optimizer_for(model)
    ours, kept = runtime(), runtime().kept(model, "cpu")
    made = calls(PLAIN.replaced(packing="packed", micro_batch="micro-2"))
    plain = ours.course(model, made, "cpu", steps=2)
    ours.give_back(model, kept, "cpu")
    names: dict[str, Any] = {"model": model, "torch": torch}
    names.update({function: function_of(module, function) for module, function in choice.functions})
    try:
        for line in choice.on_model:
            exec(line, names)
        compiled = ours.course(model, made, "cpu", steps=2)
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            ours.course(model, made, "cpu", steps=2)
        launched = launched_of(seen)
    finally:
        KNOBS["compilation"].undo(model)  # type: ignore[misc]
        ours.give_back(model, kept, "cpu")

    assert max(ours.deviations(compiled, plain).values()) < 1e-5
    assert launched.regions == 4
    assert not [name for name in launched.names if "nll_loss" in name]


def test_gradients_are_looked_at_before_they_are_clipped(model: Any) -> None:
    """In whatever dtype: a configuration in bf16 is as far off as its rounding, though the norm is above what is clipped to."""
    from transformers import AutoModelForCausalLM

    coarse = AutoModelForCausalLM.from_pretrained(CAUSAL, attn_implementation="sdpa", dtype=torch.bfloat16).train()
    ours, found = runtime(), []
    for each in (model, coarse):
        optimizer_for(each)
        kept = ours.kept(each, "cpu")
        found.append(ours.course(each, calls(PLAIN), "cpu", steps=1))
        ours.give_back(each, kept, "cpu")

    assert found[0]["norms"][0] > 1.5
    assert ours.deviations(found[1], found[0])["gradient"] < 0.1


def test_a_class_whose_passes_do_not_add_up_has_no_reference(model: Any) -> None:
    """Rule T2 can't be kept by a class that ignores how many tokens a step has: it is said, and nothing is compared."""
    own = model.forward

    def ignores(*given: Any, num_items_in_batch: Any = None, **more: Any) -> Any:
        return own(*given, **more)

    model.forward = ignores
    try:
        optimizer_for(model)
        assert "no sum over num_items_in_batch" in runtime().reference_course(model, tokens(), "cpu", steps=1)["why"]
    finally:
        del model.forward


def test_dropout_is_left_out_and_put_back() -> None:
    """Of modules for it, and of shares that others are given."""
    part: Any = torch.nn.Module()
    part.attention_dropout, part.inner = 0.1, torch.nn.Dropout(0.2)
    with without_dropout(part):
        assert (part.attention_dropout, part.inner.p) == (0.0, 0.0)

    assert (part.attention_dropout, part.inner.p) == (0.1, 0.2)


def test_what_a_last_token_is_taught_of_its_neighbour_is_part_of_what_it_gives(model: Any) -> None:
    """Rule T3: with labels at first tokens a sequence's values move with its neighbour's contents; without them they don't."""
    ours, moved = runtime(), {}
    for name in ("packed", "packed-taught-across"):
        (call, _) = calls(PLAIN.replaced(packing=name))
        row, start, _ = call.places[1]
        other = call.arguments["input_ids"].clone()
        other[row, start] = (other[row, start] + 1) % 2048
        changed = replace(call, arguments={**call.arguments, "input_ids": other})
        base, new = (ours.by_sequence(model, each, "cpu", [0, 1]) for each in (call, changed))
        moved[name] = float((base[0] - new[0]).abs().max())

    assert moved["packed"] == 0.0
    assert moved["packed-taught-across"] > 0.01


# --------------------------------------------------------------------------------------------------- rules and bytes


def refused(choices: dict[str, str], workload: Training, of: ModelFacts = LLAMA, machine: Any = H200) -> set[str]:
    """Return the ids of the rules that refuse a configuration."""
    configuration = Configuration.of(baseline_choices(of, workload)).replaced(**choices)
    situation = Situation(configuration, workload.under(configuration), machine, of)
    return {reason.rule for reason in refusals_of(situation, Objective(quality=Tier.FOUR_BIT))}


LORA, QLORA = replace(WORK, method="lora"), replace(WORK, method="qlora")


@pytest.mark.parametrize(
    ("rule", "choices", "workload", "of"),
    [
        ("T1", {"checkpointing": "checkpointed"}, WORK, replace(LLAMA, checkpoints=False)),
        ("T3", {"packing": "packed-taught-across"}, WORK, LLAMA),
        ("T4", {"micro_batch": "micro-4"}, WORK, LLAMA),
        ("Q17", {"quantization": "nf4"}, WORK, LLAMA),
        ("Q17", {"quantization": "nf4"}, LORA, LLAMA),
        ("Q17", {"quantization": "none"}, QLORA, LLAMA),
        ("Q18", {"quantization": "torchao-int4"}, QLORA, LLAMA),
        ("Q19", {"compilation": "compiled"}, QLORA, LLAMA),
        ("O2", {"optimizer": "adafactor"}, WORK, LLAMA),
        ("O3", {"optimizer": "adamw_8bit"}, LORA, LLAMA),
        ("D3", {"precision": "fp16"}, WORK, LLAMA),
        ("D4", {"autocast": "autocast-bf16"}, WORK, LLAMA),
        ("A15", {"attention": "torch_varlen", "packing": "packed"}, WORK, replace(LLAMA, drops_attention=True)),
        ("A16", {"attention": "flex_attention"}, WORK, replace(LLAMA, drops_attention=True, supports_flex=True)),
    ],
)
def test_rules_of_training(rule: str, choices: dict[str, str], workload: Training, of: ModelFacts) -> None:
    """Each refuses what it is about, and not the default of the same work."""
    assert rule in refused(choices, workload, of)
    assert rule not in refused({}, workload, replace(of, checkpoints=True))


def test_other_work_knows_nothing_of_it() -> None:
    """The knobs of training can't be turned for a forward pass, and its Liger has no loss (rule K3)."""
    from advisor.workloads.forward import Forward

    with_liger = replace(H200, packages={**H200.packages, "liger-kernel": "0.8.5", "triton": "3.6.0"})
    space = build_space(LLAMA, Forward(LENGTHS, 4), with_liger, Objective(), H200.memory_bytes)
    turned = {knob for configuration in space.admissible for knob in configuration}

    assert not turned & {"autocast", "micro_batch", "checkpointing", "optimizer"}
    assert {r.rule for r in space.refusals if r.subject == "kernels=liger-loss"} == {"K3"}


#: Llama-3.2-1B and Llama-3-8B by their config.json: what rules and bytes depend on.
ONE_B = replace(
    LLAMA,
    parameters=1_235_814_400,
    parameter_bytes=2_471_628_800,
    linear_parameters=1_235_746_816,
    layers=16,
    hidden_size=2048,
    heads=32,
    kv_heads=8,
    head_dim=64,
    vocabulary=128_256,
    active_linear_parameters=0,
)

EIGHT_B = replace(
    ONE_B,
    parameters=8_030_261_248,
    parameter_bytes=16_060_522_496,
    linear_parameters=7_504_658_432,
    layers=32,
    hidden_size=4096,
    head_dim=128,
)


def quantiles(longest: int, batch: int) -> tuple[int, ...]:
    """Return the lengths of `--lengths LONGEST --padding 0.3 --batch BATCH` in training."""
    from advisor.workloads.quantiles import quantile_lengths

    return quantile_lengths(longest, 0.3, batch, 4)


FLASH = {"attention": "flash_attention_2", "packing": "packed"}


LIGER_AND_LOSS = {"kernels": "liger", "compilation": "compiled-loss"}
IN_BF16 = {**FLASH, "autocast": "autocast-bf16"}
OF_8B = {
    "lora": (
        ({}, 76.1),
        (IN_BF16, 55.6),
        ({**IN_BF16, "kernels": "liger-with-loss"}, 36.8),
        ({**IN_BF16, **LIGER_AND_LOSS}, 39.6),
        ({**IN_BF16, "kernels": "liger-loss", "compilation": "compiled-regional"}, 35.6),
        ({**IN_BF16, "compilation": "compiled-regional"}, 45.8),
    ),
    "qlora": (
        ({}, 66.8),
        ({**IN_BF16, "quantization": "fp4", "micro_batch": "micro-2", "checkpointing": "checkpointed"}, 13.4),
        ({**IN_BF16, "quantization": "torchao-int8", "checkpointing": "checkpointed"}, 21.7),
        ({"attention": "sdpa-flash", "quantization": "fp4", "micro_batch": "micro-1", "optimizer": "adamw_8bit"}, 20.8),
    ),
}


@pytest.mark.parametrize(
    ("choices", "peak_gib"),
    [
        ({}, 64.8),
        (FLASH, 48.2),
        ({"attention": "flash_attention_2"}, 62.9),
        ({**FLASH, "kernels": "liger"}, 41.7),
        ({**FLASH, "kernels": "liger-with-loss"}, 22.3),
        ({**FLASH, **LIGER_AND_LOSS}, 26.9),
        ({**FLASH, "compilation": "compiled-regional"}, 41.9),
        ({"attention": "sdpa", **LIGER_AND_LOSS}, 37.0),
        ({"packing": "packed"}, 53.0),
        ({"packing": "packed", "kernels": "liger-with-loss"}, 27.6),
        ({**FLASH, "micro_batch": "micro-4"}, 30.0),
        ({**FLASH, "micro_batch": "micro-4", "kernels": "liger"}, 26.8),
        ({**FLASH, "micro_batch": "micro-4", "kernels": "liger-with-loss"}, 17.5),
        ({**FLASH, "micro_batch": "micro-4", **LIGER_AND_LOSS}, 19.9),
    ],
)
def test_peaks_are_predicted_within_a_tenth(choices: dict[str, str], peak_gib: float) -> None:
    """Beside those that an H200 measured of Llama-3.2-1B, 8 × 2048 (docs/results/2026-11-29-h200-training.md)."""
    work = Training(quantiles(2048, 8), 8)
    assert predicted_gib(choices, work, ONE_B) == pytest.approx(peak_gib, rel=0.1)


@pytest.mark.parametrize(
    ("choices", "peak_gib"),
    [
        ({}, 116.6),
        ({"attention": "flash_attention_4"}, 116.7),
        ({"attention": "flash_attention_4", "kernels": "liger-with-loss"}, 46.2),
        (
            {
                "attention": "flash_attention_4",
                "precision": "fp32",
                "autocast": "autocast-bf16",
                "micro_batch": "micro-2",
            },
            80.9,
        ),
        ({"attention": "eager", "micro_batch": "micro-2", "checkpointing": "checkpointed"}, 88.3),
    ],
)
def test_peaks_of_long_sequences_are_predicted_within_a_tenth(choices: dict[str, str], peak_gib: float) -> None:
    """The same of 4 × 8192; of eager attention the scores' way back is the most that is held."""
    work = Training((8192,) * 4, 4)
    assert predicted_gib(choices, work, ONE_B) == pytest.approx(peak_gib, rel=0.1)


def test_scores_that_sdpa_writes_in_fp32_are_counted() -> None:
    """With shared keys and no mask a GPU has the math kernel alone: on an H200 a step of 4 × 8192 kept 8 GiB of scores a layer.

    Not with pads, for which keys are repeated, nor where each query has its own, in 16 bits, or on a CPU.
    """
    long, padded = Training((8192,) * 4, 4), Training((8192, 8192, 8192, 4096), 4)
    scores_gib = ONE_B.layers * 4 * ONE_B.heads * 8192**2 * 4 / 2**30
    whole = predicted_gib({"precision": "fp32"}, long, ONE_B)

    assert scores_gib == 512
    assert whole > scores_gib
    alone = replace(ONE_B, kv_heads=ONE_B.heads)
    others = [
        predicted_gib({"precision": "fp32"}, padded, ONE_B),
        predicted_gib({"precision": "fp32"}, long, alone),
        predicted_gib({"precision": "fp32", "autocast": "autocast-bf16"}, long, ONE_B),
        predicted_gib({"precision": "bf16"}, long, ONE_B),
    ]
    on_cpu = Situation(Configuration.of({**baseline_choices(ONE_B, long), "precision": "fp32"}), long, CPU, ONE_B)
    assert max(*others, predicted_bytes(on_cpu) / 2**30) < whole - scores_gib


@pytest.mark.parametrize(("method", "choices", "peak_gib"), [(m, *row) for m, rows in OF_8B.items() for row in rows])
def test_peaks_of_adapters_are_predicted_within_a_tenth(method: str, choices: dict[str, str], peak_gib: float) -> None:
    """The same of Llama-3-8B, 4 × 2048, of which nothing but the adapters is trained."""
    work = Training(quantiles(2048, 4), 4, method)
    assert predicted_gib(choices, work, EIGHT_B) == pytest.approx(peak_gib, rel=0.1)


def predicted_gib(choices: dict[str, str], work: Training, of: ModelFacts) -> float:
    """Return the peak that is predicted beside the default's choices, with what a process has on a GPU beside torch's memory."""
    configuration = Configuration.of(baseline_choices(of, work)).replaced(**choices)
    needed = predicted_bytes(Situation(configuration, work.under(configuration), H200, of))
    return (needed + ASSUMED_BESIDE_BYTES) / 2**30


def test_the_longest_sequences_that_fit_are_told() -> None:
    """As many tokens as fit by arithmetic, and no more; scaled by what was measured, and no longer than the model reads."""
    work, gib, beside = Training(quantiles(2048, 8), 8), 2**30, ASSUMED_BESIDE_BYTES
    facts = replace(ONE_B, max_positions=8192)
    loss = {**FLASH, "kernels": "liger-with-loss"}
    default, liger, chosen = (
        Configuration.of(baseline_choices(facts, work)).replaced(**c) for c in ({}, {**FLASH, "kernels": "liger"}, loss)
    )

    def needed(configuration: Configuration, of: Training = work) -> float:
        return predicted_bytes(Situation(configuration, of.under(configuration), H200, facts))

    def longest(configuration: Configuration, peak: float, most: float) -> int:
        return longest_that_fits(work, facts, H200, configuration, round(peak + beside), most + beside)

    found = longest(default, needed(default), 100 * gib)
    steps = [replace(work, lengths=(tokens,) * 8) for tokens in (found, found + 64)]
    assert found % 64 == 0
    assert needed(default, steps[0]) <= 100 * gib < needed(default, steps[1])
    assert longest(default, 1.2 * needed(default), 100 * gib) < found < longest(liger, needed(liger), 100 * gib)
    assert longest(chosen, needed(chosen), 125 * gib) == 8192
    assert longest(default, needed(default), 5 * gib) == 0
    buffered = replace(facts, max_row=8192)
    assert longest_that_fits(work, buffered, H200, chosen, round(needed(chosen) + beside), 125 * gib) == 8192 // 8


def test_memory_that_is_bounded_prunes_by_prediction() -> None:
    """QLoRA of an 8B within 24 GiB: the default is refused for its bytes, and what fits is admissible."""
    work = Training(quantiles(2048, 4), 4, "qlora")
    objective = Objective(quality=Tier.FOUR_BIT, allow_unjudged=True, max_memory_bytes=24 * 2**30)
    space = build_space(LLAMA, work, H200, objective, H200.memory_bytes)
    admissible = [predicted_bytes(Situation(c, work.under(c), H200, LLAMA)) for c in space.admissible]

    assert space.baseline not in space.admissible
    assert space.admissible
    assert max(admissible) < 24 * 2**30
    assert any(reason.rule == "M1" for reason in space.refusals)


def test_what_spares_memory_is_tried_where_it_has_to_be() -> None:
    """Of what differs by micro-batches and checkpointing alone the fastest first, and the next where that ran out of memory."""
    work = Training(quantiles(2048, 8), 8)
    space = build_space(ONE_B, work, H200, Objective(quality=Tier.EXACT), H200.memory_bytes)
    aim, none = METRICS[default_metric()], {"micro_batch": "at-once", "checkpointing": "off"}
    first = opened(space.admissible, (), aim, costs=space.costs)
    fastest = space.baseline.replaced(**FLASH)

    assert len(first) < len(space.admissible) / 6
    packed = [c for c in first if c["packing"] == "packed" and traits_of(c).tells_apart]
    assert {tuple(c[knob] for knob in none) for c in packed} == {("at-once", "off")}
    assert fastest in first

    failed = Trial(1, fastest, fastest, Outcome.OUT_OF_MEMORY)
    figures = (Measurement("tokens_per_s", "tokens/s", (100.0,)),)
    others = [c for c in space.admissible if c["attention"] != "flash_attention_2" and c["compilation"] == "off"]
    padded = space.baseline.replaced(attention="flash_attention_2")  # with fewer pads a pass it is predicted faster
    ran = [Trial(n, c, c, Outcome.OK, measurements=figures) for n, c in enumerate([padded, *others[: BEST - 1]])]
    late = [c for c in opened(space.admissible, ran, aim, costs=space.costs) if c["compilation"] != "off"]
    assert padded not in first
    assert any((c["attention"], c["packing"]) == ("flash_attention_2", "padded") for c in late)

    next_one = {fastest.replaced(micro_batch="micro-4")}
    assert set(opened(space.admissible, [failed], aim, costs=space.costs)) - set(first) == next_one
    large = replace(failed, outcome=Outcome.OK, peak_bytes=2**36)
    bounds = (2**37, 2**35)
    then = [set(opened(space.admissible, [large], aim, None, space.costs, most)) - set(first) for most in bounds]
    assert then == [set(), next_one]


def test_what_takes_less_memory_late_spares_none() -> None:
    """QLoRA within 24 GiB: layers are computed again where logits are kept, and are not where Liger has a loss without."""
    liger = replace(H200, packages={**H200.packages, "liger-kernel": "0.8.5", "triton": "3.6.0"})
    work = Training(quantiles(2048, 4), 4, "qlora")
    objective = Objective(quality=Tier.FOUR_BIT, allow_unjudged=True, max_memory_bytes=24 * 2**30)
    space = build_space(LLAMA, work, liger, objective, H200.memory_bytes)
    aim = METRICS[default_metric()]
    early = opened(space.admissible, (), aim, costs=space.costs)
    figures = (Measurement("tokens_per_s", "tokens/s", (100.0,)),)
    trials = [Trial(n, c, c, Outcome.OK, measurements=figures) for n, c in enumerate(early[:BEST])]
    now = opened(space.admissible, trials, aim, costs=space.costs)
    late = {c["checkpointing"] for c in now if c["kernels"] == "liger-with-loss" and c["compilation"] == "off"}

    assert {c["checkpointing"] for c in early[:BEST]} == {"checkpointed"}
    assert late == {"off"}


def test_limits_of_a_default_are_wider_the_coarser_its_numbers() -> None:
    """What is exact in bf16 may be further from fp32 than what is in fp32."""
    assert COURSE_MOST[COARSE].gradient > COURSE_MOST[FULL].gradient


# ------------------------------------------------------------------------------------------------------- end to end

ASKED = [
    "--workload",
    "train",
    "--lengths",
    "24",
    "--padding",
    "0.3",
    "--batch",
    "4",
    "--batches",
    "2",
    "--device",
    "cpu",
]
EFFORT = ["--only", "compilation=off", "--blocks", "0", "--threads", "1"]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_it_is_tuned_and_suggested(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    """On the shipped model: each trial has its speed, its peak and how far its training goes astray; and there is an answer."""
    asked = [str(CAUSAL), *ASKED, "--method", method]

    assert run(["tune", *asked, *EFFORT, "--trials", "3"]) == 0
    assert run(["suggest", *asked, "--threads", "1"]) in (0, 3)  # three of many: the default may be the best of them
    said = capsys.readouterr().out
    with Store.open(os.environ["ADVISOR_DATABASE_URL"], write=False) as store:
        study = max(store.studies(), key=lambda each: each.id)
        trials = store.trials(study.id)
    done = [trial for trial in trials if trial.outcome is Outcome.OK]

    assert len(done) >= 2
    assert all(trial.tokens_per_s > 0 and trial.peak_bytes and trial.value("step_s") for trial in done)
    assert all(trial.quality is not None and trial.quality.steps == 20 for trial in done)
    assert all(trial.quality.gradient < 1e-4 for trial in done if trial.quality is not None)
    assert "first gradients" in said
    assert run(["suggest", *asked, "--threads", "1", "--why-not", "packed"]) in (0, 3)
    told = [line for line in capsys.readouterr().out.splitlines() if "packing=packed: rule" in line]
    assert all(line.startswith("in some of its combinations") for line in told)  # none where it is what is recommended
    assert ("get_peft_model" in said) == (method == "lora")
    assert "model.optimizer = torch.optim.AdamW" in said
    with pytest.raises(BadInput, match="load runs forward passes"):
        advisor.load(
            str(CAUSAL),
            workload="train",
            lengths=24,
            padding=0.3,
            batch=4,
            batches=2,
            method=method,
            device="cpu",
            threads=1,
        )


def test_a_killed_tune_goes_on(tmp_path: Path) -> None:
    """Killed with kill -9 after its first trial, it goes on where it was: nothing is lost, and nothing measured twice."""
    url = f"sqlite:///{tmp_path}/killed.db"
    command = [
        sys.executable,
        "-m",
        "advisor",
        "tune",
        str(CAUSAL),
        *ASKED,
        "--method",
        "lora",
        *EFFORT,
        "--trials",
        "3",
    ]
    environment = {**os.environ, "ADVISOR_DATABASE_URL": url, "ADVISOR_LOCK_DIR": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True) as tune:
        assert tune.stderr is not None
        first = next(line for line in tune.stderr if re.match(r"\s*0 ", line))
        os.killpg(tune.pid, signal.SIGKILL)
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=True)
    with Store.open(url, write=False) as store:
        (study,) = store.studies()
        trials = [trial for trial in store.trials(study.id) if trial.outcome is Outcome.OK]

    assert "adamw_torch_fused" in first
    assert len({trial.requested for trial in trials if not trial.is_reused}) == len(trials)
    assert len(trials) >= 2
    assert "▸" in again.stdout
