"""Facts of models as a worker reads them, for tests that load none: one place for those that many ask for."""

from __future__ import annotations

from dataclasses import replace

from advisor.show.support import LLAMA

#: Llama-3-8B, to the byte.
LLAMA_8B = replace(
    LLAMA,
    parameters=8_030_261_248,
    parameter_bytes=16_060_522_496,
    linear_parameters=7_504_658_432,
    layer_types=("full_attention",),
)

#: Llama-3.2-1B.
LLAMA_1B = replace(
    LLAMA,
    parameters=1_236_000_000,
    parameter_bytes=2_472_000_000,
    linear_parameters=1_235_000_000,
    layers=16,
    hidden_size=2048,
    head_dim=64,
)

#: A decoder as small as the shipped one, in fp32.
SMALL = replace(
    LLAMA,
    checkpoint_dtype="float32",
    parameters=2_100_000,
    parameter_bytes=8_400_000,
    linear_parameters=1_500_000,
    layers=4,
    hidden_size=256,
    heads=8,
    kv_heads=2,
    head_dim=32,
    vocabulary=2048,
    max_positions=2048,
)
