"""What parent and worker say to each other: nothing of a message is lost on the way, and what is none is told in a line."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from made_models import SMALL

import advisor
from advisor.machine import probe
from advisor.measure import messages, runner, worker
from advisor.measure.lines import Message, NoMessage, Reader, encode
from advisor.measure.messages import (
    BlockAsked,
    BlockDone,
    Ceilings,
    CeilingsAsked,
    Contested,
    Done,
    FactsAsked,
    FactsRead,
    Failure,
    Gate,
    LayoutAsked,
    LayoutLooked,
    Numbered,
    Ran,
    Ready,
    ReferenceAsked,
    ReferenceWritten,
    RoundEvent,
    Rounds,
    StageEvent,
    Subject,
    Timing,
    TrialAsked,
    TrialDone,
    Unjudged,
    decode_event,
    decode_numbered,
    decode_request,
    numbered,
    words_of,
)
from advisor.measure.session_torch import Session
from advisor.measure.stopping import Stopping, Turns
from advisor.nouns.configuration import Configuration
from advisor.nouns.entry import Texts
from advisor.nouns.model import ModelFiles
from advisor.nouns.trial import Outcome, Quality
from advisor.workloads.forward import Forward

ADVISOR = Path(advisor.__file__).parent

FILES = ModelFiles("/models/a", "trained", "sha256:0", True, has_tokenizer=True, beside={"folder": "/models/a"})
WORK = Forward((16, 6, 12, 4), 2, "hidden")
DEFAULT = Configuration.of({"attention": "sdpa", "precision": "fp32", "quantization": "none", "packing": "padded"})
PACKED = DEFAULT.replaced(packing="packed")
QUALITY = Quality(0.01, 0.1, 1e-4, 0.99, 40, 1.01, reference="fp32, eager", probed="no pads", neighbours=0.0, gate="9")
TEXTS = Texts(
    "/data/a.jsonl", "jsonl", "text", ((0, 0, 0), (120, 0, 1)), (6, 4), 512, "sha256:1", "2 of your own texts"
)
SUBJECT = Subject(source=FILES, facts=SMALL, workload=WORK, configuration=PACKED, sample=(0, 2), texts=TEXTS)
GATE = Gate(
    path="folder/reference.pt",
    reference="fp32, eager",
    default=Ran(configuration=DEFAULT, quality=QUALITY),
    is_default=True,
    known={"layout": 0.25, "layout_words": "eager, all layers, fp32", "layout_pads": None},
)
ROUNDS = Rounds(
    wall_s=(0.25, 0.5),
    gpu_s=(0.125, 0.25),
    slowest_s=(0.0625, 0.125),
    states=({"energy_j": 1.5, "throttled": "not observable"}, {}),
    discarded=("it waited for a processor for 50% of the time",),
    pruned="2.0 times slower than the best so far after 2 rounds",
    joules=3.5,
    busy=0.75,
    laps_s=(0.0004, 0.0008),
    paired=True,
    compiled={"compile_s": 12.5, "compiled_graphs": 2.0},
    figures={"tokens_per_s": (150.0, 76.0)},
)
DONE = TrialDone(
    outcome=Outcome.PRUNED,
    reason="2.0 times slower",
    alias="asked for packing sorted, but packed ran",
    effective=PACKED,
    load_s=1.5,
    first_call_s=0.5,
    found_load_s=1.5,
    weight_bytes=2**33 + 1,
    peak_bytes=2**34,
    reading={"attention": {"": "sdpa"}, "inputs": {"rows": 1, "mask": None}, "kernel_s": 0.002},
    texts="random tokens",
    quality=QUALITY,
    gate_s={"error_s": 0.5},
    rounds=ROUNDS,
)
FAILED = Failure(outcome=Outcome.OUT_OF_MEMORY, reason="CUDA out of memory", transient=True)

REQUESTS = (
    FactsAsked(source=FILES, workload=WORK),
    CeilingsAsked(),
    ReferenceAsked.of(SUBJECT, path="folder/reference.pt"),
    LayoutAsked.of(SUBJECT, reference="folder/reference.pt"),
    TrialAsked.of(
        SUBJECT,
        gate=GATE,
        measured=(DEFAULT.key,),
        timing=Timing(stopping=Stopping(1, 2, 3.5, 4, 5.5, 0.5), incumbent_s=0.5, energy=False, best_lap_s=0.0004),
    ),
    BlockAsked.of(
        SUBJECT,
        contestants=(DEFAULT, PACKED),
        seed=1001,
        turns=Turns(4, 8, 0.25, 0.5, True),
        parts=(3, 1),
        in_turn=True,
        best_lap_s=0.0004,
    ),
)
ANSWERS = (
    FactsRead(facts=SMALL),
    Ceilings(reached={"matmul_bf16_per_s": 1e12, "copy_bytes_per_s": 1.5e9}),
    ReferenceWritten(positions=40, words="fp32, eager, one sequence at a time", texts="random tokens"),
    Unjudged(why="it does not fit"),
    LayoutLooked(figures={"layout": 1e-7, "layout_words": "eager", "layout_pads": None}),
    DONE,
    FAILED,
    BlockDone(results=(Contested(came=DONE, spent_s=2.5), Contested(came=FAILED, spent_s=0.5))),
)
EVENTS = (
    Ready(pid=4711),
    StageEvent(stage="time"),
    RoundEvent(n=3, round_s=0.25),
    *(Done(id=7, result=answer) for answer in ANSWERS),
)


def parts_of(value: Any) -> Iterator[Message]:
    """Yield a message and the messages in it."""
    if isinstance(value, Message):
        yield value
        for each in value.fields.values():
            yield from parts_of(each)
    elif isinstance(value, tuple):
        for each in value:
            yield from parts_of(each)


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda each: type(each).__name__)
def test_no_request_loses_anything_on_its_way(request_: messages.Request) -> None:
    """What the worker reads is what the parent wrote, nouns and all; the number and the device travel beside it."""
    line = numbered(3, "cuda:0", "GPU-1", request_)
    read = decode_numbered(line)

    assert b"\n" not in line
    assert (read.id, read.device, read.uuid) == (3, "cuda:0", "GPU-1")
    assert decode_request(read.request) == decode_request(encode(request_)) == request_
    assert b'"device"' not in encode(request_)


@pytest.mark.parametrize("event", EVENTS, ids=lambda each: type(getattr(each, "result", each)).__name__)
def test_no_event_or_answer_loses_anything_on_its_way(event: messages.Event) -> None:
    """What the parent reads is what the worker wrote."""
    assert decode_event(encode(event)) == event


def test_every_class_is_among_the_examples_with_nothing_left_as_it_is_by_default() -> None:
    """The tests above see every class of messages, and each of its fields with another value than its default."""
    classes = {each for each in vars(messages).values() if isinstance(each, type) and issubclass(each, Message)} - {
        Message
    }
    seen: dict[type[Message], set[str]] = {}
    for part in parts_of((*REQUESTS, *EVENTS, SUBJECT)):
        defaults = {each.name: each.default for each in msgspec.structs.fields(part)}
        factories = {each.name: each.default_factory for each in msgspec.structs.fields(part)}
        found = seen.setdefault(type(part), set())
        for name, value in part.fields.items():
            empty = factories[name]() if factories[name] is not msgspec.NODEFAULT else defaults[name]
            found |= {name} if value != empty else set()

    assert set(seen) == classes - {Numbered}
    assert {kind.__name__: set(kind.__struct_fields__) - names for kind, names in seen.items()} == {
        kind.__name__: set() for kind in seen
    }


def test_what_listeners_hear_is_a_mapping() -> None:
    """Events of the worker are heard as they always were."""
    heard = [words_of(event) for event in EVENTS[:3]]

    assert heard == [
        {"event": "ready", "pid": 4711},
        {"event": "stage", "stage": "time"},
        {"event": "round", "n": 3, "round_s": 0.25},
    ]


# ----------------------------------------------------------------------------------------------------- what JSON has not


def test_numbers_that_json_lacks_are_none_where_a_field_may_be() -> None:
    """NaN and infinities become None, however deep they lie in what is only kept, and in figures that may be missing."""
    odd = DONE.replaced(
        load_s=float("nan"),
        quality=replace(QUALITY, kl=float("inf")),
        reading={"a": [float("nan"), {"b": -float("inf")}, 1.5]},
        rounds=ROUNDS.replaced(joules=float("inf"), states=({"energy_j": float("nan")},)),
    )
    event = decode_event(encode(Done(id=1, result=odd)))

    assert isinstance(event, Done)
    read = event.result
    assert isinstance(read, TrialDone)
    assert read.load_s is None
    assert read.quality == replace(QUALITY, kl=None)
    assert read.reading == {"a": [None, {"b": None}, 1.5]}
    assert read.rounds == ROUNDS.replaced(joules=None, states=({"energy_j": None},))


@pytest.mark.parametrize(
    "odd",
    [
        DONE.replaced(rounds=ROUNDS.replaced(wall_s=(0.5, float("nan")))),
        DONE.replaced(quality=replace(QUALITY, rms=float("nan"))),
        Ceilings(reached={"copy_bytes_per_s": float("inf")}),
    ],
    ids=["seconds", "a figure that is always there", "a ceiling"],
)
def test_numbers_that_json_lacks_are_no_message_where_a_field_is_always_one(odd: messages.Answer) -> None:
    """A trial without its seconds is not taken for one."""
    with pytest.raises(NoMessage):
        decode_event(encode(Done(id=1, result=odd)))


def test_odd_values_of_a_reading_are_numbers_or_words() -> None:
    """What a choice's own `read` leaves there, numpy's or torch's, is a number where it is one, else what it is called."""
    numpy = pytest.importorskip("numpy")
    event = Done(id=1, result=DONE.replaced(reading={"a": numpy.float64(0.5), "b": torch.bfloat16, "c": {1: (2, 3)}}))
    read = decode_event(encode(event))

    assert isinstance(read, Done)
    assert isinstance(read.result, TrialDone)
    assert read.result.reading == {"a": 0.5, "b": "torch.bfloat16", "c": {"1": [2, 3]}}


