"""The seed's promises: what the advice claims is measured in blocks, said in words that follow the figures, and drawn.

The figures are made up where a GPU would measure them: a runner answers for an H200, and everything else, the space, the
search, the confirmation in blocks and the database, is real. One case is measured for true on this CPU.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from made_databases import probed

from advisor.errors import BadInput
from advisor.machine import probe
from advisor.measure.messages import (
    Answer,
    BlockAsked,
    Ceilings,
    CeilingsAsked,
    FactsAsked,
    FactsRead,
    Failure,
    ReferenceAsked,
    Request,
    Rounds,
    TrialAsked,
    TrialDone,
    Unjudged,
)
from advisor.measure.replay import one_by_one
from advisor.measure.runner import LocalRunner
from advisor.models.checkpoint import find_model
from advisor.nouns.environment import Environment, Machine
from advisor.nouns.model import ModelFacts
from advisor.nouns.objective import Budget
from advisor.nouns.trial import Outcome, Quality
from advisor.seed import reproduce_seed, seed, seed_report
from advisor.seed.seed import Case
from advisor.seed.seed_result import CaseResult
from advisor.storage.store import Store
from advisor.workloads.forward import Forward

ROOT = Path(__file__).parent.parent
H200 = Environment.of(json.loads((ROOT / "tests" / "environments" / "h200.json").read_text(encoding="utf-8")))

FALCON = ModelFacts(
    "FalconForCausalLM",
    "falcon",
    "bfloat16",
    7_217_189_760,
    14_434_379_520,
    6_921_420_800,
    32,
    4544,
    71,
    71,
    64,
    65024,
    4096,
    supports_sdpa=True,
    supports_flash=True,
    switches_attention=False,
    default_attention="sdpa",
)

SHORT, LONG = Case(256, 0.3, 64), Case(4096, 0.0, 4)

#: Speeds by attention and packing, relative to eager and padded, at 256 and at 4096 tokens.
SPEEDS = {
    256: {"eager": 1.0, "sdpa": 1.04, "flash_attention_2": 1.11},
    4096: {"eager": 1.0, "sdpa": 0.48, "flash_attention_2": 3.66},
}

_MATH = "aten::_scaled_dot_product_attention_math"


@dataclass
class MadeUp:
    """A runner that answers for a GPU. Every second run of a configuration is 1 % slower than the one before.

    operators: what the default's profiled step shows; broken: choices of attention that fail.
    """

    interrupted = ""

    speeds: Mapping[int, Mapping[str, float]]
    operators: tuple[str, ...] = (_MATH,)
    broken: tuple[str, ...] = ()
    runs: dict[str, int] = field(default_factory=dict)

    def run(self, request: Request, timeout_s: float) -> Answer:  # noqa: ARG002
        """Answer a request."""
        match request:
            case FactsAsked():
                return FactsRead(facts=FALCON)
            case CeilingsAsked():
                return Ceilings(reached={})
            case ReferenceAsked():
                return Unjudged(why="it is made up")
            case BlockAsked():
                return one_by_one(self.run, request)
        assert isinstance(request, TrialAsked)
        if request.configuration["attention"] in self.broken:
            return Failure(outcome=Outcome.RUNTIME_ERROR, reason="made up to fail")
        return self._trial(request)

    def _trial(self, request: TrialAsked) -> TrialDone:
        configuration = request.configuration
        key = json.dumps([dict(configuration), request.workload.payload])
        self.runs[key] = self.runs.get(key, 0) + 1
        speed = self.speeds[max(request.workload.lengths)].get(configuration["attention"], 0.5)
        speed *= 1.3 if configuration["packing"] == "packed" else 1.0
        seconds = ((1 + 0.01 * (self.runs[key] % 2)) / speed,) * 5
        return TrialDone(
            outcome=Outcome.OK,
            effective=configuration,
            load_s=1.0,
            first_call_s=1.0,
            peak_bytes=2**30,
            weight_bytes=2**30,
            quality=Quality(0.01, 0.1, 1e-4, 1.0, 1, reference="fp32, eager") if request.gate else None,
            reading={"operators": list(self.operators)},
            rounds=Rounds(wall_s=seconds, gpu_s=seconds, slowest_s=seconds),
        )

    def restart(self) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Nothing is held."""


