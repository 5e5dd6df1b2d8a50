"""What a choice is, what it is asked, and what it answers with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from advisor.configuration import Configuration
from advisor.environment import Environment
from advisor.model import ModelFacts
from advisor.objective import Tier
from advisor.workloads import Workload


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


@dataclass(frozen=True)
class Reading:
    """What a worker read of a loaded model and one profiled step, by which a choice proves that it ran.

    attention: "" and sub-configuration names -> implementation read back; dtypes: dtype -> number of floating-point
    parameters; linears: class name -> number of linear layers; operators: names of the operators and kernels launched;
    inputs: how the model was called (rows, mask, restarting positions, cache, cu_seq_lens); sequences: in the largest
    call; sdp_kernels: the kernels torch's sdpa was allowed ("flash", "efficient", "cudnn", "math"); automatic: where not
    all were, the operators of the same step with all of them allowed; prequantized: the checkpoint's weights were.
    one_way: the class knows one way to attend, its own, which may be none.
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
    sequences: int = 0
    prequantized: bool = False
    one_way: bool = False


def _nothing(_: Any) -> None:
    return None


def _no_reasons(_: Any) -> list[Reason]:
    return []


def _exact(_: Any) -> Tier:
    return Tier.EXACT


def _same_rate(_: Any) -> float:
    return 1.0


@dataclass(frozen=True)
class Choice:
    """One value of a knob.

    summary: words for the support table; source: where its rules were read.
    unavailable(environment): the reason why this machine can't run it at all, or None.
    why_not(situation): the rules of this choice in this situation, pair rules included.
    load(configuration): keyword arguments of from_pretrained, as Python expressions.
    before, after: statements executed before and after loading (`model` is there then); imports: what all of them need;
    functions: (module in advisor.knobs, name) of functions that they call: the suggestion prints their source.
    compiles: every new shape of a call is compiled first.
    own_load: this choice alone of its knob needs the weights loaded for itself.
    proof(reading): None, or why the reading does not show that it ran.
    rate(situation): speed of the work it governs relative to the others of its knob (only for the order of search).
    quantises: whether the weights are no floats then, so that they can't be looked at in fp32.
    independent: False where the arithmetic depends on the whole batch by design (LLM.int8 chooses its outlier columns over all
    of it): the independence probe then looks at the layout without it, and the user is told.
    advised: False for a form that is there to be refused or caught: where a user insists it is run and judged, but it is
    never recommended, and no lines to paste are printed for it.
    """

    knob: str
    name: str
    summary: str
    source: str = ""
    unavailable: Callable[[Environment], Reason | None] = _nothing
    why_not: Callable[[Situation], list[Reason]] = _no_reasons
    load: Callable[[Configuration], Mapping[str, str]] = field(default=lambda _: {})
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    functions: tuple[tuple[str, str], ...] = ()
    own_load: bool = False
    compiles: bool = False
    proof: Callable[[Reading], str | None] = _nothing
    tier: Callable[[ModelFacts], Tier] = _exact
    rate: Callable[[Situation], float] = _same_rate
    quantises: bool = False
    independent: bool = True
    advised: bool = True


@dataclass(frozen=True)
class Knob:
    """One tunable dimension.

    reload: whether changing it needs the weights loaded again; default(facts): what transformers does when told
    nothing; effective(reading): the name of the choice that ran; applies(workload): whether it can be turned at all.
    """

    name: str
    summary: str
    reload: bool
    choices: dict[str, Choice]
    default: Callable[[ModelFacts], str]
    effective: Callable[[Reading], str]
    applies: Callable[[Workload], bool] = field(default=lambda _: True)
