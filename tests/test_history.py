"""Trial by trial: what was measured is listed, shown whole and run again, and leaves and enters databases as lines."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from made_databases import laid
from made_models import SMALL

from advisor.faces.cli import run
from advisor.faces.commands import _say_waiting
from advisor.machine import probe
from advisor.models.checkpoint import find_model
from advisor.nouns.configuration import Configuration
from advisor.nouns.environment import Environment
from advisor.nouns.measurement import Measurement
from advisor.nouns.metrics import METRICS
from advisor.nouns.objective import Budget, Objective
from advisor.nouns.step import Confirm, Search
from advisor.nouns.trial import Outcome, Quality, Trial
from advisor.storage.store import Store
from advisor.study import history
from advisor.study.history import listed
from advisor.study.plan import usual_seconds
from advisor.study.trial_words import device_words, words_of
from advisor.workloads.forward import Forward

MODEL = str(Path(__file__).parent / "models" / "causal")
WORKLOAD = Forward((8, 6), 2)
FLAGS = ["--lengths", "8,6", "--batch", "2", "--device", "cpu"]

DEFAULT = Configuration.of({"attention": "sdpa", "precision": "fp32", "quantization": "none", "packing": "padded"})
SORTED, EAGER = DEFAULT.replaced(packing="sorted"), DEFAULT.replaced(attention="eager")
FACTS = SMALL

#: Wide enough for whatever this machine does with two sequences of eight tokens.
ANY_SPEED = (0.1, 0.2, 2000.0, 1e8, 2e8)


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name a database for the command line."""
    url = f"sqlite:///{tmp_path}/advisor.db"
    monkeypatch.setenv("ADVISOR_DATABASE_URL", url)
    monkeypatch.setenv("ADVISOR_LOCK_DIR", str(tmp_path))
    return url


def here() -> Environment:
    """Return the environment of this machine's CPU."""
    return probe.machine("cpu").environment


def trial(configuration: Configuration, samples: tuple[float, ...] = (), **more: Any) -> Trial:
    """Return a trial, not numbered yet: of these speeds in tokens/s, or failed where there are none."""
    state = {
        "after_each_round": [{"clock_mhz": 2000.0, "load_1min": 1.5}, {"clock_mhz": 2500.0, "load_1min": 0.5}],
        "discarded": ["another process came to the GPU (pid 7)"],
    }
    known: dict[str, Any] = {"outcome": Outcome.OK, "peak_bytes": 2**30, "weight_bytes": 2**23, "wall_s": 4.0}
    if samples:
        known["measurements"] = (
            Measurement("tokens_per_s", "tokens/s", samples),
            Measurement("round_s", "s", tuple(14 / sample for sample in samples), "search", state),
            Measurement("slowest_batch_s", "s", tuple(14 / sample for sample in samples)),
        )
        known["quality"] = Quality(1e-6, 1e-5, 1e-9, 1.0, 16, 1.0, reference="fp32, eager, one sequence at a time")
        known["reading"] = {
            "attention": {"": "sdpa"},
            "dtypes": {"float32": 2_100_000},
            "linears": {"Linear": 29},
            "operators": [f"aten::operator_{n}" for n in range(40)],
            "inputs": {"rows": 2},
        }
    else:
        known |= {"outcome": Outcome.TIMEOUT, "reason": "no result after 600 s"}
    known["effective"] = configuration if samples else None
    return Trial(0, configuration, **{**known, **more})


def claimed(store: Store, study: int, trials: list[Trial]) -> Iterator[int]:
    """Begin these in order, a block of the confirmation at once, and yield their numbers."""
    for block, runs in groupby(trials, lambda trial: trial.block):
        asked = tuple(each.requested for each in runs)
        if block is not None:
            yield from store.claim(study, Confirm(block, asked), "a:1:1") or ()
        else:
            yield from (store.claim(study, Search(each), "a:1:1")[0] for each in asked)


