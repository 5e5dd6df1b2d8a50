"""The desk: what a process that runs for long answers is what the command says, from any thread, of the files as they are now."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_databases import laid

from advisor.asking.desk import Desk
from advisor.asking.question import Question, question_of
from advisor.asking.resolve import resolve
from advisor.asking.verbs import answered
from advisor.errors import AdvisorError, BadInput, NotMeasured
from advisor.machine import probe
from advisor.machine.remembered import RememberedMachine
from advisor.measure.landscape import read_landscapes
from advisor.measure.replay import ReplayRunner
from advisor.models.checkpoint import find_model
from advisor.models.remembered import remembered_model
from advisor.nouns.environment import Machine
from advisor.nouns.objective import Budget, Objective, Tier
from advisor.show.report import recommendation_payload
from advisor.storage.store import Store
from advisor.study.tune import tune
from advisor.study.tuning import Job
from advisor.workloads.forward import EMBEDDINGS, Forward

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "tests" / "models" / "encoder"
LANDSCAPE = "h100-minilm-l6-8x64-padding-0.4"
LENGTHS = (64, 32, 48, 16)

#: What is spent on studies of batches of 1, 2 and 3: one that is confirmed, one whose search was cut, one without blocks.
BUDGETS = (Budget(trials=20), Budget(trials=2), Budget(trials=6, blocks=0))


@pytest.fixture
def measured(database_url: str) -> str:
    """Tune on a recording, three times on each database, and return its URL."""
    landscape = read_landscapes(ROOT / "tests" / "landscapes")[LANDSCAPE]
    machine = Machine(landscape.environment, "host", "GPU-0", 0, landscape.environment.memory_bytes)
    with Store.open(laid(database_url), write=True) as store:
        for batch, budget in enumerate(BUDGETS, 1):
            workload = Forward(LENGTHS, batch, EMBEDDINGS)
            job = Job(find_model(str(MODEL)), workload, Objective(Tier.DTYPE), budget, machine)
            tune(job, store, ReplayRunner(landscape), lambda _: None)
    return database_url


def asked(batch: int, model: Path = MODEL, **more: Any) -> Question:
    """Return a question about a study, or about what none answers."""
    lengths = ",".join(map(str, LENGTHS))
    return question_of(str(model), {"lengths": lengths, "batch": batch, "output": "pooled", "on": "H100", **more})


def plainly(question: Question, store: Store) -> Any:
    """Return what the command makes of a question: the payload, or the error's words."""
    try:
        found = answered(resolve(question, to_measure=False), store, question.on)
        return recommendation_payload(found, "cuda")
    except AdvisorError as error:
        return type(error), str(error)


def at(desk: Desk, question: Question) -> Any:
    """Return the same of a desk."""
    try:
        return recommendation_payload(desk.answer(question), "cuda")
    except AdvisorError as error:
        return type(error), str(error)


def questions() -> list[Question]:
    """Return questions that are answered, unsearched, refused, of other weights and of what was never measured."""
    each = [asked(batch) for batch in (1, 2, 3)]
    refused = asked(1, only=["attention=flash_attention_2", "precision=fp32"])
    return [*each, asked(1, quality="exact"), refused, asked(1, MODEL / "config.json"), asked(9), asked(1, on="T4")]


def test_answers_are_those_of_the_command(measured: str) -> None:
    """A desk that answers the same questions twice says what is said plainly, errors too, and so does another reader."""
    with Store.open(measured, write=False) as store, Store.open(measured, write=False) as other:
        desk = Desk(store)
        first, second = ([at(desk, question) for question in questions()] for _ in range(2))
        plain = [plainly(question, other) for question in questions()]

    assert first == plain
    assert second == plain
    assert len({each["verdict"] for each in plain if isinstance(each, dict)}) > 1
    assert any(not isinstance(each, dict) and each[0] is NotMeasured for each in plain)


def test_command_prints_what_the_desk_says(measured: str) -> None:
    """`advisor suggest --format json`, in a process of its own, prints the desk's payload."""
    with Store.open(measured, write=False) as store:
        said = recommendation_payload(Desk(store).answer(asked(1)), "cuda")
    lengths = ",".join(map(str, LENGTHS))
    command = [sys.executable, "-m", "advisor", "suggest", str(MODEL), "--lengths", lengths, "--batch", "1"]
    command += ["--output", "pooled", "--on", "H100", "--format", "json"]
    environment = {**os.environ, "ADVISOR_DATABASE_URL": measured, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert json.loads(done.stdout) == json.loads(json.dumps(said)), done.stderr


def test_threads_share_a_desk(measured: str) -> None:
    """What eight threads are answered at once is what one is."""
    with Store.open(measured, write=False) as store:
        desk = Desk(store)
        alone = [at(desk, question) for question in questions()]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda question: at(desk, question), questions() * 6))

    assert together == alone * 6


