"""A kind of work that is added in one file goes all the way, on a database that was made before there was one.

The kind is tests/plugins/made_up_kind.py: the log-likelihood of each text, with two metrics and a flag of its own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from made_databases import probed

import advisor as package
from advisor.errors import BadInput, DamagedRow
from advisor.knobs import Situation, baseline_choices
from advisor.nouns import metrics
from advisor.nouns.measurement import Measurement
from advisor.nouns.option import Option
from advisor.storage.store import Store
from advisor.workloads import DEFAULT_KIND, KINDS, UnknownKind, kind_of, register, workload_of

torch = pytest.importorskip("torch")

ROOT = Path(package.__file__).parent.parent
HERE = Path(__file__).parent
MODEL = str(HERE / "models" / "causal")

#: Texts of a few lengths, and what is tried of them.
WORK = ["--device", "cpu", "--lengths", "9,5,7,3,8,6", "--batch", "3", "--quality", "exact"]
FEW = ["--only", "precision=fp32", "--only", "attention=sdpa,eager", "--only", "packing=padded,packed"]
OWN = ["--workload", "likelihood", *WORK]

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder for the database."""
    return tmp_path_factory.mktemp("kind")


@pytest.fixture(scope="module")
def run(place: Path, in_turn: Run) -> Run:
    """Return what runs Python with the plugin, or without it, on one database, and gives back how that ended."""

    def python(*arguments: str, plugin: str = "made_up_kind", status: int = 0, database: str = "advisor.db") -> Any:
        more = {"ADVISOR_DATABASE_URL": f"sqlite:///{place}/{database}", "HF_HUB_OFFLINE": "1"}
        if plugin:  # else everything is as it is here, and this process's warm parent serves
            more["ADVISOR_PLUGINS"] = plugin
            more["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(HERE / "plugins")])
        env = {**os.environ, **more}
        if arguments[0] in ("-m", "-c"):
            done = in_turn(*arguments, env=env)
        else:
            done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=env, check=False)
        assert done.returncode == status, done.stderr[-3000:]
        return done

    return python


@pytest.fixture(scope="module")
def before(run: Run, place: Path) -> dict[str, Any]:
    """Tune a forward pass while there is no other kind; return what is answered, and what SQL shows."""
    probed(f"sqlite:///{place}/advisor.db")
    run("-m", "advisor", "tune", MODEL, *WORK, *FEW, "--trials", "2", "--blocks", "0", plugin="")
    answer = run("-m", "advisor", "suggest", MODEL, *WORK, *FEW, "--format", "json", plugin="").stdout
    return {"answer": answer, "views": seen(place)}


@pytest.fixture(scope="module")
def tuned(run: Run, before: dict[str, Any]) -> dict[str, Any]:
    """Tune the made-up kind on that database, for its speed and for its other metric; return the answers by name."""
    found = {}
    for name, flags in (("throughput", ["--blocks", "3"]), ("patience", ["--objective", "patience", "--blocks", "0"])):
        done = run("-m", "advisor", "tune", MODEL, *OWN, *FEW, *flags, "--trials", "3", "--format", "json")
        found[name] = json.loads(done.stdout)
    return found


