"""Stale answers: what was measured before a driver or a package changed is marked, whoever asks, and says what changed."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from daemons import MODEL, MODELS, Daemon, at_work, database, opened, recorded
from made_databases import laid
from rich.console import Console

from advisor.advice.kept_answers import keep_answer
from advisor.advice.recommendation import Recommendation
from advisor.advice.suggest import suggest
from advisor.asking.submission import Again, Submission
from advisor.daemon.recheck import queue_stale
from advisor.errors import NotMeasured
from advisor.nouns.configuration import Configuration
from advisor.nouns.environment import Environment, upgraded
from advisor.nouns.measurement import Comparison, Measurement
from advisor.nouns.model import ModelSource
from advisor.nouns.objective import Budget, Objective, Tier
from advisor.nouns.step import Search
from advisor.nouns.trial import Outcome, Quality, Trial
from advisor.pages.study_report import report_of
from advisor.show.report import print_recommendation, recommendation_payload
from advisor.show.rows import as_csv, candidate_rows
from advisor.show.script import recommended_script
from advisor.show.support import LLAMA
from advisor.storage.stale import stale_studies
from advisor.storage.store import Store
from advisor.workloads.forward import Forward

HERE = Environment.of(json.loads((Path(__file__).parent / "environments" / "h200.json").read_text()))
OLDER = replace(HERE, driver="570.00", packages={**HERE.packages, "torch": "2.0.1+cu118"})

SOURCE = ModelSource("org/model", "/models/model", {"model_type": "llama"}, "trained", "d1", has_tokenizer=True)
WORKLOAD, WANTED = Forward((512, 128, 256, 64), 2), Objective(quality=Tier.FOUR_BIT)
DEFAULT = Configuration.of({"attention": "sdpa", "precision": "bf16", "quantization": "none", "packing": "padded"})
SORTED = DEFAULT.replaced(packing="sorted")
FLASH = SORTED.replaced(attention="flash_attention_2")

CHANGED = ("driver 570.00 → " + str(HERE.driver), "torch 2.0.1+cu118 → " + HERE.packages["torch"])


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """Open an empty store, of both databases."""
    with Store.open(laid(database_url), write=True) as opened:
        yield opened


def measured(
    store: Store, environment: Environment, best: Configuration = SORTED, ratio: float = 1.5, state: str = "done"
) -> int:
    """Store a study of the default and of what is so many times as fast, confirmed."""
    study = store.open_study(SOURCE, WORKLOAD, environment, WANTED, Budget(600.0), 0)
    store.save_facts(SOURCE, LLAMA)
    for configuration, speed in ((DEFAULT, 1000.0), (best, 1000.0 * ratio)):
        (number,) = store.claim(study, Search(configuration), "a:1:1") or ()
        quality = Quality(0.01, 0.1, 1e-3, 0.99, 64, 1.001, reference="fp32, eager")
        figures = (Measurement("tokens_per_s", "tokens/s", tuple(speed * f for f in (0.99, 1.0, 1.01, 1.0))),)
        known: dict[str, Any] = {
            "measurements": figures,
            "quality": quality,
            "peak_bytes": 2**34,
            "weight_bytes": 16 * 10**9,
        }
        store.finish_trial(study, Trial(number, configuration, configuration, Outcome.OK, "", **known), "a:1:1")
    store.save_comparisons(study, [Comparison(best.key, DEFAULT.key, (ratio, ratio * 1.01, ratio * 0.99))])
    store.close_study(study, state)
    return study


def answer(store: Store, here: Environment = HERE, on: str | None = None) -> Recommendation:
    """Ask on a machine."""
    return suggest(store, SOURCE, WORKLOAD, WANTED, here, on)


def shown(found: Recommendation, columns: int = 80) -> str:
    """Return what is printed of an answer on a screen of so many columns."""
    paper = Console(file=io.StringIO(), width=columns, highlight=False, color_system=None)
    print_recommendation(found, "cuda", out=paper)
    return str(paper.file.getvalue())  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------------------------ what is


@pytest.mark.parametrize(
    ("then", "said"),
    [
        ({"driver": "570.1"}, ("driver 570.1 → 580.2",)),
        ({"cuda": "12.6"}, ("CUDA 12.6 → 13.0",)),
        (
            {"packages": {"torch": "2.10.0", "flash-attn": "2.8.3"}},
            ("torch 2.10.0 → 2.11.0", "flash-attn 2.8.3 → absent"),
        ),
        ({"packages": {}}, ("torch absent → 2.11.0",)),
        ({"packages": {"torch": "2.10.0"}, "memory_bytes": 80 * 2**30 - 2**24}, ("torch 2.10.0 → 2.11.0",)),
        ({}, ()),
        ({"driver": "570.1", "device_name": "NVIDIA A100"}, ()),
        ({"driver": "570.1", "memory_bytes": 40 * 2**30}, ()),
        ({"driver": "570.1", "mig_profile": "1g.10gb"}, ()),
        ({"driver": "570.1", "power_limit_w": 300}, ()),
        ({"driver": "570.1", "threads": 2}, ()),
        ({"driver": "570.1", "compute_capability": (8, 0)}, ()),
    ],
)
def test_versions_of_one_device_change(then: dict[str, Any], said: tuple[str, ...]) -> None:
    """Driver, CUDA and every package count; of another device, or one with other settings, nothing has changed."""
    now = Environment(
        "cuda", "NVIDIA H100", (9, 0), 80 * 2**30, driver="580.2", cuda="13.0", packages={"torch": "2.11.0"}
    )
    assert replace(now, **then).changes_to(now) == said
    assert upgraded(replace(now, **then), [replace(now, device_name="other"), now]) == (now if said else None)


def test_an_answer_of_before_is_marked(store: Store) -> None:
    """It says what changed in all that is printed of it, has the status of what was not confirmed, and how it is measured."""
    measured(store, OLDER)
    found = answer(store)

    assert (found.configuration, found.stale, found.refused_here) == (SORTED, CHANGED, ())
    assert found.exit_status == 3
    assert found.command.startswith("advisor tune org/model --lengths ")
    words = f"stale: measured before {', '.join(CHANGED)}"
    text = shown(found)
    assert words in " ".join(text.split())
    assert all(len(line) <= 80 for line in text[text.index("▸") : text.index("quality tier")].splitlines())
    assert f"  to measure it again: {found.command}\n" in text
    assert words in str(found)
    assert recommendation_payload(found, "cuda")["stale"] == list(CHANGED)
    rows = list(csv.DictReader(io.StringIO(as_csv(candidate_rows(found)))))
    assert {row["stale"] for row in rows} == {"; ".join(CHANGED)}
    assert f"tale: measured before {CHANGED[0]}" in recommended_script(found, "cuda")


def test_what_was_measured_here_is_not_marked(store: Store) -> None:
    """What is of this very environment answers before what is newer and of another, which answers where it is asked for."""
    measured(store, HERE)
    measured(store, OLDER, ratio=1.9)
    found = answer(store)
    assert (found.study.environment, found.stale, found.exit_status) == (HERE, (), 0)
    assert recommendation_payload(found, "cuda")["stale"] == []
    assert "stale" not in shown(found).lower()

    older = answer(store, on=OLDER.key)
    assert (older.study.environment, older.stale, older.exit_status) == (OLDER, (), 0)
    assert "stale" not in shown(older).lower()


def test_the_newest_of_before_answers(store: Store) -> None:
    """Of several older environments the one that was measured last; and none of another device."""
    oldest = replace(OLDER, driver="550.00")
    measured(store, oldest, ratio=1.2)
    measured(store, OLDER)
    measured(store, replace(OLDER, power_limit_w=300), ratio=1.9)
    assert answer(store).study.environment == OLDER


def test_another_device_is_as_before(store: Store) -> None:
    """What was measured on another GPU answers nothing here, whatever its versions."""
    measured(store, replace(OLDER, device_name="NVIDIA A100"))
    with pytest.raises(NotMeasured, match="it differs in device"):
        answer(store)


def test_what_is_being_measured_again_answers_when_it_is_done(store: Store) -> None:
    """Until then the stale answer stays; then it is gone."""
    measured(store, OLDER)
    again = measured(store, HERE, ratio=1.1, state="running")
    assert answer(store).stale == CHANGED
    measured(store, replace(HERE, driver="590.00"), ratio=1.3, state="running")
    assert answer(store).stale == CHANGED
    store.close_study(again, "done")
    assert answer(store).stale == ()


def test_what_was_begun_again_and_let_go_of_answers_nothing(store: Store) -> None:
    """A slot lets other jobs go first, and a cancelled job is never gone on with: what was done before answers."""
    before = measured(store, OLDER)
    again = store.open_study(SOURCE, WORKLOAD, HERE, WANTED, Budget(600.0), 0)
    store.close_study(again, "interrupted")
    found = answer(store)
    assert (found.study.id, found.stale) == (before, CHANGED)
    measured(store, HERE, ratio=1.1, state="interrupted")
    assert answer(store).study.id == before


def test_what_was_broken_off_here_is_measured_again(store: Store) -> None:
    """A tune by hand that somebody stopped before it recommended anything leaves the answer stale, and so to an idle slot."""
    before = measured(store, OLDER)
    keep_answer(store, before)
    begun = store.open_study(SOURCE, WORKLOAD, HERE, WANTED, Budget(600.0), 0)
    assert stale_studies(store, HERE) == []
    store.close_study(begun, "interrupted")
    assert stale_studies(store, HERE) == [before]
    keep_answer(store, measured(store, HERE, state="interrupted"))
    assert stale_studies(store, HERE) == []


def test_what_is_gone_on_with_here_still_answers(store: Store) -> None:
    """A longer tune of what was done here makes nothing of before the answer, neither while it runs nor where it is stopped."""
    measured(store, OLDER)
    here = measured(store, HERE, ratio=1.3)
    keep_answer(store, here)
    assert store.open_study(SOURCE, WORKLOAD, HERE, WANTED, Budget(900.0), 0) == here
    assert (answer(store).study.id, answer(store).stale) == (here, ())
    store.close_study(here, "interrupted")
    assert (answer(store).study.id, answer(store).stale) == (here, ())


def test_what_rules_refuse_by_now_is_said(store: Store) -> None:
    """Without the package that the recommended choice needs it can't be run: that is said wherever it is recommended."""
    then = replace(HERE, packages={**HERE.packages, "flash-attn": "2.8.3"})
    now = replace(HERE, packages={name: v for name, v in HERE.packages.items() if name != "flash-attn"})
    measured(store, then, best=FLASH)
    found = answer(store, here=now)

    assert found.stale == ("flash-attn 2.8.3 → absent",)
    (reason,) = found.refused_here
    assert reason.subject == "attention=flash_attention_2"
    assert "; can't run here: attention=flash_attention_2: " in " ".join(shown(found).split())
    assert "can't run here: attention=flash_attention_2" in recommended_script(found, "cuda")
    assert recommendation_payload(found, "cuda")["refused_here"][0]["subject"] == "attention=flash_attention_2"


