"""What parent and worker say to each other: requests, answers and events, each a frozen class of its own and a line of JSON.

`advisor.measure.lines` writes and reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from advisor.measure.lines import Message, Noun, Reader, encode
from advisor.measure.stopping import Stopping, Turns
from advisor.nouns.configuration import Configuration
from advisor.nouns.entry import Texts
from advisor.nouns.model import ModelFacts, ModelFiles
from advisor.nouns.trial import Outcome, Quality
from advisor.workloads import Workload

#: A figure of a `Quality`, by whose name it is sent.
Figure = float | str | None


# ------------------------------------------------------------------------------------------------------------- requests


class Subject(Message, frozen=True, kw_only=True):
    """What is asked about: a configuration of a model on a workload.

    sample: the sequences that the gate judges, as indices into the workload's; texts: the user's own, None where the bundled text
    is run.
    """

    source: ModelFiles
    facts: Noun[ModelFacts]
    workload: Noun[Workload]
    configuration: Noun[Configuration]
    sample: tuple[int, ...] = ()
    texts: Texts | None = None

    @classmethod
    def of(cls, subject: Subject, **more: Any) -> Self:
        """Ask about a subject. more: what this request asks beside it, and what of the subject is another."""
        return cls(**{**{name: getattr(subject, name) for name in Subject.__struct_fields__}, **more})


class FactsAsked(Message, tag_field="op", tag="facts", frozen=True, kw_only=True):
    """Read a model's facts. Answered by FactsRead."""

    source: ModelFiles
    workload: Noun[Workload]


class CeilingsAsked(Message, tag_field="op", tag="ceilings", frozen=True, kw_only=True):
    """Measure what the device reaches at best. Answered by Ceilings."""


class ReferenceAsked(Subject, tag_field="op", tag="reference", frozen=True, kw_only=True):
    """Write the reference of a default to the file `path`. Answered by ReferenceWritten or Unjudged."""

    path: str


class LayoutAsked(Subject, tag_field="op", tag="layout", frozen=True, kw_only=True):
    """Look at a layout in fp32. reference: the file that was written, None where there is none. Answered by LayoutLooked."""

    reference: str | None


class Ran(Message, frozen=True, kw_only=True):
    """What ran, and the figures of its output."""

    configuration: Noun[Configuration]
    quality: Noun[Quality]


class Gate(Message, frozen=True, kw_only=True):
    """What an output is held to.

    path: of the reference's file, None where there is none; reference: what it is, in words; default: what the default's output
    was; is_default: whether it is the default that is asked about; known: figures of `Quality` by name, of the probe and the
    layout, that were found before with the same weights, layout and attention.
    """

    path: str | None
    reference: str
    default: Ran | None = None
    is_default: bool = False
    known: Mapping[str, Figure] = {}


class Timing(Message, frozen=True, kw_only=True):
    """When timing ends. incumbent_s: seconds a round of the best so far, None where a slower one is to be timed to its end.

    energy: whether joules are read on a GPU, which takes seconds. best_lap_s: the quickest lap of the CPU that the study saw.
    """

    stopping: Stopping = Stopping()
    incumbent_s: float | None = None
    energy: bool = True
    best_lap_s: float | None = None


class TrialAsked(Subject, tag_field="op", tag="trial", frozen=True, kw_only=True):
    """Run a trial. gate: None where nothing is judged; measured: keys of what has figures already. Answered by TrialDone."""

    gate: Gate | None = None
    measured: tuple[str, ...] = ()
    timing: Timing = Timing()


class BlockAsked(Subject, tag_field="op", tag="block", frozen=True, kw_only=True):
    """Run a block of the confirmation; the subject's configuration is the default. Answered by BlockDone.

    seed: of who comes when; parts: in how many turns the round of each contestant is run, in one where none are named;
    in_turn: whether each is loaded, timed and freed by itself. best_lap_s: the quickest lap that the study saw
    (`advisor.machine.pace`).
    """

    contestants: tuple[Noun[Configuration], ...]
    seed: int
    turns: Turns = Turns()
    parts: tuple[int, ...] = ()
    in_turn: bool = False
    best_lap_s: float | None = None


Request = FactsAsked | CeilingsAsked | ReferenceAsked | LayoutAsked | TrialAsked | BlockAsked


# -------------------------------------------------------------------------------------------------------------- answers


class FactsRead(Message, tag_field="is", tag="facts", frozen=True, kw_only=True):
    """A model's facts."""

    facts: Noun[ModelFacts]


class Ceilings(Message, tag_field="is", tag="ceilings", frozen=True, kw_only=True):
    """What a device reaches at best, see `advisor.machine.ceilings_torch.measure`."""

    reached: Mapping[str, float]


class ReferenceWritten(Message, tag_field="is", tag="reference", frozen=True, kw_only=True):
    """A reference was written. words: how it was computed; positions: how many are compared; texts: the tokens, in words."""

    positions: int
    words: str
    texts: str


class Unjudged(Message, tag_field="is", tag="unjudged", frozen=True, kw_only=True):
    """There is no reference in fp32, and nobody is judged by less."""

    why: str


class LayoutLooked(Message, tag_field="is", tag="layout", frozen=True, kw_only=True):
    """What was seen of a layout: figures of `Quality` by name."""

    figures: Mapping[str, Figure]


