"""What a choice is, what it is asked, and what it answers with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any

from advisor.knobs.traits import Traits, merged
from advisor.nouns.configuration import Configuration
from advisor.nouns.environment import Environment
from advisor.nouns.model import ModelFacts
from advisor.nouns.objective import Tier
from advisor.workloads import Needs, Workload


class Verdict(StrEnum):
    """What a rule says (levers.md, A.7). The first three refuse; SLOW lowers the prior; WARN is told."""

    INVALID = "INVALID"
    WRONG = "WRONG"
    ALIAS = "ALIAS"
    SLOW = "SLOW"
    WARN = "WARN"

    @property
    def refuses(self) -> bool:
        """Whether a configuration with this verdict is not run."""
        return self in (Verdict.INVALID, Verdict.WRONG, Verdict.ALIAS)


@dataclass(frozen=True)
class Reason:
    """Why not: the rule's id, its verdict, words a user understands, and the command or change that would help.

    about: the other knob's choice that it depends on ("" where the choice alone is the reason); subject: "knob=choice",
    filled in by the space.
    """

    rule: str
    verdict: Verdict
    text: str
    remedy: str = ""
    about: str = ""
    subject: str = ""

    def __str__(self) -> str:
        """Return what is refused, by which rule and why, in a line."""
        return f"{self.subject}{f' with {self.about}' if self.about else ''}: {self.rule} {self.text}"


@dataclass(frozen=True)
class Situation:
    """All that a rule may look at: no torch, no GPU, no clock."""

    configuration: Configuration
    workload: Workload
    environment: Environment
    facts: ModelFacts

    @property
    def needs(self) -> Needs:
        """What the work asks of a model."""
        return self.workload.needs

    @cached_property
    def traits(self) -> Traits:
        """The traits of the configuration's choices."""
        return traits_of(self.configuration)


@dataclass(frozen=True)
class Reading:
    """What a worker read of a loaded model and one profiled step, by which a choice proves that it ran.

    attention: "" and sub-configuration names -> implementation read back; dtypes: dtype -> number of floating-point
    parameters; linears: class name -> number of linear layers; operators: names of the operators and kernels launched;
    inputs: how the model was called (rows, mask, restarting positions, cache, cu_seq_lens); sequences: in the largest
    call; sdp_kernels: the kernels torch's sdpa was allowed ("flash", "efficient", "cudnn", "math"); automatic: where not
    all were, the operators of the same step with all of them allowed; prequantized: the checkpoint's weights were.
    uncompiled: where the model is compiled and that hid what ran, the operators of the same step as it is without.
    flash_impl: what torch's flash kernel was switched to ("FA3", "FA4"), "" where it is torch's own.
    one_way: the class knows one way to attend, its own, which may be none. own: by knob, what its own `read` saw. kernel_s:
    seconds that a GPU's kernels took together in that step, 0.0 where none were seen. compiled_regions: how many times it
    entered what torch compiled; compile_limited: whether torch had compiled a function as often as it does by then. shapes:
    how many sequences each forward pass of the first timed call has. proof_s: what reading all this took.
    """

    attention: Mapping[str, str]
    dtypes: Mapping[str, int]
    linears: Mapping[str, int]
    operators: Sequence[str]
    inputs: Mapping[str, Any]
    float32_matmul: str = "highest"
    weight_bytes: int = 0
    sdp_kernels: Sequence[str] = ()
    automatic: Sequence[str] = ()
    uncompiled: Sequence[str] = ()
    flash_impl: str = ""
    sequences: int = 0
    prequantized: bool = False
    one_way: bool = False
    own: Mapping[str, Any] = field(default_factory=dict)
    kernel_s: float = 0.0
    compiled_regions: int = 0
    compile_limited: bool = False
    shapes: Sequence[int] = ()
    proof_s: float = 0.0

    @property
    def hides_layers(self) -> bool:
        """Whether layers ran within what torch compiled, where a profile does not show what of them ran."""
        asked = (self.own.get("compilation") or {}).get("asked")
        choice = KNOBS["compilation"].choices.get(str(asked))
        return choice is None or choice.traits.compiles_model