def reproduced(
    folder: Path, runner: MadeUp, cases: tuple[Case, ...] = (SHORT, LONG), environment: Environment = H200
) -> list[CaseResult]:
    """Reproduce cases of the Falcon-7B shape on a GPU that is made up."""
    machine = Machine(environment, "host", "GPU-made-up", 0, 140 * 10**9)
    source = find_model(str(seed.FALCON))

    job = reproduce_seed.jobs(source, machine, Budget(trials=8), batches=2)
    with Store.open(f"sqlite:///{folder}/advisor.db", write=True) as store:
        return reproduce_seed.reproduce(cases, job, store, runner, lambda _: None)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[CaseResult]:
    """Reproduce the advice's two ends."""
    return reproduced(tmp_path_factory.mktemp("seed"), MadeUp(SPEEDS))


def test_the_bundled_shape_is_the_benchmarks() -> None:
    """What the wheel brings is Falcon-7B's shape, the one of the benchmarks, so that they share their rows."""
    bundled = json.loads(seed.FALCON.read_text(encoding="utf-8"))

    assert seed.FALCON.parent == Path(seed.__file__).parent
    assert bundled == json.loads((ROOT / "benchmarks" / "shapes" / "falcon-7b.json").read_text(encoding="utf-8"))


def test_the_claim_is_confirmed_in_blocks(results: list[CaseResult]) -> None:
    """Eager and flash_attention_2 meet in every block, and the ratio is that of the blocks."""
    for result, expected in zip(results, (1.11, 3.66), strict=True):
        ratio = result.ratio("flash_attention_2", "eager")

        assert ratio is not None
        assert ratio.value == pytest.approx(expected, rel=0.01)
        assert ratio.blocks == 3
        assert ratio.interval is not None
        assert ratio.interval[0] <= ratio.value <= ratio.interval[1]
    over = results[1].ratio("flash_attention_2", "default")
    assert over is not None
    assert over.value == pytest.approx(3.66 / 0.48, rel=0.01)


def test_the_words_follow_the_figures(results: list[CaseResult]) -> None:
    """A small gain at 256 tokens holds, twice at 4096 is beaten, and the default's math kernel is named with the reason."""
    words = " ".join(seed_report.verdict(results).split())

    for said in (
        r"256 tokens, 30 % padding: flash_attention_2 is 1\.11 × as fast as eager attention \(1",
        r"The advice promised a small gain: that holds\.",
        r"4096 tokens, no padding: flash_attention_2 is 3\.6\d × as fast as eager attention \(3",
        r"The advice promised up to twice as fast: it is more\.",
        r"single key-value head .+ slower than eager at 4096 tokens",
        r"at 256 tokens attention is 0\.\d % .+ at 4096 tokens attention is 8\.\d % .+ away 73 %",
    ):
        assert re.search(said, words), words


def test_other_figures_give_other_words(tmp_path: Path) -> None:
    """Where flash_attention_2 gains nothing and sdpa is fused, nothing of the other story is told."""
    speeds = {4096: {"eager": 1.0, "sdpa": 1.5, "flash_attention_2": 0.8}}
    runner = MadeUp(speeds, operators=("aten::_scaled_dot_product_cudnn_attention",))
    words = " ".join(seed_report.verdict(reproduced(tmp_path, runner, (LONG,))).split())

    assert "flash_attention_2 is 0.80 × as fast as eager attention" in words
    assert "The advice promised up to twice as fast: it is less." in words
    assert "here: cuDNN at 4096 tokens." in words
    assert "key-value head" not in words
    assert "3.66" not in words


def test_the_text_fits_a_terminal(results: list[CaseResult]) -> None:
    """No line is longer than 80 columns; every configuration has its speed and its ratio."""
    text = f"{seed_report.table(results)}\n{seed_report.verdict(results)}"

    assert max(map(len, text.splitlines())) <= 80
    assert re.search(r"^  eager · padded +[\d,]+   1\.00$", text, re.MULTILINE)
    assert re.search(r"^  sdpa · padded \(default\) +[\d,]+   0\.48 \(0\.4\d–0\.\d\d\)$", text, re.MULTILINE)
    assert re.search(r"^  flash_attention_2 · packed \(recommended\) +[\d,]+   1\.4\d", text, re.MULTILINE)


