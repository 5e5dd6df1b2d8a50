"""What torch keeps for a whole process: the kernels that attention may use, and what was compiled."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.attention

#: torch's kernels of scaled_dot_product_attention: what allows each, and what says whether it is allowed.
_KERNEL_SWITCHES = {
    "flash": (torch.backends.cuda.enable_flash_sdp, torch.backends.cuda.flash_sdp_enabled),
    "efficient": (torch.backends.cuda.enable_mem_efficient_sdp, torch.backends.cuda.mem_efficient_sdp_enabled),
    "cudnn": (torch.backends.cuda.enable_cudnn_sdp, torch.backends.cuda.cudnn_sdp_enabled),
    "math": (torch.backends.cuda.enable_math_sdp, torch.backends.cuda.math_sdp_enabled),
}

#: Their names.
KERNELS = tuple(_KERNEL_SWITCHES)


def allowed_kernels() -> tuple[str, ...]:
    """Return the kernels that torch's scaled_dot_product_attention may use."""
    return tuple(name for name, (_, is_allowed) in _KERNEL_SWITCHES.items() if is_allowed())  # type: ignore[no-untyped-call]


def allow_kernels(names: Sequence[str]) -> None:
    """Allow these kernels and no others."""
    for name, (allow, _) in _KERNEL_SWITCHES.items():
        allow(name in names)


def flash_impl() -> str:
    """Return what torch's flash kernel was switched to, "" where it is torch's own."""
    return torch.nn.attention.current_flash_attention_impl() or ""


#: What torch's cache of what it compiled is told apart by, as the environment has it.
_OWN_TAG = torch.compiler.config.cache_key_tag


def restore_tag() -> None:
    """Have torch find what it compiled with all kernels allowed: to its cache, what was compiled for one alone is the same."""
    torch.compiler.config.cache_key_tag = _OWN_TAG


def restore_flash() -> None:
    """Switch torch's flash kernel back to its own; torch before 2.11 can't, and nothing here switches it there."""
    if flash_impl():
        torch.nn.attention.restore_flash_attention_impl()


def compiled_frames() -> int:
    """Return how many frames torch has compiled, or tried to, in this process."""
    if "torch._dynamo" not in sys.modules:
        return 0
    from torch._dynamo.utils import counters

    return int(counters["frames"]["total"])


def forget_compiled() -> None:
    """Forget what torch compiled: its cache is per function, and the ninth variant of flex_attention would run uncompiled."""
    from torch._dynamo import utils

    torch._dynamo.reset()  # type: ignore[no-untyped-call,unused-ignore]
    utils.clear_compilation_metrics()
    utils.set_compilation_metrics_limit(_MOST_FRAMES)
    utils.counters.clear()


#: torch remembers the last 64 frames that it compiled: fewer than a few contestants with a few shapes have.
_MOST_FRAMES = 4096


#: What torch says where it gives a function up: up to 2.10, and since.
_LIMITS = ("Dynamo cache limit exceeded", "Dynamo recompile limit exceeded")


@contextmanager
def graphs_for(users: int) -> Iterator[None]:
    """Have torch compile a function as often as it does for one user for each of so many: in one process they share its code."""
    import torch._dynamo

    config = torch._dynamo.config
    before = config.recompile_limit
    config.recompile_limit = before * users
    try:
        yield
    finally:
        config.recompile_limit = before


def is_limited() -> bool:
    """Whether torch has given a function up because it had compiled it as often as it does."""
    if not compiled_frames():
        return False
    from torch._dynamo.utils import counters

    return any(text.startswith(_LIMITS) for text in counters["unimplemented"])


class Compiled(NamedTuple):
    """What torch compiled: seconds, how many graphs, how many of them anew, and at how many places a graph broke."""

    seconds: float = 0.0
    graphs: int = 0
    again: int = 0
    breaks: int = 0

    def more_than(self, before: Compiled) -> Compiled:
        """Return what was compiled since then; no less than nothing, for torch forgets frames beyond so many."""
        seconds, graphs, again, breaks = before
        more_s, anew = max(0.0, self.seconds - seconds), max(0, self.again - again)
        return Compiled(more_s, self.graphs - graphs, anew, self.breaks - breaks)

    def and_(self, more: Compiled) -> Compiled:
        """Return both together."""
        seconds, graphs, again, breaks = more
        return Compiled(self.seconds + seconds, self.graphs + graphs, self.again + again, self.breaks + breaks)


NOTHING_COMPILED = Compiled()


def compiled() -> Compiled:
    """Return what torch has compiled since it last forgot; what a torch does not tell counts as nothing."""
    if not compiled_frames():
        return NOTHING_COMPILED
    from torch._dynamo.utils import counters, get_compilation_metrics

    frames = [each for each in get_compilation_metrics() if getattr(each, "compile_id", None) is not None]
    return Compiled(
        seconds=sum(getattr(each, "entire_frame_compile_time_s", None) or 0.0 for each in frames),
        graphs=int(counters["stats"]["unique_graphs"]),
        again=sum(1 for each in frames if getattr(each, "recompile_reason", None)),
        breaks=sum(counters["graph_break"].values()),
    )
