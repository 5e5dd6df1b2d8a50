"""Is advisor's verdict right on every kind of model? Families × layouts × precisions, labelled without its gate.

Each family of families_table is shrunk and drawn; each layout's exact call is labelled right or wrong by families_oracle,
which knows nothing of advisor's gate, and advisor is asked for its verdict. Wrong and accepted must not be; right and
rejected at most 1 %. What is refused before measuring, or can't be run here, counts as neither, and is listed with its reason.

    python benchmarks/families.py                                  all, to stdout
    python benchmarks/families.py --write docs/families.md         and into the document (`make families`)
    python benchmarks/families.py --family fnet --family phi3      these alone, every cell with its figures

Exits with status 1 where something wrong was accepted, or over 1 % of what is right rejected.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from families_oracle import BF16_FACTOR, TOLERANCE, Label, alone, draw, errors, laid_out
from families_table import BATCH, FAMILIES, LENGTHS
from families_verdict import LAYOUTS, PRECISIONS, Bench, Verdict, verdict_of

from advisor.errors import AdvisorError
from advisor.machine import probe

#: This share of what is right and measured may be rejected.
MOST_REJECTED = 0.01


@dataclass(frozen=True)
class Cell:
    """One family in one layout and precision: what is so and what advisor says.

    alone: the error of one sequence at a time in the class's default attention: above TOLERANCE in fp32, that attention is
    another function than eager.
    """

    family: str
    layout: str
    precision: str
    label: Label
    verdict: Verdict
    alone: float

    @property
    def kind(self) -> str:
        """Return which of KINDS this is."""
        if self.verdict.kind in ("refused", "failed"):
            return self.verdict.kind
        right = "right" if self.label.is_right else "wrong"
        return f"{right} {self.verdict.kind}"

    @property
    def symbol(self) -> str:
        """Return the cell of the table."""
        mark = KINDS[self.kind]
        return mark if self.kind != "refused" else f"{mark} {self.verdict.rule}"

    def __str__(self) -> str:
        """Return the cell with its figures."""
        label, gate = self.label, self.verdict.figures
        figures = label.failure or f"rms {label.rms:.1e}, maximum {label.maximum:.1e}, limit {label.limit:.1e}"
        said = "" if gate is None else f"; the gate's rms {gate.rms:.1e}"
        truth = "can't run" if label.failure else "right" if label.is_right else "wrong"
        return (
            f"{self.family}, {self.layout}, {self.precision}: {truth} ({figures}; alone {self.alone:.1e}), "
            f"{self.verdict.kind} {self.verdict.rule} {self.verdict.reason[:200]}{said}"
        )


#: What can become of a cell, and its symbol.
KINDS = {
    "right accepted": "✓",
    "wrong rejected": "✗",
    "wrong accepted": "**WRONG**",
    "right rejected": "**lost**",
    "refused": "–",
    "failed": "·",
}

#: A label where there is nothing to call: the facts could not be read.
UNREAD = Label(0.0, 0.0, 0.0, failure="its facts can't be read")


def measure(name: str, layouts: Sequence[str] = LAYOUTS, precisions: Sequence[str] = PRECISIONS) -> list[Cell]:
    """Label and judge one family."""
    cells: list[Cell] = []
    gc.collect()
    gc.freeze()  # what is imported: models are unloaded again and again, and to look through all of it takes longer than they do
    with tempfile.TemporaryDirectory(prefix="advisor-families-") as folder:
        paths = draw(FAMILIES[name], Path(folder) / "model")
        right: dict[str, bool] = {}
        for precision in precisions:
            bench = Bench(FAMILIES[name], precision, paths[precision], probe.machine("cpu"))
            verdicts = {layout: verdict_of(bench, layout) for layout in layouts}
            labels, error = _labels(bench, layouts, right)
            right = right or {layout: label.is_right for layout, label in labels.items()}
            cells += [Cell(name, l, precision, labels[l], verdicts[l], error) for l in layouts]  # noqa: E741
    return cells


def _labels(bench: Bench, layouts: Sequence[str], right: Mapping[str, bool]) -> tuple[dict[str, Label], float]:
    """Return every layout's label, and the error of one sequence at a time in the bench's precision.

    right: the fp32 labels, which bf16 inherits; empty where these are asked for.
    """
    try:
        family, pooling, tokens = bench.family, bench.facts.pooling, bench.tokens
    except AdvisorError:
        return dict.fromkeys(layouts, UNREAD), 0.0
    reference = alone(family, bench.path, tokens, "fp32", pooling, "eager")
    try:
        error, _ = errors(reference, alone(family, bench.path, tokens, bench.precision, pooling))
    except Exception as raised:  # noqa: BLE001 - whatever a class raises: it can't be run in this precision here
        return dict.fromkeys(layouts, Label(0.0, 0.0, 0.0, _text(raised))), 0.0
    limit = TOLERANCE if bench.precision == "fp32" else BF16_FACTOR * error
    labels = {}
    for layout in layouts:
        try:
            rms, maximum = errors(reference, laid_out(*bench.laid_out(layout)))
            labels[layout] = Label(rms, maximum, limit, right_in_fp32=right.get(layout, True))
        except Exception as raised:  # noqa: BLE001 - as above
            labels[layout] = Label(0.0, 0.0, limit, _text(raised))
    return labels, error


def _text(raised: Exception) -> str:
    return " ".join(f"{type(raised).__name__}: {raised}".split())[:150]


def _quiet() -> None:
    """Make a process use one thread and say nothing."""
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def measured(names: Sequence[str], workers: int) -> Iterator[list[Cell]]:
    """Measure families in processes of their own, and yield each one's cells as they come."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_quiet) as pool:
        waiting = {pool.submit(partial(measure, name)): name for name in names}
        for future in as_completed(waiting):
            try:
                yield future.result()
            except Exception as raised:
                raise SystemExit(f"{waiting[future]} can't be drawn or run alone: {_text(raised)}") from raised