@pytest.fixture
def kind() -> Iterator[ModuleType]:
    """Register the kind in this process for a while; return its module."""
    spec = importlib.util.spec_from_file_location("made_up_kind", HERE / "plugins" / "made_up_kind.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["made_up_kind"] = module
    spec.loader.exec_module(module)
    register(module.KINDS[0])
    yield module
    del sys.modules["made_up_kind"], KINDS[module.NAME]
    for name in ("scored_tokens_per_s", "slowest_text_s"):
        del metrics.METRICS[name]


def seen(place: Path, where: str = "kind = 'forward'") -> list[tuple[Any, ...]]:
    """Return the rows of v_trials and of v_recommendations that are of a kind."""
    with sqlite3.connect(place / "advisor.db") as connection:
        trials = connection.execute(f"SELECT * FROM v_trials WHERE {where} ORDER BY study, number").fetchall()
        answers = connection.execute(
            f"SELECT * FROM v_recommendations WHERE study IN (SELECT study FROM v_trials WHERE {where}) ORDER BY study"
        ).fetchall()
    connection.close()
    return [*trials, *answers]


def alone(lengths: list[int], tokens: list[Any]) -> list[float]:
    """Return the mean log-likelihood of token ids under the shipped model, computed here one text at a time."""
    from transformers import AutoModelForCausalLM

    model, found = AutoModelForCausalLM.from_pretrained(MODEL).eval(), []
    assert [len(ids) for ids in tokens] == lengths
    with torch.inference_mode():
        for ids in tokens:
            scores = model(input_ids=ids[None]).logits[0, :-1].float().log_softmax(-1)
            found.append(float(scores.gather(1, ids[1:, None]).mean()))
    return found


# ---------------------------------------------------------------------------------------------------------- whole, once


def test_it_is_tuned_and_its_own_metrics_are_stored(tuned: dict[str, Any], place: Path) -> None:
    """The default and others ran, were judged right, and have the two metrics of the kind; none of another kind's."""
    answer = tuned["throughput"]
    (text,) = {row[0] for row in rows(place, "SELECT payload FROM workloads WHERE kind = 'likelihood'")}
    stored = {
        row[0]
        for row in rows(
            place,
            "SELECT DISTINCT metric FROM measurements x JOIN trials t ON t.id = x.trial_id JOIN studies s "
            "ON s.id = t.study_id JOIN workloads w ON w.id = s.workload_id WHERE w.kind = 'likelihood'",
        )
    }

    assert json.loads(text) == {"kind": "likelihood", "lengths": [9, 5, 7, 3, 8, 6], "batch": 3, "of_tokens": "mean"}
    assert stored == {
        "round_s",
        "scored_tokens_per_s",
        "slowest_text_s",
        "found_load_s",
    }  # a load that another trial made
    assert answer["tried"] == 3
    assert answer["failures"] == []
    assert answer["objective"]["metric"] == "scored_tokens_per_s"
    assert "--objective" not in answer["command"]
    for found in (answer["default"], answer["recommendation"], *answer["runners_up"]):
        assert found["quality"]["rms"] < 1e-4
        assert found["quality"]["neighbours"] == 0.0
        assert found["quality"]["perplexity_ratio"] == pytest.approx(1, abs=1e-4)
        assert found["scored_tokens_per_s"] > 0
        assert found["slowest_text_s"] > 0
        assert "tokens_per_s" not in found


def test_an_objective_is_made_of_its_own_metric(tuned: dict[str, Any], run: Run) -> None:
    """`--objective` takes the kind's own name; the order of candidates is by it, and the answer is found again."""
    answer = tuned["patience"]
    flags = ["--objective", "patience", "--format", "json"]
    again = json.loads(run("-m", "advisor", "suggest", MODEL, *OWN, *FEW, *flags).stdout)
    candidates = [again["recommendation"], *again["runners_up"]]

    assert answer["objective"]["metric"] == again["objective"]["metric"] == "slowest_text_s"
    assert again["recommendation"]["configuration"] == answer["recommendation"]["configuration"]
    assert min(c["slowest_text_s"] for c in candidates) > 0
    assert answer["command"].startswith("advisor tune ")
    assert "--workload likelihood --of-tokens mean" in answer["command"]
    assert "--objective patience" in answer["command"]


def test_what_was_there_before_says_the_same(
    before: dict[str, Any], tuned: dict[str, Any], run: Run, place: Path
) -> None:
    """With the kind, and rows of it, the older answer is the same to the byte, and so are the older rows of the views."""
    assert run("-m", "advisor", "suggest", MODEL, *WORK, *FEW, "--format", "json").stdout == before["answer"]
    assert seen(place) == before["views"]


def test_sql_shows_its_rows(tuned: dict[str, Any], place: Path) -> None:
    """The views have its trials and its answers; columns that mean nothing of it are empty."""
    (row, *_) = rows(
        place,
        "SELECT kind, batch, longest, attention, outcome, tokens_per_s, output FROM v_trials WHERE kind = 'likelihood'",
    )
    verdicts = rows(
        place,
        "SELECT verdict FROM v_recommendations r WHERE r.study IN (SELECT study FROM v_trials WHERE "
        "kind = 'likelihood') ORDER BY study",
    )

    assert row == ("likelihood", 3, 9, "sdpa", "ok", None, None)
    assert [verdict for (verdict,) in verdicts] == [tuned[name]["verdict"] for name in ("throughput", "patience")]


def rows(place: Path, query: str, database: str = "advisor.db") -> list[tuple[Any, ...]]:
    """Return what SQL says."""
    with sqlite3.connect(place / database) as connection:
        found = connection.execute(query).fetchall()
    connection.close()
    return found


def test_people_read_it_in_its_own_words(tuned: dict[str, Any], run: Run) -> None:
    """The text has the kind's speed, unit and columns, and `show` calls its figures what it calls them."""
    told = run("-m", "advisor", "suggest", MODEL, *OWN, *FEW).stdout
    shown = run("-m", "advisor", "show", "2.0").stdout
    listed = run("-m", "advisor", "trials", "--study", "2").stdout

    assert "likelihood, 3 × 9 tokens" in told
    assert "mean log-likelihood" in told
    assert "useful tokens/s in the search" in told
    assert re.search(r"runner-up\s+× default\s+scored/s\s+peak", told)
    assert re.search(r"slowest text\s+[\d.]+ ms", shown)
    assert re.search(r"speed\s+[\d,]+ scored tokens/s", shown)
    assert "scored/s" in listed


@pytest.mark.slow
def test_its_function_is_printed_and_runs_alone(tuned: dict[str, Any], run: Run, tmp_path: Path) -> None:
    """The script has the very function that was timed, counts what the kind counts, and needs neither of us."""
    script = tmp_path / "script.py"
    script.write_text(run("-m", "advisor", "suggest", MODEL, *OWN, *FEW, "--format", "python").stdout)
    (last,) = run(str(script), plugin="").stdout.splitlines()[-1:]
    names: dict[str, Any] = {}
    exec(compile(script.read_text().partition("\n\nrun(drop)  # warm-up\n")[0], "script", "exec"), names)
    found: dict[int, Any] = {}
    names["run"](found.__setitem__)

    assert "def run_likelihood(" in script.read_text()
    assert "made_up_kind" not in script.read_text()
    assert re.fullmatch(r"\d+\.\d tokens/s", last)
    expected = alone([9, 5, 7, 3, 8, 6], names["sequences"])
    assert [float(found[place]) for place in range(6)] == pytest.approx(expected, abs=1e-5)


def test_a_model_is_loaded_for_it_in_python(tuned: dict[str, Any], run: Run) -> None:
    """`advisor.load` takes the kind and its keywords, and `results` are its numbers; another's keyword is refused."""
    code = f"""
import json, torch, advisor
ready = advisor.load({MODEL!r}, workload="likelihood", lengths=[9, 5, 7, 3, 8, 6], batch=3, quality="exact", device="cpu",
                     of_tokens="mean", only={{"precision": "fp32", "attention": ["sdpa", "eager"],
                                              "packing": ["padded", "packed"]}})
tokens = [torch.arange(20, 20 + n) for n in (9, 5, 7)]
print(json.dumps([float(value) for value in ready.results(tokens)]))
try:
    advisor.load({MODEL!r}, workload="likelihood", output="hidden")
except TypeError as error:
    print(error)
try:
    advisor.suggest({MODEL!r}, workload="likelihoods")
except advisor.errors.BadInput as error:
    print(error)
try:
    advisor.suggest({MODEL!r}, workload="likelihood", of_tokens="most")
except advisor.errors.BadInput as error:
    print(error)
"""
    numbers, keyword, unknown, own = run("-c", code).stdout.splitlines()

    expected = alone([9, 5, 7], [torch.arange(20, 20 + n) for n in (9, 5, 7)])
    assert json.loads(numbers) == pytest.approx(expected, abs=1e-5)
    assert "unexpected keyword argument 'output'" in keyword
    assert own == "of_tokens must be one of mean, total, not 'most'"
    assert unknown.startswith("workload: there is no kind of work 'likelihoods'")
    assert "forward" in unknown


def test_flags_are_those_of_the_kind_that_is_named(run: Run) -> None:
    """`--workload NAME --help` has the kind's own flags and not another's; without it nothing is new but the choice."""
    own = run("-m", "advisor", "tune", "--workload", "likelihood", "--help").stdout
    short = run("-m", "advisor", "tune", "--workl=likelihood", "--help").stdout
    plain = run("-m", "advisor", "tune", "--help").stdout
    refused = {
        "argument --objective: invalid choice: 'energy'": ["--workload", "likelihood", "--objective", "energy"],
        "argument --workload: invalid choice: 'likely'": ["--workload", "likely"],
        "the first token of a text is not scored": [*OWN[:2], "--device", "cpu", "--lengths", "1,5", "--batch", "2"],
        "unrecognized arguments: --output hidden": [*OWN, "--output", "hidden"],
        "unrecognized arguments: --of-tokens total": [*WORK, "--of-tokens", "total"],
    }

    assert own == short
    assert "--of-tokens" in own
    assert "--output" not in own
    assert "--of-tokens" not in plain
    assert "--workload {forward,train,likelihood}" in plain
    for words, flags in refused.items():
        error = run("-m", "advisor", "suggest", MODEL, *flags, status=2).stderr
        assert words in error
        assert error.count("\n") == 1


def test_a_dry_run_and_the_table_of_choices_know_it(run: Run) -> None:
    """What would be tried is said in its words, by rules that look at its work, and the table of choices asks it too."""
    plan = run("-m", "advisor", "tune", MODEL, *OWN, *FEW, "--dry-run").stdout
    code = (
        "from advisor.show import support\nsupport._WORKLOADS = [w for w in support._WORKLOADS if w.kind == 'likelihood']\n"
        "print(len(support._WORKLOADS))\nsupport.main([])"
    )
    count, *table = run("-c", code).stdout.splitlines()

    assert "likelihood, 3 × 9 tokens" in plan
    assert re.search(r"sdpa · fp32 · (none · )?packed", plan)
    assert count == "1"
    assert any("`sdpa`" in line for line in table)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["seed"], "'seed', and all work has one already"),
        (["format"], "'format', and all work has one already"),
        (["model"], "'model', and all work has one already"),
        (["why_not"], "'why_not', and all work has one already"),
        (["twice", "twice"], "'twice', and its own has one already"),
        (["of-tokens"], "'of-tokens', which can be no keyword in Python"),
        (["class"], "'class', which can be no keyword in Python"),
    ],
)
def test_an_option_of_a_taken_name_is_refused(names: list[str], words: str) -> None:
    """A kind whose option can't be told from another's is refused when it is registered, and nothing of it is known."""
    options = tuple(Option(name, "what it is") for name in names)
    odd = replace(DEFAULT_KIND, name="odd", stored_as=("odd",), options=options)
    with pytest.raises(ValueError, match=re.escape(words)):
        register(odd)

    assert "odd" not in KINDS


