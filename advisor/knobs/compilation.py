"""Compilation: torch.compile of the layer that a model repeats, of the loss of its logits, of both, or of the whole model.

It pays by calls: a first call takes seconds to minutes. One layer compiled and used by all takes the least of it, so that it is
tried first. What it gains is fewer kernels and fewer launches; with CUDA graphs a call is one launch, where shapes repeat.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from advisor.knobs.choice import KNOBS, Choice, Knob, Reading, Reason, Situation, Term, Verdict
from advisor.knobs.traits import Traits
from advisor.nouns.environment import Environment
from advisor.workloads import Workload

_WHOLE_SOURCE = "https://docs.pytorch.org/docs/stable/generated/torch.compile.html"
_REGIONAL_SOURCE = "https://docs.pytorch.org/tutorials/recipes/regional_compilation.html"
_MODULE = "advisor.knobs.compilation_torch"

#: The choice to compile nothing.
OFF = "off"

#: How much faster a CPU is expected to be at what it computes.
_ON_CPU = 1.1

#: How fast a GPU is with all sizes left open over the first shape compiled for itself and the others with open sizes: Llama-3-8B
#: with eight shapes on two H200s 0.94 and 0.96, BERT-base 0.99. On a CPU it was not measured.
_OPEN_SIZES = 0.96

#: How much more it gains in a step of training, on the way back too: Llama-1B by hand on an H100 (levers.md). Where the loss is
#: compiled, logits in fp32 and their logarithms are never written: Llama-1B by hand on an H200, 188 ms a step and 175.
_IN_TRAINING, _OF_LOSS = 1.12, 1.08

#: What the function that finds the layers needs, and the line below it.
_IMPORTS = ("import torch", "from typing import Any")
_OF_LAYERS = "from transformers.modeling_layers import GradientCheckpointingLayer"

#: One of the layers is compiled for all: FlashAttention is handed a layer's number, and torch would compile for each anew, eight
#: times, and run the others as they are (bert-base 1.98 instead of 2.16 times the default on an H200, Llama-3-8B 1.54).
_ANY_NUMBER = "torch._dynamo.config.allow_unspec_int_on_nn_module = True"

#: torch's modes beside its default.
_GRAPHS, _TUNED = "reduce-overhead", "max-autotune-no-cudagraphs"

#: What is compiled, by the end of its choices' names: the statements that compile it, with torch's arguments in the braces.
_LAYERS, _LOSS, _BOTH, _ALL = "regional", "loss", "regional-with-loss", ""
_REGION = {
    _LAYERS: (_ANY_NUMBER, "compile_layers({})"),
    _LOSS: ("compile_loss({})",),
    _BOTH: (_ANY_NUMBER, "compile_layers({})", "compile_loss({})"),
    _ALL: ("model.compile({})",),
}
_WHAT = {
    _LAYERS: "the layer that is repeated, compiled once",
    _LOSS: "the loss of the logits compiled, in training",
    _BOTH: "the layer that is repeated, compiled once, and the loss of the logits, in training",
    _ALL: "the whole model compiled",
}

#: By the function that compiles: what stands for it in a script.
_FUNCTIONS = {"compile_layers": ("repeated_layers", "compile_layers"), "compile_loss": ("compile_loss",)}

#: The operators of a loss that isn't compiled, torch's cross entropy. A compiled one's kernels have the words in their names too,
#: after what the compiler puts first.
_PLAIN_LOSS = "aten::nll_loss"

#: Calls of more shapes than this: torch compiles one function for so few, and runs the next one uncompiled
#: (torch._dynamo.config.recompile_limit), and each is a CUDA graph of its own.
_MANY_SHAPES = 8


def _unavailable(environment: Environment) -> Reason | None:
    if not environment.is_cuda:
        return None
    if (environment.compute_capability or (0, 0)) < (7, 0):
        return Reason("C11", Verdict.INVALID, "torch's compiler makes kernels for compute capability 7.0 and up")
    if environment.version("triton") is None:
        return Reason("C11", Verdict.INVALID, "torch compiles for a GPU by the package triton", "pip install triton")
    return None


def _graphs_unavailable(environment: Environment) -> Reason | None:
    if not environment.is_cuda:
        return Reason("C12", Verdict.INVALID, "CUDA graphs are a GPU's: on a CPU torch makes none", "choose compiled")
    return _unavailable(environment)


@lru_cache(maxsize=64)
def _shapes(workload: Workload, *, by_length: bool, packs: bool) -> int:
    """Return how many shapes the calls of a workload have."""
    found = set()
    for batch in workload.batches(by_length=by_length):
        lengths = [workload.lengths[number] for number in batch]
        found.add((1, sum(lengths)) if packs else (len(lengths), max(lengths)))
    return len(found)


#: How calls are laid out: by length or as given, packed or not.
_LAYOUTS = ((False, False), (True, False), (False, True))


def _about_layout(situation: Situation, holds: Callable[[int], bool]) -> str:
    """Return the choice that a rule about so many shapes depends on; "" where it holds however calls are laid out."""
    shapes = (_shapes(situation.workload, by_length=by_length, packs=packs) for by_length, packs in _LAYOUTS)
    return "" if all(map(holds, shapes)) else _about(situation, "packing")


def _are_many(shapes: int) -> bool:
    return shapes > _MANY_SHAPES


def _why_not(region: str, mode: str, *, dynamic: bool) -> Callable[[Situation], list[Reason]]:
    """Return the rules of one way to compile."""

    def why_not(situation: Situation) -> list[Reason]:
        if region == _LOSS:
            return _loss_why_not(situation)
        facts, traits = situation.facts, situation.traits
        shapes = _shapes(situation.workload, by_length=traits.by_length, packs=traits.packs)
        reasons = _loss_why_not(situation) if region == _BOTH else []
        if region and facts.repeated_layers is not None and facts.repeated_layers < 2:
            text = f"{facts.architecture} has no layer that transformers knows to be repeated"
            reasons.append(Reason("C13", Verdict.INVALID, text, "choose compiled"))
        if dynamic and shapes == 1:
            text = "every call has the same shape: nothing is gained by leaving sizes open"
            about = _about_layout(situation, lambda count: count == 1)
            reasons.append(Reason("C3", Verdict.INVALID, text, "choose the same without -dynamic", about=about))
        if traits.fuses_layers:
            text = "torch's fused encoder layers are one operator each: there is nothing to fuse"
            reasons.append(Reason("C15", Verdict.INVALID, text, about=_about(situation, "attention")))
        if traits.breaks_graphs or (traits.breaks_backward and situation.workload.trains):
            text = "a part of its layers can't be traced: what is left to be fused is less than what entering it costs"
            reasons.append(Reason("C16", Verdict.SLOW, text, about=_breaking(situation)))
        if not dynamic and _are_many(shapes):
            text = f"calls have {shapes} shapes: torch compiles for one, then anew with sizes left open"
            reasons.append(Reason("C3", Verdict.SLOW, text, about=_about_layout(situation, _are_many)))
        if mode == _GRAPHS and _are_many(shapes):
            text = f"a CUDA graph is recorded for each of {shapes} shapes, and holds its memory"
            reasons.append(Reason("C3", Verdict.SLOW, text, about=_about_layout(situation, _are_many)))
        return reasons + ([] if region else _whole_why_not(situation))

    return why_not


def _loss_why_not(situation: Situation) -> list[Reason]:
    """Rule C17: a loss to compile is of training, and of logits."""
    if not situation.workload.trains:
        return [Reason("C17", Verdict.INVALID, "without labels there is no loss to compile")]
    if situation.facts.calls_loss is False:
        text = f"{situation.facts.architecture} makes its loss by itself, where nothing can be put in its place"
        return [Reason("C17", Verdict.INVALID, text, "choose compiled")]
    if not situation.traits.keeps_logits:
        text = "a loss without logits is kernels of its own: nothing of it is left to compile"
        return [Reason("C17", Verdict.INVALID, text, about=_about(situation, "kernels"))]
    return []


def _whole_why_not(situation: Situation) -> list[Reason]:
    """Rule P13: a mask that could be skipped is made where the code that would skip it is traced."""
    traits = situation.traits
    if situation.environment.is_cuda and traits.builds_mask and not traits.adds_mask and _is_even(situation):
        text = "while it is traced, the mask of a batch without pads can't be skipped, and rules the flash kernel out"
        return [Reason("P13", Verdict.SLOW, text, "choose compiled-regional", about=_about(situation, "attention"))]
    return []


def _is_even(situation: Situation) -> bool:
    """Whether sequences that share a call are of one length, so that it has no pads."""
    workload, traits = situation.workload, situation.traits
    return not traits.packs and workload.padded_tokens(by_length=traits.by_length) == workload.tokens


def _breaking(situation: Situation) -> str:
    """Return the choice that a graph can't be made through. Of no other knob is anything asked: rules are asked once for each."""
    choices = (choice for knob in KNOBS.values() for choice in knob.choices.values())
    breaking = [
        c for c in choices if c.traits.breaks_graphs or (situation.workload.trains and c.traits.breaks_backward)
    ]
    return next(f"{c.knob}={c.name}" for c in breaking if situation.configuration[c.knob] == c.name)