class Term(StrEnum):
    """What a pass over the list is made of: what a choice's rates speak of.

    LINEAR, ATTENTION: what the device computes. LAUNCHES: what the CPU does beside it to launch that, which is what counts
    where the work is too small for the device; the more of it a choice does per batch, the lower its rate.
    """

    LINEAR = "linear"
    ATTENTION = "attention"
    LAUNCHES = "launches"


def on_all(rate: float) -> Mapping[Term, float]:
    """Return the same rate on all that the device computes."""
    return dict.fromkeys((Term.LINEAR, Term.ATTENTION), rate)


@dataclass(frozen=True)
class Batching:
    """What a batch must be made for.

    causal: False for an encoder; first_position: of every sequence; apart: whether attention tells packed sequences apart by
    cu_seq_lens; dtype: torch's, of the model, for a float mask; left: whether pads go to the left.
    """

    pad_token_id: int
    causal: bool = True
    first_position: int = 0
    apart: bool = False
    dtype: Any = None
    left: bool = True


@dataclass(frozen=True)
class Collation:
    """The function that makes the arguments of a call from a batch: the worker calls it, the suggestion prints its source.

    module, name: where it stands; it takes a list of token ids and returns the arguments, and each sequence's row, first
    column and the column after its last. given: the fields of `Batching` that it takes, by name. makes: what of a call it
    makes that a class may not take. words: what it does, for people.
    """

    module: str
    name: str
    given: tuple[str, ...]
    makes: tuple[str, ...]
    words: str


def _nothing(_: Any) -> None:
    return None


def _no_reasons(_: Any) -> list[Reason]:
    return []


def _exact(_: Any) -> Tier:
    return Tier.EXACT


def _no_rates(_: Any) -> Mapping[Term, float]:
    return {}


def _no_arguments(_: Configuration) -> Mapping[str, str]:
    return {}


def always(_: Workload) -> bool:
    """Say of a knob that it can be turned whatever the work is: then every configuration has a choice of it."""
    return True


@dataclass(frozen=True)
class Choice:
    """One value of a knob.

    summary: words for the support table; source: where its rules were read.
    unavailable(environment): the reason why this machine can't run it at all, or None.
    why_not(situation): the rules of this choice in this situation, pair rules included.
    load(configuration), call(configuration): keyword arguments of from_pretrained, and of every call of the model, as Python
    expressions.
    before, after: statements executed before and after loading (`model` is there then). on_model: statements on the loaded model,
    executed whenever a configuration is switched to, after its knob's `undo` took back another's. imports: what all of them need;
    functions: (module, name) of functions that they call: the suggestion prints their source.
    proof(reading): None, or why the reading does not show that it ran.
    rates(situation): its speed on the terms of the work that it changes, relative to the others of its knob (only for the
    order of search).
    collation(batching): how it makes a batch, where that is what it decides.
    packages: distributions that it needs beside torch and transformers, by their names in an environment.
    in_fp32(implementation): lets kernels that take 16 bits alone be stood in for by the same in fp32, behind their interface.
    in_chunks(): lets it attend from some queries at a time, where it may write all scores in fp32.
    trainer: what transformers' TrainingArguments call it, as expressions by name, where they have a word for it.
    traits: what everybody else asks of it. compile_s, compile_layer_s: the seconds that compiling adds to its trial, and those of
    each of the model's layers, as expected before any was seen. akin: choices of a knob with the same word do alike: where the
    prediction of one is wrong, that of another is as wrong, nearly.
    """

    knob: str
    name: str
    summary: str
    source: str = ""
    unavailable: Callable[[Environment], Reason | None] = _nothing
    why_not: Callable[[Situation], list[Reason]] = _no_reasons
    load: Callable[[Configuration], Mapping[str, str]] = _no_arguments
    call: Callable[[Configuration], Mapping[str, str]] = _no_arguments
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    on_model: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    functions: tuple[tuple[str, str], ...] = ()
    packages: tuple[str, ...] = ()
    proof: Callable[[Reading], str | None] = _nothing
    tier: Callable[[ModelFacts], Tier] = _exact
    rates: Callable[[Situation], Mapping[Term, float]] = _no_rates
    collation: Callable[[Batching], Collation] | None = None
    in_fp32: Callable[[str], AbstractContextManager[None]] | None = None
    in_chunks: Callable[[], AbstractContextManager[None]] | None = None
    trainer: Mapping[str, str] = field(default_factory=dict, hash=False)
    traits: Traits = field(default=Traits())
    compile_s: float = 0.0
    compile_layer_s: float = 0.0
    akin: str = ""

    @property
    def compiles(self) -> bool:
        """Whether anything is compiled before it runs."""
        return self.compile_s > 0 or self.compile_layer_s > 0

    def compiling_s(self, layers: int) -> float:
        """Return the seconds that it is expected to compile for, for a model of so many layers."""
        return self.compile_s + layers * self.compile_layer_s