def test_a_report_is_marked(store: Store) -> None:
    """The page of a study says that its device has other versions by now, where it is one of those that are there."""
    study = measured(store, OLDER)
    assert not report_of(store, study).is_stale
    assert not report_of(store, study, None, [replace(HERE, device_name="other")]).is_stale
    assert not report_of(store, study, None, [HERE, OLDER]).is_stale
    report = report_of(store, study, None, [HERE])
    assert report.is_stale
    assert not report.is_sure
    assert f"stale: measured before {', '.join(CHANGED)}" in report.headline


# -------------------------------------------------------------------------------------------------- what a daemon says


@pytest.fixture
def daemon(database_url: str) -> Iterator[Daemon]:
    """Give a daemon whose GPU was measured on before its torch was changed."""
    landscape = recorded()
    now = landscape.environment
    then = replace(now, packages={**now.packages, "torch": "2.0.1"})
    url = database(database_url, replace(landscape, environment=then))
    with opened(url, landscape, model_root=MODELS) as served, at_work(served) as found:
        yield found


def test_a_daemon_marks_what_its_devices_outdated(daemon: Daemon) -> None:
    """It answers for the devices of its slots as they are now; for an environment that a question names it marks nothing."""
    landscape, slot = recorded(), daemon.served.roster.slots()[0]
    changed = [f"torch 2.0.1 → {slot.environment.packages['torch']}"]
    (then, _), *_ = daemon.served.store.environments()
    given = {"lengths": list(landscape.workload.lengths), "batch": landscape.workload.batch, "quality": "4bit"}

    def told(**more: Any) -> dict[str, Any]:
        answered = daemon.post("/api/v1/suggest", {"model": MODEL, "given": {**given, **more.pop("given", {})}, **more})
        assert answered.status == 200, answered.body
        return dict(answered.json)

    for on in ({}, {"on": "H100"}, {"on": slot.environment.key[:8]}):
        found = told(given=on)
        assert (found["stale"], found["exit_status"], found["environment"]["key"]) == (changed, 3, then)
    text = told(format="text")
    assert text["exit_status"] == 3
    assert f"stale: measured before {changed[0]}" in " ".join(text["text"].split())
    assert told(given={"on": then[:8]})["stale"] == []
    assert f"stale: measured before {changed[0]}" in daemon.get("/studies/1").body.decode()


