"""A stored trial run again: what varies between processes decides whether it came out the same."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from made_databases import laid
from test_history import ANY_SPEED, DEFAULT, EAGER, FLAGS, MODEL, SORTED, here, printed, studied, trial, url

from advisor.errors import BadInput
from advisor.faces.cli import run
from advisor.measure.runner import LocalRunner
from advisor.models.checkpoint import find_model
from advisor.nouns.agreement import LEAST_PROCESSES, MOST_PROCESSES, USUAL_PROCESSES, Agreement
from advisor.nouns.environment import Machine
from advisor.nouns.measurement import Measurement
from advisor.nouns.metrics import METRICS
from advisor.nouns.objective import Objective
from advisor.nouns.trial import Trial
from advisor.show.reproduction_report import print_reproduction, undecided_words, verdict_words
from advisor.storage.exchange import export_lines
from advisor.storage.store import Store
from advisor.study.reproduction import (
    Reproduction,
    differences,
    disturbance,
    found_again,
    in_blocks,
    machine_of,
    measured_then,
    other_device,
    run_again,
)
from advisor.study.reruns import Stored, contestants
from advisor.workloads.forward import Forward

__all__ = ["url"]  # the fixture

ROOT = Path(__file__).parent.parent

# ---------------------------------------------------------------------------------------------------------- the statistic


def decided(then: Sequence[float], now: Iterator[float], most: int = USUAL_PROCESSES) -> tuple[str, int]:
    """Return the verdict, and after how many processes now."""
    found: tuple[float, ...] = ()
    while True:
        found = (*found, next(now))
        verdict = Agreement(tuple(then), found).verdict
        if verdict != "undecided" or len(found) == most:
            return verdict, len(found)


def verdicts(then: int, scatter: float, change: float, draws: int = 500) -> tuple[Counter[str], float]:
    """Return what is said of draws from normal logarithms, and the mean number of processes. change: now over then."""
    rng, said, ran = random.Random(f"{then} {scatter} {change}"), Counter[str](), 0
    for _ in range(draws):
        old = [math.exp(rng.gauss(5.0, scatter)) for _ in range(then)]
        verdict, count = decided(old, iter(lambda: change * math.exp(rng.gauss(5.0, scatter)), None))
        said[verdict] += 1
        ran += count
    return said, ran / draws


@pytest.mark.parametrize(
    ("then", "scatter"), [(1, 0.0), (1, 0.003), (1, 0.01), (1, 0.014), (3, 0.02), (4, 0.025), (9, 0.03)]
)
def test_a_tenth_is_told_from_nothing(then: int, scatter: float) -> None:
    """What is the same is reproduced, what is a tenth slower or faster is not, in 95 of 100 at the scatters that are promised."""
    assert verdicts(then, scatter, 1.0)[0]["reproduced"] >= 475
    for change in (1 / 1.1, 1.1):
        assert verdicts(then, scatter, change)[0]["not reproduced"] >= 475


@pytest.mark.parametrize("then", [1, 4])
@pytest.mark.parametrize("scatter", [0.02, 0.04, 0.08, 0.2])
def test_a_wide_scatter_leaves_it_open_and_is_seldom_wrong(then: int, scatter: float) -> None:
    """Whatever the scatter is, at most 5 of 100 are wrong; where it is hopeless it is undecided, after as many as may run."""
    same, ran = verdicts(then, scatter, 1.0, draws=2000)
    slower, _ = verdicts(then, scatter, 1 / 1.1, draws=2000)

    assert same["not reproduced"] <= 0.06 * 2000  # 5 % and two standard deviations of the count
    assert slower["reproduced"] <= 0.03 * 2000
    if scatter >= 0.08:
        assert same["undecided"] >= 0.9 * 2000
        assert ran > 8


def test_a_calm_machine_needs_the_fewest_processes() -> None:
    """Where processes differ by 0.3 % three are enough, and nothing is said of fewer, were they equal."""
    assert verdicts(1, 0.003, 1.0)[1] < 3.1
    assert Agreement((100.0,), (100.0, 100.0)).verdict == "undecided"
    assert Agreement((100.0,), (100.0, 100.0)).interval is None
    assert decided((100.0,), iter([100.0] * 9)) == ("reproduced", LEAST_PROCESSES)


def test_an_interval_between_processes_says_what_the_verdict_says() -> None:
    """Reproduced: it excludes a tenth either way and the middle is nearer to 1; not reproduced: it excludes 1; else undecided."""
    rng = random.Random(1)
    seen = set()
    for _ in range(400):
        middle, scatter = rng.gauss(0, 0.06), rng.uniform(0.001, 0.05)
        then = tuple(math.exp(rng.gauss(0, scatter)) for _ in range(rng.randint(1, 5)))
        now = tuple(math.exp(rng.gauss(middle, scatter)) for _ in range(rng.randint(3, 9)))
        found = Agreement(then, now)
        low, high = found.interval or (0.0, 0.0)

        assert low <= found.ratio <= high
        is_near = 1.1**-0.5 <= found.ratio <= 1.1**0.5
        expected = "undecided"
        if is_near and low > 1 / 1.1 and high < 1.1:
            expected = "reproduced"
        elif not is_near and not low <= 1 <= high:
            expected = "not reproduced"
        assert found.verdict == expected
        seen.add(expected)
        turned = Agreement(now, then) if len(then) >= LEAST_PROCESSES else None
        assert turned is None or turned.ratio == pytest.approx(1 / found.ratio)
    assert seen == {"reproduced", "not reproduced", "undecided"}


def test_more_processes_then_make_it_surer() -> None:
    """With one process then its unknown deviation is part of the interval, however many run now; with more it is narrower."""

    def width(then: int, now: int) -> float:
        low, high = Agreement((0.98, 1.02) * then if then > 1 else (1.0,), (0.98, 1.02) * now).interval or (0.0, 0.0)
        return math.log(high / low)

    assert width(1, 40) > 2 * 3 * math.sqrt(1) * 0.02  # never below what the one process may be off
    assert width(4, 4) < width(1, 4)
    assert width(4, 8) < width(4, 4)


def test_what_would_help_is_counted() -> None:
    """How many processes would tell a tenth: more than ran, or none of those that may run where one ran then."""
    wide = Agreement((0.96, 1.04) * 6, (0.98, 1.05, 1.09))
    assert wide.verdict == "undecided"
    assert wide.would_need is not None
    assert 3 < wide.would_need <= MOST_PROCESSES
    assert Agreement((1.0,), (0.9, 1.0, 1.1)).would_need is None


@pytest.mark.parametrize(("then", "now"), [((), (1.0,)), ((1.0,), ()), ((0.0,), (1.0,)), ((1.0,), (math.inf,))])
def test_what_has_no_logarithm_is_refused(then: tuple[float, ...], now: tuple[float, ...]) -> None:
    """A figure that is none is a mistake of the caller's."""
    with pytest.raises(ValueError, match="positive and finite"):
        Agreement(then, now)