def test_json_and_chart_hold_the_same_figures(results: list[CaseResult]) -> None:
    """The payload is JSON with every ratio; the chart is XML with a group for every case."""
    payload = json.loads(json.dumps(seed_report.payload(results), allow_nan=False))
    texts = [text.text for text in ET.fromstring(seed_report.chart(results, "Falcon-7B's shape")).iter() if text.text]

    assert payload["cases"][1]["ratios"]["flash_attention_2 over eager"]["ratio"] == pytest.approx(3.66, rel=0.01)
    assert payload["cases"][1]["default_kernels"] == ["math"]
    assert payload["words"] == seed_report.verdict(results)
    assert f"{payload['cases'][1]['ratios']['flash_attention_2 over eager']['ratio']:.2f}" in texts


def test_going_on_measures_nothing_twice(tmp_path: Path) -> None:
    """The same call again gives the same figures without another trial."""
    first, again = MadeUp(SPEEDS), MadeUp(SPEEDS)
    before, after = (seed_report.payload(reproduced(tmp_path, runner, (LONG,))) for runner in (first, again))

    assert before == after
    assert sum(first.runs.values()) > 12
    assert again.runs == {}


def test_what_fails_is_said(tmp_path: Path) -> None:
    """Where flash_attention_2 fails, is refused or not installed, the claim is not judged, and the reason is given."""
    failed = reproduced(tmp_path, MadeUp(SPEEDS, broken=("flash_attention_2",)), (LONG,))
    packages = {name: version for name, version in H200.packages.items() if name != "flash-attn"}
    refused = reproduced(tmp_path, MadeUp(SPEEDS), (LONG,), replace(H200, packages=packages))

    assert failed[0].why_not("flash_attention_2") == "runtime_error: made up to fail"
    assert refused[0].why_not("flash_attention_2").startswith("rule A1")
    for found in (failed, refused):
        assert "the claim can't be judged here" in seed_report.verdict(found).replace("\n", " ")
        assert max(map(len, seed_report.table(found).splitlines())) <= 80
        ET.fromstring(seed_report.chart(found, "Falcon"))


@pytest.mark.parametrize("text", ["4096:0", "a:0:4", "4096:0:4:1", ""])
def test_a_case_that_is_none_is_refused(text: str) -> None:
    """A case is length, padding and batch."""
    with pytest.raises(BadInput, match="LENGTH:PADDING:BATCH"):
        Case.of(text)


def test_a_case_is_a_workload() -> None:
    """A case's list of lengths has its longest sequence and its padding."""
    assert Case.of("256:0.3:64") == SHORT
    for case in seed.CASES:
        workload = case.workload(2)

        assert isinstance(workload, Forward)
        assert max(workload.lengths) == case.longest
        assert workload.padding == pytest.approx(case.padding, abs=0.02)
        assert len(workload.batches()) == 2


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The claim is about GPUs: without one it is a line, unless the user names a CPU and what to measure there."""
    cpu = probe.machine("cpu")
    monkeypatch.setattr(probe, "machines", lambda threads: [cpu])
    for own in (True, False):
        with pytest.raises(BadInput, match="the advice is about GPUs, and there is none here") as told:
            reproduce_seed.machine_for(None, own=own)
        assert "--device cpu" in str(told.value)
    with pytest.raises(BadInput, match="need a GPU"):
        reproduce_seed.machine_for("cpu")
    assert not reproduce_seed.machine_for("cpu", own=False).environment.is_cuda


def test_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With real workers: one block decides nothing, the kernel is read, and FlashAttention is refused by its rule."""
    monkeypatch.setenv("ADVISOR_LOCK_DIR", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    machine, source = (
        reproduce_seed.machine_for("cpu", own=False),
        find_model(str(ROOT / "tests" / "models" / "causal")),
    )
    runner = LocalRunner(machine)
    job = reproduce_seed.jobs(source, machine, Budget(trials=2, blocks=1), batches=1)
    with Store.open(probed(f"sqlite:///{tmp_path}/advisor.db"), write=True) as store:
        try:
            (result,) = reproduce_seed.reproduce([Case(24, 0.3, 4)], job, store, runner, lambda _: None)
        finally:
            runner.close()
    ratio = result.ratio("default", "eager")

    assert ratio is not None
    assert (ratio.blocks, ratio.interval) == (1, None)
    assert str(ratio).startswith("≈")
    assert result.kernels == ("flash",)
    assert result.why_not("flash_attention_2").startswith("rule A18")
    assert not result.one_kv_head
