"""advisor in Python: what the command line does, as functions, and a model loaded as it was measured."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_databases import laid
from made_models import SMALL

import advisor
from advisor.asking.options import EFFORT, ON, PLACE, objective_options
from advisor.asking.question import effort_of, question_of
from advisor.asking.resolve import resolve
from advisor.errors import BadInput, NothingAdmissible, NotMeasured, named, spelled_for_python
from advisor.faces import api
from advisor.faces.arguments import build_parser
from advisor.faces.cli import run
from advisor.machine import probe
from advisor.models.checkpoint import find_model
from advisor.models.declared import is_encoder, max_positions
from advisor.models.lengths import lengths_from
from advisor.nouns.configuration import Configuration
from advisor.nouns.environment import Environment
from advisor.nouns.measurement import Comparison, Measurement
from advisor.nouns.objective import Budget, Objective, Tier
from advisor.nouns.option import TAKEN
from advisor.nouns.step import Search
from advisor.nouns.trial import Outcome, Quality, Trial
from advisor.storage.store import Store
from advisor.workloads import DEFAULT_KIND, KINDS
from advisor.workloads.forward import Forward, default_output

ROOT = Path(advisor.__file__).parent.parent
MODEL = Path(__file__).parent / "models" / "causal"
ASKED: dict[str, Any] = {"lengths": [8, 5, 7, 3], "batch": 2, "device": "cpu"}

DEFAULT = Configuration.of({"attention": "sdpa", "precision": "fp32", "quantization": "none", "packing": "padded"})
SORTED, PACKED = DEFAULT.replaced(packing="sorted"), DEFAULT.replaced(packing="packed")
FACTS = SMALL


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name a database, which is not there yet."""
    url = f"sqlite:///{tmp_path}/advisor.db"
    monkeypatch.setenv("ADVISOR_DATABASE_URL", url)
    monkeypatch.setenv("ADVISOR_LOCK_DIR", str(tmp_path))
    return url


def here() -> Environment:
    """Return the environment of this machine's CPU."""
    return probe.machine("cpu").environment


def stored(
    url: str,
    best: Configuration = PACKED,
    *,
    batch: int | None = 2,
    where: Environment | None = None,
    lengths: tuple[int, ...] = (8, 5, 7, 3),
) -> None:
    """Write a study in which one configuration was confirmed to be faster than the default."""
    source, default = find_model(str(MODEL)), DEFAULT if batch else DEFAULT.replaced(batch="1")
    with Store.open(laid(url), write=True) as store:
        study = store.open_study(source, Forward(lengths, batch), where or here(), Objective(), Budget(60.0), 0)
        store.save_facts(source, FACTS)
        for configuration, speed in ((default, 1000.0), (best, 1500.0)):
            number = store.claim(study, Search(configuration), "a:1:1")[0]
            quality = Quality(1e-6, 1e-5, 1e-9, 1.0, 16, 1.0, reference="fp32, eager")
            measured = (Measurement("tokens_per_s", "tokens/s", (speed, speed * 1.01)),)
            store.finish_trial(
                study,
                Trial(
                    number,
                    configuration,
                    configuration,
                    Outcome.OK,
                    peak_bytes=2**30,
                    weight_bytes=2**23,
                    quality=quality,
                    measurements=measured,
                ),
                "a:1:1",
            )
        store.save_comparisons(study, [Comparison(best.key, default.key, (1.5, 1.51, 1.49))])
        store.close_study(study, "done")


# ---------------------------------------------------------------------------------------------------------------- import


def test_importing_it_costs_next_to_nothing() -> None:
    """`import advisor` brings neither torch nor the database nor even argparse, and takes less time than that, once of five."""
    code = (
        "import time, sys; before = set(sys.modules); began = time.process_time(); import advisor; "
        "took_s = time.process_time() - began; brought = sorted(set(sys.modules) - before); import argparse; "
        "print(took_s / (time.process_time() - began - took_s)); print(*brought)"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for _ in range(5)
    ]

    assert min(float(each.splitlines()[0]) for each in runs) < 1
    assert not {"torch", "sqlalchemy", "argparse", "typing", "advisor.faces.api"} & set(runs[0].splitlines()[1].split())