def test_what_it_gives_is_in_no_padded_batch(tuned: dict[str, Any], run: Run) -> None:
    """A loaded model gives its results by token ids; called as a model it says so, and calls them no logits."""
    code = f"""
import advisor, torch
from advisor.errors import BadInput
flags = dict(lengths=[9, 5, 7, 3, 8, 6], batch=3, quality="exact", device="cpu")
ready = advisor.load({MODEL!r}, workload="likelihood", only={FEW[1::2]!r}, **flags)
print(len(ready.results([[20, 21, 22], [23, 24]])))
try:
    print(ready(torch.tensor([[20, 21]])))
except BadInput as error:
    print(error)
"""
    count, said = run("-c", code).stdout.splitlines()
    assert count == "2"
    assert "mean log-likelihood" in said
    assert "results()" in said


# ------------------------------------------------------------------------------------------ databases, and without it


def test_it_moves_to_another_database(tuned: dict[str, Any], run: Run, place: Path) -> None:
    """Exported and imported where the kind is known it answers the same; where it is not, the line that brings it is refused."""
    lines = place / "lines.jsonl"
    lines.write_text(run("-m", "advisor", "export").stdout)
    run("-m", "advisor", "import", str(lines), database="other.db")
    told = run("-m", "advisor", "suggest", MODEL, *OWN, *FEW, "--format", "json", database="other.db")
    refused = run("-m", "advisor", "import", str(lines), plugin="", status=2, database="third.db").stderr

    assert (
        json.loads(told.stdout)["recommendation"]["configuration"]
        == tuned["throughput"]["recommendation"]["configuration"]
    )
    assert "a kind of work that is not known here, 'likelihood'" in refused
    assert "ADVISOR_PLUGINS" in refused


