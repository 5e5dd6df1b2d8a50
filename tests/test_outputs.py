"""Whole tunes of tiny models whose outputs are easily wrong: what is recommended is right, and what is said is true.

Each is the essence of a fault that was seen from outside on 2026-11-25: a wrong default kept as exact, a leak that a floor
hid, a list whose long texts come last, right ones called wrong.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_databases import probed

from advisor.faces.cli import run

SMALL = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.12,
}

SHORT = ["--lengths", "48", "--padding", "0.4", "--batch", "4", "--batches", "2", "--device", "cpu", "--blocks", "0"]


@pytest.fixture
def tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Give what tunes a configuration in a database of its own and returns the exit status and the answer."""
    monkeypatch.setenv("ADVISOR_DATABASE_URL", probed(f"sqlite:///{tmp_path}/x.db"))
    monkeypatch.setenv("ADVISOR_LOCK_DIR", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def tune(config: dict[str, Any], *flags: str, work: list[str] = SHORT) -> tuple[int, dict[str, Any]]:
        file = tmp_path / "config.json"
        file.write_text(json.dumps(config))
        # What is compiled gives the same outputs, and takes seconds each: it has tests of its own.
        status = run(["tune", str(file), *work, "--format", "json", "--fix", "compilation=off", *flags])
        return status, json.loads(capsys.readouterr().out)

    return tune


def kept(answer: dict[str, Any], **choices: str) -> list[dict[str, Any]]:
    """Return the candidates of an answer, recommended or next to it, with these choices."""
    offered = [answer["recommendation"], *answer["runners_up"]]
    return [c for c in offered if c and choices.items() <= c["configuration"].items()]


def test_a_wrong_default_is_never_recommended(tuned: Callable[..., Any]) -> None:
    """FNet takes no mask: every padded batch reads its pads. Nothing is right, and the way out is batches without pads."""
    config = {**SMALL, "model_type": "fnet", "architectures": ["FNetModel"]}
    status, answer = tuned(config, "--trials", "4", "--quality", "exact")

    assert (status, answer["verdict"], answer["recommendation"]) == (4, "none-right", None)
    assert any("reads its pads" in text for text in answer["default"]["objections"])
    assert answer["default"]["tokens_per_s"] > 0  # it is timed all the same: it is what people run
    assert "--batch 1" in answer["way_out"]


def test_a_batch_of_one_is_right_where_padding_is_not(tuned: Callable[..., Any]) -> None:
    """The way out is one: a batch of one has no pads, and the same model's default is right there."""
    config = {**SMALL, "model_type": "fnet", "architectures": ["FNetModel"]}
    work = ["--lengths", "48,20,31", "--batch", "1", "--device", "cpu", "--blocks", "0"]
    status, answer = tuned(config, "--trials", "1", work=work)

    assert status == 0
    assert answer["recommendation"]["quality"]["failures"] == []


def test_decoders_without_positions_are_padded_on_the_right(tuned: Callable[..., Any]) -> None:
    """BART's decoder counts positions itself: padded on the right it is exact, and so it is padded."""
    config = {
        "model_type": "bart",
        "architectures": ["BartForCausalLM"],
        "vocab_size": 300,
        "d_model": 64,
        "decoder_layers": 2,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 128,
        "max_position_embeddings": 256,
        "is_decoder": True,
        "is_encoder_decoder": False,
        "init_std": 0.12,
    }
    status, answer = tuned(config, "--trials", "1")

    assert status == 0
    assert answer["default"]["quality"]["rms"] < 1e-5
    assert answer["default"]["objections"] == []


def test_a_leak_is_caught_however_little_it_weighs(tuned: Callable[..., Any]) -> None:
    """BioGPT drawn at 0.02: packed documents read one another, by less than bf16 rounds. It is never offered."""
    config = {
        **SMALL,
        "model_type": "biogpt",
        "architectures": ["BioGptForCausalLM"],
        "initializer_range": 0.02,
        "dtype": "bfloat16",
    }
    only = ["--only", "attention=sdpa", "--only", "packing=packed", "--only", "precision=bf16", "--ignore-rule", "P22"]
    _, answer = tuned(config, "--trials", "2", "--objective", "memory", "--quality", "exact", *only)

    assert kept(answer, packing="packed") == []
    (failed,) = (f for f in answer["failures"] if f["configuration"]["packing"] == "packed")
    assert "reads its neighbours" in failed["reason"]


@pytest.mark.parametrize("order", [pytest.param(1, marks=pytest.mark.slow), -1])
def test_long_texts_at_the_end_of_a_list_are_judged(tuned: Callable[..., Any], order: int) -> None:
    """ModernBERT packed loses its window beyond it: wrong wherever in the list the long texts are, by rule or by the gate."""
    config = {
        **SMALL,
        "model_type": "modernbert",
        "architectures": ["ModernBertModel"],
        "num_hidden_layers": 4,
        "max_position_embeddings": 128,
        "local_attention": 32,
        "global_attn_every_n_layers": 2,
        "pad_token_id": 0,
        "cls_token_id": 1,
        "sep_token_id": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    lengths = ([14, 15, 16, 16] * 40 + [80, 96] * 8)[::order]
    work = ["--lengths", ",".join(map(str, lengths)), "--batch", "16", "--device", "cpu", "--blocks", "0"]
    only = ["--only", "attention=sdpa", "--only", "packing=packed,padded", "--ignore-rule", "P24"]
    _, answer = tuned(config, "--trials", "2", "--quality", "exact", *only, work=work)

    assert kept(answer, packing="packed") == []
    (failed,) = (f for f in answer["failures"] if f["configuration"]["packing"] == "packed")
    assert "layout is wrong" in failed["reason"]


def test_rounding_that_sends_tokens_to_other_experts_is_not_called_wrong(tuned: Callable[..., Any]) -> None:
    """A mixture of experts in bf16 is off by more than dense models are, in every right configuration alike."""
    config = {
        **SMALL,
        "model_type": "mixtral",
        "architectures": ["MixtralForCausalLM"],
        "num_hidden_layers": 8,
        "num_key_value_heads": 2,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "sliding_window": None,
        "initializer_range": 0.15,
        "dtype": "bfloat16",
    }
    only = ["--only", "attention=sdpa,eager", "--only", "precision=bf16", "--only", "packing=padded,sorted"]
    status, answer = tuned(config, "--trials", "4", "--quality", "exact", *only)

    assert status == 0
    assert answer["failures"] == []
    assert answer["default"]["quality"]["rms"] > 0.1
    assert answer["tried"] == 4
    assert answer["default"]["objections"] == []
    against = [text for each in answer["rejected"] for text in each["objections"]]
    assert [
        text for text in against if not text.startswith("pruned")
    ] == []  # a busy machine gives a slow one up: no judgement


def test_fp32_is_within_a_reference_in_fp32(tuned: Callable[..., Any]) -> None:
    """A checkpoint's quantisation does not make its reference coarser: fp32 is nearest to right, and is not called wrong."""
    fp8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [32, 32]}
    config = {
        **SMALL,
        "model_type": "qwen3_moe",
        "architectures": ["Qwen3MoeForCausalLM"],
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "dtype": "bfloat16",
        "quantization_config": fp8,
    }
    only = ["--only", "attention=eager", "--only", "packing=padded"]
    _, answer = tuned(config, "--trials", "3", "--quality", "exact", *only)

    assert answer["failures"] == []
    (fp32,) = kept(answer, precision="fp32", attention="eager")
    assert fp32["quality"]["rms"] < 1e-4
    assert fp32["quality"]["reference"].startswith("fp32, eager")
    assert not any("speed is true" in note for note in answer["notes"])