def test_verbs_are_functions_whatever_was_imported_before() -> None:
    """`advisor.suggest` and `advisor.tune` are functions, also where the modules that do their work were imported first."""
    code = (
        "import advisor\n{}\n"
        "for verb in (advisor.suggest, advisor.tune, advisor.load):\n"
        "    try:\n        verb('./nowhere')\n"
        "    except advisor.errors.BadInput as error:\n        print(error)\n"
    )
    for before in (
        "",
        "from advisor.advice.suggest import recommend; import advisor.study.tune as t; t.tune; from advisor import suggest",
    ):
        lines = ["import advisor.errors", code.format(before)]
        done = subprocess.run(
            [sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines() == ["no such file or directory: './nowhere'"] * 3, done.stderr

    assert dir(advisor) == ["Answer", "Ready", "__version__", "load", "suggest", "tune"]
    assert advisor.Ready is api.Ready
    with pytest.raises(AttributeError, match="frobnicate"):
        _ = advisor.frobnicate  # type: ignore[attr-defined]


def test_every_public_function_shows_how_it_is_called() -> None:
    """suggest, load and tune have an example in their docstrings, and say of every keyword what it means."""
    for function, flags in ((api.suggest, api.SuggestFlags), (api.load, api.Flags), (api.tune, api.TuneFlags)):
        told, signature = inspect.getdoc(function) or "", inspect.signature(function)
        assert ">>> " in told
        assert {*flags.__annotations__, "model"} <= set(signature.parameters)
        for name in flags.__annotations__.keys() - {"workload"}:
            assert f"\n{name}: " in told, name
        assert " --" not in told
        assert not [p for p in signature.parameters.values() if p.kind is inspect.Parameter.VAR_KEYWORD]
    assert (Path(advisor.__file__).parent / "py.typed").exists()


def test_an_answer_is_shown_in_a_line_and_as_a_table(url: str) -> None:
    """Its repr is a line; notebooks get HTML in which whatever a model is called stays a text; rows fill a data frame."""
    stored(url)
    found = advisor.suggest(MODEL, **ASKED)
    assert repr(found).count("\n") == 0
    assert repr(found).startswith(f"<{MODEL}: sdpa · fp32 · ")
    shown = found._repr_html_()
    assert shown.count("<tr>") == len(found.rows) + 1
    assert found.rows[0]["recommended"] is True
    assert str(found.configuration) == found.rows[0]["configuration"]
    hostile = replace(found, source=replace(found.source, name="<script>alert(1)</script>"))
    assert "<script>" not in hostile._repr_html_()
    assert "&lt;script&gt;" in hostile._repr_html_()
    assert found.script.startswith('"""')
    compile(found.script, "script", "exec")


# ------------------------------------------------------------------------------------------------------ keyword arguments


def test_keyword_arguments_mean_what_flags_mean() -> None:
    """Python's values and the command line's texts make the same objective, lengths and batch."""
    flags: dict[str, Any] = {
        "lengths": (9, 4, 2),
        "batch": 3,
        "max_memory": 2**30,
        "max_latency": 0.08,
        "quality": Tier.EIGHT_BIT,
        "only": {"attention": ["sdpa", "eager"], "precision": "fp32"},
        "ignore_rule": ["P1", "A4"],
        "objective": "latency",
        "allow_unjudged": True,
        "allow_pickle": False,
        "padding": None,
    }
    words = (
        "--lengths 9,4,2 --batch 3 --max-memory 1GiB --max-latency 80ms --quality 8bit --only attention=sdpa,eager "
        "--fix precision=fp32 --ignore-rule P1 --ignore-rule A4 --objective latency --allow-unjudged"
    )
    asked = api._question("suggest", Path("model"), flags, api.SuggestFlags)
    typed = build_parser().parse_args(["suggest", "model", *words.split()])

    assert asked == question_of("model", vars(typed))
    fixed = {**flags, "only": {"attention": ["sdpa", "eager"]}, "fix": {"precision": "fp32"}}
    assert api._question("suggest", Path("model"), fixed, api.SuggestFlags) == asked
    assert (asked.model, asked.asked["batch"], asked.allow_pickle, asked.lengths) == ("model", 3, False, (9, 4, 2))
    assert asked.objective == Objective(
        Tier.EIGHT_BIT,
        2**30,
        allow_unjudged=True,
        ignored_rules=("A4", "P1"),
        metric="slowest_batch_s",
        max_latency_s=0.08,
        only=(("attention", ("eager", "sdpa")), ("precision", ("fp32",))),
    )
    assert lengths_of({"lengths": [7]}) == (7,)
    assert lengths_of({"lengths": 4, "padding": 0.0, "batch": 2, "batches": 1}) == (4, 4)
    tune = {"budget": 90.0, "trials": 3, "batch": "auto", "timeout": "2m"}
    same = ["tune", "m", "--budget=90.000000s", "--trials=3", "--batch=auto", "--timeout=120s"]
    assert effort_of(tune, Objective()) == effort_of(vars(build_parser().parse_args(same)), Objective())
    assert api._question("tune", "-m", tune, api.TuneFlags).model == "./-m"


def lengths_of(flags: dict[str, Any]) -> tuple[int, ...] | None:
    """Return the lengths that keyword arguments name."""
    return api._question("suggest", "m", flags, api.Flags).lengths


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"lengths": -1}, "lengths must be at least 1, not -1"),
        ({"lengths": []}, "lengths must be a whole number or a list like 128,256,96, not []"),
        ({"lengths": [8, 2.5]}, "lengths must be a whole number or a list like 128,256,96, not [8, 2.5]"),
        ({"lengths": "many"}, "lengths must be a whole number or a list like 128,256,96, not 'many'"),
        ({"lengths": 4096}, "lengths 4096 is beyond the model's 2048 positions"),
        ({"padding": 1}, "padding must be at least 0 and below 1, not 1"),
        ({"padding": "some"}, "padding must be a number, not 'some'"),
        ({"padding": 0.9, "batch": 2}, "padding 0.9 can't be met with batch 2 and lengths 512: 0.50 can"),
        ({"quality": "best"}, "quality must be one of exact, dtype, 8bit, 4bit, not 'best'"),
        ({"objective": "beauty"}, "objective must be one of throughput, "),
        ({"output": "poems"}, "output must be one of last-logits, "),
        ({"batch": "some"}, "batch must be a whole number or auto, not 'some'"),
        ({"batch": 0}, "batch and batches must be at least 1, not 0"),
        ({"batch": 100_000}, "(batch times batches may be 100,000 at most)"),
        ({"only": {"attention": "nonsense"}}, "only: attention has no choice 'nonsense'"),
        ({"only": {"attention": []}}, "only takes choices by knob such as {'precision': ['fp32', 'tf32']}, not"),
        ({"only": {"batch": "8"}}, "only: batch is a knob with batch='auto' alone"),
        ({"only": 5}, "only must be a text or several, not 5"),
        ({"max_memory": "lots"}, "max_memory must be a size such as 24GiB, not 'lots'"),
        ({"max_memory": -1}, "max_memory must be more than 0, not -1"),
        ({"max_memory": 24}, "max_memory 24 is so many bytes (write 24GiB or 24MiB)"),
        ({"max_memory": True}, "max_memory must be a size such as 24GiB, not True"),
        ({"max_latency": "soon"}, "max_latency must be a time such as 80ms or 0.5s, not 'soon'"),
        ({"max_latency": float("nan")}, "max_latency must be a time such as 80ms or 0.5s, not nan"),
        ({"ignore_rule": "P99"}, "ignore_rule takes a rule's id such as P1, and there is no rule 'P99'"),
        ({"allow_pickle": "yes"}, "allow_pickle must be True or False, not 'yes'"),
        ({"threads": 0}, "threads must be at least 1, not 0"),
        ({"threads": "two"}, "threads must be a whole number, not 'two'"),
        ({"lengths_from": "nowhere.txt"}, "lengths_from nowhere.txt: No such file or directory"),
        ({"lengths_from": 5}, "lengths_from must be a path, not 5"),
        ({"lengths_from": "a.txt", "padding": 0.3}, "lengths_from goes without lengths and padding: "),
        ({"device": "tpu"}, "device must be cpu, cuda or cuda:<number>, not 'tpu'"),
        ({"device": 0}, "device must be a text, not 0"),
        ({"workload": "poetry"}, "workload: there is no kind of work 'poetry'"),
        ({"workload": np.array(["a", "b"])}, "workload must be a text, not array("),
        ({"max_memory": 10**400}, "max_memory must be a size such as 24GiB, not 1000"),
        ({"max_memory": 10**5000}, "max_memory must be a size such as 24GiB, not a value of the type int"),
        ({"max_latency": 10**400}, "max_latency must be a time such as 80ms or 0.5s, not 1000"),
        ({"max_memory": np.array([1, 2])}, "max_memory must be a size such as 24GiB, not array([1, 2])"),
        ({"batch": np.array([1, 2])}, "batch must be a whole number or auto, not array([1, 2])"),
        ({"max_memory": torch.tensor([1, 2])}, "max_memory must be a size such as 24GiB, not tensor([1, 2])"),
        ({"batch": torch.tensor([1, 2])}, "batch must be a whole number or auto, not tensor([1, 2])"),
        ({"batch": torch.tensor([3.5])}, "batch must be a whole number or auto, not tensor([3.5"),
        ({"batch": torch.tensor(3, device="meta")}, "batch must be a whole number or auto, not tensor("),
        ({"padding": torch.tensor([0.1, 0.2])}, "padding must be a number, not tensor("),
        ({"padding": 10**400}, "padding must be a number, not 1000"),
        ({"batch": Fraction(10**400, 3)}, "batch must be a whole number or auto, not Fraction("),
        ({"batch": b"96"}, "batch must be a whole number or auto, not b'96'"),
        ({"lengths": b"96"}, "lengths must be a whole number or a list like 128,256,96, not b'96'"),
        ({"lengths": {96: 2}}, "lengths must be a whole number or a list like 128,256,96, not {96: 2}"),
        ({"lengths": np.array(96.5)}, "lengths must be a whole number or a list like 128,256,96, not array(96.5)"),
        ({"quality": np.array(["exact", "8bit"])}, "quality must be one of exact, dtype, 8bit, 4bit, not array("),
        ({"ignore_rule": np.array("P1")}, "ignore_rule must be a text or several, not array('P1'"),
        ({"only": {"batch": 2.5}, "batch": "auto"}, "only: a choice of 'batch' must be a text, not 2.5"),
        ({"only": {"batch": [7]}, "batch": "auto"}, "only: batch has no choice '7'"),
    ],
)
def test_what_can_not_be_meant_is_bad_input(url: str, flags: dict[str, Any], words: str) -> None:
    """A value that the command line would refuse is BadInput here, in a line that names the keyword and no flag."""
    with pytest.raises(BadInput) as told:
        advisor.suggest(MODEL, **flags)

    assert words in str(told.value)
    assert "\n" not in str(told.value)
    assert "--" not in str(told.value).replace("advisor tune MODEL --dry-run", "")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"trials": 0}, "trials must be at least 1, not 0"),
        ({"blocks": -1}, "blocks must be 0 or at least 3, not -1"),
        ({"budget": "soon"}, "budget must be a duration such as 90s, 10m or 2h, not 'soon'"),
        ({"timeout": 0}, "timeout must be longer than 0, not 0"),
        ({"exhaustive": True, "trials": 3}, "exhaustive measures all there is: leave trials out"),
        ({"payback": 60, "trials": 3}, "payback ends a search, and trials and exhaustive say how far it goes"),
        ({"payback": "1h", "objective": "memory"}, "payback weighs time against time, and objective memory is none"),
        ({"device": "cpu", "objective": "energy"}, "objective energy: energy is read from the GPU's counter"),
    ],
)
def test_what_a_tune_can_not_mean_names_the_keyword(url: str, flags: dict[str, Any], words: str) -> None:
    """The same of what tune takes beside: nothing is measured, and the line names keywords."""
    with pytest.raises(BadInput) as told:
        advisor.tune(MODEL, **flags)

    assert str(told.value).startswith(words)