def test_without_the_kind_its_rows_are_said_and_the_others_stay(
    before: dict[str, Any], tuned: dict[str, Any], run: Run
) -> None:
    """Where the plugin is gone the older answer is the same; its own rows are named as what they are, not guessed at."""
    same = run("-m", "advisor", "suggest", MODEL, *WORK, *FEW, "--format", "json", plugin="")
    listed = run("-m", "advisor", "trials", plugin="")
    alone_asked = run("-m", "advisor", "trials", "--study", "2", plugin="", status=2)
    upgraded = run("-m", "advisor", "db", "upgrade", plugin="")

    assert same.stdout == before["answer"]
    assert "study 1" in listed.stdout
    assert "study 2" not in listed.stdout
    for text in (listed.stderr, alone_asked.stderr):
        assert (
            "of a kind of work that is not known here, 'likelihood': there are forward, train (ADVISOR_PLUGINS names"
            in text
        )
        assert "damaged" not in text
    assert "is at revision" in upgraded.stdout


# -------------------------------------------------------------------------------------------------------- in this process


def test_a_kind_is_a_value_with_a_way_back(kind: ModuleType) -> None:
    """Payload and flags say all of a workload; another kind of the same list has another key, and is far from it."""
    from advisor.asking.question import question_of
    from advisor.faces.arguments import build_parser, kind_in
    from advisor.models.checkpoint import find_model

    made = kind.Likelihood((9, 5, 7), 3, "total")
    words = ["tune", MODEL, *made.flags.split()]
    question = question_of(MODEL, vars(build_parser(kind_in(words)).parse_args(words)))
    plain = workload_of({"kind": "forward", "lengths": [9, 5, 7], "batch": 3, "output": "last-logits"})

    assert workload_of(made.payload) == made
    assert question.kind.parse(question.asked, find_model(MODEL), question.lengths) == made
    assert kind_of(made) is kind.KINDS[0]
    assert made.key_for("a") != plain.key_for("a")
    assert made.distance(plain) == plain.distance(made) >= 100
    assert made.distance(made) == 0