def _about(situation: Situation, knob: str) -> str:
    return f"{knob}={situation.configuration[knob]}"


def _rates(
    region: str, on_gpu: float, launches: float, *, dynamic: bool
) -> Callable[[Situation], Mapping[Term, float]]:
    """Return the rates of one way to compile: on what the device computes beside attention, and on what the CPU launches."""
    of_open_sizes = _OPEN_SIZES if dynamic else 1.0

    def in_training(situation: Situation) -> float:
        of_loss = _OF_LOSS if region != _LAYERS and situation.traits.keeps_logits else 1.0
        return of_loss * (1.0 if region == _LOSS else _IN_TRAINING)

    def rates(situation: Situation) -> Mapping[Term, float]:
        if not situation.environment.is_cuda:
            return {Term.LINEAR: 1.0 if region == _LOSS else _ON_CPU, Term.LAUNCHES: launches}
        gained = on_gpu * (in_training(situation) if situation.workload.trains else 1.0)
        return {Term.LINEAR: gained * of_open_sizes, Term.LAUNCHES: launches}

    return rates


def _read(model: Any, _: Mapping[str, Any]) -> Mapping[str, Any]:
    from advisor.knobs.compilation_torch import compiled_as

    region, mode, dynamic, parts = compiled_as(model)
    return {"asked": _name(region, mode, dynamic=dynamic) if parts else OFF, "modules": parts}


