"""What a device reaches at best: matrix products by dtype and a copy. Loaded by the worker alone.

A ceiling is what this machine was seen to do, not what its data sheet says: a recommendation is compared with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

from advisor.knobs import KNOBS, Traits

#: Side of the square matrices: large enough to fill a GPU; a CPU core takes 50 ms for one product of its size.
_SIDE = {"cuda": 8192, "cpu": 1024}

#: Bytes that are copied: more than any cache holds.
_COPY_BYTES = {"cuda": 2**30, "cpu": 2**26}

#: How often each is repeated, and after how many seconds of it no more: products in 16 bit take some CPUs 0.3 s each.
_REPEATS, _ENOUGH_S = 7, 0.5

#: What torch and cuBLAS say where there is no product of a dtype. Anything else is a failure, and another try may succeed.
_NO_SUCH_PRODUCT = ("not implemented", "not supported", "CUBLAS_STATUS_NOT_SUPPORTED", "CUBLAS_STATUS_ARCH_MISMATCH")


def measure(device: str) -> dict[str, float]:
    """Return `matmul_<precision>_per_s` in floating-point operations and `copy_bytes_per_s`, bytes read plus written.

    Each is the median of some repeats after a warm-up, as many as half a second has room for; a dtype that takes longer for one
    product is timed once, and one that this device has no products for is left out.
    """
    kind = device.partition(":")[0]
    found = {}
    for name, choice in KNOBS["precision"].choices.items():
        mode = choice.traits.float32_matmul
        if mode != Traits.float32_matmul and kind != "cuda":
            continue
        torch.set_float32_matmul_precision(mode)
        try:
            found[f"matmul_{name}_per_s"] = _matmul_per_s(device, kind, getattr(torch, choice.traits.dtype))
        except RuntimeError as error:
            if not any(words in str(error) for words in _NO_SUCH_PRODUCT):
                raise
        finally:
            torch.set_float32_matmul_precision(Traits.float32_matmul)
    source = torch.empty(_COPY_BYTES[kind] // 4, device=device).normal_()
    target = torch.empty_like(source)
    found["copy_bytes_per_s"] = 2 * _COPY_BYTES[kind] / _seconds(lambda: target.copy_(source), kind)
    return found


def _matmul_per_s(device: str, kind: str, dtype: torch.dtype) -> float:
    """Random operands: zeros draw less power and ran 13 % faster on an H200 (measurement.md, B.2)."""
    side = _SIDE[kind]
    generator = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn((side, side), device=device, generator=generator).to(dtype) for _ in range(2))
    # As a linear layer does it, transposed: a plain product in 16 bit is some 300 times slower on some CPUs.
    return 2.0 * side**3 / _seconds(lambda: torch.nn.functional.linear(left, right), kind)


def _seconds(run: Callable[[], object], kind: str) -> float:
    def once() -> float:
        began = time.perf_counter()
        run()
        if kind == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    first = once()
    if first > _ENOUGH_S:
        return first
    repeats: list[float] = []
    while len(repeats) < _REPEATS and sum(repeats) < _ENOUGH_S:
        repeats.append(once())
    return median(repeats)