def test_its_speed_is_counted_alike_in_trials_and_in_the_script(kind: ModuleType) -> None:
    """What a round is worth by the metric is what the printed expression counts."""
    made = kind.Likelihood((9, 5, 7), 3)
    running = kind.KINDS[0].running(made, None)

    assert kind.KINDS[0].useful(made) == eval(running.useful, {"lengths": made.lengths}) == 18


def test_its_work_is_in_the_prediction(kind: ModuleType) -> None:
    """Memory and operations are predicted of what it keeps and scores: all logits of a call, and those of scored tokens."""
    from advisor.nouns.configuration import Configuration
    from advisor.search.cost import predicted_bytes, useful_operations
    from advisor.show.support import LLAMA, MACHINES

    made = kind.Likelihood((64, 32, 48, 16), 2)
    every = workload_of({**made.payload, "kind": "forward", "output": "all-logits"})
    last = workload_of({**made.payload, "kind": "forward", "output": "last-logits"})
    default = Configuration.of(baseline_choices(LLAMA, made))

    def needed(workload: Any) -> float:
        return predicted_bytes(Situation(default, workload, MACHINES["CPU"], LLAMA))

    assert needed(made) == needed(every) > needed(last)
    assert useful_operations(LLAMA, last) < useful_operations(LLAMA, made) < useful_operations(LLAMA, every)


