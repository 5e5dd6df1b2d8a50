"""A block of the confirmation: who shares a process, what it costs, and that the worker alternates the turns in one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from advisor.machine import probe
from advisor.machine.device import disturbed
from advisor.measure.block_torch import Energy
from advisor.measure.messages import BlockAsked, BlockDone, Failure, TrialDone
from advisor.measure.runner import LocalRunner, read_facts
from advisor.measure.stopping import Turns
from advisor.models.checkpoint import find_model
from advisor.nouns.configuration import Configuration
from advisor.nouns.environment import Environment, Machine
from advisor.nouns.measurement import Measurement
from advisor.nouns.metrics import GPU_BUSY, METRICS, PAIRED
from advisor.nouns.model import ModelFacts
from advisor.nouns.trial import Outcome, Trial
from advisor.show.support import LLAMA
from advisor.study.confirm import block_ratios, block_s, fits_together, least_blocks, parts_for, processes, turns_for
from advisor.workloads.forward import Forward

ROOT = Path(__file__).parents[1]
CAUSAL = ROOT / "tests" / "models" / "causal"
WORKLOAD = Forward((16, 6, 12, 4), 2)
FP32 = {"attention": "sdpa", "precision": "fp32", "quantization": "none", "packing": "padded"}
TURNS = Turns(least=3, most=4, turn_s=0.01)

H200 = Environment.of(json.loads((ROOT / "tests" / "environments" / "h200.json").read_text()))

DEFAULT = Configuration.of({**FP32, "precision": "bf16"})
PACKED = DEFAULT.replaced(packing="packed")
FP16 = DEFAULT.replaced(precision="fp16")
GPU, TOKENS = Machine(H200, "host", "GPU-1", 0, 10**9), METRICS["tokens_per_s"]
TF32 = DEFAULT.replaced(precision="tf32")


def seen(configuration: Configuration, peak_bytes: int | None, **more: Any) -> Trial:
    """Return a search trial that took a tenth of a second a round."""
    measured = (Measurement("round_s", "s", (0.1, 0.1)),)
    return Trial(1, configuration, configuration, Outcome.OK, measurements=measured, peak_bytes=peak_bytes, **more)


# ------------------------------------------------------------------------------------------------ who, and for how long


def test_who_switches_something_of_the_process_is_alone_there() -> None:
    """tf32 is a mode of the process: what is not in it can't run beside it. Memory and energy are of one alone."""
    assert processes([DEFAULT, PACKED, TF32, FP16], is_alone=False) == [[DEFAULT, PACKED, FP16], [TF32]]
    assert processes([DEFAULT, PACKED], is_alone=True) == [[DEFAULT], [PACKED]]


def test_who_is_held_to_a_kernel_of_sdpa_meets_the_default_in_its_process() -> None:
    """The kernels are allowed anew before each turn: as processes of their own they met the CPU at another speed."""
    held = [DEFAULT.replaced(attention=f"sdpa-{kernel}") for kernel in ("flash", "efficient", "cudnn", "math")]
    assert processes([DEFAULT, *held], is_alone=False) == [[DEFAULT, *held]]


def test_equal_weights_are_loaded_once() -> None:
    """Peaks add up by weights, and 80 % of what is free may be used; an unknown peak does not fit."""
    trials = [seen(DEFAULT, 40), seen(PACKED, 60), seen(FP16, 50)]

    assert fits_together([DEFAULT, PACKED], trials, 1, LLAMA)
    assert fits_together([DEFAULT, PACKED, FP16], trials, 138, LLAMA)
    assert not fits_together([DEFAULT, PACKED, FP16], trials, 137, LLAMA)
    assert not fits_together([DEFAULT, FP16], trials[:1], 10**12, LLAMA)