def counts(cells: Sequence[Cell]) -> dict[str, int]:
    """Return how many cells are of each kind."""
    return {kind: sum(cell.kind == kind for cell in cells) for kind in KINDS}


def passes(cells: Sequence[Cell]) -> bool:
    """Whether nothing wrong is accepted, and hardly anything right rejected."""
    found = counts(cells)
    right = found["right accepted"] + found["right rejected"]
    return not found["wrong accepted"] and found["right rejected"] <= MOST_REJECTED * right


def _row(name: str, cells: Mapping[tuple[str, str], Cell]) -> str:
    family = FAMILIES[name]
    symbols = [cells[layout, precision].symbol for precision in PRECISIONS for layout in LAYOUTS]
    return f"| {' | '.join([name, family.kept, family.output, *symbols])} |"


def _listed(cells: Sequence[Cell], kind: str) -> Iterator[str]:
    """Yield a line for every family and reason among the cells of a kind."""
    groups: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells:
        if cell.kind == kind:
            reason = cell.verdict.reason.removeprefix("the model can't be used: ").split("; ")[0]
            groups.setdefault((cell.family, cell.verdict.rule, _short(reason)), []).append(cell)
    for (family, rule, reason), found in groups.items():
        layouts = ", ".join(dict.fromkeys(cell.layout for cell in found))
        precisions = {cell.precision for cell in found}
        where = layouts if len(precisions) == len(PRECISIONS) else f"{layouts} in {', '.join(sorted(precisions))}"
        truth = " (it would be right)" if all(cell.label.is_right for cell in found) else ""
        yield f"- {family}, {where}: {f'{rule}: ' if rule else ''}{reason}{truth}"


def _short(text: str) -> str:
    return text if len(text) <= 160 else f"{text[:157]}…"


def _figures(cells: Sequence[Cell]) -> Iterator[str]:
    """Yield a line for every cell that is wrong and was run, and for every right one that was rejected."""
    for cell in cells:
        if cell.kind not in ("right accepted", "refused", "failed"):
            gate = cell.verdict.figures
            said = f"; the gate's rms {gate.rms:.1e}" if gate is not None else ""
            said += f": {cell.verdict.reason.split('; ')[0]}" if cell.verdict.reason else ""
            label, where = cell.label, f"{cell.family}, {cell.layout}, {cell.precision}"
            figures = (
                f"rms {label.rms:.1e} σ, maximum {label.maximum:.1e} σ, limit {label.limit:.1e}, alone {cell.alone:.1e}"
            )
            yield f"- {KINDS[cell.kind]} {where}: {figures}{_short(said)}"


