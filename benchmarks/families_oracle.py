"""What is right, found without advisor's gate: one sequence at a time by transformers alone, against a layout's exact call.

The call is advisor's own (session_torch.Session.calls); the judgement is not. A layout is right where, in fp32, every sequence
comes out as it does alone and unpadded, within TOLERANCE of the reference's standard deviation. In bf16 it must be right in
fp32, and its error against fp32 within BF16_FACTOR times the error that one sequence at a time has in bf16.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from families_table import Family

from advisor.workloads import Call, Runtime

TOLERANCE, BF16_FACTOR = 1e-4, 3.0

#: Matrices that a class draws narrower than this, whatever initializer_range says, are widened.
NARROW, WIDEN, DRAWN = 0.06, 3.0, 0.12

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

Values = dict[int, dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Label:
    """Whether a layout is right, and its error in σ: the worst sequence's rms and the largest single difference.

    limit: what the rms may be; failure: what the call raised, where it raises.
    """

    rms: float
    maximum: float
    limit: float
    failure: str = ""
    right_in_fp32: bool = True

    @property
    def is_right(self) -> bool:
        """Whether every sequence comes out as it does alone."""
        return not self.failure and self.right_in_fp32 and self.rms <= self.limit


def class_of(family: Family) -> Any:
    """Return transformers' class that a family's config.json names."""
    return getattr(transformers, family.config["architectures"][0])


def draw(family: Family, folder: Path) -> dict[str, Path]:
    """Draw a family's weights in fp32 and write them twice, in fp32 and rounded to bf16 as the loader rounds them."""
    plain, auto = folder / "config.json", class_of(family)
    folder.mkdir(parents=True, exist_ok=True)
    plain.write_text(json.dumps(family.config), encoding="utf-8")
    config = transformers.AutoConfig.from_pretrained(plain)
    torch.manual_seed(0)
    model = auto._from_config(config, dtype=torch.float32)
    if not family.faint:
        _widen(model)
    paths = {"fp32": folder / "fp32", "bf16": folder / "bf16"}
    model.save_pretrained(paths["fp32"])
    auto.from_pretrained(paths["fp32"], dtype=torch.bfloat16).save_pretrained(paths["bf16"])
    return paths


def _widen(model: Any) -> None:
    for parameter in model.parameters():
        if parameter.dim() < 2:
            continue
        deviation = float(parameter.data.std())
        if deviation == 0:
            parameter.data.normal_(0, DRAWN)
        elif deviation < NARROW:
            parameter.data.mul_(WIDEN)


def alone(
    family: Family, path: Path, tokens: Sequence[torch.Tensor], dtype: str, pooling: str, attention: str | None = None
) -> Values:
    """Run every sequence by itself, unpadded, by a plain call of transformers' class; attention: None is its default."""
    more = {} if attention is None else {"attn_implementation": attention}
    model = class_of(family).from_pretrained(path, dtype=DTYPES[dtype], **more).eval()
    found: Values = {}
    with torch.inference_mode():
        for number, ids in enumerate(tokens):
            # A copy for each: BigBird's blocks are switched off for good by the first short sequence.
            outputs = copy.deepcopy(model)(input_ids=ids[None])
            found[number] = _of_one(family.output, outputs, len(ids), pooling)
    return found


def _of_one(output: str, outputs: Any, length: int, pooling: str) -> dict[str, torch.Tensor]:
    """Return what is compared of a sequence run alone: what was asked for, and every position where there are such."""
    if output == "scores":
        return {"asked": outputs.logits[0].float()}
    if output == "last-logits":
        values = outputs.logits[0, :length].float()
        return {"asked": values[-1], "positions": values}
    hidden = outputs.last_hidden_state[0, :length].float()
    if output == "hidden":
        return {"positions": hidden}
    return {"asked": {"cls": hidden[0], "last": hidden[-1], "mean": hidden.mean(0)}[pooling]}


def laid_out(model: Any, calls: Sequence[Call], runtime: Runtime) -> Values:
    """Run a layout's calls, and return what is compared of every sequence."""
    found: Values = {}
    with torch.inference_mode():
        for call in calls:
            for number, values in _positions(model, call, runtime.workload.output):
                found.setdefault(number, {})["positions"] = values
            if runtime.workload.output == "hidden":
                continue
            wanted = runtime.run(model, call, "cpu")
            for number, values in zip(call.sequences, wanted, strict=True):
                found.setdefault(number, {})["asked"] = values.float()
    return found


def _positions(model: Any, call: Call, output: str) -> Iterator[tuple[int, torch.Tensor]]:
    if output in ("pooled", "scores"):
        return
    outputs = model(**call.on("cpu"))
    values = outputs.logits if output == "last-logits" else outputs.last_hidden_state
    for number, (row, start, end) in zip(call.sequences, call.places, strict=True):
        yield number, values[row, start:end].float()


def errors(reference: Values, found: Values) -> tuple[float, float]:
    """Return the worst sequence's rms error and the largest difference, in the reference's standard deviations.

    What was asked for and what stands at every position are counted each by itself, and the worse is returned.
    """
    rms = maximum = 0.0
    for what in next(iter(reference.values())):
        deviation = float(torch.cat([values[what].flatten() for values in reference.values()]).double().std())
        for number, values in reference.items():
            difference = (found[number][what].double() - values[what].double()) / deviation
            if not bool(torch.isfinite(difference).all()):
                return math.inf, math.inf
            rms = max(rms, float(difference.square().mean()) ** 0.5)
            maximum = max(maximum, float(difference.abs().max()))
    return rms, maximum
