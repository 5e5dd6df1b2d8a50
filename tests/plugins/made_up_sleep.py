"""A made-up machine on which every call of a causal model takes so long: ADVISOR_PLUGINS=made_up_sleep, MADE_UP_SLEEP_S=0.1.

What sleeps needs no processor, so that it takes as long on a busy machine; and it sleeps until the whole call has taken so long,
for the model's own part takes 5 ms or 130, whatever the host's other guests leave in the caches. It brings no choice and changes
no configuration.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

CHOICES: list[Any] = []

_SECONDS = float(os.environ.get("MADE_UP_SLEEP_S", "0"))


_began_s: list[float] = []  # the calls that are under way


def _begin(module: Any, inputs: Any) -> None:
    if type(module).__name__.endswith("ForCausalLM"):
        _began_s.append(time.perf_counter())


def _sleep(module: Any, inputs: Any, outputs: Any) -> None:
    if type(module).__name__.endswith("ForCausalLM"):
        time.sleep(max(0.0, _began_s.pop() + _SECONDS - time.perf_counter()))


if str(getattr(sys.modules["__main__"].__spec__, "name", "")).startswith("advisor.measure"):  # only workers have torch
    import torch

    torch.nn.modules.module.register_module_forward_pre_hook(_begin)
    torch.nn.modules.module.register_module_forward_hook(_sleep)