# -------------------------------------------------------------------------------------------------------- trials compared


def study_for(metric: str = "tokens_per_s") -> Any:
    """Return what a study was for."""
    return type("Study", (), {"objective": Objective(metric=METRICS[metric].metric), "id": 1})()


def rerun(
    old: Trial, *now: Trial, then: Sequence[Trial] = (), metric: str = "tokens_per_s", most: int = 9
) -> Reproduction:
    """Return a trial and what ran again, as `advisor reproduce` compares them: one process after the other, as it needs them."""
    heard: list[Any] = []
    asked = Reproduction(study_for(metric), old, (old, *then), (), (), most)
    return run_again(asked, now, heard.append)


def test_processes_run_until_it_is_clear() -> None:
    """Three are enough where they agree with what was; the rest is not run. Ratios are above 1 for what is better."""
    calm = [trial(SORTED, (speed,)) for speed in (100.0, 100.5, 99.5, 50.0)]
    found = rerun(trial(SORTED, (100.0,)), *calm)
    assert (len(found.now), found.verdict, found.exit_status) == (3, "reproduced", 0)

    slow = [trial(SORTED, (speed,)) for speed in (90.0, 90.5, 89.5, 100.0)]
    for metric in ("tokens_per_s", "slowest_batch_s"):
        found = rerun(trial(SORTED, (100.0,)), *slow, metric=metric)
        assert (len(found.now), found.verdict, found.exit_status) == (3, "not reproduced", 1)
        assert found.ratio == pytest.approx(0.9, abs=0.001)

    wild = [trial(SORTED, (speed,)) for speed in (60.0, 100.0, 140.0, 80.0, 120.0)]
    found = rerun(trial(SORTED, (100.0,)), *wild, most=5)
    assert (len(found.now), found.verdict, found.exit_status) == (5, "undecided", 3)