@pytest.mark.parametrize("made", [np.array, torch.tensor, np.int64, np.float32])
def test_an_array_without_axes_is_a_number(made: Callable[[int], Any]) -> None:
    """What NumPy and torch make of one number is taken as that number, as lengths, as bytes and as seconds."""
    asked = api._question(
        "suggest",
        "m",
        {"lengths": made(96), "batch": made(2), "max_memory": made(2**30), "max_latency": made(2)},
        api.Flags,
    )

    assert (max(asked.lengths or ()), asked.asked["batch"]) == (96, 2)
    assert (asked.objective.max_memory_bytes, asked.objective.max_latency_s) == (2**30, 2)


def test_what_people_have_in_hand_is_taken(url: str) -> None:
    """A torch.device is a device, numbers are choices of the batch, and a path may be bytes."""
    only = {"batch": [16, 8], "attention": "sdpa"}
    given = {"device": torch.device("cpu"), "batch": "auto", "only": only}
    asked = api._question("suggest", b"models/causal", given, api.SuggestFlags)  # type: ignore[arg-type]

    assert (asked.model, asked.device) == ("models/causal", "cpu")
    assert asked.objective.only == (("attention", ("sdpa",)), ("batch", ("16", "8")))
    assert api._question("suggest", "m", {"device": torch.device("cuda", 1)}, api.Flags).device == "cuda:1"