def test_halves_of_characters_come_through() -> None:
    """A file's name that is no text can stand in a request or a reason, beside figures that are not finite."""
    failure, asked = (
        FAILED.replaced(reason="no file /m\udcff"),
        REQUESTS[0].replaced(source=replace(FILES, path="/m\udcff")),
    )

    assert decode_event(encode(Done(id=1, result=failure))) == Done(id=1, result=failure)
    assert decode_request(encode(asked)) == asked
    line = decode_numbered(numbered(3, "cpu", "cpu-1", asked))
    assert (line.id, decode_request(line.request)) == (3, asked)
    done = DONE.replaced(alias="/m\udcff 🙂", reading={"seconds": float("nan"), "counts": (1, 2)})
    read = decode_event(encode(Done(id=1, result=done)))
    assert read == Done(id=1, result=done.replaced(reading={"seconds": None, "counts": [1, 2]}))


# ------------------------------------------------------------------------------------------------- what is no message


class Unknown(Message, tag_field="op", tag="no such operation", frozen=True, kw_only=True):
    """What no worker can answer."""


def without(request: Message, old: bytes, new: bytes) -> bytes:
    """Return a request's line with something else in it."""
    line = encode(request)
    assert old in line
    return line.replace(old, new)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (encode(Unknown()), "Invalid value 'no such operation'"),
        (b"{}", "missing required field `op`"),
        (without(REQUESTS[4], b'"measured":[', b'"measured":[1,'), "Expected `str`, got `int` - at `$.measured[0]`"),
        (without(REQUESTS[4], b':{"attention":"sdpa"', b':{"attention":7'), "a configuration is a choice by knob"),
        (without(REQUESTS[0], b'"kind":"forward"', b'"kind":"nothing known"'), "kind of work that is not known here"),
        (without(REQUESTS[0], b'"lengths"', b'"long"'), "KeyError: 'lengths'"),
        (without(REQUESTS[2], b'"head_dim":32', b'"head_dim":"wide"'), "head_dim can't be 'wide' - at `$.facts`"),
        (encode(REQUESTS[4])[:-9], "Input data was truncated"),
    ],
    ids=["operation", "none", "type", "configuration", "kind", "workload", "facts", "torn"],
)
def test_a_request_that_can_not_be_read_is_answered_with_a_failure(line: bytes, words: str) -> None:
    """The worker says what it could not read, and where, and goes on."""
    answer = worker.answered(Session(lambda _: None), line)

    assert isinstance(answer, Failure)
    assert (answer.outcome, answer.transient) == (Outcome.RUNTIME_ERROR, False)
    assert words in answer.reason


