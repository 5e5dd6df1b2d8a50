"""The encoder in ``tests/models/encoder`` keeps the promises that the other tests rely on."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

MODELS = Path(__file__).parent / "models"
ENCODER = MODELS / "encoder"
LIMIT_BYTES = 9_000_000
MINIMUM_CORPUS_FILES = 200
SLICE_WINDOWS = 48


pytestmark = pytest.mark.usefixtures("one_thread", "offline")


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """Import the training script, and with it the causal one: both are found as when they are run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(MODELS)
        yield importlib.import_module("train_encoder")
    for name in ("train_encoder", "train_causal"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Load the shipped tokenizer as any user of transformers would."""
    return transformers.AutoTokenizer.from_pretrained(ENCODER, local_files_only=True)


@pytest.fixture(scope="module")
def model() -> Any:
    """Load the shipped model without naming a dtype, so that its own configuration decides."""
    return transformers.AutoModel.from_pretrained(ENCODER, local_files_only=True).eval()


def test_directory_holds_only_the_checkpoint_and_is_small() -> None:
    """The directory holds a readable model, tokenizer and pooling of at most 9 MB together, and nothing else."""
    files = sorted(path for path in ENCODER.rglob("*") if path.is_file())
    assert [path.relative_to(ENCODER).as_posix() for path in files] == [
        "1_Pooling/config.json",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert sum(path.stat().st_size for path in files) <= LIMIT_BYTES


def test_weights_are_float32_and_declared_so(model: Any) -> None:
    """Every weight is finite float32, and config.json says float32."""
    assert json.loads((ENCODER / "config.json").read_text())["dtype"] == "float32"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


@pytest.mark.parametrize("auto", ["AutoModel", "AutoModelForMaskedLM"])
def test_no_weight_is_missing(auto: str) -> None:
    """Both the plain encoder, with its pooler, and the masked language model find all their weights."""
    load = getattr(transformers, auto).from_pretrained
    _, found = load(ENCODER, local_files_only=True, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["mismatched_keys"]


def test_architecture_is_a_plain_bert(model: Any) -> None:
    """The encoder is a BERT without dropout, with absolute positions to 512 and kernel-friendly widths."""
    config = model.config
    assert config.architectures == ["BertForMaskedLM"]
    assert config.model_type == "bert"
    assert config.max_position_embeddings == 512
    assert config.hidden_size // config.num_attention_heads == 32
    assert config.hidden_size % 64 == 0
    assert config.intermediate_size % 64 == 0
    assert config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0.0


def test_pooling_is_the_mean(model: Any) -> None:
    """The pooling's file names the mean alone, as sentence-transformers writes it."""
    pooling = json.loads((ENCODER / "1_Pooling" / "config.json").read_text())
    modes = {name: value for name, value in pooling.items() if name.startswith("pooling_mode_")}
    assert [name for name, value in modes.items() if value] == ["pooling_mode_mean_tokens"]
    assert set(modes.values()) == {True, False}
    assert pooling["word_embedding_dimension"] == model.config.hidden_size


def test_model_looks_both_ways_but_not_at_padding(model: Any) -> None:
    """A changed token changes the states before and after it; padding, once masked, changes nothing."""
    tokens = torch.arange(10, 42)[None]
    changed = tokens.clone()
    changed[0, 16] = 999
    padded = torch.nn.functional.pad(tokens, (0, 8), value=model.config.pad_token_id)
    with torch.inference_mode():
        before, after = model(tokens).last_hidden_state[0], model(changed).last_hidden_state[0]
        beside = model(padded, attention_mask=(torch.arange(40) < 32).long()[None]).last_hidden_state[0]
    assert not torch.allclose(before[15], after[15], atol=1e-2)
    assert not torch.allclose(before[17], after[17], atol=1e-2)
    torch.testing.assert_close(before, beside[:32], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "text",
    [
        "def f(x: int) -> int:\n    return x + 1\n",
        "  leading and trailing  \t\r\n\n",
        "naïve façade, Straße, 東京, Привет, \N{OWL}",
        "it 's a test , isn't it ?",
    ],
)
def test_tokenizer_frames_and_round_trips_any_text(tokenizer: Any, text: str) -> None:
    """A text stands between [CLS] and [SEP] and comes back unchanged, whatever its script and spacing."""
    ids = tokenizer(text).input_ids
    assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_tokenizer_frames_pairs(tokenizer: Any) -> None:
    """The second text of a pair has an end and a token type of its own."""
    pair = tokenizer("import os", "import sys")
    first, second = (len(tokenizer(text).input_ids) for text in ("import os", "import sys"))
    assert pair.token_type_ids == [0] * first + [1] * (second - 1)
    assert [pair.input_ids[0], pair.input_ids[first - 1], pair.input_ids[-1]] == [
        tokenizer.cls_token_id,
        tokenizer.sep_token_id,
        tokenizer.sep_token_id,
    ]


def test_tokenizer_fits_the_model(tokenizer: Any, model: Any) -> None:
    """The vocabularies have one size, the four special tokens are distinct, and the lengths agree."""
    special = [getattr(tokenizer, f"{name}_token_id") for name in ("pad", "cls", "sep", "mask")]
    assert len(tokenizer) == model.config.vocab_size == model.get_input_embeddings().num_embeddings
    assert special == [0, 1, 2, 3]
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert tokenizer.model_max_length == model.config.max_position_embeddings


@pytest.mark.slow
def test_model_fills_in_about_as_well_as_trigrams_from_both_sides(script: ModuleType) -> None:
    """On held-out files the model fills masked tokens in nearly as well as Kneser-Ney trigrams that see both sides.

    That is far from a random model, whose perplexity is the vocabulary's 2,048: its weights have something to lose.
    """
    corpus = script.standard_library()
    if len(corpus.training) < MINIMUM_CORPUS_FILES:
        pytest.skip("this Python comes without the source of its standard library")
    found = script.evaluate(ENCODER, corpus, windows=SLICE_WINDOWS)
    assert found.model.perplexity < 20, found.report()
    assert found.model.perplexity < script.GOOD_ENOUGH * found.trigram.perplexity, found.report()