def test_a_class_that_does_not_switch_attention_has_weights_for_each() -> None:
    """Where attention can't be switched on a loaded model, another attention is another model in memory."""
    eager, facts = DEFAULT.replaced(attention="eager"), replace(LLAMA, switches_attention=False)
    trials = [seen(DEFAULT, 40), seen(eager, 60)]

    assert fits_together([DEFAULT, eager], trials, 60, LLAMA)
    assert not fits_together([DEFAULT, eager], trials, 60, facts)


#: Who is in a block, and in how many parts the round of each is run.
BOTH = {DEFAULT: 1, PACKED: 1}


def test_a_block_costs_what_the_last_one_did_or_what_the_search_saw() -> None:
    """Loading, the first call and its proof, a round that does not count, and three turns of about a second each on a GPU."""
    turns = turns_for(GPU, [DEFAULT], [], TOKENS)
    searched = [seen(DEFAULT, 1, load_s=2.0, first_call_s=0.5), seen(PACKED, 1, load_s=0.0, first_call_s=0.25)]
    searched[1] = replace(searched[1], reading={"proof_s": 0.75})
    confirmed = [replace(seen(PACKED, 1), phase="confirm", block=1, wall_s=9.0)]

    assert block_s(searched, BOTH, 0.0, turns) == pytest.approx(2 * (2.0 + 0.1 + 3.0) + 0.5 + 0.25 + 0.75)
    assert block_s([*searched, *confirmed], BOTH, 0.0, turns) == pytest.approx(2.0 + 0.5 + 0.1 + 3.0 + 9.0)


def test_a_block_that_waits_may_wait_for_the_cpu() -> None:
    """Its turns may last twice as long, until it is known how long they did."""
    searched = [waiting(DEFAULT, 0.05), waiting(PACKED, 0.04)]
    turns = turns_for(GPU, [DEFAULT, PACKED], searched, TOKENS)

    assert block_s(searched, {DEFAULT: 1}, 0.0, turns) == pytest.approx(0.05 + 15 * 2 * 0.2)


def waiting(configuration: Configuration, round_s: float, busy: float | None = 0.05) -> Trial:
    """Return a search trial of work for whose launches the GPU waits, or does not."""
    measured = [Measurement("round_s", "s", (round_s,))]
    measured += [Measurement(GPU_BUSY, "share", (busy,))] if busy is not None else []
    return replace(seen(configuration, 1), measurements=tuple(measured))


@pytest.mark.parametrize(
    ("trials", "least", "most", "turn_s"),
    [
        pytest.param([waiting(DEFAULT, 0.05), waiting(PACKED, 0.04)], 15, 35, 0.2, id="short rounds"),
        pytest.param([waiting(DEFAULT, 0.05), waiting(PACKED, 0.3)], 10, 23, 0.3, id="longer rounds: one is a turn"),
        pytest.param([waiting(DEFAULT, 0.05), waiting(PACKED, 0.5)], 6, 14, 0.5, id="rounds of half a second"),
        pytest.param([waiting(DEFAULT, 0.9), waiting(PACKED, 1.4)], 3, 7, 1.0, id="long rounds"),
        pytest.param([waiting(DEFAULT, 0.05), waiting(PACKED, 0.04, 0.9)], 3, 7, 1.0, id="one keeps the GPU busy"),
        pytest.param([waiting(DEFAULT, 0.05), waiting(PACKED, 0.04, None)], 3, 7, 1.0, id="one was not seen to wait"),
        pytest.param([waiting(DEFAULT, 0.05)], 3, 7, 1.0, id="one was not measured"),
    ],
)
def test_who_waits_for_launches_takes_short_turns(trials: list[Trial], least: int, most: int, turn_s: float) -> None:
    """The CPU's speed changes within a second, so their turns are as short as a round allows, and as many as take as long."""
    turns = turns_for(GPU, [DEFAULT, PACKED], trials, TOKENS)
    assert (turns.least, turns.most, turns.turn_s) == (least, most, turn_s)
    assert turns.paired == (turn_s < 1.0)
    assert turns_for(GPU, [DEFAULT, PACKED], trials, METRICS["peak_bytes"]).turn_s == 1.0