def test_failures_and_other_effects_are_compared_by_what_they_are() -> None:
    """The same failure is reproduced by one process, another outcome is not, nor is a speed at which something else ran."""
    fine = trial(SORTED, (100.0,))
    for old, now, verdict in (
        (trial(SORTED), trial(SORTED), "reproduced"),
        (trial(SORTED), fine, "not reproduced"),
        (fine, trial(SORTED), "not reproduced"),
        (fine, trial(SORTED, (100.0,), effective=DEFAULT), "not reproduced"),
    ):
        found = rerun(old, now, fine, fine)
        assert (found.verdict, len(found.now), found.agreement, found.ratio) == (verdict, 1, None, None)
        assert verdict_words(found).endswith(f": {verdict}")
    late = rerun(fine, fine, trial(SORTED), fine)
    assert (late.verdict, len(late.now)) == ("not reproduced", 2)
    memory = [trial(SORTED, (50.0,), peak_bytes=2**31) for _ in range(3)]
    found = rerun(fine, *memory, metric="peak_bytes")
    assert (found.ratio, found.verdict) == (pytest.approx(0.5), "not reproduced")


def test_what_the_device_does_not_show_is_undecided() -> None:
    """Where a figure was stored and none is seen now, one process shows it, and nothing is said."""
    unseen = replace(trial(SORTED, (100.0,)), measurements=())
    found = rerun(trial(SORTED, (100.0,)), unseen, unseen)
    assert (len(found.now), found.verdict, found.exit_status) == (1, "undecided", 3)
    assert verdict_words(found) == "no useful tokens per second was seen now: undecided"


def disturbed(speed: float) -> Trial:
    """Return a process most of whose rounds were disturbed."""
    known = trial(SORTED, (speed,) * 3)
    state = {"after_each_round": [{"disturbed": "the work waited for a processor"}] * 2 + [{}], "discarded": []}
    rounds = Measurement("round_s", "s", (1.0,) * 3, device_state=state)
    return replace(known, measurements=tuple(rounds if m.metric == "round_s" else m for m in known.measurements))


def test_a_disturbed_process_does_not_count() -> None:
    """What other work slowed down is left out, now and then; where all are, nothing is decided."""
    old, calm = trial(SORTED, (100.0,)), [trial(SORTED, (speed,)) for speed in (100.0, 101.0, 99.0)]
    assert disturbance(disturbed(50.0), {}) == "the work waited for a processor"
    assert not disturbance(old, {})

    found = rerun(old, disturbed(50.0), *calm, then=[disturbed(60.0)])
    assert (len(found.now), len(found.calm), found.verdict) == (4, 3, "reproduced")
    assert found.ratio == pytest.approx(1.0, abs=0.001)
    busy = rerun(old, *[disturbed(50.0)] * 9, most=5)
    assert (len(busy.now), busy.verdict) == (5, "undecided")
    assert undecided_words(busy).startswith("other work disturbed all 5 processes")
    alone = rerun(disturbed(100.0), *calm)
    assert alone.verdict == "reproduced"
    assert [each.number for each in found.calm_then] == [old.number]
    assert len(alone.calm_then) == 1


def test_the_report_lists_what_counts(capsys: pytest.CaptureFixture[str]) -> None:
    """Then and now are the figures of the verdict, with how many were disturbed; an undecided one names the load."""
    wild = [trial(SORTED, (speed,)) for speed in (70.0, 100.0, 130.0)]
    print_reproduction(rerun(trial(SORTED, (100.0,)), disturbed(50.0), *wild, most=4), stderr=False)
    lines = capsys.readouterr().out.splitlines()

    assert lines[1].startswith("  then 100 tokens/s (trial 1.0)")
    assert lines[2].rstrip() == "  now  70, 100, 130 tokens/s (1 process more was disturbed)"
    assert lines[3].rstrip().endswith("3 processes now, 1 then): undecided")
    assert lines[-1].rstrip() == "  the machine's load was 1.5 then and is 1.5 now"