def document(cells: Sequence[Cell], command: str, seconds: float) -> str:
    """Return the Markdown document. command: what made it."""
    by_family: dict[str, dict[tuple[str, str], Cell]] = {}
    for cell in cells:
        by_family.setdefault(cell.family, {})[cell.layout, cell.precision] = cell
    found, versions = counts(cells), probe.packages()
    run = {cell.family for cell in cells if cell.kind not in ("refused", "failed")}
    right = found["right accepted"] + found["right rejected"]
    heads = [f"{layout} {precision}" for precision in PRECISIONS for layout in LAYOUTS]
    return f"""# Is the verdict right on every kind of model?

Generated on {datetime.now(UTC).date()} by `{command}` on a CPU, with torch {versions.get("torch")} and transformers
{versions.get("transformers")}, in {seconds / 60:.0f} minutes.

Every family is shrunk and drawn at random, with every structural feature kept (benchmarks/families_table.py), and run on
{len(LENGTHS)} sequences of {min(LENGTHS)} to {max(LENGTHS)} tokens in batches of {BATCH}, in the class's default attention.
**What is so** is found without advisor's gate (benchmarks/families_oracle.py): the layout's exact call in fp32 against the
same sequences one at a time, unpadded, eager, by transformers alone. Right is a worst sequence within {TOLERANCE:.0e} σ (rms;
σ is the reference's standard deviation); in bf16 it must be right in fp32, and its error within {BF16_FACTOR:.0f} times that
of one sequence at a time in bf16. **What advisor says** is the outcome of a trial's gate.

Of {len(by_family)} families {len(run)} were measured. Of their cells **{found["wrong accepted"]} are wrong and accepted**,
{found["wrong rejected"]} wrong and rejected; of {right} right ones {found["right rejected"]} are rejected.
{found["refused"]} cells were refused before measuring, {found["failed"]} can't be run here: they count as neither.

✓ right and accepted · ✗ wrong and rejected · **WRONG** wrong and accepted · **lost** right and rejected · – refused before
measuring, with the rule (facts: the model can't be read) · a dot: the call raises, alone or in this layout

| family | kept | output | {" | ".join(heads)} |
|---|---|---|{"---|" * len(heads)}
{chr(10).join(_row(name, mine) for name, mine in by_family.items())}

## What is wrong, and what is lost

{chr(10).join(_figures(cells)) or "Nothing."}

## Refused before measuring

{chr(10).join(_listed(cells, "refused")) or "Nothing."}

## Not run

{chr(10).join(_listed(cells, "failed")) or "Nothing."}
"""


def main() -> int:
    """Measure, print or write, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--family", action="append", default=[], choices=FAMILIES, metavar="NAME", help="these alone")
    parser.add_argument(
        "--workers", type=int, default=min(2, os.cpu_count() or 1), help="processes (default: %(default)s)"
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the document there")
    options = parser.parse_args()
    names, began, found = options.family or list(FAMILIES), time.monotonic(), {}
    for cells in measured(names, options.workers):
        found[cells[0].family] = cells
        print(f"{len(found)} of {len(names)}: {cells[0].family}", file=sys.stderr)
        if options.family:
            print(*cells, sep="\n")
    cells = [cell for name in names for cell in found[name]]
    text = document(cells, f"python benchmarks/families.py {' '.join(sys.argv[1:])}".strip(), time.monotonic() - began)
    if options.write:
        options.write.write_text(text, encoding="utf-8")
    elif not options.family:
        print(text)
    print(", ".join(f"{number} {kind}" for kind, number in counts(cells).items()), file=sys.stderr)
    return 0 if passes(cells) else 1


if __name__ == "__main__":
    sys.exit(main())