def test_short_turns_are_compared_one_by_one() -> None:
    """A CPU that is twice as fast for half of the time hides nothing: the turns' ratios agree, and end the block."""
    turns, slow = Turns(least=8, most=20, turn_s=0.2, paired=True), [1.0, 2.0] * 4
    faster, same = [s / 1.2 for s in slow], [s * 1.005 for s in slow]
    noisy = [s * f for s, f in zip(slow, (0.8, 1.3, 0.9, 1.2, 0.7, 1.4, 1.0, 1.0), strict=True)]

    assert not turns.reached(slow[:7], faster[:7])
    assert turns.reached(slow, faster)
    assert turns.reached(slow, same)
    assert not turns.reached(slow, noisy)
    assert turns.reached(slow * 3, noisy * 3)  # as many as there may be

    def of(configuration: Configuration, wall_s: list[float], *, paired: bool = True) -> Trial:
        speeds = Measurement("tokens_per_s", "tokens/s", tuple(100 / s for s in wall_s))
        turns = (Measurement(PAIRED, "turns", (float(len(wall_s)),), "confirm"),) if paired else ()
        return Trial(
            1, configuration, configuration, Outcome.OK, phase="confirm", block=1, measurements=(speeds, *turns)
        )

    lucky = [*faster[:3], 1.0, *faster[4:]]  # one fast moment more, and the median is another
    default, packed = of(DEFAULT, slow), of(PACKED, lucky)
    of_medians = pytest.approx(110 / 75)
    assert packed.times(default, TOKENS) == pytest.approx(1.2)
    assert block_ratios([default, packed], PACKED, DEFAULT, TOKENS) == [packed.times(default, TOKENS)]
    assert packed.times(replace(default, block=2), TOKENS) == of_medians
    assert packed.times(replace(default, device_uuid="GPU-2"), TOKENS) == of_medians
    assert of(PACKED, lucky, paired=False).times(default, TOKENS) == of_medians
    assert of(PACKED, lucky[1:]).times(default, TOKENS) == pytest.approx(100 / 75)  # one turn was lost: nothing to pair


def test_blocks_of_before_there_were_short_turns_keep_their_ratios() -> None:
    """Rounds of processes one after the other may be as many, and are no pairs."""

    def rounds(configuration: Configuration, wall_s: tuple[float, ...]) -> Trial:
        measured = (
            Measurement("round_s", "s", wall_s),
            Measurement("tokens_per_s", "tokens/s", tuple(1 / s for s in wall_s)),
        )
        return Trial(1, configuration, configuration, Outcome.OK, phase="confirm", block=1, measurements=measured)

    trials = rounds(DEFAULT, (1.0,) * 6 + (2.0,) * 4), rounds(PACKED, (1.0,) * 4 + (0.5,) * 6)
    assert block_ratios(trials, PACKED, DEFAULT, TOKENS) == [2.0]


def test_fewer_blocks_than_three_are_run_where_fewer_are_asked_for() -> None:
    """Three decide, where there may be as many."""
    assert [least_blocks(planned) for planned in (1, 2, 3, 9)] == [1, 2, 3, 3]


def test_turns_go_on_while_they_scatter() -> None:
    """Three that agree within 5 % are enough, seven are in any case; the default's scatter counts too."""
    turns, calm, scattered = Turns(), [1.0, 1.05, 0.97], [1.0, 1.1, 0.9]

    assert not turns.reached(calm[:2], calm[:2])
    assert turns.reached(calm, calm)
    assert not turns.reached(calm, scattered)
    assert not turns.reached(scattered, calm)
    assert turns.reached(scattered + calm, [*scattered, 1.0, 1.0, 1.0, 1.0])