def test_what_is_measured_again_is_seen_and_asked_by_nobody(daemon: Daemon) -> None:
    """Lists of jobs and the pages say what it is; a request can't name it; a job that waits keeps it from the queue."""
    served = daemon.served
    here = served.roster.slots()[0].environment
    waits = served.submit(Submission("org/model", {"lengths": "8"}))
    assert queue_stale(served.store, served.jobs, here) is None
    served.jobs.cancel(waits.id)
    name = queue_stale(served.store, served.jobs, here)
    assert name == f"again1x{here.key}"
    assert queue_stale(served.store, served.jobs, here) is None
    assert [job["id"] for job in daemon.get("/api/v1/jobs?state=queued").json["jobs"]] == [name]

    words = f"measured again: torch 2.0.1 → {here.packages['torch']}"
    assert daemon.get(f"/api/v1/jobs/{name}").json["again"]["words"] == words
    assert words in daemon.get("/").body.decode()
    page = daemon.get(f"/jobs/{name}").body.decode()
    assert words in page
    assert "advisor tune" not in page
    again = {"study": 1, "environment": here.key, "changed": []}
    assert "a job has no 'again'" in daemon.post("/api/v1/jobs", {"model": MODEL, "again": again}).problem["detail"]

    served.jobs.cancel(str(name))
    assert queue_stale(served.store, served.jobs, here) is None
    again_there = Submission("org/model", {}, 0, here.device_class, Again(1, here.key, ("torch",)))
    assert served.jobs.submit(again_there) == name
    assert served.jobs.job(str(name)).state == "cancelled"