def studied(url: str, trials: list[Trial], **nouns: Any) -> int:
    """Write a study with these trials in order and return its id."""
    known: dict[str, Any] = {
        "source": find_model(MODEL),
        "workload": WORKLOAD,
        "environment": here(),
        "objective": Objective(),
        **nouns,
    }
    with Store.open(laid(url), write=True) as store:
        study = store.open_study(**known, budget=Budget(60.0), seed=0)
        store.save_facts(known["source"], FACTS)
        for each, number in zip(trials, claimed(store, study, trials), strict=True):
            if each.outcome is not Outcome.RUNNING:
                store.finish_trial(study, replace(each, number=number), "a:1:1")
        store.close_study(study, "done")
    return study


TRIALS = [
    trial(DEFAULT, (1000.0, 990.0, 1010.0)),
    trial(SORTED, (1500.0, 1490.0, 1510.0)),
    trial(EAGER),
    trial(DEFAULT, (2000.0,), phase="confirm", block=1),
    trial(SORTED, (2500.0,), phase="confirm", block=1),
]


def printed(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> str:
    """Run a command line in this process and return what it printed to stdout, to stderr where it failed."""
    assert run(arguments) == status, capsys.readouterr().err
    streams = capsys.readouterr()
    return streams.out if status in (0, 1) else streams.err


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """Run a command line and return its one document, or those of its lines where it lists."""
    text = printed(capsys, *arguments, "--format", "json")
    return [json.loads(line) for line in text.splitlines()] if arguments[0] == "trials" else json.loads(text)


# ---------------------------------------------------------------------------------------------------------------- trials


def test_trials_are_listed_newest_study_first(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each has its id, configuration, phase, outcome, figure and its ratio over the default that it belongs to."""
    first = studied(url, TRIALS)
    second = studied(url, [trial(DEFAULT, (100.0,))], workload=Forward((4, 4), 2))
    text = printed(capsys, "trials")
    found = as_json(capsys, "trials")

    assert [each["study"] for each in found] == [second, first]
    assert text.index(f"study {second} ·") < text.index(f"study {first} ·")
    (sorted_line,) = [line for line in text.splitlines() if line.startswith(f"{first}.1 ")]
    assert sorted_line.split() == [f"{first}.1", "sdpa", "·", "fp32", "·", "sorted", "search", "ok", "1,500", "1.50"]
    assert f"{first}.2 eager · fp32 search timeout – –" in " ".join(text.split())
    # The blocks' own default is twice as fast as the search's.
    assert [each["ratio"] for each in found[1]["trials"]] == pytest.approx([1.25, 1.0, None, 1.5, 1.0])
    assert [each["id"] for each in found[1]["trials"]] == [f"{first}.{number}" for number in (4, 3, 2, 1, 0)]


def test_a_listing_is_of_the_newest(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """--limit bounds how many trials are listed, the newest; 0 lists all, a page at a time, whatever a page holds."""
    first = studied(url, TRIALS)
    second = studied(url, [trial(DEFAULT, (100.0,))], workload=Forward((4, 4), 2))

    def ids(*arguments: str) -> list[str]:
        return [each["id"] for study in as_json(capsys, "trials", *arguments) for each in study["trials"]]

    everything = [f"{second}.0", *(f"{first}.{number}" for number in (4, 3, 2, 1, 0))]
    assert ids() == everything
    assert ids("--limit", "3") == everything[:3]
    monkeypatch.setattr(history, "PAGE", 2)
    assert ids("--limit", "0") == everything
    assert ids("--limit", "4") == everything[:4]
    assert ids("--limit", "0", "--study", str(first)) == everything[1:]
    assert run(["trials", "--limit", "2"]) == 0
    assert capsys.readouterr().err == "note: these are the newest 2 trials: --limit N lists more, --limit 0 all\n"
    assert "a whole number from 0 on" in printed(capsys, "trials", "--limit", "-1", status=2)


def test_trials_can_be_chosen(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One study, one model (with others of its shapes), failures alone; what is not there is status 3 and one line."""
    study = studied(url, TRIALS)
    other = {**json.loads((Path(MODEL) / "config.json").read_text()), "hidden_size": 128}
    (tmp_path / "other.json").write_text(json.dumps(other))

    assert len(as_json(capsys, "trials", MODEL, "--study", str(study))[0]["trials"]) == 5
    assert [each["outcome"] for each in as_json(capsys, "trials", "--failed")[0]["trials"]] == ["timeout"]
    assert "no trial of this model is stored" in printed(capsys, "trials", str(tmp_path / "other.json"), status=3)
    assert "no trial of study 77 is stored" in printed(capsys, "trials", "--study", "77", status=3)


def test_ratios_follow_the_objective(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the slowest batch counts, it is what the list shows, in milliseconds, and less of it is a higher ratio."""
    studied(url, TRIALS[:2], objective=Objective(metric=METRICS["slowest_batch_s"].metric))
    text = printed(capsys, "trials")

    assert "slowest batch" in text
    assert "14 ms" in text
    assert "9.33 ms" in text
    assert "1.50" in text


def test_what_was_left_behind_is_interrupted(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A trial that no tune runs any more was interrupted; where a tune has taken the study up again, it runs."""
    study = studied(url, [trial(DEFAULT, (1000.0,)), trial(EAGER, outcome=Outcome.RUNNING)])

    def ended() -> list[str]:
        lines = [line.split() for line in printed(capsys, "trials").splitlines()]
        return next(words for words in lines if words[:1] == [f"{study}.1"])[-3:]

    assert ended() == ["interrupted", "–", "–"]
    with Store.open(url, write=True) as store:
        again = store.open_study(find_model(MODEL), WORKLOAD, here(), Objective(), Budget(60.0), 0)
    assert again == study
    assert ended() == ["running", "–", "–"]


# ------------------------------------------------------------------------------------------------------------------ show


def test_a_trial_is_shown_whole(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Requested and effective, figures with intervals, quality, what was read, the device, environment, model, flags."""
    study = studied(url, TRIALS)
    text = printed(capsys, "show", f"{study}.1")
    found = as_json(capsys, "show", f"{study}.1")

    for words in (
        "requested",
        "attention sdpa, precision fp32, packing sorted",
        "1,500 tokens/s (1,490 to 1,510, 3 samples)",
        "peak 1.0 GiB, weights 8 MiB",
        "rms 1.0e-06",
        "aten::operator_0",
        "and 28 more",
        "2000 to 2500",
        "0.5 to 1.5",
        "1: another process came to the GPU (pid 7)",
        "--lengths 8 --padding 0.12",
        "2,100,000 float32",
        str(here()),
        here().key,
    ):
        assert words in " ".join(text.split()), words
    assert "aten::operator_30" not in text
    assert len(found["trial"]["reading"]["operators"]) == 40
    assert found["trial"]["measurements"][0]["interval"] == [1490.0, 1510.0]
    assert found["environment"]["key"] == here().key
    assert found["trial"]["reused"] is False


def test_what_failed_and_what_was_taken_over_is_shown(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A failure has its reason and nothing that ran; figures of another study's trial are said to be that."""
    study = studied(url, [*TRIALS, trial(SORTED, (1500.0,), wall_s=0.0)])

    text = " ".join(printed(capsys, "show", f"{study}.2").split())
    assert "outcome timeout: no result after 600 s" in text
    assert "effective nothing ran" in text
    assert "begun" not in text
    assert "another trial: nothing was run here" in printed(capsys, "show", f"{study}.5")


def test_what_was_interrupted_is_told_plainly(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a trial that did not end nobody says that nothing ran, and how often it was begun is told in words."""
    cut = trial(SORTED, outcome=Outcome.CUT, reason="it was interrupted", attempts=2)
    study = studied(url, [trial(DEFAULT, (1000.0,)), cut, trial(EAGER, outcome=Outcome.RUNNING)])
    words, running = (" ".join(printed(capsys, "show", f"{study}.{number}").split()) for number in (1, 2))

    assert "effective not known: it did not get to its end outcome cut: it was interrupted" in words
    assert "begun 2 times: an attempt before failed or was interrupted" in words
    assert "effective nothing is known yet: it runs, or was interrupted" in running
    assert not any("nothing ran" in text or "attempts" in text for text in (words, running))


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ({"peak_bytes": None, "weight_bytes": None}, ""),
        ({"peak_bytes": None}, " memory weights 8 MiB time "),
        ({"weight_bytes": None}, " memory peak 1.0 GiB time "),
    ],
)
def test_what_is_not_known_is_left_out(
    url: str, capsys: pytest.CaptureFixture[str], known: dict[str, Any], words: str
) -> None:
    """Of memory that nobody read there is no line, and none of the half of it that is not known."""
    study = studied(url, [trial(DEFAULT, (1000.0,)), trial(SORTED, **known)])
    text = " ".join(printed(capsys, "show", f"{study}.1").split())

    assert words in text
    assert (" memory " in text) is bool(words)


def test_gauges_are_told_as_ranges() -> None:
    """Figures of all rounds become a range, words are listed, and what could not be seen is left out."""
    states = [
        {"power_w": 300.0, "clock_event_reasons": ["idle"], "foreign_processes": "not observable", "energy_j": 1.0},
        {"power_w": 700.5, "clock_event_reasons": [], "foreign_processes": "not observable", "energy_j": 2.0},
    ]
    measured = Measurement("round_s", "s", (1.0, 1.0), device_state={"after_each_round": states, "discarded": []})

    assert device_words(measured) == {"power w": "300 to 700.5", "clock event reasons": "idle; none"}
    assert words_of({}) == {}


#: Command lines about trials that can't be done with this database, and words of the line they give.
WRONG = {
    "no id": (
        ["show", "seven"],
        "a trial's id is STUDY.NUMBER, for example 3.7, not 'seven' (advisor trials lists them)",
    ),
    "half an id": (["show", "7"], "not '7'"),
    "an id of more": (["reproduce", "1.2.3"], "not '1.2.3'"),
    "no such study": (["show", "77.0"], "there is no study 77 (advisor trials lists them)"),
    "no such trial": (["show", "1.77"], "study 1 has no trial 77 (advisor trials lists them)"),
    "no such trial to run": (["reproduce", "1.77"], "study 1 has no trial 77"),
    "a beyond id": (["show", "99999999999.0"], "not '99999999999.0'"),
    "pruned": (["reproduce", "1.1"], "this trial was stopped early"),
    "wrong": (["reproduce", "1.2"], "this trial was refused by the gate"),
    "running": (["reproduce", "1.3"], "this trial has not ended"),
    "broken off": (["reproduce", "1.4"], "this trial was broken off"),
    "too few processes": (["reproduce", "1.0", "--processes", "2"], "a whole number from 3 to 99, not '2'"),
    "no processes": (["reproduce", "1.0", "--processes", "some"], "a whole number from 3 to 99, not 'some'"),
    "no timeout": (["reproduce", "1.0", "--timeout", "soon"], "--timeout must be a duration"),
    "no device": (["reproduce", "1.0", "--device", "tpu"], "--device must be"),
    "no model there": (["reproduce", "1.0", "--model", "./nowhere"], "no such file or directory"),
    "trials of nothing": (["trials", "./nowhere"], "no such file or directory"),
    "trials of words": (
        ["trials", "--study", "one"],
        "--study: a study's number, as advisor trials lists them, not 'one'",
    ),
    "export of no study": (["export", "--study", "77"], "there is no study 77"),
    "import of nothing": (["import", "./nowhere"], "./nowhere can't be read: No such file or directory"),
    "import of a directory": (["import", "/"], "/ can't be read: Is a directory"),
    "show as python": (["show", "1.0", "--format", "python"], "--format: invalid choice: 'python'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_can_not_be_done_is_told_in_one_line(url: str, capsys: pytest.CaptureFixture[str], case: str) -> None:
    """Unknown ids, trials that can't be run again, and files that are none end with status 2 and one line."""
    arguments, words = WRONG[case]
    studied(
        url,
        [
            trial(DEFAULT, ANY_SPEED),
            trial(SORTED, (1.0,), outcome=Outcome.PRUNED),
            trial(SORTED, (1.0,), outcome=Outcome.WRONG_OUTPUT),
            trial(SORTED, outcome=Outcome.RUNNING),
            trial(EAGER, outcome=Outcome.CUT, reason="the budget ended"),
        ],
    )
    assert run(arguments) == 2
    streams = capsys.readouterr()

    assert streams.out == ""
    assert streams.err.count("\n") == 1
    assert words in streams.err


# ------------------------------------------------------------------------------------------------------ export and import


def test_studies_go_from_one_database_to_another(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What export writes, import adds elsewhere, once: the same trials are listed there, and a second import is no news."""
    study = studied(url, TRIALS)
    lines = printed(capsys, "export", "--study", str(study))
    expected = as_json(capsys, "trials")[0]["trials"]
    (tmp_path / "lines.jsonl").write_text(lines)
    monkeypatch.setenv("ADVISOR_DATABASE_URL", f"sqlite:///{tmp_path}/other.db")

    assert "5 trials" in printed(capsys, "import", str(tmp_path / "lines.jsonl"))
    assert as_json(capsys, "trials")[0]["trials"] == expected
    assert printed(capsys, "import", str(tmp_path / "lines.jsonl")).startswith("new here: nothing; known already: ")
    (tmp_path / "damaged.jsonl").write_text(lines.replace('"object"', '"subject"'))
    line = printed(capsys, "import", str(tmp_path / "damaged.jsonl"), status=2)
    assert "damaged.jsonl, line 2: " in line
    assert line.count("\n") == 1


def test_lines_come_through_a_pipe(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`advisor export | advisor import -` reads stdin, and says which line of it can't be understood."""
    studied(url, TRIALS)
    lines = printed(capsys, "export").encode()
    monkeypatch.setenv("ADVISOR_DATABASE_URL", f"sqlite:///{tmp_path}/other.db")
    for content, status, words in (
        (lines, 0, "5 trials"),
        (b"\xff\n", 2, "-, line 1: "),
        (b"", 2, "no export of advisor"),
    ):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert words in printed(capsys, "import", "-", status=status)


# -------------------------------------------------------------------------------------------------------------- dry runs


def test_a_dry_run_says_what_would_be_tried(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It reads the model, lists what would be tried, what is refused with rules and remedies, and writes nothing."""
    command = ["tune", MODEL, *FLAGS, "--only", "attention=sdpa,eager", "--fix", "precision=fp32", "--dry-run"]
    text = " ".join(printed(capsys, *command).split())

    assert "0 sdpa · fp32 (the default)" in text
    assert "1 " in text
    assert "A18 FlashAttention-2 runs on NVIDIA GPUs only → use a GPU" in text
    assert "U0 left out by --only or --fix" in text
    bounded = "time: unknown before the first trial; the budget bounds it at 10 min"
    ends = "and it ends where each of what is left is expected to save less"
    assert text.endswith(f"{bounded}, {ends} in 60 min of work than it costs")
    job = " ".join(printed(capsys, *command, "--calls", "3").split())
    assert job.endswith(f"{bounded}, {ends} of that job than it costs")
    asked = " ".join(printed(capsys, *command, "--budget", "10m").split())
    assert asked.endswith(bounded)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".lock"}


def test_a_dry_run_counts_with_what_trials_took(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With trials of this architecture in this environment it says how long: their median, times all runs."""
    studied(url, TRIALS)
    command = ["tune", MODEL, *FLAGS, "--only", "attention=sdpa,eager", "--trials", "3", "--blocks", "4", "--dry-run"]
    found = as_json(capsys, *command)

    assert (found["trials"], found["confirmation_runs"], found["trial_s"]) == (3, 12, 4.0)
    assert found["seconds"] == 60.0
    assert found["order"][0] == DEFAULT.spelled
    assert {choice["attention"] for choice in found["order"]} == {"sdpa", "eager"}
    assert len({json.dumps(choice) for choice in found["order"]}) == len(found["order"])
    assert any(refusal["rule"] == "U0" for refusal in found["refusals"])


def test_a_dry_run_counts_what_compiles_as_such(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As long as such a trial took here, else as a choice is expected to compile for; a finalist's runs are like the average."""
    regional = DEFAULT.replaced(compilation="compiled-regional")
    studied(url, [*TRIALS, trial(regional, (100.0,), wall_s=30.0)])
    command = [
        "tune",
        MODEL,
        *FLAGS,
        "--only",
        "attention=sdpa,eager",
        "--fix",
        "packing=padded",
        "--fix",
        "precision=fp32",
    ]
    ways = "off,compiled-regional,compiled"
    command += ["--only", f"compilation={ways}", "--blocks", "4", "--dry-run"]
    found = as_json(capsys, *command)
    searched = [4.0, 4.0, 30.0, 30.0, 20.0, 20.0]  # the whole compiles for 16 s more, 4 for each of its layers

    assert (found["trials"], found["trial_s"], found["compiled_trials"]) == (6, 4.0, 4)
    assert found["compiled_trial_s"] == pytest.approx(mean(searched[2:]))
    assert found["seconds"] == pytest.approx(sum(searched) + 4 * (4.0 + 3 * mean(searched)))
    text = " ".join(printed(capsys, *command).split())
    assert "6 configurations are admissible" in text
    assert text.endswith(
        "time: about 6 min (6 configurations and 16 runs to confirm the best, at 4.0 s each as measured here before, and at "
        "25.0 s each for the 4 that compile); the budget bounds it at 10 min, and it ends where each of what is left is expected "
        "to save less in 60 min of work than it costs"
    )


def test_a_dry_run_counts_the_default_beside_what_is_admissible(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the default is left out it is measured all the same: as many are said to be run as are said to be admissible."""
    studied(url, TRIALS)
    left = [
        "--only",
        "attention=eager",
        "--fix",
        "packing=padded",
        "--fix",
        "precision=fp32",
        "--fix",
        "compilation=off",
    ]
    text = " ".join(printed(capsys, "tune", MODEL, *FLAGS, *left, "--dry-run").split())

    assert "1 configuration is admissible; likeliest first" in text
    assert "(1 configuration, the default and 18 runs to confirm the best, at 4.0 s each" in text


def test_waiting_for_a_device_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Where another advisor measures on the device, a line on stderr says so; other stages are kept to oneself."""
    for stage in ("load", "waiting: another advisor measures on cpu"):
        _say_waiting({"event": "stage", "stage": stage})

    assert capsys.readouterr().err == "waiting: another advisor measures on cpu\n"


def test_time_is_told_of_this_architecture_here_alone(url: str) -> None:
    """Trials elsewhere, of other shapes, or taken over from others say nothing of how long one takes here."""
    studied(url, [trial(DEFAULT, (1.0,)), trial(SORTED, (1.0,), wall_s=0.0), trial(EAGER, wall_s=10.0)])
    key = find_model(MODEL).architecture_key
    with Store.open(url, write=False) as store:
        usual = usual_seconds(store, key, here().key)
        assert usual is not None
        assert (usual.plain_s, usual.of(SORTED, 12)) == (7.0, 7.0)
        assert usual_seconds(store, key, "elsewhere") is None
        assert usual_seconds(store, "other", here().key) is None
        assert len(list(listed(store))) == 1