class Rounds(Message, frozen=True, kw_only=True):
    """Timed rounds, a value a round: seconds by the wall clock, by CUDA events and of the slowest batch; the gauges' readings.

    discarded: why rounds were thrown away; pruned: why the trial was stopped early, "" where it was not. joules: a round, by
    NVML's energy counter; busy: the share of the time for which the GPU computed; each None where it was not seen. laps_s: what
    a loop of steps took on the CPU beside each, empty where nobody looked. paired: they are short turns, each beside one of every
    other contestant's. compiled: what torch compiled for them and for the first call, by metric. figures: samples by metric
    that are known without rounds: a recording has them.
    """

    wall_s: tuple[float, ...]
    gpu_s: tuple[float, ...] = ()
    slowest_s: tuple[float, ...] = ()
    states: tuple[Mapping[str, Any], ...] = ()
    discarded: tuple[str, ...] = ()
    pruned: str = ""
    joules: float | None = None
    busy: float | None = None
    laps_s: tuple[float, ...] = ()
    paired: bool = False
    compiled: Mapping[str, float] = {}
    figures: Mapping[str, tuple[float, ...]] = {}


class TrialDone(Message, tag_field="is", tag="trial", frozen=True, kw_only=True):
    """What came of a trial that ran, right or wrong, to its end or not.

    reason: why it was pruned or its output is wrong, "" else; alias: what was asked for and did not run, in words. reading: what
    was read of the loaded model (`advisor.knobs.Reading`, as JSON values); texts: the tokens, in words. gate_s: seconds by part
    of the gate. rounds: None where nothing was timed, as of what is wrong, or was measured already under what ran. found_load_s:
    what the load took whose weights this found loaded, None where it loaded them itself.
    """

    outcome: Outcome
    reason: str = ""
    alias: str = ""
    effective: Noun[Configuration] | None = None
    load_s: float | None = None
    first_call_s: float | None = None
    found_load_s: float | None = None
    weight_bytes: int | None = None
    peak_bytes: int | None = None
    reading: Mapping[str, Any] = {}
    texts: str = ""
    quality: Noun[Quality] | None = None
    gate_s: Mapping[str, float] = {}
    rounds: Rounds | None = None


class Failure(Message, tag_field="is", tag="failure", frozen=True, kw_only=True):
    """Nothing came of a request, or of a block's contestant. transient: whether another attempt may end otherwise."""

    outcome: Outcome
    reason: str
    transient: bool = False


class Contested(Message, frozen=True, kw_only=True):
    """What came of a contestant of a block, and the seconds that went into it."""

    came: TrialDone | Failure
    spent_s: float = 0.0


class BlockDone(Message, tag_field="is", tag="block", frozen=True, kw_only=True):
    """What came of a block: of each contestant, in their order."""

    results: tuple[Contested, ...]


Answer = FactsRead | Ceilings | ReferenceWritten | Unjudged | LayoutLooked | TrialDone | BlockDone | Failure

#: What answers a request, beside a failure.
_ANSWERS: Mapping[type[Message], tuple[type[Message], ...]] = {
    FactsAsked: (FactsRead,),
    CeilingsAsked: (Ceilings,),
    ReferenceAsked: (ReferenceWritten, Unjudged),
    LayoutAsked: (LayoutLooked,),
    TrialAsked: (TrialDone,),
    BlockAsked: (BlockDone,),
}


def is_answered(request: Request, answer: Answer) -> bool:
    """Whether this is an answer to this request: of its own class, or a failure; of a block, something of each contestant."""
    if isinstance(request, BlockAsked) and isinstance(answer, BlockDone):
        return len(answer.results) == len(request.contestants)
    return isinstance(answer, (*_ANSWERS.get(type(request), ()), Failure))


# --------------------------------------------------------------------------------------------------------------- events


class Ready(Message, tag_field="event", tag="ready", frozen=True, kw_only=True):
    """The worker is there."""

    pid: int


#: The stage of the first call of a loaded model, in which is compiled what is.
FIRST_CALL = "first call"


class StageEvent(Message, tag_field="event", tag="stage", frozen=True, kw_only=True):
    """What the worker does from now on."""

    stage: str


class RoundEvent(Message, tag_field="event", tag="round", frozen=True, kw_only=True):
    """So many rounds are timed; round_s: the newest figure, in seconds."""

    n: int
    round_s: float


class Done(Message, tag_field="event", tag="done", frozen=True, kw_only=True):
    """A request is answered. id: the request's number."""

    id: int
    result: Answer


Event = Ready | StageEvent | RoundEvent | Done


class Numbered(Message, frozen=True, kw_only=True):
    """A request on its way, which the runner and the worker's loop alone see: its number, and the device to run it on."""

    id: int
    device: str
    uuid: str
    request: str


# ------------------------------------------------------------------------------------------------------- lines of JSON


_NUMBERED, _REQUEST, _EVENT = Reader[Numbered](Numbered), Reader[Request](Request), Reader[Event](Event)


def numbered(number: int, device: str, uuid: str, request: Message) -> bytes:
    """Return a request's line."""
    return encode(Numbered(id=number, device=device, uuid=uuid, request=encode(request).decode()))


def decode_numbered(line: bytes) -> Numbered:
    """Return what a request's line says beside the request, which is still a text. Raises NoMessage."""
    return _NUMBERED.read(line)


def decode_request(line: bytes | str) -> Request:
    """Return a request. Raises NoMessage."""
    return _REQUEST.read(line)


def decode_event(line: bytes) -> Event:
    """Return what a worker said. Raises NoMessage."""
    return _EVENT.read(line)


def words_of(event: Event) -> dict[str, Any]:
    """Return an event as listeners hear it: {"event": its name, …}."""
    return {"event": event.__struct_config__.tag, **event.fields}
