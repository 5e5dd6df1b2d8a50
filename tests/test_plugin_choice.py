"""A choice that is added in one file goes all the way: worker, gate, row, suggestion, script and support table."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from made_databases import probed
from sqlalchemy import create_engine, text

import advisor as package
from advisor.knobs import KNOBS, Choice, Situation, Term, register
from advisor.nouns.configuration import Configuration
from advisor.nouns.measurement import Comparison
from advisor.nouns.objective import Objective, Tier
from advisor.nouns.trial import Outcome
from advisor.search.cost import predicted_bytes, predicted_cost
from advisor.search.space import build_space
from advisor.show.support import MACHINES
from advisor.storage.store import Store
from advisor.workloads.forward import Forward

pytest.importorskip("torch")

ROOT = Path(package.__file__).parent.parent
HERE = Path(__file__).parent
MODEL = str(HERE / "models" / "causal")
FLAGS = [
    "--device",
    "cpu",
    "--lengths",
    "8",
    "--padding",
    "0.3",
    "--batch",
    "4",
    "--batches",
    "1",
    "--quality",
    "exact",
]

#: The default and the plugin's, and nothing else.
BOTH = "--only attention=sdpa,made-up --fix packing=padded --fix compilation=off --fix kernels=none".split()  # noqa: SIM905

Run = Callable[..., str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder for the database and for the device's lock."""
    return tmp_path_factory.mktemp("plugin")


@pytest.fixture(scope="module")
def run(place: Path, in_turn: Callable[..., subprocess.CompletedProcess[str]]) -> Run:
    """Return what runs Python with the plugin on its path and gives back what it prints."""
    more = {
        "ADVISOR_PLUGINS": "made_up,made_up_scheme,made_up_backend",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE / "plugins")]),
        "ADVISOR_DATABASE_URL": probed(f"sqlite:///{place}/advisor.db"),
        "ADVISOR_LOCK_DIR": str(place),
        "HF_HUB_OFFLINE": "1",
    }

    def python(*arguments: str, **other: str) -> str:
        environment, command = {**os.environ, **more, **other}, [sys.executable, *arguments]
        if arguments[0] in ("-m", "-c"):
            done = in_turn(*arguments, env=environment)
        else:
            done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=200)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return python


@pytest.fixture(scope="module")
def store(place: Path, run: Run) -> Iterator[Store]:
    """Tune the shipped model with two trials, the second of which is the plugin's, and open what was stored.

    Of all there is, for of that nothing is stopped early: on a busy machine this one is slow enough to be.
    """
    run("-m", "advisor", "tune", MODEL, *FLAGS, *BOTH, "--exhaustive", "--format", "json")
    with Store.open(f"sqlite:///{place}/advisor.db", write=True) as opened:
        yield opened


def test_it_ran_was_right_and_was_stored(store: Store, place: Path) -> None:
    """The worker ran the made-up attention, proved it, found it right, and its row says so, in SQL too."""
    record = store.study(1)
    default, made_up = store.trials(1, full=True)
    engine = create_engine(f"sqlite:///{place}/advisor.db")
    with engine.connect() as connection:
        query = text("SELECT attention, outcome, tokens_per_s FROM v_trials WHERE number = 1")
        (row,) = connection.execute(query).all()
    engine.dispose()

    assert record.state == "done"
    assert made_up.outcome is Outcome.OK
    assert default.requested["attention"] == "sdpa"
    assert made_up.requested["attention"] == "made-up"
    assert made_up.requested == made_up.effective
    assert made_up.reading["attention"] == {"": "made-up"}
    assert made_up.quality is not None
    assert made_up.quality.neighbours == 0.0
    assert made_up.quality.positions > 0
    assert (row.attention, row.outcome) == ("made-up", "ok")
    assert row.tokens_per_s > 0


def test_it_is_found_slower(store: Store, run: Run) -> None:
    """While it is slower the default stays, it is a runner-up, and --why-not gives its figures."""
    answer = json.loads(run("-m", "advisor", "suggest", MODEL, *FLAGS, *BOTH, "--format", "json"))

    assert answer["recommendation"]["configuration"]["attention"] == "sdpa"
    assert [other["configuration"]["attention"] for other in answer["runners_up"]] == ["made-up"]
    assert "× the default" in run("-m", "advisor", "suggest", MODEL, *FLAGS, *BOTH, "--why-not", "made-up")