def _undo(model: Any) -> None:
    from advisor.knobs.compilation_torch import uncompile

    uncompile(model)


def _facts(model: Any) -> Mapping[str, Any]:
    from advisor.knobs.compilation_torch import calls_loss, repeated_layers

    return {"repeated_layers": len(repeated_layers(model)), "calls_loss": calls_loss(model)}


def _asked(reading: Reading) -> tuple[str, int]:
    """Return as what the model was compiled, and how many of its modules; a loss counts as one."""
    own = reading.own.get("compilation") or {}
    return str(own.get("asked", OFF)), int(own.get("modules", 0))


def _effective(reading: Reading) -> str:
    """Where a part of what was compiled ran as it is, as far as its first call shows, that is not what was asked for."""
    asked, modules = _asked(reading)
    has_run = reading.compiled_regions >= _wanted(reading, modules) and not reading.compile_limited
    return asked if asked == OFF or (has_run and not _has_plain_loss(reading, asked)) else OFF


def _wanted(reading: Reading, modules: int) -> int:
    """Return how many regions are entered where everything that was compiled runs so in every pass of a step."""
    return modules * max(len(reading.shapes), 1)


def _has_plain_loss(reading: Reading, asked: str) -> bool:
    """Whether a loss ran as it is that was compiled: a class may have a way to its loss that nobody can replace.

    The step that is looked at was run before: while it is traced, a compiled loss launches them too.
    """
    with_loss = {_name(region, "", dynamic=False) for region in (_LOSS, _BOTH)}
    return asked in with_loss and any(name.startswith(_PLAIN_LOSS) for name in reading.operators)