def test_turns_that_scatter_apart_from_the_default_say_enough() -> None:
    """What is faster or slower in every turn by more than the tie zone is told from the default, however it scatters."""
    turns, default = Turns(), [1.0, 1.1, 0.95]

    assert turns.reached(default, [0.5, 0.7, 0.9])
    assert turns.reached(default, [2.0, 1.2, 1.5])
    assert not turns.reached(default, [0.5, 0.7, 0.94])
    assert not turns.reached(default, [2.0, 1.11, 1.5])
    assert not turns.reached(default[:2], [0.5, 0.7])


def test_energy_is_added_up_over_turns() -> None:
    """Joules by the counter over all rounds; what can't be seen is not guessed."""
    energy = Energy()
    assert energy.per_round is None
    energy.add("not observable", "not observable", 3)
    assert energy.per_round is None
    energy.add(1000.0, 1300.0, 2)
    energy.add(1500.0, 1800.0, 4)
    assert energy.per_round == pytest.approx(100.0)


def test_a_round_that_others_had_the_processor_for_is_thrown_away() -> None:
    """The kernel counts how long threads were ready and did not run; a tenth of a round is too much."""
    before = {"waited_s": 10.0, "at_s": 100.0}

    assert disturbed(before, {"waited_s": 10.09, "at_s": 101.0}) == ""
    assert (
        disturbed(before, {"waited_s": 10.5, "at_s": 101.0})
        == "its threads waited for a processor for 50 % of the time together"
    )
    assert disturbed(before, {"waited_s": "not observable", "at_s": 101.0}) == ""


# -------------------------------------------------------------------------------------------------------- in the worker


@pytest.fixture(scope="module")
def runner() -> Iterator[LocalRunner]:
    """Give a runner on a device of its own."""
    runner = LocalRunner(replace(probe.machine("cpu"), uuid="cpu-test-block"))
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def facts(runner: LocalRunner) -> ModelFacts:
    """Read the shipped model's."""
    return read_facts(runner, find_model(str(CAUSAL)), Forward((8,), 1))


def block(facts: ModelFacts, *contestants: dict[str, str], **asked: Any) -> BlockAsked:
    """Return a request for a block of these, each given by what differs from fp32."""
    return BlockAsked(
        source=find_model(str(CAUSAL)).files,
        facts=facts,
        workload=WORKLOAD,
        contestants=tuple(Configuration.of({**FP32, **choices}) for choices in contestants),
        seed=1,
        configuration=Configuration.of({**FP32, **contestants[0]}),
        **{"turns": TURNS, **asked},
    )


def came_of(runner: LocalRunner, request: BlockAsked) -> list[TrialDone | Failure]:
    """Run a block and return what came of its contestants; what each cost of it is known."""
    answer = runner.run(request, 120)
    assert isinstance(answer, BlockDone), answer
    assert all(each.spent_s > 0 or each.came.outcome is Outcome.CUT for each in answer.results)
    return [each.came for each in answer.results]


def timed(runner: LocalRunner, request: BlockAsked) -> list[TrialDone]:
    """Run a block whose contestants all come to their end, and return what came of them."""
    found = [each for each in came_of(runner, request) if isinstance(each, TrialDone)]
    assert [each.outcome for each in found] == [Outcome.OK] * len(request.contestants)
    return found


def test_all_contestants_are_timed_in_one_process(runner: LocalRunner, facts: ModelFacts) -> None:
    """Each has three turns or more, ran as itself, and what it cost of the block is known."""
    stages: list[str] = []
    runner.listener = lambda event: stages.append(str(event.get("stage", "")))
    one_round = replace(TURNS, turn_s=1e-9)
    request = block(facts, {}, {"packing": "sorted"}, {"attention": "eager"}, {"precision": "bf16"}, turns=one_round)
    results = timed(runner, request)

    assert all(3 <= len(found.rounds.wall_s) <= 4 for found in results)
    assert [found.effective["attention"] for found in results] == ["sdpa", "sdpa", "eager", "sdpa"]
    assert [found.effective["precision"] for found in results] == ["fp32", "fp32", "fp32", "bf16"]
    assert all(found.peak_bytes is None for found in results)
    # Weights that are equal are loaded once: fp32's and bf16's.
    assert len([found for found in results if found.load_s > 0.001]) <= 3
    turns = [len(found.rounds.wall_s) for found in results]
    assert stages.count("time") == sum(turns)