@pytest.mark.slow
def test_its_lines_are_pasted_and_run(store: Store, run: Run, tmp_path: Path) -> None:
    """Were it confirmed faster, its own lines would be pasted, and the script with them runs by itself."""
    default, made_up = store.trials(1)
    store.save_comparisons(1, [Comparison(made_up.ran.key, default.ran.key, (1.50, 1.51, 1.49))])
    answer = json.loads(run("-m", "advisor", "suggest", MODEL, *FLAGS, *BOTH, "--format", "json"))
    script = tmp_path / "script.py"
    script.write_text(run("-m", "advisor", "suggest", MODEL, *FLAGS, *BOTH, "--format", "python"))

    assert answer["recommendation"]["configuration"]["attention"] == "made-up"
    assert "import made_up\nmade_up.register()" in answer["load"]
    assert "attn_implementation='made-up'" in answer["load"][-1]
    assert "\nimport made_up\nmade_up.register()\n" in script.read_text()
    assert run(str(script), ADVISOR_PLUGINS="").splitlines()[-1].endswith(" tokens/s")


@pytest.mark.slow
def test_its_rules_can_be_ignored(run: Run) -> None:
    """--ignore-rule takes the id of a plugin's rule: which there are is not known beforehand."""
    flags = ["tune", MODEL, "--device", "cpu", "--lengths", "8", "--dry-run", "--ignore-rule", "Z1"]

    assert "made-up" in run("-m", "advisor", *flags)


def test_it_has_its_row_in_the_support_table(run: Run) -> None:
    """The support table and the probe list it, with its rule and its source, although nothing else knows of it.

    Of one workload, which takes a fifth of the time: its rule is about the model.
    """
    code = "from advisor.show import support; support._WORKLOADS = support._WORKLOADS[:1]; support.main([])"
    (row,) = [line for line in run("-c", code).splitlines() if "`made-up`" in line]

    assert "in 64 bit, at leisure" in row
    assert "| yes | yes | yes | exact | Z1 | [source](https://example.org/made-up) |" in row
    assert "made-up" in run("-m", "advisor", "probe", "--device", "cpu")


# ------------------------------------------- a quantization scheme and an attention whose function is printed, together

LOSSY = [*FLAGS[:-1], "8bit"]

#: What is left to be tried beside the default.
ONLY = [
    "--only",
    "attention=sdpa,made-up-backend",
    "--only",
    "quantization=none,made-up-8bit",
    "--only",
    "packing=padded",
    "--only",
    "precision=fp32",
    "--only",
    "compilation=off",
]

SCHEME, BACKEND = "made-up-8bit", "made-up-backend"