#: Said by a worker instead of an answer, by what it is.
NO_MESSAGES = {
    "no JSON": b"Segmentation fault",
    "no object": b"[]",
    "an unknown event": b'{"event": "sung", "song": "la"}',
    "a torn line": encode(EVENTS[8])[:-5],
    "a wrong type": b'{"event": "round", "n": "three", "round_s": 0.1}',
    "an unknown outcome": encode(EVENTS[9]).replace(b"out_of_memory", b"won"),
    "a configuration that is none": encode(EVENTS[8]).replace(b':{"attention":"sdpa"', b':{"attention":1'),
    "a quality that is none": encode(EVENTS[8]).replace(b'"quality":{', b'"quality":7,"was":{'),
    "facts of another version": encode(EVENTS[3]).replace(b'"heads"', b'"tails"'),
    "a deep one": b"[" * 100_000,
    "no text": b'{"event": "stage", "stage": "\xff"}',
}


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Give what runs a request in a worker that answers it with this line, and returns what came of it."""
    monkeypatch.setenv("ADVISOR_LOCK_DIR", str(tmp_path))
    local = runner.LocalRunner(probe.machine("cpu"))

    def answered(line: bytes) -> messages.Answer:
        (tmp_path / "line").write_bytes(line)
        code = f"import shutil, sys, time; sys.stdout.buffer.write(open({str(tmp_path / 'line')!r}, 'rb').read())\n"
        command = [sys.executable, "-c", f"{code}sys.stdout.flush(); time.sleep(60)"]

        def launched(*_: object) -> subprocess.Popen[bytes]:
            return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)

        monkeypatch.setattr(runner, "launch", launched)
        return local.run(CeilingsAsked(), 30.0)

    yield answered
    local.close()


@pytest.mark.parametrize("case", NO_MESSAGES)
def test_a_line_that_is_no_message_ends_its_worker(said: Any, case: str) -> None:
    """It is a failure that may not come again, and says how the line begins."""
    line = NO_MESSAGES[case]
    answer = said(line + b"\n")

    assert isinstance(answer, Failure)
    assert (answer.outcome, answer.transient) == (Outcome.RUNTIME_ERROR, True)
    assert answer.reason == f"the worker sent what is no message: {line[:200].decode(errors='replace')!r}"


def test_a_line_without_an_end_ends_its_worker(said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes on and on is no message, long before memory is full of it."""
    monkeypatch.setattr(runner, "_LINE_LIMIT", 200_000)
    answer = said(b'{"event": "stage", "stage": "' + b"a" * 400_000)

    assert isinstance(answer, Failure)
    assert answer.reason.startswith("""the worker sent what is no message: '{"event": "stage", "stage": "aaaa""")