def test_an_answer_is_of_what_is_stored_now(measured: str) -> None:
    """A study that goes on between two questions has another answer: no answer is remembered."""
    landscape = read_landscapes(ROOT / "tests" / "landscapes")[LANDSCAPE]
    machine = Machine(landscape.environment, "host", "GPU-0", 0, landscape.environment.memory_bytes)
    with Store.open(measured, write=True) as store:
        desk = Desk(store)
        before = recommendation_payload(desk.answer(asked(2)), "cuda")
        workload, budget = Forward(LENGTHS, 2, EMBEDDINGS), Budget(trials=9)
        job = Job(find_model(str(MODEL)), workload, Objective(Tier.DTYPE), budget, machine)
        tune(job, store, ReplayRunner(landscape), lambda _: None)
        after = recommendation_payload(desk.answer(asked(2)), "cuda")

    assert before["tried"] < after["tried"]


def test_a_reader_sees_one_moment(measured: str) -> None:
    """What is written between two reads of one moment is seen by neither, and after it by the next."""
    with Store.open(measured, write=False) as store, Store.open(measured, write=True) as writer:
        study = store.studies()[0]
        with store.at_one_moment():
            before = store.refusals(study.id)
            writer.save_refusals(study.id, before[:1])
            meanwhile = store.refusals(study.id)
        after = store.refusals(study.id)

    assert len(before) > 1
    assert meanwhile == before
    assert after == before[:1]


def test_an_answer_weighs_what_the_search_measured(measured: str) -> None:
    """Trials are read whole but for what blocks measured, which the comparisons tell; device states are those of the trial."""
    with Store.open(measured, write=False) as store:
        study = next(s for s in store.studies() if s.workload.batch == 1)
        whole, weighed = store.trials(study.id), store.weighed(study.id)
        full = store.trial(study.id, 0)
        states = store.device_states(study.id, 0)

    assert any(trial.phase == "confirm" and trial.measurements for trial in whole)
    kept = [trial if trial.phase == "search" else replace(trial, measurements=()) for trial in whole]
    assert weighed == kept
    assert states == [s for m in full.measurements for s in m.device_state.get("after_each_round", ())]


def test_a_model_is_read_again_where_a_file_changed(tmp_path: Path) -> None:
    """Weights, or what lies beside the config, that are written anew make another model, though names and sizes are the same."""
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    for file in model.rglob("*"):
        os.utime(file, (1_000_000_000, 1_000_000_000))
    time.sleep(2.1)  # what was changed within two seconds is read anew in any case
    first, again = (remembered_model(str(model)) for _ in range(2))
    pooling, weights = model / "1_Pooling" / "config.json", model / "model.safetensors"
    written = weights.read_bytes()
    weights.write_bytes(written[:-1] + bytes([written[-1] ^ 1]))
    os.utime(weights, (1_000_000_000, 1_000_000_000))
    second = remembered_model(str(model))
    pooling.write_text(json.dumps({"pooling_mode": "cls"}))
    third = remembered_model(str(model))

    assert first.weights_digest != second.weights_digest
    assert again is first
    assert second.beside["pooling"] != third.beside["pooling"]
    assert third == find_model(str(model))


def _pooled(folder: Path, mode: str) -> None:
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": mode}))


def test_a_model_is_read_again_where_what_lies_above_or_behind_a_link_changed(tmp_path: Path) -> None:
    """The modules beside a transformer's own folder, and what lies beside a config.json that a link leads to."""
    whole, linked = tmp_path / "whole", tmp_path / "linked"
    shutil.copytree(MODEL, whole / "0_Transformer", ignore=shutil.ignore_patterns("1_Pooling", "modules.json"))
    modules = [("0_Transformer", "Transformer"), ("1_Pooling", "Pooling")]
    entries = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in modules]
    (whole / "modules.json").write_text(json.dumps(entries))
    linked.mkdir()
    shutil.copy(MODEL / "config.json", tmp_path)
    (linked / "config.json").symlink_to(tmp_path / "config.json")
    for folder in (whole, tmp_path):
        _pooled(folder, "mean")
    time.sleep(2.1)
    models = [str(whole / "0_Transformer"), str(linked / "config.json")]
    assert [remembered_model(model).beside["pooling"] for model in models] == ["mean", "mean"]
    for folder in (whole, tmp_path):
        _pooled(folder, "cls")

    assert [remembered_model(model).beside["pooling"] for model in models] == ["cls", "cls"]


def test_a_model_that_is_not_there_is_told() -> None:
    """What is no model is refused in the words of `find_model`, however often it is asked for."""
    for _ in range(2):
        with pytest.raises(BadInput, match="no such file or directory"):
            remembered_model("./nowhere/at/all")


def test_the_machine_is_what_the_probe_finds() -> None:
    """A device of memory has the environment of the probe's, with any number of threads; one that is not there is told."""
    remembered = RememberedMachine()

    assert remembered.machine("cpu", None).environment == probe.machine("cpu").environment
    assert remembered.machine("cpu", 1).environment == probe.machine("cpu", 1).environment
    assert remembered.machine(None, None).environment == probe.machine().environment
    with pytest.raises(BadInput, match="cuda:99"):
        remembered.machine("cuda:99", None)
