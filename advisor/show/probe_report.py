"""What people see of this machine: its devices, what they reach at best, and every choice with what would make it available."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from advisor.knobs import KNOBS
from advisor.machine.probe import Availability
from advisor.nouns.environment import Machine
from advisor.terminal import gib


def probe_payload(machines: Sequence[Machine], chosen: Machine, availability: Sequence[Availability]) -> dict[str, Any]:
    """Return what `advisor probe` found, as JSON values."""
    return {
        "devices": [
            {
                "device": m.user_device,
                "uuid": m.uuid,
                "free_bytes": m.free_bytes,
                "problem": m.problem,
                "remedy": m.remedy,
                "environment": {"key": m.environment.key, **m.environment.payload},
            }
            for m in machines
        ],
        "chosen": chosen.user_device,
        "choices": [
            {
                "knob": a.knob,
                "choice": a.choice,
                "advised": KNOBS[a.knob].choices[a.choice].traits.advised,
                "available": a.reason is None,
                "rule": a.reason.rule if a.reason else None,
                "reason": a.reason.text if a.reason else None,
                "remedy": a.reason.remedy if a.reason else None,
            }
            for a in availability
        ],
    }


def probe_text(
    machines: Sequence[Machine],
    chosen: Machine,
    availability: Sequence[Availability],
    ceilings: Mapping[str, float] | None = None,
) -> Group:
    """Return the same for people: devices, versions, ceilings where measured, a table a knob of what may be chosen."""
    parts: list[Any] = []
    for m in machines:
        e = m.environment
        capability = (
            f", compute capability {e.compute_capability[0]}.{e.compute_capability[1]}" if e.compute_capability else ""
        )
        mark = "[bold green]▸[/]" if m.user_device == chosen.user_device else " "
        memory = f"{gib(e.memory_bytes)} ({gib(m.free_bytes)} free)"
        parts.append(f"{mark} [bold]{m.user_device}[/]  {escape(e.device_name)}, {memory}{capability}")
        if m.problem:
            parts.append(f"    [yellow]{escape(m.problem)}[/] → {escape(m.remedy)}")
    packages = ", ".join(f"{name} {version}" for name, version in chosen.environment.packages.items())
    driver = f"driver {chosen.environment.driver}, " if chosen.environment.driver else ""
    parts.append(f"  {driver}{packages}\n  environment {chosen.environment.key}\n")
    if ceilings:
        parts.append(_ceilings_table(ceilings, chosen.user_device))
    for knob in dict.fromkeys(each.knob for each in availability):
        parts += [_choices_table(knob, [each for each in availability if each.knob == knob], chosen.user_device), ""]
    return Group(*parts[:-1] if availability else parts)


def _choices_table(knob: str, availability: Sequence[Availability], device: str) -> Table:
    """Return a knob's choices: whether each can be made on a device, else why and what to do; none that is there to be caught."""
    table = Table(knob, f"on {device}", "", box=None, pad_edge=False, header_style="bold")
    table.columns[0].no_wrap = True
    for each in availability:
        if not KNOBS[knob].choices[each.choice].traits.advised:
            continue
        if each.reason is None:
            table.add_row(each.choice, "[green]yes[/]", "")
        else:
            remedy = f" → {each.reason.remedy}" if each.reason.remedy else ""
            table.add_row(each.choice, "[red]no[/]", escape(f"{each.reason.text} ({each.reason.rule}){remedy}"))
    return table


def _ceilings_table(ceilings: Mapping[str, float], device: str) -> Group:
    table = Table(f"what {device} reaches at best", "", box=None, pad_edge=False, header_style="bold")
    for name, value in ceilings.items():
        precision = name.removeprefix("matmul_").removesuffix("_per_s")
        what = f"matrix products in {precision}" if name.startswith("matmul_") else "copies, read plus written"
        table.add_row(what, rate(name, value))
    return Group(table, "")


def rate(metric: str, value: float) -> str:
    """Return a ceiling in words: operations or bytes a second."""
    unit = "B/s" if "bytes" in metric else "FLOP/s"
    return f"{value / 1e12:,.3g} T{unit}" if value >= 1e12 else f"{value / 1e9:,.3g} G{unit}"