@pytest.fixture
def choices() -> Iterator[dict[str, Choice]]:
    """Register the choices of both files in this process for a while; return them by name."""
    found: dict[str, Choice] = {}
    for name in ("made_up_scheme", "made_up_backend"):
        spec = importlib.util.spec_from_file_location(name, HERE / "plugins" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found |= {choice.name: choice for choice in module.CHOICES}
    for choice in found.values():
        register(choice)
    yield found
    for choice in found.values():
        del KNOBS[choice.knob].choices[choice.name]


@pytest.fixture(scope="module")
def lossy(store: Store, run: Run) -> int:
    """Tune all four configurations of the two choices, and return the study."""
    run("-m", "advisor", "tune", MODEL, *LOSSY, *ONLY, "--trials", "4", "--blocks", "0")
    return max(record.id for record in store.studies())


def test_space_and_cost_go_by_its_traits(choices: dict[str, Choice], lossy: int, store: Store) -> None:
    """Bytes come from its bytes a weight and its scores, the order from its rates, refusals from its own rules."""
    facts = store.study(lossy).facts
    assert facts is not None
    workload, machine = Forward((64, 48, 32, 16), 2), MACHINES["CPU"]
    space = build_space(facts, workload, machine, Objective(quality=Tier.EIGHT_BIT), 10**12)
    refused = build_space(facts, workload, machine, Objective(), 10**12)
    plain = Configuration.of({**space.baseline})

    def under(**chosen: str) -> Situation:
        return Situation(plain.replaced(**chosen), workload, machine, facts)

    saved = predicted_bytes(under()) - predicted_bytes(under(quantization=SCHEME))
    scores = predicted_bytes(under(attention=BACKEND)) - predicted_bytes(under())
    slower = predicted_cost(under(quantization=SCHEME)) / predicted_cost(under())

    assert {SCHEME} <= {c["quantization"] for c in space.admissible}
    assert {BACKEND} <= {c["attention"] for c in space.admissible}
    assert any(r.rule == "T0" and r.subject == f"quantization={SCHEME}" for r in refused.refusals)
    quantised = (
        facts.linear_parameters - facts.vocabulary * facts.hidden_size
    )  # the output layer is left out, by custom
    assert saved == pytest.approx(quantised * (4 - choices[SCHEME].traits.bytes_per_weight))
    assert scores == 2 * 2 * facts.heads * 64**2 * 4
    assert 1 < slower <= 2
    assert choices[SCHEME].rates(under()) == {Term.LINEAR: 0.5}


def test_a_rate_on_a_term_that_there_is_not_is_no_silence(choices: dict[str, Choice], lossy: int, store: Store) -> None:
    """A choice that says how fast it is at something unknown is told so: nothing would come of it."""
    facts = store.study(lossy).facts
    assert facts is not None
    odd = Choice("quantization", "odd", "odd", rates=lambda _: {"luck": 2.0})
    register(odd)
    workload = Forward((64, 32), 2)
    configuration = Configuration.of(
        {"attention": "sdpa", "precision": "fp32", "quantization": "odd", "packing": "padded"}
    )
    try:
        with pytest.raises(ValueError, match="quantization=odd has a rate on 'luck'; there are linear, attention"):
            predicted_cost(Situation(configuration, workload, MACHINES["CPU"], facts))
    finally:
        del KNOBS["quantization"].choices["odd"]


def test_both_ran_were_judged_and_stored(lossy: int, store: Store, place: Path) -> None:
    """Each ran as itself, alone and together, within the tier that the scheme declares; SQL has a row for each."""
    ran = {(t.ran["attention"], t.ran["quantization"]): t for t in store.trials(lossy, full=True)}
    engine = create_engine(f"sqlite:///{place}/advisor.db")
    with engine.connect() as connection:
        query = text("SELECT attention, quantization, outcome FROM v_trials WHERE study = :study")
        rows = {(row.attention, row.quantization): row.outcome for row in connection.execute(query, {"study": lossy})}
    engine.dispose()

    assert set(ran) == set(rows) == {(a, q) for a in ("sdpa", BACKEND) for q in ("none", SCHEME)}
    for (_, scheme), trial in ran.items():
        assert trial.outcome is Outcome.OK
        assert trial.requested == trial.effective
        assert trial.quality is not None
        assert trial.quality.neighbours == 0.0
        assert trial.quality.layout is not None  # of the scheme's, without it
        assert (trial.quality.quantised == "28 of 29 linear layers quantised") is (scheme == SCHEME)
    sizes = {scheme: trial.weight_bytes for (_, scheme), trial in ran.items()}
    assert sizes[SCHEME] < sizes["none"]


@pytest.mark.slow
def test_its_function_stands_in_the_script(lossy: int, store: Store, run: Run, tmp_path: Path) -> None:
    """Were both confirmed faster, the script has the source of their functions and runs without their files."""
    trials = {(t.ran["attention"], t.ran["quantization"]): t for t in store.trials(lossy)}
    both, default = trials[BACKEND, SCHEME], trials["sdpa", "none"]
    store.save_comparisons(lossy, [Comparison(both.ran.key, default.ran.key, (1.50, 1.51, 1.49))])
    answer = json.loads(run("-m", "advisor", "suggest", MODEL, *LOSSY, *ONLY, "--format", "json"))
    script = tmp_path / "script.py"
    script.write_text(run("-m", "advisor", "suggest", MODEL, *LOSSY, *ONLY, "--format", "python"))

    assert answer["recommendation"]["configuration"]["attention"] == BACKEND
    assert answer["recommendation"]["configuration"]["quantization"] == SCHEME
    assert "def in_eight_bits(" in script.read_text()
    assert "def made_up_backend(" in script.read_text()
    assert "made_up_scheme" not in script.read_text()
    assert run(str(script), ADVISOR_PLUGINS="", PYTHONPATH="").splitlines()[-1].endswith(" tokens/s")


def test_they_have_their_rows_in_the_support_table(run: Run) -> None:
    """The support table has both, with tier and rules as they say themselves; of one workload, as above."""
    code = "from advisor.show import support; support._WORKLOADS = support._WORKLOADS[:1]; support.main([])"
    table = run("-c", code).splitlines()
    (scheme,) = [line for line in table if f"`{SCHEME}`" in line]
    (backend,) = [line for line in table if f"`{BACKEND}`" in line]

    assert "| 8bit | Z2 |" in scheme
    assert "plain products, whose source is printed" in backend
