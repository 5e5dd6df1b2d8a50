"""How often does the numerics gate reject what is right? The figures behind `advisor.quality.limits.FLOORS`.

Every exact configuration, {eager, sdpa} × {padded, sorted, packed}, is run through the gate on many workloads, by the
very worker that a tune uses. All of them compute the same function, so every rejection is a false one. Printed are the
smallest and the largest error, the 99th percentile, and the largest share of the limit it was judged by; with --wrong also
those of the ways to pack that let documents read one another: the floor has to lie between the two.

    python benchmarks/calibrate_gate.py --runs 100                              the shipped model in its own fp32
    python benchmarks/calibrate_gate.py --runs 100 --dtype bf16                 the same weights, cast
    python benchmarks/calibrate_gate.py --model CONFIG.JSON --dtype bf16 --device cuda:0 --longest 1024

Exits with status 1 where something right was rejected or something wrong was not caught.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

from advisor.knobs import KNOBS, traits_of
from advisor.machine import probe
from advisor.measure.messages import Failure, Gate, Ran, ReferenceAsked, Subject, Timing, TrialAsked, TrialDone
from advisor.measure.runner import LocalRunner, read_facts
from advisor.measure.stopping import Stopping
from advisor.models.checkpoint import find_model
from advisor.nouns.configuration import Configuration
from advisor.nouns.model import ModelFacts, ModelSource
from advisor.nouns.trial import Quality
from advisor.quality.limits import FACTOR, FLOORS, KL_FACTOR, exact_limits
from advisor.workloads.forward import Forward

SHIPPED = Path(__file__).parent.parent / "tests" / "models" / "causal"

ATTENTION, PACKING = ("eager", "sdpa"), ("padded", "sorted", "packed")

#: What is asked of the model, a third of the workloads each.
OUTPUTS = {"decoder": ("last-logits", "all-logits", "hidden"), "encoder": ("all-logits", "hidden", "pooled")}

#: What is wrong by rule P1, P2, P3 and P15 (only under eager): these have to be far above the limit.
WRONG = ("packed-cached", "packed-2d-mask", "packed-cu-seq-lens-only", "packed-bool-mask")

#: References are written for so many workloads at once: in 16 bit the model is loaded anew for them. They can be large.
CHUNK = 10

#: One round is enough: the gate is what is looked at.
ONE_ROUND = Stopping(least=1, most=1, seconds=0.01, least_long=1, seconds_long=0.01)

DEADLINE_S = 300.0


@dataclass(frozen=True)
class Judged:
    """One configuration on one workload: its figures and the default's, its limits, and what the worker said."""

    configuration: Configuration
    quality: Quality | None
    default: Quality | None
    rms_limit: float
    kl_limit: float
    outcome: str
    reason: str


class Gated:
    """A model in one worker, whose gate is asked about configurations; the weights stay loaded from one to the next."""

    def __init__(self, runner: LocalRunner, source: ModelSource, folder: Path) -> None:
        """Read the model's facts. folder: where references are written."""
        self.runner, self.source, self.folder = runner, source, folder
        self.facts = self.facts_for("hidden")
        self.outputs = OUTPUTS["decoder" if self.facts.is_causal else "encoder"]
        self.precision = KNOBS["precision"].default(self.facts)
        self.baselines: dict[str, Quality] = {}

    @cache  # noqa: B019 - there is one gate in a process
    def facts_for(self, output: str) -> ModelFacts:
        """Read the facts of the class that gives an output, as a tune does."""
        return read_facts(self.runner, self.source, Forward((8,), 1, output))

    def configuration(self, attention: str, packing: str) -> Configuration:
        """Return a configuration in the checkpoint's own precision."""
        chosen = {"attention": attention, "precision": self.precision, "quantization": "none", "packing": packing}
        return Configuration.of(chosen)

    @property
    def baseline(self) -> Configuration:
        """What transformers does when told nothing."""
        return self.configuration(self.facts.default_attention, "padded")

    def subject(self, workload: Forward, configuration: Configuration) -> Subject:
        """Return what is the same in every request."""
        return Subject(
            source=self.source.files,
            facts=self.facts_for(workload.output),
            workload=workload,
            sample=tuple(range(len(workload.lengths))),
            configuration=configuration,
        )

    def _reference(self, workload: Forward) -> Path:
        return self.folder / f"{workload.key_for('')}.pt"

    def prepare(self, workload: Forward) -> None:
        """Write the reference: fp32, eager, one sequence at a time."""
        path = self._reference(workload)
        fp32 = self.configuration("eager", "padded").replaced(precision="fp32")
        answer = self.runner.run(ReferenceAsked.of(self.subject(workload, fp32), path=str(path)), DEADLINE_S)
        if isinstance(answer, Failure):
            raise SystemExit(f"no reference: {answer.reason}")

    def forget(self, workload: Forward) -> None:
        """Remove the reference."""
        self._reference(workload).unlink()

    def judge(self, workload: Forward, configuration: Configuration) -> Judged:
        """Run one configuration through the worker's gate."""
        key, is_baseline = workload.key_for(""), configuration == self.baseline
        baseline = self.baselines.get(key)
        given = Ran(configuration=self.baseline, quality=baseline) if baseline is not None else None
        gate = Gate(
            path=str(self._reference(workload)),
            reference="fp32, eager, one sequence at a time",
            default=None if is_baseline else given,
            is_default=is_baseline,
        )
        request = TrialAsked.of(self.subject(workload, configuration), gate=gate, timing=Timing(stopping=ONE_ROUND))
        answer = self.runner.run(request, DEADLINE_S)
        assert isinstance(answer, (TrialDone, Failure))
        quality = answer.quality if isinstance(answer, TrialDone) else None
        if is_baseline and quality is not None:
            self.baselines[key] = baseline = quality
        facts, from_logits = self.facts_for(workload.output), quality is not None and quality.kl is not None
        limits = exact_limits(traits_of(configuration).mantissa_bits, facts, baseline, from_logits=from_logits)
        return Judged(configuration, quality, baseline, *limits, str(answer.outcome), answer.reason)