def test_what_a_model_can_not_do_is_refused_by_its_facts(kind: ModuleType) -> None:
    """Where the facts say that batches can't be padded, a kind refuses several at once, in a line that says what to do."""
    from dataclasses import replace

    from advisor.show.support import LLAMA

    (made,) = kind.KINDS
    with pytest.raises(BadInput, match=r"m finds the end of a sequence by its pad token.*--batch 1"):
        made.refuse(kind.Likelihood((9, 5), 2), replace(LLAMA, pads=False), "m")
    made.refuse(kind.Likelihood((9, 5), 1), replace(LLAMA, pads=False), "m")


def test_its_limits_are_its_own(kind: ModuleType) -> None:
    """What four bits may cost is what the kind says, what it does not say is as with other work, and others keep theirs."""
    from advisor.nouns.configuration import Configuration
    from advisor.nouns.objective import Objective, Tier
    from advisor.nouns.trial import Outcome, Quality, Trial
    from advisor.quality.limits import LIMITS, limits_of
    from advisor.quality.objections import objections
    from advisor.show.support import LLAMA

    made = kind.Likelihood((64, 32), 2)
    every = workload_of({**made.payload, "kind": "forward", "output": "all-logits"})
    ran = Configuration.of({"attention": "sdpa", "precision": "bf16", "quantization": "nf4", "packing": "padded"})
    figures = Quality(0.02, 0.1, None, None, 9, 1.025, reference="fp32, eager", neighbours=0.0, layout=0.0, own=1.0)
    measured = (Measurement("scored_tokens_per_s", "tokens/s", (1.0,)),)
    trial = Trial(1, ran, ran, Outcome.OK, quality=figures, measurements=measured)
    objective = Objective(quality=Tier.FOUR_BIT, metric="scored_tokens_per_s")

    assert limits_of(every) == LIMITS
    assert limits_of(made)[Tier.EIGHT_BIT] == LIMITS[Tier.EIGHT_BIT]
    assert objections(trial, None, objective, LLAMA, limits=limits_of(every)) == []
    (text,) = objections(trial, None, objective, LLAMA, limits=limits_of(made))
    assert "perplexity × 1.0250 > 1.02" in text


def test_names_that_mean_something_already_are_refused(kind: ModuleType) -> None:
    """A kind whose name, stored word or metric is taken is no kind: what is stored would mean two things."""
    from dataclasses import replace

    (made,) = kind.KINDS
    speed, *_ = made.metrics
    taken = replace(speed, metric="tokens_per_s")

    with pytest.raises(ValueError, match="there is a kind of work 'likelihood' already"):
        register(made)
    with pytest.raises(ValueError, match="there is a kind of work 'embed' already"):
        register(replace(made, name="new", stored_as=("embed",)))
    with pytest.raises(ValueError, match="there is another metric 'tokens_per_s' already"):
        register(replace(made, name="new", stored_as=("new",), metrics=(taken,)))
    assert "new" not in KINDS
    with pytest.raises(ValueError, match="one metric that is its speed"):
        register(replace(made, name="new", stored_as=("new",), metrics=()))


def test_a_payload_of_no_kind_is_refused() -> None:
    """A word that no kind is stored by is said to be unknown; what has no word at all is no workload."""
    with pytest.raises(UnknownKind, match="not known here, 'likelihood'"):
        workload_of({"kind": "likelihood", "lengths": [3], "batch": 1})
    for payload in ({}, {"kind": None}, {"kind": ["forward"]}, "forward", None):
        with pytest.raises(BadInput, match="no kind of workload"):
            workload_of(payload)  # type: ignore[arg-type]


def test_a_study_of_an_unknown_kind_is_named_by_the_store(tuned: dict[str, Any], place: Path) -> None:
    """The store reads the studies that it understands, and says of the others what they are."""
    with Store.open(f"sqlite:///{place}/advisor.db", write=False) as store:
        known = store.studies()
        with pytest.raises(DamagedRow, match="of a kind of work that is not known here"):
            store.study(2)

    assert [record.id for record in known] == [1]
    assert any("'likelihood'" in text for text in store.damaged)
