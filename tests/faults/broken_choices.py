"""Made-up choices of attention that really break, for tests: ADVISOR_PLUGINS=broken_choices, this folder on PYTHONPATH.

Each is what sdpa is, until it is called: then it does to the worker what its name says. They are admissible with padded
batches alone, so that a space holds each of them once. No torch at module level: the process that tunes reads this too.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from advisor.knobs.choice import Choice, Reason, Situation, Term, Verdict

#: As long as the longest error text of flex_attention that was seen.
LONG_TEXT = 234_000

#: Nobody would publish a package under this name.
MISSING = "a_module_that_nobody_has"


def _oom(_: Any) -> Any:
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def _hang(_: Any) -> Any:
    while True:
        time.sleep(1)


def _hang_in_c(_: Any) -> Any:
    ctypes.PyDLL(None).sleep(1000)  # PyDLL keeps the interpreter's lock: no other thread of the worker runs either


def _segfault(_: Any) -> Any:
    os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(10)


def _cuda_error(_: Any) -> Any:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def _nan(output: Any) -> Any:
    return output * float("nan")


def _garbage(_: Any) -> Any:
    os.write(int(os.environ["ADVISOR_CHANNEL"]), b"\x00\xff{what is this?\n")
    time.sleep(10)


def _forgery(_: Any) -> Any:
    os.write(int(os.environ["ADVISOR_CHANNEL"]), b'{"event": "done"}\n')
    time.sleep(10)


def _noise(output: Any) -> Any:
    print('{"event": "done"}')
    os.write(1, b"\x00\xffgarbage\n")
    os.write(sys.__stdout__.fileno() if sys.__stdout__ else 1, b"more of it\n")
    return output


def _exit(_: Any) -> Any:
    os._exit(3)


def _killed(_: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(10)


def _long_error(_: Any) -> Any:
    raise ValueError("lowering failed: " + "x" * (LONG_TEXT - 17))


def _wrong(output: Any) -> Any:
    return output * 1.01


#: Name -> what it makes of the output of sdpa.
FAULTS: dict[str, Callable[[Any], Any]] = {
    "broken-oom": _oom,
    "broken-hang": _hang,
    "broken-hang-in-c": _hang_in_c,
    "broken-segfault": _segfault,
    "broken-cuda-error": _cuda_error,
    "broken-nan": _nan,
    "broken-garbage": _garbage,
    "broken-forgery": _forgery,
    "broken-noise": _noise,
    "broken-exit": _exit,
    "broken-killed": _killed,
    "broken-long-error": _long_error,
    "broken-wrong": _wrong,
}

#: They fail before the model is loaded. So many, because as many failures in a row end a study.
MISSING_IMPORTS = tuple(f"broken-import-{number}" for number in range(10))


def register(name: str) -> None:
    """Make a fault known to transformers, with the mask that sdpa gets. The choice's own line calls it in the worker."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    fault = FAULTS[name]

    def forward(*arguments: Any, **options: Any) -> Any:
        output, weights = sdpa_attention_forward(*arguments, **options)
        return fault(output), weights

    AttentionInterface.register(name, forward)
    AttentionMaskInterface.register(name, sdpa_mask)


def _padded_only(situation: Situation) -> list[Reason]:
    packing = situation.configuration["packing"]
    if packing == "padded":
        return []
    return [Reason("F1", Verdict.INVALID, "made up for padded batches", about=f"packing={packing}")]


def _choice(name: str, before: str, rate: float) -> Choice:
    return Choice(
        "attention",
        name,
        "breaks, for tests",
        why_not=_padded_only,
        before=(before,),
        load=lambda _: {"attn_implementation": repr(name)},
        rates=lambda _: {Term.ATTENTION: rate},
    )


#: The missing imports come first in the order of the search, one after the other.
CHOICES = [
    *(_choice(name, f"import broken_choices; broken_choices.register({name!r})", 1e3) for name in FAULTS),
    *(_choice(name, f"import {MISSING}", 1e6) for name in MISSING_IMPORTS),
]