def _proof(name: str) -> Callable[[Reading], str | None]:
    """Rule C14: what was compiled is seen to run in the way that was asked for, as many regions as modules, and none given up."""

    def proof(reading: Reading) -> str | None:
        asked, modules = _asked(reading)
        if _effective(reading) == name:
            return None
        if asked != name:
            return f"it was compiled as {asked}"
        if _has_plain_loss(reading, asked):
            return "its loss ran as it is"
        ran = reading.compiled_regions
        if reading.compile_limited:
            return "torch compiled a function as often as it does, and ran the rest as it is"
        return (
            f"only {ran} of {_wanted(reading, modules)} layers ran compiled" if ran else "nothing that was compiled ran"
        )

    return proof


def _name(region: str, mode: str, *, dynamic: bool) -> str:
    """Return the name of a way to compile: what, torch's name of the mode, and whether sizes are left open."""
    return "-".join(["compiled", *filter(None, (region, mode)), *(["dynamic"] if dynamic else [])])


def _choice(region: str, mode: str, seconds: float, rates: tuple[float, float], *, dynamic: bool) -> Choice:
    """Return a way to compile. seconds: that a region of it is expected to take; rates: see :func:`_rates`."""
    name = _name(region, mode, dynamic=dynamic)
    given = [*([f'mode="{mode}"'] if mode else []), *(["dynamic=True"] if dynamic else [])]
    words = [_WHAT[region], *([f"mode {mode}"] if mode else []), *(["sizes left open"] if dynamic else [])]
    functions = [name for call, names in _FUNCTIONS.items() if f"{call}({{}})" in _REGION[region] for name in names]
    return Choice(
        "compilation",
        name,
        ", ".join(words),
        _REGIONAL_SOURCE if region else _WHOLE_SOURCE,
        _graphs_unavailable if mode == _GRAPHS else _unavailable,
        _why_not(region, mode, dynamic=dynamic),
        on_model=tuple(line.format(", ".join(["model", *given] if region else given)) for line in _REGION[region]),
        imports=(*(_IMPORTS if region else ()), *([_OF_LAYERS] if "repeated_layers" in functions else [])),
        functions=tuple((_MODULE, name) for name in functions),
        proof=_proof(name),
        rates=_rates(region, *rates, dynamic=dynamic),
        compile_s=seconds if region else 0.0,
        compile_layer_s=0.0 if region else seconds,
        akin="compiled",
        traits=Traits(
            compiles_model=region != _LOSS,
            compiles_regions=bool(region),
            compiles_loss=region != _LAYERS,
            replays=mode == _GRAPHS,
        ),
    )


#: (region, mode, seconds, (rate on what is computed, rate of launches)), before any was seen here. seconds: of the layer that is
#: repeated, or of each of all the layers. With eight shapes the whole of Llama-3-8B took an H200 130 s, 4.1 for each layer of 32,
#: BERT-base 1.7 for each of 12, MiniLM 2.0 for each of 6, and an 8B was 1.2 times as fast; trying kernels takes minutes.
_WAYS = (
    (_LAYERS, "", 15.0, (1.2, 1.8)),
    (_LAYERS, _TUNED, 60.0, (1.2, 1.8)),
    (_ALL, "", 4.0, (1.2, 2.0)),
    (_ALL, _GRAPHS, 4.0, (1.2, 10.0)),
    (_ALL, _TUNED, 12.0, (1.2, 2.0)),
)
#: The same where sizes are not left open by name: a loss is small, and torch leaves them open at its second shape.
_WAYS_OF_LOSS = ((_LOSS, "", 4.0, (1.0, 1.0)), (_BOTH, "", 19.0, (1.2, 1.8)))
_OFF = Choice("compilation", OFF, "kernels as torch launches them", _WHOLE_SOURCE, proof=_proof(OFF))

KNOB = Knob(
    name="compilation",
    summary="torch.compile",
    reload=False,
    default=lambda _: OFF,
    effective=_effective,
    choices={
        choice.name: choice
        for choice in (
            _OFF,
            *(_choice(*way, dynamic=dynamic) for way in _WAYS for dynamic in (False, True)),
            *(_choice(*way, dynamic=False) for way in _WAYS_OF_LOSS),
        )
    },
    facts=_facts,
    implied=OFF,
    place=60,
    numbers=True,
    read=_read,
    undo=_undo,
    late=True,
)
