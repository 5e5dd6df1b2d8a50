"""A made-up machine on which every call of a causal model takes a while: ADVISOR_PLUGINS=made_up_sleep, MADE_UP_SLEEP_S=0.1.

What sleeps needs no processor, so that it takes as long on a busy machine. It brings no choice and changes no configuration.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

CHOICES: list[Any] = []

_SECONDS = float(os.environ.get("MADE_UP_SLEEP_S", "0"))


def _sleep(module: Any, inputs: Any) -> None:
    if type(module).__name__.endswith("ForCausalLM"):
        time.sleep(_SECONDS)


if str(getattr(sys.modules["__main__"].__spec__, "name", "")).startswith("advisor.measure"):  # only workers have torch
    import torch

    torch.nn.modules.module.register_module_forward_pre_hook(_sleep)