def test_turns_alternate(runner: LocalRunner, facts: ModelFacts) -> None:
    """Nobody has a second turn before everybody had the first: what drifts hits all."""
    counts: list[int] = []
    runner.listener = lambda event: counts.append(event["n"]) if event["event"] == "round" else None
    runner.run(block(facts, {}, {"packing": "sorted"}, {"attention": "eager"}), 120)

    assert sorted(counts) == counts
    assert counts[:9] == [1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_a_long_round_is_run_in_parts_that_alternate(runner: LocalRunner, facts: ModelFacts) -> None:
    """Each contestant runs every batch of the list once, in three turns of its own, and they are one round."""
    stages: list[str] = []
    runner.listener = lambda event: stages.append(str(event.get("stage", "")))
    request = block(facts, {}, {"packing": "packed", "attention": "eager"}, parts=(3, 3))
    results = timed(runner, request.replaced(workload=Forward((16, 6, 12, 4) * 2, 2)))

    for found in results:
        (wall_s,), (slowest_s,) = found.rounds.wall_s, found.rounds.slowest_s
        assert wall_s / 4 <= slowest_s < wall_s
    assert stages.count("time") == 2 * 3


@pytest.mark.parametrize("parts", [(3, 1), (1, 3)])
def test_parts_of_one_alternate_with_whole_rounds_of_another(
    runner: LocalRunner, facts: ModelFacts, parts: tuple[int, int]
) -> None:
    """The default's long round is run once, in three turns, and another's in each of them; nobody goes on alone."""
    before: dict[int, int] = {}
    turns = 0

    def listen(event: Mapping[str, Any]) -> None:
        nonlocal turns
        turns += event.get("stage") == "time"
        if event["event"] == "round":
            before.setdefault(event["n"], turns)  # of the third turn the one in parts tells too, that it is done

    runner.listener = listen
    request = block(facts, {}, {"packing": "packed", "attention": "eager"}, parts=parts, turns=Turns(3, 7, 0.001, 1e-9))
    default, packed = timed(runner, request.replaced(workload=Forward((16, 6, 12, 4) * 2, 2)))

    assert [len(found.rounds.wall_s) for found in (default, packed)] == [1 if each > 1 else 3 for each in parts]
    assert turns == 3 + 3
    assert before[2] in (3, 4), "one of each before anybody's next"
    assert before[3] in (5, 6)


def test_who_fails_within_its_parts_leaves_the_others_theirs(runner: LocalRunner, facts: ModelFacts) -> None:
    """A contestant that is refused by its class has no part, and a whole round of the rest is timed all the same."""
    request = block(facts, {}, {"attention": "nowhere"}, {"packing": "packed", "attention": "eager"}, parts=(3, 3, 1))
    default, gone, packed = came_of(runner, request.replaced(workload=Forward((16, 6, 12, 4) * 2, 2)))

    assert isinstance(gone, Failure)
    assert isinstance(default, TrialDone)
    assert isinstance(packed, TrialDone)
    assert (len(default.rounds.wall_s), len(packed.rounds.wall_s)) == (1, 3)


def test_what_replays_or_is_compiled_warms_up_by_a_whole_round() -> None:
    """A CUDA graph is recorded for each shape, and compiled for each: none of that may be in the time that counts."""
    gpu, work = Machine(H200, "host", "GPU-1", 0, 10**9), Forward((64,) * 8, 2)
    graphs, regional = (DEFAULT.replaced(compilation=f"compiled-{way}") for way in ("reduce-overhead", "regional"))
    trials = [
        replace(seen(each, 1), measurements=(Measurement("round_s", "s", (3.0,)),))
        for each in (graphs, regional, DEFAULT)
    ]

    assert [parts_for(each, trials, gpu, work) for each in (graphs, regional, DEFAULT)] == [1, 3, 3]
    turns = turns_for(gpu, [regional], trials, TOKENS)
    assert block_s(trials, {regional: 3}, 0.0, turns) - block_s(trials, {DEFAULT: 3}, 0.0, turns) == pytest.approx(2.0)


def test_a_round_is_run_in_parts_where_it_is_long() -> None:
    """In three, where it is near three turns of a second, on a GPU, and the list has as many batches."""
    gpu = Machine(H200, "host", "GPU-1", 0, 10**9)
    cpu = Machine(replace(H200, device="cpu"), "host", "cpu", None, 10**9)
    work = Forward((64,) * 8, 2)

    def parts(default_s: float, packed_s: float, machine: Machine = gpu, work: Forward = work) -> list[int]:
        timed = {DEFAULT: default_s, PACKED: packed_s}
        trials = [
            replace(seen(each, 1), measurements=(Measurement("round_s", "s", (s,)),)) for each, s in timed.items()
        ]
        return [parts_for(each, trials, machine, work) for each in timed]

    assert parts(4.2, 2.6) == [3, 3]
    assert parts(4.2, 2.3) == [3, 1]
    assert parts(4.2, 2.6, cpu) == [1, 1]
    assert parts(4.2, 2.6, work=Forward((64,) * 4, 2)) == [1, 1]
    assert parts_for(DEFAULT, [], gpu, work) == 1
    turns = turns_for(gpu, [DEFAULT], [], TOKENS)
    searched = [
        replace(seen(DEFAULT, 1), load_s=2.0, first_call_s=0.5, measurements=(Measurement("round_s", "s", (3.0,)),))
    ]
    assert block_s(searched, {DEFAULT: 3}, 0.0, turns) == pytest.approx(2.0 + 0.5 + 3.0 + 1.0)


def test_in_turn_each_is_alone_and_its_memory_is_seen(runner: LocalRunner, facts: ModelFacts) -> None:
    """Where all do not fit, each is loaded, timed and freed by itself."""
    results = timed(runner, block(facts, {}, {"precision": "bf16"}, in_turn=True))

    assert all(bool(found.peak_bytes) and len(found.rounds.wall_s) >= 3 for found in results)


def test_short_turns_are_pairs_where_they_alternate(runner: LocalRunner, facts: ModelFacts) -> None:
    """Beside the default they end by its turns, as many each; by itself, or without the default, nobody has a pair."""
    short = Turns(least=5, most=9, turn_s=0.001, paired=True)
    together = timed(runner, block(facts, {}, {"packing": "packed"}, turns=short))
    in_turn = timed(runner, block(facts, {}, {"packing": "packed"}, turns=short, in_turn=True))
    apart = timed(runner, block(facts, {"packing": "packed"}, turns=short).replaced(configuration=DEFAULT))

    assert [found.rounds.paired for found in together] == [True, True]
    assert len({len(found.rounds.wall_s) for found in together}) == 1
    assert not any(found.rounds.paired for found in (*in_turn, *apart))


def test_who_fails_is_out_and_the_others_go_on(runner: LocalRunner, facts: ModelFacts) -> None:
    """A choice that can't be loaded here fails by itself."""
    results = came_of(runner, block(facts, {}, {"attention": "flash_attention_2"}, {"packing": "sorted"}))

    assert [found.outcome for found in results] == [Outcome.OK, Outcome.LOAD_FAILED, Outcome.OK]


def test_without_the_default_there_is_no_block(runner: LocalRunner, facts: ModelFacts) -> None:
    """Where what all are compared with fails, the others are not timed, and that is no failure of theirs."""
    results = came_of(runner, block(facts, {"attention": "flash_attention_2"}, {"packing": "sorted"}))

    assert [found.outcome for found in results] == [Outcome.LOAD_FAILED, Outcome.CUT]
    assert results[1].reason == "its block was broken off"