def test_the_face_spells_what_was_asked_for() -> None:
    """One error names a flag on the command line and a keyword in Python, in its line and in its hint."""
    error = BadInput(f"{named('max_memory')} must be more", f"{named('output', 'hidden')} needs less")
    assert str(error) == "--max-memory must be more (--output hidden needs less)"
    with pytest.raises(BadInput) as told, spelled_for_python():
        raise error

    assert str(told.value) == "max_memory must be more (output='hidden' needs less)"
    assert repr(told.value) == "BadInput(\"max_memory must be more (output='hidden' needs less)\")"


def test_reasons_name_keywords_in_python() -> None:
    """What refuses each configuration is stored in words that name flags: an error out of Python has its keywords instead."""
    stored = ("a: ran is outside --only", "--ignore-rule A30 tries it", "--quality 8bit", "pip install --upgrade torch")
    with pytest.raises(NothingAdmissible) as told, api._in_python():
        raise NothingAdmissible(stored)

    assert told.value.reasons == (
        "a: ran is outside only",
        "ignore_rule A30 tries it",
        "quality 8bit",
        "pip install --upgrade torch",
    )


def test_a_keyword_that_is_none_is_a_type_error(url: str) -> None:
    """What a function does not take is Python's own error, also where another one takes it."""
    for verb, flag in ((api.suggest, "budget"), (api.load, "on"), (api.tune, "on"), (api.suggest, "format")):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{flag}'"):
            verb(str(MODEL), **{flag: "x"})  # type: ignore[operator]
    with pytest.raises(
        TypeError, match=r"suggest\(\) got an unexpected keyword argument 'max_memry': did you mean max_memory"
    ):
        advisor.suggest(MODEL, max_memry=1)  # type: ignore[call-arg]