def test_work_that_waits_for_the_cpu_counts_at_its_pace() -> None:
    """A process that ran while the CPU took half as long again for a loop is disturbed, where the GPU waits for the CPU."""

    def waiting(lap_s: float, busy: float) -> Trial:
        known = trial(SORTED, (100.0,), device_uuid="GPU-1")
        more = (Measurement("cpu_lap_s", "s", (lap_s,)), Measurement("gpu_busy", "share", (busy,)))
        return replace(known, measurements=(*known.measurements, *more))

    best_s = {"GPU-1": 0.001}
    assert disturbance(waiting(0.0015, 0.5), best_s) == "the CPU was not at its pace"
    assert not disturbance(waiting(0.0012, 0.5), best_s)
    assert not disturbance(waiting(0.0015, 0.9), best_s)


def test_then_is_every_process_that_measured_the_same() -> None:
    """Of the search for a trial of the search, of the blocks for one of a block; the same configuration, device and effect."""
    other = {"device_uuid": "GPU-2"}
    trials = [
        trial(DEFAULT, (100.0,)),
        trial(SORTED, (150.0,)),
        trial(DEFAULT, (101.0,)),
        trial(DEFAULT, (102.0,), **other),
        trial(DEFAULT, (1.0,), effective=EAGER),
        trial(DEFAULT),
        trial(DEFAULT, (1.0,), wall_s=0.0),
        *(trial(each, (90.0,), phase="confirm", block=block) for block in (1, 2) for each in (DEFAULT, SORTED)),
    ]
    trials = [replace(each, number=number) for number, each in enumerate(trials)]

    def then(number: int) -> list[int]:
        return [each.number for each in measured_then(Stored(study_for(), trials[number], trials))]

    assert then(0) == [0, 2]
    assert then(3) == [3]
    assert then(7) == [7, 9]
    assert then(6) == [0, 2, 6]
    assert [in_blocks(Stored(study_for(), trials[number], trials)) for number in (0, 1, 5, 7)] == [
        (7, 9),
        (8, 10),
        (7, 9),
        (),
    ]
    assert in_blocks(Stored(study_for(), trials[0], trials[:7])) == ()
    block = Stored(study_for(), trials[8], trials)
    assert contestants(block) == [DEFAULT, SORTED]
    assert contestants(Stored(study_for("peak_bytes"), trials[8], trials)) == [SORTED]
    assert contestants(Stored(study_for(), trials[0], trials)) == []


def test_the_sentence_is_one() -> None:
    """Ratio, interval between processes, how many of each, and the verdict; where it is open, why and what would help."""
    found = rerun(trial(SORTED, (100.0,)), *(trial(SORTED, (speed,)) for speed in (100.0, 100.5, 99.5)))
    low, high = found.agreement.interval if found.agreement is not None and found.agreement.interval else (0, 0)
    assert verdict_words(found) == (
        f"1.000 × what it was (95 % interval {low:.2f}–{high:.2f}, 3 processes now, 1 then): reproduced"
    )
    slower = rerun(
        trial(SORTED, (100.0,)), *(trial(SORTED, (speed,)) for speed in (100.0, 99.9, 100.1)), metric="slowest_batch_s"
    )
    assert " in score, where more is better (95 % interval" in verdict_words(slower)
    wild = rerun(trial(SORTED, (100.0,)), *(trial(SORTED, (speed,)) for speed in (70.0, 100.0, 130.0)), most=3)
    assert verdict_words(wild).endswith("3 processes now, 1 then): undecided")
    assert undecided_words(wild).startswith("processes scatter by 31 %, and so 10 % can't be told from nothing with 3 ")
    assert "leave the machine alone" in undecided_words(wild)
    surer = undecided_words(replace(wild, blocks=(4, 6, 8)))
    assert surer.endswith("or try advisor reproduce 1.4, of which 3 processes ran then")
    near = rerun(
        trial(SORTED, (97.0,)),
        *(trial(SORTED, (speed,)) for speed in (97.0, 100.0, 103.0)),
        then=[trial(SORTED, (speed,)) for speed in (103.0, 99.0, 101.0)],
        most=3,
    )
    assert near.agreement is not None
    assert f"--processes {near.agreement.would_need}" in undecided_words(near)