@dataclass(frozen=True)
class Knob:
    """One tunable dimension.

    reload: whether changing it needs the weights loaded again; default(facts): what transformers does when told
    nothing; effective(reading): the name of the choice that ran; applies(workload): whether it can be turned at all.
    reference: the choice that the gate's reference is computed with, "" where that is the default's.
    facts(model): what its rules need to know of a model that no other knob asks, as fields of `ModelFacts`; worker only.
    implied: the choice that means "nothing is done", which a configuration leaves out, "" where there is none: what was
    measured before the knob existed has it. Its name is for ever: what is stored does not say it.
    place: where people read it in a configuration, the lowest first; ours are from 10 to 50.
    numbers: whether its choices are about the numbers that weights and arithmetic are in, and about nothing else: then the
    layout in fp32 is the same for all of them.
    read(model, arguments): what its own proofs need to see of a loaded model and of a call's arguments, as JSON values; it
    stands in `Reading.own` under the knob's name; worker only.
    undo(model): takes back what choices did to a loaded model by `Choice.on_model`; worker only.
    late: its choices but the implied one are tried on the best that was measured without them before anything else of theirs:
    they cost more than they differ in (`advisor.search.late`).
    spares: its choices are about memory, and what they do to speed is known to arithmetic: of what differs by them alone, the
    predicted best that fits is tried before the others (`advisor.search.late`).
    of_work(facts, workload): the choice that the work itself asks for, in place of the default; "" where it asks for none.
    """

    name: str
    summary: str
    reload: bool
    choices: dict[str, Choice]
    default: Callable[[ModelFacts], str]
    effective: Callable[[Reading], str]
    applies: Callable[[Workload], bool] = always
    reference: str = ""
    facts: Callable[[Any], Mapping[str, Any]] = field(default=lambda _: {})
    implied: str = ""
    place: int = 100
    numbers: bool = False
    read: Callable[[Any, Mapping[str, Any]], Any] | None = None
    undo: Callable[[Any], None] | None = None
    late: bool = False
    spares: bool = False
    of_work: Callable[[ModelFacts, Workload], str] = field(default=lambda _, __: "")

    def __post_init__(self) -> None:
        """Refuse an implied choice that there is not, choices of another knob, and what can't be taken back."""
        if self.implied and self.implied not in self.choices:
            raise ValueError(f"the knob {self.name} has no choice {self.implied!r}, which it implies")
        if strangers := [
            name for name, choice in self.choices.items() if (choice.knob, choice.name) != (self.name, name)
        ]:
            raise ValueError(f"the knob {self.name} has choices of another knob or name: {', '.join(strangers)}")
        if self.undo is None and any(choice.on_model for choice in self.choices.values()):
            raise ValueError(f"the knob {self.name} changes a loaded model and has no undo")
        if self.late and not self.implied:
            raise ValueError(f"the knob {self.name} is tried late, and implies no choice to be tried first")


#: Every knob by name, in the order in which people read a configuration. Filled by the registry, `advisor.knobs`.
KNOBS: dict[str, Knob] = {}


def traits_of(configuration: Configuration) -> Traits:
    """Return the traits of all choices of a configuration together; one that nobody knows has none."""
    choices = [KNOBS[knob].choices.get(name) for knob, name in configuration.over(KNOBS)]
    return merged(tuple([choice.traits for choice in choices if choice is not None]))
