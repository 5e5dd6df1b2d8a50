"""The seed: the advice that this project grew from, with its cases, its promises and the configurations it is about.

Hugging Face's documentation of 2023 said of Falcon-7B that FlashAttention-2 in 16 bit is a little faster than "native"
attention at 256 tokens with 30 % padding, and up to twice as fast at 4096 tokens without.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from advisor.errors import BadInput
from advisor.nouns.configuration import Configuration
from advisor.terminal import percent
from advisor.workloads import Workload, quantile_lengths, workload_of

#: The shape of tiiuae/falcon-7b: weights are drawn, for speed does not depend on them.
FALCON = Path(__file__).with_name("falcon-7b.json")


@dataclass(frozen=True)
class Case:
    """One row of the advice: the longest sequence in tokens, the share of pads, and the sequences in a batch."""

    longest: int
    padding: float
    batch: int

    @classmethod
    def of(cls, text: str) -> Case:
        """Read "4096:0:4", length, padding and batch. Raises BadInput."""
        try:
            longest, padding, batch = text.split(":")
            return cls(int(longest), float(padding), int(batch))
        except ValueError:
            raise BadInput(f"--case must be LENGTH:PADDING:BATCH such as 4096:0:4, not {text!r}") from None

    def workload(self, batches: int) -> Workload:
        """Return the work. Raises BadInput where no list of lengths has this padding."""
        lengths = quantile_lengths(self.longest, self.padding, self.batch, batches)
        return workload_of({"kind": "forward", "lengths": lengths, "batch": self.batch, "output": "last-logits"})

    def __str__(self) -> str:
        """Return the case in words."""
        padding = f"{percent(self.padding, 0)} padding" if self.padding else "no padding"
        return f"{self.longest} tokens, {padding}"


#: The advice's two ends and one between them; batches as large as eager attention has memory for on a large GPU.
CASES = (Case(256, 0.3, 64), Case(2048, 0.3, 8), Case(4096, 0.0, 4))


@dataclass(frozen=True)
class Promise:
    """What the advice said of a case, and the ratios that these words stand for."""

    words: str
    low: float
    high: float


#: By length and padding. "Small" has no number there; a quarter is what we take it for.
PROMISES = {
    (256, 0.3): Promise("a small gain", 1.0, 1.25),
    (4096, 0.0): Promise("up to twice as fast", 1.0, 2.0),
}

#: What is measured in every case, in the order of the table and the chart; the third is what the claim is about.
ROLES = ("eager", "default", "flash_attention_2", "recommended")
EAGER, DEFAULT, FLASH, RECOMMENDED = ROLES

#: The comparisons that say what the claim is worth.
PAIRS = ((FLASH, EAGER), (FLASH, DEFAULT), (DEFAULT, EAGER), (RECOMMENDED, EAGER), (RECOMMENDED, DEFAULT))

#: The figure that is compared, as JSON calls it.
SPEED = "tokens_per_s"

#: The kernel of PyTorch's own attention that is no fused one.
MATH = "math"

#: PyTorch's kernels of scaled_dot_product_attention by a part of their operators' names.
_KERNELS = {
    "_scaled_dot_product_attention_math": MATH,
    "_scaled_dot_product_cudnn": "cuDNN",
    "_scaled_dot_product_efficient": "memory-efficient",
    "_scaled_dot_product_flash": "flash",
}


def roles_of(default: Configuration) -> dict[str, Configuration]:
    """Return the configurations of the claim beside a model's default. Eager first: who comes second may be stopped early."""
    return {
        EAGER: default.replaced(attention="eager", packing="padded"),
        DEFAULT: default,
        FLASH: default.replaced(attention="flash_attention_2", packing="padded"),
    }


def is_own_attention(configuration: Configuration) -> bool:
    """Whether attention is PyTorch's own scaled_dot_product_attention."""
    return configuration["attention"].startswith("sdpa")


def kernels_of(operators: Iterable[str]) -> tuple[str, ...]:
    """Return the kernels of PyTorch's own attention that operators of a profiled step belong to."""
    ran = list(operators)
    return tuple(name for part, name in _KERNELS.items() if any(part in operator for operator in ran))