# ------------------------------------------------------------------------------------------------------------ for real


def ran_again(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """Run `advisor reproduce` of a trial whose speed is out of reach and return its document.

    Its verdict and its status are looked at: where fewer than three processes were left alone by other work, nothing is decided.
    """
    status = run(["reproduce", *arguments, "--format", "json"])
    streams = capsys.readouterr()
    found = json.loads(streams.out)
    calm = [each for each in found["now"] if not each["disturbance"]]
    expected = ("not reproduced", 1) if len(calm) >= LEAST_PROCESSES else ("undecided", 3)
    assert (found["verdict"], status) == expected
    assert [line.split(":")[0] for line in streams.err.splitlines() if line.startswith("process ")] == [
        f"process {number} of at most {found['processes_at_most']}" for number in range(1, len(found["now"]) + 1)
    ]
    return found


def test_a_trial_is_run_again(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Fresh workers of this machine run it, a line each on stderr; the script is on stdout alone, and nothing is stored."""
    study = studied(url, [trial(DEFAULT, (1e9,))])
    with Store.open(url, write=False) as store:
        before = list(export_lines(store))
    assert run(["reproduce", f"{study}.0", "--format", "python"]) in (1, 3)
    streams = capsys.readouterr()

    compile(streams.out, "script", "exec")
    assert "attn_implementation='sdpa'" in streams.out
    lines = streams.err.splitlines()
    assert any(line.endswith((": not reproduced", ": undecided")) for line in lines)
    assert sum(line.startswith("process ") for line in lines) >= LEAST_PROCESSES
    with Store.open(url, write=False) as store:
        assert list(export_lines(store)) == before


def test_a_trial_that_comes_out_otherwise_is_status_1(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the old speed is out of reach: with the medians of all processes, the ratio of their means and its interval."""
    study = studied(url, [trial(DEFAULT, (1e9, 1.01e9, 0.99e9))])
    found = ran_again(capsys, f"{study}.0")

    assert found["old_figure"] == {"median": 1e9, "interval": [0.99e9, 1.01e9]}
    assert found["then"] == [{"id": f"{study}.0", "median": 1e9, "disturbance": ""}]
    assert LEAST_PROCESSES <= len(found["now"]) <= found["processes_at_most"] == USUAL_PROCESSES
    assert {each["outcome"] for each in found["now"]} == {"ok"}
    medians = [each["median"] for each in found["now"] if not each["disturbance"]]
    if len(medians) >= LEAST_PROCESSES:
        assert math.log(found["ratio"]) == pytest.approx(fmean(map(math.log, medians)) - math.log(1e9))
        assert found["interval"][0] < found["ratio"] < found["interval"][1] < 1
    assert found["new_figure"]["median"] == found["now"][-1]["median"]
    assert found["new"]["effective"] == DEFAULT.spelled
    assert found["new"]["quality"]["reference"] == "not judged again"  # the gate's calls were made, as in the search
    assert found["differences"] == []


def test_a_block_is_run_again_as_a_block(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A trial of the confirmation takes turns with those it took turns with then, in one process."""
    blocks = [trial(each, (1e9,), phase="confirm", block=block) for block in (1, 2) for each in (DEFAULT, EAGER)]
    study = studied(url, [trial(DEFAULT, (1e9,)), trial(EAGER, (1e9,)), *blocks])
    found = ran_again(capsys, f"{study}.3", "--processes", "3")

    assert [each["id"] for each in found["then"]] == [f"{study}.3", f"{study}.5"]
    assert (found["new"]["phase"], found["new"]["effective"]) == ("confirm", EAGER.spelled)
    assert found["new"]["quality"] is None  # a block makes none of the gate's calls


def test_the_same_failure_is_reproduced(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One process that fails as the trial did is enough: here by a deadline that nobody meets."""
    study = studied(url, [trial(DEFAULT)], workload=Forward((512,) * 64, 4))
    text = printed(capsys, "reproduce", f"{study}.0", "--timeout", "1s")

    assert text.splitlines()[-1] == "it failed the same way: reproduced"


#: Seconds that every call takes, and 15 % more: tests/plugins/made_up_sleep.py.
SLEEP_S, SLOWER_S = 0.6, 0.69


@pytest.mark.slow
def test_a_real_slowdown_is_found(tmp_path: Path) -> None:
    """A tune is reproduced by workers as they were, in JSON and text alike; where every call takes 15 % longer, it is not."""
    environment = {
        **os.environ,
        "ADVISOR_DATABASE_URL": laid(f"sqlite:///{tmp_path}/advisor.db"),
        "ADVISOR_LOCK_DIR": str(tmp_path),
        "ADVISOR_PLUGINS": "made_up_sleep",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent / "plugins")]),
        "HF_HUB_OFFLINE": "1",
    }

    def advisor(*arguments: str, sleep_s: float) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "advisor", *arguments]
        variables = {**environment, "MADE_UP_SLEEP_S": str(sleep_s)}
        return subprocess.run(command, capture_output=True, text=True, env=variables, check=False, timeout=300)

    tuned = advisor("tune", MODEL, *FLAGS, "--trials", "1", "--blocks", "0", "--quality", "exact", sleep_s=SLEEP_S)
    assert tuned.returncode == 0, tuned.stderr
    same = advisor("reproduce", "1.0", "--format", "json", sleep_s=SLEEP_S)
    slower = advisor("reproduce", "1.0", sleep_s=SLOWER_S)

    assert same.returncode == 0, same.stdout
    assert json.loads(same.stdout)["verdict"] == "reproduced"
    assert slower.returncode == 1, slower.stdout
    (words,) = [line for line in slower.stdout.splitlines() if " × what it was" in line]
    assert words.startswith("0.8"), words
    assert words.endswith(": not reproduced")