def test_an_answer_to_an_earlier_request_is_not_taken_for_this_ones(said: Any) -> None:
    """Only what has the request's number answers it."""
    late, own = Done(id=0, result=FAILED), Done(id=1, result=Ceilings(reached={"copy_bytes_per_s": 1.5}))

    assert said(encode(late) + b"\n" + encode(own) + b"\n") == own.result


def test_an_answer_to_something_else_is_a_failure(said: Any) -> None:
    """Ceilings were asked for: what a trial came to is no answer, though it is a message."""
    answer = said(encode(Done(id=1, result=DONE)) + b"\n")

    assert isinstance(answer, Failure)
    assert (answer.outcome, answer.transient) == (Outcome.RUNTIME_ERROR, True)
    assert answer.reason.startswith("the worker sent what is no answer: ")


@pytest.mark.parametrize(
    ("asked", "answers"),
    list(zip(REQUESTS, [(0,), (1,), (2, 3), (4,), (5,), (7,)], strict=True)),
    ids=lambda each: type(each).__name__,
)
def test_what_answers_a_request_is_of_its_class(asked: messages.Request, answers: tuple[int, ...]) -> None:
    """Each class of request is answered by its own, or by a failure; a block's answer says something of each contestant."""
    found = [answer for answer in ANSWERS if messages.is_answered(asked, answer)]

    assert found == [answer for number, answer in enumerate(ANSWERS) if number in answers or answer is FAILED]
    assert not messages.is_answered(asked, BlockDone(results=(Contested(came=DONE, spent_s=2.5),)))


# ------------------------------------------------------------------------------------------------------- what is left


def test_nobody_asks_a_message_by_a_string() -> None:
    """In parent and worker a request and what came of it are classes: none of their parts is looked up by its name."""
    names, found = {"request", "subject", "result", "answer", "came"}, []
    for file in (*(ADVISOR / "measure").glob("*.py"), *(ADVISOR / "study").glob("*.py")):
        if file.name in ("launch.py", "forkserver.py"):  # what these say to one another is no request of a worker
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            is_looked_up = isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant)
            is_got = isinstance(node, ast.Attribute) and node.attr == "get"
            owner = getattr(node, "value", None) if is_looked_up or is_got else None
            if isinstance(owner, ast.Name) and owner.id in names:
                found.append((file.name, ast.unparse(node)))

    assert found == []


def test_who_only_suggests_does_not_wait_for_msgspec() -> None:
    """Messages are a matter of measuring."""
    code = "import sys, advisor.advice.suggest, advisor.faces.commands; print('msgspec' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ADVISOR.parent, capture_output=True, text=True, check=True)

    assert done.stdout == "False\n"


def test_a_reader_reads_what_it_was_made_for_alone() -> None:
    """An event is no request."""
    with pytest.raises(NoMessage):
        Reader[messages.Request](messages.Request).read(encode(EVENTS[0]))
