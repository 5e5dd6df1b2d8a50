"""The gate on a GPU: the independence probe and the layout in fp32 by backend and packing, and the reference where fp32 is tight.

    python benchmarks/gpu_gate.py OUT [PART …]

Prints a Markdown table for every part (probe, reference) and writes the figures to OUT as JSON. A session of the worker is
used in this process, so that what is looked at is what a trial looks at. `--cpu` runs the same on tiny shapes, to try it.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from advisor.measure.messages import Gate, Ran, ReferenceAsked, ReferenceWritten
from advisor.models.checkpoint import find_model
from advisor.nouns.configuration import Configuration
from advisor.nouns.model import ModelFacts, ModelSource
from advisor.nouns.trial import Outcome, Quality, Trial
from advisor.quality.judge import wrong
from advisor.workloads.forward import Forward
from advisor.workloads.quantiles import quantile_lengths

SHAPES = Path(__file__).parent / "shapes"

BASE = {"attention": "sdpa", "precision": "bf16", "quantization": "none", "packing": "padded"}

DECODER = [
    ("sdpa", "padded"),
    ("sdpa", "packed"),
    ("eager", "padded"),
    ("flash_attention_2", "padded"),
    ("flash_attention_2", "sorted"),
    ("flash_attention_2", "packed"),
    ("torch_varlen", "packed"),
    ("sdpa", "packed-cached"),
    ("flash_attention_2", "packed-two-rows"),
    ("flash_attention_2", "packed-zeros-in-mask"),
]
ENCODER = [
    ("sdpa", "padded"),
    ("sdpa", "packed"),
    ("flash_attention_2", "padded"),
    ("flash_attention_2", "packed"),
    ("torch_varlen", "packed"),
    ("sdpa", "packed-no-mask"),
]

#: Share of the card's memory that the reference may use: a card of 24 GB instead of one of 80.
SMALL_CARD = 24 / 80


class Bench:
    """One shape in a session of the worker."""

    def __init__(self, source: ModelSource, workload: Forward, device: str) -> None:
        """Read the facts."""
        from advisor.measure.session_torch import Session
        from advisor.networks import facts_torch

        self.session = Session(lambda _: None, device)
        self.facts = ModelFacts.of(facts_torch.read_facts(source.files, workload.needs))
        self.path = Path(tempfile.mkdtemp()) / "reference.pt"
        self.request = ReferenceAsked(
            source=source.files,
            facts=self.facts,
            workload=workload,
            sample=workload.sample(self.facts.windows),
            path=str(self.path),
            configuration=Configuration.of(BASE),
        )

    def reference(self) -> dict[str, Any]:
        """Write the reference and return what it was, with the seconds it took."""
        from advisor.measure import reference_torch

        began = time.perf_counter()
        found = reference_torch.write_reference(self.session, self.request)
        tokens = self.request.workload.of_sequences(self.request.sample).tokens
        said = found.fields if isinstance(found, ReferenceWritten) else {"unjudged": found.why}
        return {**said, "s": time.perf_counter() - began, "tokens": tokens}

    def figures(self, choices: dict[str, str], default: Quality | None) -> tuple[Quality, dict[str, float], str]:
        """Return the figures of a configuration, the seconds of their parts, and what is wrong with it."""
        import torch

        from advisor.measure import figures_torch

        ran = Configuration.of({**BASE, **choices})
        self.session.load(self.request, ran)
        given = None if default is None else Ran(configuration=Configuration.of(BASE), quality=default)
        gate = Gate(path=str(self.path), reference="fp32, eager", default=given)
        with torch.inference_mode():
            quality, seconds = figures_torch.figures_of(self.session, self.request, gate, ran)
        base = Configuration.of(BASE)
        held_to = None if default is None else Trial(0, base, base, Outcome.OK, quality=default)
        found = Trial(1, ran, ran, Outcome.OK, quality=quality)
        return quality, seconds, "; ".join(wrong(found, held_to, self.facts))


def probed(name: str, bench: Bench, pairs: list[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """Look at every pair of attention and packing, quantised ones last, and give a row each."""
    reference = bench.reference()
    print(f"\n{name}: reference {reference}\n", flush=True)
    print(
        "| attention | packing | more | neighbours | pads | own | layout in fp32 | rms | probe s | layout s | wrong |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|", flush=True)
    default: Quality | None = None
    quantised = [
        {"attention": a, "packing": "packed", "quantization": q}
        for a, q in (("flash_attention_2", "nf4"), ("sdpa", "nf4"))
    ]
    for choices in [*({"attention": a, "packing": p} for a, p in pairs), *quantised]:
        more = choices.get("quantization", "")
        try:
            quality, seconds, said = bench.figures(choices, default)
        except Exception as error:  # noqa: BLE001  (a backend that is not here is a row too)
            print(
                f"| {choices['attention']} | {choices['packing']} | {more} | {type(error).__name__}: {str(error)[:150]} |",
                flush=True,
            )
            continue
        default = default or quality
        figures = (quality.neighbours, quality.pads, quality.own, quality.layout, quality.rms)
        cells = ["–" if v is None else "0" if v == 0 else f"{v:.1e}" for v in figures]
        times = [f"{seconds.get(part, 0.0):.2f}" for part in ("probe_s", "layout_s")]
        print(
            f"| {choices['attention']} | {choices['packing']} | {more} | {' | '.join([*cells, *times])} | {said[:160]} |",
            flush=True,
        )
        yield {"model": name, **choices, "quality": quality.payload, "seconds": seconds, "wrong": said}


def probe_part(device: str, *, tiny: bool) -> list[dict[str, Any]]:
    """Look at a decoder and an encoder."""
    long = 48 if tiny else 2048
    decoder = Bench(_shape("llama-3.2-1b.json", tiny=tiny), Forward(quantile_lengths(long, 0.3, 8, 4), 8), device)
    rows = list(probed("Llama-3.2-1B shape, 8 × 2048, padding 0.3, last-logits", decoder, DECODER))
    short = 32 if tiny else 256
    lengths = quantile_lengths(short, 0.3, 32, 4)
    encoder = Bench(_shape("bert-base.json", tiny=tiny), Forward(lengths, 32, "pooled"), device)
    return rows + list(probed("BERT-base shape, 32 × 256, padding 0.3, pooled", encoder, ENCODER))


def reference_part(device: str, *, tiny: bool) -> list[dict[str, Any]]:
    """Write the reference of an 8B shape as on a card of 24 GB, and at 1 × 32,768, and both."""
    import torch

    rows = []
    print("\n| workload | memory | reference | tokens | s | peak GiB |\n|---|---|---|---|---|---|", flush=True)
    source = _shape("llama-3-8b.json", tiny=tiny)
    work = {
        "8 × 2048, padding 0.3": Forward(quantile_lengths(48 if tiny else 2048, 0.3, 8, 4), 8),
        "1 × 32768": Forward((64 if tiny else 32768,), 1),
    }
    for small in (False, True):
        for name, workload in work.items():
            if device != "cpu":
                torch.cuda.empty_cache()
                torch.cuda.set_per_process_memory_fraction(SMALL_CARD if small else 1.0)
                torch.cuda.reset_peak_memory_stats()
            bench = Bench(source, workload, device)
            found = bench.reference()
            bench.session.unload()
            peak = 0.0 if device == "cpu" else torch.cuda.max_memory_allocated() / 2**30
            memory = "24/80 of the card" if small else "the card's"
            words = found.get("words") or f"NONE: {found.get('unjudged')}"
            print(f"| {name} | {memory} | {words} | {found['tokens']} | {found['s']:.1f} | {peak:.1f} |", flush=True)
            rows.append({"workload": name, "memory": memory, **found, "peak_gib": peak})
    return rows


def _shape(file: str, *, tiny: bool) -> ModelSource:
    if not tiny:
        return find_model(str(SHAPES / file))
    config = json.loads((SHAPES / file).read_text())
    small = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "head_dim": 16,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "dtype": "bfloat16",
    }
    path = Path(tempfile.mkdtemp()) / "config.json"
    path.write_text(json.dumps({**config, **{k: v for k, v in small.items() if k in config or k == "dtype"}}))
    return find_model(str(path))


def main() -> None:
    """Run the parts named on the command line, or both."""
    import torch
    import transformers

    words = [word for word in sys.argv[1:] if word != "--cpu"]
    tiny, device = "--cpu" in sys.argv, "cpu" if "--cpu" in sys.argv else "cuda"
    torch.set_num_threads(1 if tiny else torch.get_num_threads())
    card = "CPU" if tiny else torch.cuda.get_device_name()
    print(f"{card}, torch {torch.__version__}, transformers {transformers.__version__}")
    parts = {"probe": probe_part, "reference": reference_part}
    for name in words[1:] or list(parts):
        rows = parts[name](device, tiny=tiny)
        (Path(words[0]) / f"gate-{name}.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