def workloads(runs: int, seed: int, longest: int, outputs: Sequence[str]) -> Iterator[Forward]:
    """Draw workloads: two to four batches of two to six sequences, equal lengths to mostly pads, of every output."""
    for number in range(runs):
        random_ = random.Random(seed * 100_003 + number)
        batch, skew = random_.randint(2, 6), random_.choice((0.0, 0.5, 1.0, 3.0))
        top = random_.randint(max(longest // 4, 2), longest)
        lengths = [max(1, round(top * random_.random() ** skew)) for _ in range(batch * random_.randint(2, 4))]
        output = outputs[number * len(outputs) // runs]  # in a row: the model is loaded anew between
        yield Forward(tuple(lengths), batch, output)


def right_ones(attention: Sequence[str] = ATTENTION) -> list[tuple[str, str]]:
    """Return attention and packing of the exact configurations."""
    return list(product(attention, PACKING))


def wrong_ones(*, causal: bool) -> list[tuple[str, str]]:
    """Return attention and packing of the wrong ways to pack; for an encoder that is how a decoder is packed."""
    wrong = WRONG if causal else ("packed-no-mask",)
    return [pair for pair in product(ATTENTION, wrong) if pair != ("sdpa", "packed-bool-mask")]


def calibrate(gate: Gated, chosen: Sequence[Forward], pairs: Iterable[tuple[str, str]]) -> Iterator[Judged]:
    """Judge these configurations on every workload, each after the baseline."""
    configurations = [gate.configuration(*pair) for pair in pairs]
    for start in range(0, len(chosen), CHUNK):
        chunk = chosen[start : start + CHUNK]
        for workload in chunk:
            gate.prepare(workload)
        for workload in chunk:
            baseline = gate.judge(workload, gate.baseline)
            others = [gate.judge(workload, c) for c in configurations if c != gate.baseline]
            yield from ([baseline, *others] if gate.baseline in configurations else others)
            gate.forget(workload)


def cast(model: str, dtype: str, folder: Path) -> str:
    """Return the path of the same model in another dtype: weights cast, config.json saying so."""
    source = Path(model)
    config = json.loads((source / "config.json" if source.is_dir() else source).read_text(encoding="utf-8"))
    torch_dtype = KNOBS["precision"].choices[dtype].traits.dtype
    config |= {"dtype": torch_dtype}
    config.pop("torch_dtype", None)
    target = folder / f"{source.name}-{dtype}"
    if source.is_dir():
        shutil.copytree(source, target)
    target.mkdir(exist_ok=True)
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if not source.is_dir():
        return str(target / "config.json")
    import torch
    from safetensors.torch import load_file, save_file

    for file in source.glob("*.safetensors"):
        tensors = {name: value.to(getattr(torch, torch_dtype)) for name, value in load_file(file).items()}
        save_file(tensors, target / file.name, metadata={"format": "pt"})
    return str(target)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of them does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-round(share * 1000) * len(ordered) // 1000) - 1)]


def _spread(errors: Sequence[float], ratios: Sequence[float], shares: Sequence[float]) -> str:
    """Return the columns of one error: its spread, its largest ratio to the default's, its largest share of the limit."""
    if not errors:
        return " " * 49
    largest = (max(ratios, default=0.0), max(shares))
    columns = (min(errors), percentile(errors, 0.99), max(errors), *largest)
    return " ".join(f"{value:9.2g}" if number > 2 else f"{value:9.1e}" for number, value in enumerate(columns)).ljust(
        46
    )


def _row(name: str, found: Sequence[Judged], last: str) -> str:
    pairs = [(judged, judged.quality) for judged in found if judged.quality is not None]
    rms = [quality.rms for _, quality in pairs]
    rms_ratios = [q.rms / j.default.rms for j, q in pairs if j.default and j.default.rms]
    kls = [(judged, quality.kl) for judged, quality in pairs if quality.kl is not None]
    kl_ratios = [kl / j.default.kl for j, kl in kls if j.default and j.default.kl]
    return (
        f"{name:33s}{_spread(rms, rms_ratios, [q.rms / j.rms_limit for j, q in pairs])}"
        f"   {_spread([kl for _, kl in kls], kl_ratios, [kl / j.kl_limit for j, kl in kls])}   {last}"
    )


def print_table(title: str, found: Sequence[Judged], count: str) -> None:
    """Print one row a configuration, how many of it were `count`, and one row of all."""
    columns = " ".join(f"{name:>9s}" for name in ("min", "p99", "max", "× default", "× limit"))
    print(f"\n{title:33s}{'rms error':52s}KL, nats\n{'':33s}{columns}   {columns}   {count}")
    groups: dict[str, list[Judged]] = {}
    for judged in found:
        groups.setdefault(f"{judged.configuration['attention']} · {judged.configuration['packing']}", []).append(judged)
    for name, group in [*groups.items(), ("all", list(found))]:
        rejected = sum(judged.outcome == "wrong_output" for judged in group)
        print(_row(name, group, f"{rejected} of {len(group)}"))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument(
        "--model", default=str(SHIPPED), help="a model's directory or a config.json (default: the shipped one)"
    )
    parser.add_argument(
        "--dtype", choices=("fp32", "bf16", "fp16"), help="cast the checkpoint to it first (default: as it is)"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda:0 (default: %(default)s)")
    parser.add_argument("--attention", default=",".join(ATTENTION), help="implementations (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=100, help="workloads (default: %(default)s)")
    parser.add_argument(
        "--wrong", type=int, default=0, metavar="N", help="also judge the wrong ways to pack on N workloads"
    )
    parser.add_argument("--longest", type=int, default=96, help="longest sequence in tokens (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def _report(gate: Gated, right: Sequence[Judged], wrong: Sequence[Judged], seconds: float) -> None:
    floor = FLOORS[KNOBS["precision"].choices[gate.precision].traits.mantissa_bits]
    print(f"{gate.source.name} · {gate.precision} · {gate.runner.machine.environment} · {seconds:.0f} s")
    print(f"floor: rms {floor.rms:.1e}, KL {floor.kl:.1e} ({floor.origin})")
    print(
        f"limit: {FACTOR:g} × the default's rms error and {KL_FACTOR:g} × its KL, at least the floor; without logits fp32's"
    )
    print("(advisor.quality.limits.exact_limits)")
    print_table("exact configurations, all right", right, "rejected")
    rms = [judged.quality.rms for judged in right if judged.quality]
    kl = [judged.quality.kl for judged in right if judged.quality and judged.quality.kl is not None]
    if rms:
        print(f"3 × the largest error: rms {3 * max(rms):.1e}, KL {3 * max(kl, default=0.0):.1e}")
    if wrong:
        print_table("wrong ways to pack", wrong, "caught")


def main() -> int:
    """Calibrate, print the tables and return the exit status."""
    options = _arguments()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="advisor-gate-") as name:
        folder = Path(name)
        source = find_model(cast(options.model, options.dtype, folder) if options.dtype else options.model)
        runner = LocalRunner(probe.machine(options.device))
        try:
            gate = Gated(runner, source, folder)
            chosen = list(workloads(options.runs, options.seed, options.longest, gate.outputs))
            right = list(calibrate(gate, chosen, right_ones(options.attention.split(","))))
            packs = [workload for workload in chosen if workload.batch >= 3][: options.wrong]
            wrong = list(calibrate(gate, packs, wrong_ones(causal=gate.facts.is_causal)))
        finally:
            runner.close()
    _report(gate, right, wrong, time.monotonic() - began)
    failed = [judged for judged in right if judged.outcome != "ok"]
    failed += [judged for judged in wrong if judged.outcome != "wrong_output"]
    for judged in failed:
        print(f"{judged.configuration}: {judged.outcome}: {judged.reason}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