def test_keywords_are_the_options_that_are_declared() -> None:
    """What the functions' signatures name is what the flags are made of."""
    of_kinds = [option for kind in KINDS.values() for option in kind.options]
    shared = (*of_kinds, *objective_options(DEFAULT_KIND), *PLACE)
    taken = {api.Flags: shared, api.SuggestFlags: (*shared, ON), api.TuneFlags: (*shared, *EFFORT)}

    for flags, options in taken.items():
        assert flags.__annotations__.keys() == {"workload", *(option.name for option in options)}


def test_names_that_all_work_takes_are_no_kinds_own() -> None:
    """What is refused as the name of a kind's own option is all that commands and functions take beside such options."""
    own = {option.name for kind in KINDS.values() for option in kind.options}
    parsers = build_parser()._subparsers
    assert parsers is not None
    commands = parsers._group_actions[0].choices
    assert isinstance(commands, dict)
    flags = {action.dest for verb in ("tune", "suggest", "submit") for action in commands[verb]._actions}
    keywords = {name for verb in (api.tune, api.suggest, api.load) for name in inspect.signature(verb).parameters}

    assert flags | keywords - {"flags"} | {"command", "version"} == TAKEN | own


# --------------------------------------------------------------------------------------------------------------- suggest


def test_suggest_says_what_the_command_says(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The function returns what `advisor suggest` prints, and raises what it ends with."""
    with pytest.raises(NotMeasured, match="no database"):
        advisor.suggest(MODEL, **ASKED)
    stored(url)
    found = advisor.suggest(MODEL, **ASKED)
    assert (
        run(["suggest", str(MODEL), "--lengths", "8,5,7,3", "--batch", "2", "--device", "cpu", "--format", "json"]) == 0
    )
    printed = json.loads(capsys.readouterr().out)

    assert found.payload == {name: printed[name] for name in found.payload}
    assert (found.configuration, found.verdict) == (PACKED, "faster")
    with pytest.raises(NotMeasured, match="Nearest measured"):
        advisor.suggest(MODEL, **{**ASKED, "batch": 4})
    with pytest.raises(NothingAdmissible):
        advisor.suggest(MODEL, **ASKED, max_memory="1MB")


def test_the_missing_command_names_the_file(url: str, tmp_path: Path) -> None:
    """What is not measured of somebody's own texts is told with their file, not with a list of its lengths."""
    stored(url)
    file = tmp_path / "my texts.txt"
    file.write_text("a few words\n" * 50)
    with pytest.raises(NotMeasured) as told:
        advisor.suggest(MODEL, lengths_from=file, batches=3, batch=2, device="cpu")

    assert f"--lengths-from '{file}' --batch 2 --batches 3 --output last-logits" in str(told.value)
    assert len(str(told.value)) < 700


def test_what_was_cut_is_in_the_notes(url: str, tmp_path: Path) -> None:
    """Texts beyond the model's positions are cut, and the recommendation says so."""
    (tmp_path / "a.txt").write_text("word " * 5000 + "\nshort\n")
    question = api._question("suggest", MODEL, {"lengths_from": tmp_path / "a.txt"}, api.Flags)
    asked = resolve(question, to_measure=False)

    assert asked.workload.lengths[0] == 2048
    assert asked.notes == (
        "read 2 rows: a string",
        "1 of 2 texts are longer than the model's 2048 positions and were cut",
    )


@pytest.mark.parametrize("batches", [None, 2])
def test_what_was_stored_of_a_whole_file_is_found(url: str, tmp_path: Path, batches: int | None) -> None:
    """Before samples were taken a file counted whole, or its first batches: such an answer is found, and said to be one."""
    file = tmp_path / "a.txt"
    file.write_text("".join("word " * (n % 7 + 1) + "\n" for n in range(200)))
    source = find_model(str(MODEL))
    lengths = lengths_from(str(file), source, 2048).lengths[: None if batches is None else batches * 2]
    stored(url, lengths=lengths)
    found = advisor.suggest(MODEL, lengths_from=file, batches=batches, batch=2, device="cpu")

    assert found.study.workload.lengths == lengths
    assert any("not on a sample of it" in note for note in found.notes)
    with pytest.raises(NotMeasured):
        advisor.suggest(MODEL, lengths_from=file, batches=5, batch=3, device="cpu")


@pytest.mark.parametrize(
    "flags",
    [
        {"batch": 100_000},
        {"batches": 10**9},
        {"lengths": 10**9},
        {"batch": 10**12, "padding": 0},
        {"lengths": [10**10]},
        {"lengths_from": "a.txt", "batches": 10**9},
        {"lengths_from": "a.txt", "batch": 100_000},
    ],
)
def test_absurd_sizes_are_refused_before_anything_is_made_of_them(flags: dict[str, Any]) -> None:
    """A list that nothing works through in a sitting is refused in a line, at once: no list of its size is made."""
    began = time.process_time()
    with pytest.raises(BadInput, match="too many to be measured"):
        lengths_of(flags)

    assert time.process_time() - began < 1


# ------------------------------------------------------------------------------------------------ what is asked of a model

#: What config.json says, and what is asked when the user does not say.
OUTPUTS = {
    "causal": ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "last-logits"),
    "gpt2": ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, "last-logits"),
    "unsaid": ({"model_type": "llama"}, "last-logits"),
    "damaged": ({"model_type": "llama", "architectures": 5}, "last-logits"),
    "pictures too": ({"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"]}, "last-logits"),
    "a decoder's body": ({"model_type": "mistral", "architectures": ["MistralModel"]}, "pooled"),
    "encoder": ({"model_type": "bert", "architectures": ["BertModel"]}, "pooled"),
    "masked": ({"model_type": "modernbert", "architectures": ["ModernBertForMaskedLM"]}, "pooled"),
    "unsaid encoder": ({"model_type": "xlm-roberta"}, "pooled"),
    "unsaid decoder": ({"model_type": "bert", "is_decoder": True}, "last-logits"),
    "classifier": ({"model_type": "bert", "architectures": ["BertForSequenceClassification"]}, "scores"),
    "causal classifier": ({"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}, "scores"),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_a_model_is_asked_for_what_it_was_made_for(case: str) -> None:
    """A classifier is asked for scores, a language model for the last logits, an encoder or a body for an embedding."""
    config, output = OUTPUTS[case]

    assert default_output(config) == output
    assert is_encoder(config) <= (output != "last-logits")


def test_an_encoder_is_not_asked_for_a_next_token(url: str, tmp_path: Path) -> None:
    """Where the user insists on last logits of an encoder, one line says what else there is."""
    file = tmp_path / "bert.json"
    file.write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"], "max_position_embeddings": 512}))
    with pytest.raises(BadInput, match=r"is an encoder .bert. and predicts no next token .leave output out"):
        advisor.suggest(file, output="last-logits", device="cpu")

    asked = resolve(api._question("suggest", file, {}, api.Flags), to_measure=False)
    assert (asked.workload.output, asked.workload.kind) == ("pooled", "embed")


def test_positions_that_are_never_used_do_not_count() -> None:
    """RoBERTa and its kin begin after the pad token: of 514 positions 512 are left."""
    assert max_positions({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}) == 512
    assert max_positions({"model_type": "mpnet", "max_position_embeddings": 514}) == 512
    assert max_positions({"model_type": "bert", "max_position_embeddings": 512, "pad_token_id": 0}) == 512


# ------------------------------------------------------------------------------------------------------------------ load


@pytest.mark.parametrize(
    "best", [SORTED, PACKED, DEFAULT.replaced(packing="packed", batch="4")], ids=lambda c: c["packing"]
)
def test_a_model_is_loaded_as_recommended(url: str, best: Configuration) -> None:
    """What it returns for every sequence is what the plain model returns for that sequence alone."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    stored(url, best, batch=None if "batch" in best else 2)
    state = torch.get_rng_state()
    ready = advisor.load(MODEL, **{**ASKED, "batch": "auto" if "batch" in best else 2})
    assert torch.equal(torch.get_rng_state(), state)
    draw = torch.Generator().manual_seed(0)
    sequences = [torch.randint(16, 2048, (n,), generator=draw) for n in (3, 9, 4, 6, 2)]
    plain = transformers.AutoModelForCausalLM.from_pretrained(MODEL).eval()

    batches = ready.batches(sequences)
    assert ready.batch == int(best.get("batch", "2"))
    assert sorted(i for batch in batches for i in batch) == list(range(5))
    assert max(map(len, batches)) == ready.batch
    for batch in batches:
        found = ready.results([sequences[i] for i in batch])
        arguments = ready.collate([sequences[i].tolist() for i in batch])
        with torch.inference_mode():
            alone = torch.stack([plain(sequences[i][None]).logits[0, -1] for i in batch])
            logits = ready.model(**arguments).logits
        assert torch.allclose(found, alone, atol=1e-3)
        assert torch.allclose(logits.reshape(alone.shape), alone, atol=1e-3)
    if best["packing"] == "sorted":
        assert [len(sequences[i]) for batch in batches for i in batch] == [9, 6, 4, 3, 2]
    assert repr(ready) == f"Ready(device='cpu', batch={ready.batch})"
    nothings: list[list[Any]] = [[], [[]], [[[1]]]]
    for nothing in nothings:
        with pytest.raises(BadInput, match="none of them empty"):
            ready.collate(nothing)


NO_TOKENS: dict[str, tuple[Any, str]] = {
    "a text": (["ab"], r"sequence 0 is a text, 'ab', not token ids .tokenize it first"),
    "one text": ("ab", r"a batch is a list of token ids a sequence, not 'ab'"),
    "a number": (7, r"a batch is a list of token ids a sequence, not 7"),
    "numbers": ([1, 2], r"sequence 0 is 1: a sequence is a list of token ids"),
    "fractions": ([[1, 2], [1.5, 2.0]], r"sequence 1 has values of float32, and token ids are whole numbers"),
    "truths": ([[True, False]], r"sequence 0 has values of bool, and token ids"),
    "beyond": ([[1, 2048]], r"sequence 0 has the token id 2048, and the model's go from 0 to 2047"),
    "below": ([[-1]], r"sequence 0 has the token id -1"),
    "too long": ([[1] * 5000], r"sequence 0 has 5000 tokens, and the model \d+ positions"),
    "mixed": ([[1, "a"]], r"sequence 0 is .*, not a list of token ids"),
    "nothing": ([None], r"sequence 0 is None, not a list of token ids"),
}


def test_what_is_no_token_id_is_said(url: str) -> None:
    """Before the model sees it, in words of this call: which sequence, and what of it; never one of torch's own errors."""
    pytest.importorskip("torch")
    stored(url, SORTED)
    ready = advisor.load(MODEL, **ASKED)
    for given, words in NO_TOKENS.values():
        for call in (ready.results, ready.collate, ready.batches):
            with pytest.raises(BadInput, match=words):
                call(given)
    assert ready.batches([]) == []


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("best", [DEFAULT, SORTED, PACKED], ids=lambda c: c["packing"])
def test_it_stands_in_an_existing_loop(url: str, best: Configuration, side: str) -> None:
    """Called with a padded batch and its mask it gives outputs in that shape, packed or not: a sequence's own, and 0 at pads."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    stored(url, best)
    ready = advisor.load(MODEL, **ASKED)
    plain = transformers.AutoModelForCausalLM.from_pretrained(MODEL).eval()
    draw = torch.Generator().manual_seed(1)
    lengths = (3, 8, 5)
    ids, mask = torch.full((3, 8), 7), torch.zeros((3, 8), dtype=torch.long)
    for row, length in enumerate(lengths):
        place = slice(8 - length, 8) if side == "left" else slice(0, length)
        ids[row, place], mask[row, place] = torch.randint(16, 2048, (length,), generator=draw), 1

    logits = ready(input_ids=ids, attention_mask=mask).logits
    assert logits.shape == (3, 8, 2048)
    with torch.inference_mode():
        for row in range(3):
            real = mask[row].bool()
            assert torch.allclose(logits[row, real], plain(ids[row, real][None]).logits[0], atol=1e-3)
            assert not logits[row, ~real].any()
    assert torch.equal(ready(ids, mask, logits_to_keep=1, use_cache=False).logits, logits[:, -1:])
    assert ready(ids).logits.shape == logits.shape  # without a mask there are no pads
    assert ready.config is ready.model.config


def test_a_call_that_would_be_other_work_is_refused(url: str) -> None:
    """A batch of another shape, a row of pads alone, and arguments that change what is computed: each by its keyword."""
    torch = pytest.importorskip("torch")
    stored(url, PACKED)
    ready = advisor.load(MODEL, **ASKED)
    ids = torch.tensor([[20, 21], [22, 23]])
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"input_ids": [[20, 21]]}, "input_ids must be a tensor of token ids, .batch, columns."),
        ({"input_ids": ids[0]}, "input_ids must be a tensor"),
        (
            {"input_ids": ids, "attention_mask": torch.ones(2, 3)},
            r"attention_mask must have the shape .*\[2, 2\].*\[2, 3\]",
        ),
        ({"input_ids": ids, "attention_mask": torch.tensor([[1, 1], [0, 0]])}, "row 1 of attention_mask has no token"),
        ({"input_ids": ids, "labels": ids}, "labels is not what was measured"),
        ({"input_ids": ids, "output_hidden_states": True}, "output_hidden_states is not what was measured"),
        ({"input_ids": ids, "token_type_ids": torch.ones_like(ids)}, "token_type_ids is not what was measured"),
        ({"input_ids": ids, "position_ids": torch.tensor([[1, 2], [0, 1]])}, "position_ids is not what was measured"),
        ({"input_ids": ids, "position_ids": torch.tensor([0, 1])}, "position_ids is not what was measured"),
        ({"input_ids": ids, "logits_to_keep": -1}, "logits_to_keep must be a whole number from 0 on, not -1"),
        ({"input_ids": ids, "logits_to_keep": ids}, "logits_to_keep must be a whole number"),
        ({"input_ids": ids, "return_dict": False}, "return_dict=False asks for a tuple"),
    ]
    for given, words in wrong:
        with pytest.raises(BadInput, match=words):
            ready(**given)
    assert ready(input_ids=ids, token_type_ids=torch.zeros_like(ids)).logits.shape == (2, 2, 2048)
    left = {"input_ids": ids, "attention_mask": torch.tensor([[0, 1], [1, 1]])}
    counted = ready(**left, position_ids=torch.tensor([[1, 0], [0, 1]]), return_dict=True).logits
    assert torch.equal(counted, ready(**left).logits)


def test_nothing_is_loaded_that_was_not_measured_here(url: str) -> None:
    """Without rows of this workload on this machine load raises NotMeasured, though suggest answers from elsewhere."""
    other = replace(here(), device_name="another CPU")
    stored(url, where=other)
    assert advisor.suggest(MODEL, **ASKED).study.environment == other
    with pytest.raises(NotMeasured, match=r"was tuned on another CPU, 1 thread .*, not on this machine's cpu"):
        advisor.load(MODEL, **ASKED)


# ------------------------------------------------------------------------------------------------------------------ tune


def test_a_tune_in_python_is_the_commands(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It measures, tells its events, and returns what suggest answers then; the command line finds the same study."""
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"prompt": "word " * n}) + "\n" for n in (3, 9, 5, 7)))
    flags: dict[str, Any] = {"lengths_from": file, "batch": 2, "device": "cpu", "quality": "exact"}
    events: list[str] = []
    only = {"attention": ["sdpa"], "packing": ["padded"], "compilation": ["off"]}
    tuned = advisor.tune(
        MODEL, **flags, only=only, trials=1, blocks=0, listen=lambda event: events.append(event["event"])
    )

    assert {"study", "start", "trial"} <= set(events)
    assert (tuned.configuration, tuned.verdict) == (DEFAULT, "default")
    assert tuned.payload == advisor.suggest(MODEL, **flags, only=only).payload
    words = [
        "--lengths-from",
        str(file),
        "--batch",
        "2",
        "--device",
        "cpu",
        "--quality",
        "exact",
        "--only",
        "packing=padded",
        "--fix",
        "attention=sdpa",
        "--fix",
        "compilation=off",
        "--format",
        "json",
    ]
    assert run(["suggest", str(MODEL), *words]) == 0
    assert json.loads(capsys.readouterr().out)["study"] == tuned.study.id
    with pytest.raises(BadInput, match="a CPU has none"):
        advisor.tune(MODEL, **flags, objective="energy")