# -------------------------------------------------------------------------------------------------- where and on what


def test_another_environment_is_refused(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What the trial ran under must be what is here: otherwise one line says what differs, unless asked to run anyway."""
    there = replace(here(), memory_bytes=1, packages={**here().packages, "torch": "1.0", "kernels": "0.1"})
    study = studied(url, [trial(DEFAULT, (1e9,))], environment=there)
    line = printed(capsys, "reproduce", f"{study}.0", status=2)

    assert line.count("\n") == 1
    assert "memory bytes: 1 then," in line
    assert "torch 1.0 then," in line
    assert "kernels 0.1 then, none now" in line
    assert "(--anyway runs it)" in line
    source = replace(find_model(MODEL), weights_digest="other")
    with Store.open(url, write=False) as store:
        assert differences(store.study(study), source, there) == ["the weights"]
    found = ran_again(capsys, f"{study}.0", "--anyway")
    assert "torch 1.0 then, " in " ".join(found["differences"])


def test_another_model_is_not_run_for_it(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model of other shapes is refused: it is not what the trial ran."""
    study = studied(url, [trial(DEFAULT, ANY_SPEED)])
    other = {**json.loads((Path(MODEL) / "config.json").read_text()), "hidden_size": 128}
    (tmp_path / "other.json").write_text(json.dumps(other))
    line = printed(capsys, "reproduce", f"{study}.0", "--model", str(tmp_path / "other.json"), status=2)

    assert "its config.json has other shapes (--model says where that one is now)" in line


@pytest.mark.parametrize("name", ["/somewhere/llama", "./llama", "somebody/llama"])
def test_a_model_that_is_elsewhere_is_asked_for(url: str, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Of a study from another machine, where its model lay in another place, the line says what tells where it is now."""
    study = studied(url, [trial(DEFAULT, ANY_SPEED)], source=replace(find_model(MODEL), name=name))
    line = printed(capsys, "reproduce", f"{study}.0", status=2)

    assert line.startswith("advisor: the trial's model is not here: ")
    assert name in line
    assert line.endswith("(--model says where it is now)\n")
    with Store.open(url, write=False) as store:
        assert found_again(store.study(study), MODEL).name == MODEL
        with pytest.raises(BadInput, match="no such file") as refused:
            found_again(store.study(study), "./nowhere")
    assert "--model" not in str(refused.value)


def test_a_trial_without_a_figure_is_not_run(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Where what the study was for was never seen there is nothing to compare with."""
    blind = trial(DEFAULT, (100.0,), peak_bytes=None)
    study = studied(url, [blind], objective=Objective(metric=METRICS["peak_bytes"].metric))
    assert "this trial has no peak memory to be compared with" in printed(capsys, "reproduce", f"{study}.0", status=2)


def test_the_trials_own_device_is_taken() -> None:
    """Where the device that it ran on is here it is the one; another one of its kind is told, for it differs by itself."""
    machine = here_machine()
    known = trial(DEFAULT, (100.0,), device_uuid=machine.uuid)
    assert machine_of(known, [replace(machine, uuid="GPU-1"), machine]) is machine
    assert machine_of(known, [replace(machine, problem="no driver")]) is None
    assert other_device(known, machine) == []
    assert other_device(replace(known, device_uuid=""), machine) == []
    (words,) = other_device(known, replace(machine, uuid="GPU-2"))
    assert words == f"the device: {machine.uuid} then, GPU-2 now, and two of a kind differ by some per cent"


def here_machine() -> Machine:
    """Return this machine's CPU."""
    from advisor.machine import probe

    return probe.machine("cpu")


# ---------------------------------------------------------------------------------------------------------- the benchmark


@pytest.fixture(scope="module")
def benchmark() -> Any:
    """Import benchmarks/reproduction.py."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("reproduction_benchmark", ROOT / "benchmarks" / "reproduction.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["reproduction_benchmark"] = module
    spec.loader.exec_module(module)
    return module


def test_the_benchmark_runs_processes_and_replays_them(
    url: str, tmp_path: Path, benchmark: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it measures of a stored trial it replays, and the rates are those of the rule."""
    study = studied(url, [trial(DEFAULT, (1e9,))])
    file = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["it", "measure", str(file), "--processes", "3", "--trial", f"{study}.0"])
    benchmark.main()
    (found,) = json.loads(file.read_text())
    assert [each["outcome"] for each in found["processes"]] == ["ok"] * 3
    assert found["versions"]["torch"] == here().packages["torch"]

    rng = random.Random(0)
    found["processes"] = [
        {"score": math.exp(rng.gauss(7, 0.01)), "disturbance": "", "load_1min": 0.0} for _ in range(60)
    ]
    file.write_text(json.dumps([found]))
    monkeypatch.setattr(sys, "argv", ["it", "replay", str(file), "--draws", "300"])
    capsys.readouterr()
    benchmark.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"| {found['name']}")]
    assert len(rows) == 2
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert float(cells[6].rstrip("%")) >= 95
        assert float(cells[10].rstrip("%")) >= 95


def test_the_benchmark_goes_by_the_rule(benchmark: Any) -> None:
    """It decides figure by figure as the statistic does, and leaves disturbed processes out."""
    now = [100.0, None, 100.5, 99.5, 1.0]
    assert benchmark.decided([100.0], now, 9) == ("reproduced", 4)
    assert benchmark.decided([100.0], [None] * 9, 9) == ("undecided", 9)
    assert benchmark.decided([100.0], [90.0, 90.1, 89.9], 9) == ("not reproduced", 3)


def test_interrupting_frees_the_device(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt while a process runs stops it, and the device is free for the next."""
    closed: list[bool] = []
    real: Callable[[LocalRunner], None] = LocalRunner.close

    def close(runner: LocalRunner) -> None:
        closed.append(True)
        real(runner)

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    study = studied(url, [trial(DEFAULT, (1e9,))])
    monkeypatch.setattr(LocalRunner, "close", close)
    monkeypatch.setattr(LocalRunner, "run", interrupted)
    assert run(["reproduce", f"{study}.0"]) == 130
    assert closed
