"""The causal model in ``tests/models/causal`` keeps the promises that the other tests rely on."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

MODELS = Path(__file__).parent / "models"
CAUSAL = MODELS / "causal"
LIMIT_BYTES = 9_000_000
MINIMUM_CORPUS_FILES = 200
SLICE_WINDOWS = 24


pytestmark = pytest.mark.usefixtures("one_thread", "offline")


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """Import the training script by its path, since ``tests/models`` is not a package."""
    name = "shipped_model_train_causal"
    spec = importlib.util.spec_from_file_location(name, MODELS / "train_causal.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[name]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Load the shipped tokenizer as any user of transformers would."""
    return transformers.AutoTokenizer.from_pretrained(CAUSAL, local_files_only=True)


@pytest.fixture(scope="module")
def model() -> Any:
    """Load the shipped model without naming a dtype, so that its own configuration decides."""
    return transformers.AutoModelForCausalLM.from_pretrained(CAUSAL, local_files_only=True)


def test_directory_holds_only_the_checkpoint_and_is_small() -> None:
    """The directory holds a readable model and tokenizer of at most 9 MB together, and nothing else."""
    files = sorted(CAUSAL.iterdir())
    assert [path.name for path in files] == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert sum(path.stat().st_size for path in files) <= LIMIT_BYTES


def test_weights_are_float32_and_declared_so(model: Any) -> None:
    """Every weight is finite float32, and config.json says float32."""
    assert json.loads((CAUSAL / "config.json").read_text())["dtype"] == "float32"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_architecture_exercises_what_large_models_use(model: Any) -> None:
    """The model is causal, ties its embeddings, shares key-value heads and has kernel-friendly widths."""
    config = model.config
    assert config.architectures == ["LlamaForCausalLM"]
    assert config.tie_word_embeddings
    assert config.num_key_value_heads < config.num_attention_heads
    assert config.head_dim % 8 == 0
    assert config.hidden_size % 128 == 0
    assert config.intermediate_size % 128 == 0
    assert config.max_position_embeddings == 2048


def test_model_does_not_look_ahead(model: Any) -> None:
    """Changing a token leaves the predictions before it as they were."""
    tokens = torch.arange(10, 42)[None]
    changed = tokens.clone()
    changed[0, 20] = 999
    with torch.inference_mode():
        before, after = model(tokens).logits[0], model(changed).logits[0]
    torch.testing.assert_close(before[:20], after[:20])
    assert not torch.allclose(before[20:], after[20:])


@pytest.mark.parametrize(
    "text",
    [
        "def f(x: int) -> int:\n    return x + 1\n",
        "  leading and trailing  \t\r\n\n",
        "naïve façade, Straße, 東京, Привет, \N{OWL}",
        "it 's a test , isn't it ?",
    ],
)
def test_tokenizer_round_trips_any_text(tokenizer: Any, text: str) -> None:
    """Text comes back from the tokenizer unchanged, whatever its script and spacing."""
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_tokenizer_fits_the_model(tokenizer: Any, model: Any) -> None:
    """The vocabularies have one size, and tokenizer and model agree on three distinct special tokens."""
    special = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id]
    assert len(tokenizer) == model.config.vocab_size == model.get_input_embeddings().num_embeddings
    assert special == [model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id]
    assert len(set(special)) == 3


def test_trigram_probabilities_sum_to_one(script: ModuleType) -> None:
    """The rival is a proper distribution after seen and unseen contexts, so its perplexity is honest."""
    generator = torch.Generator().manual_seed(0)
    stream = torch.empty(60_000).exponential_(1 / 100, generator=generator).long()
    trigram = script.TrigramModel(stream)
    last = torch.arange(script.VOCABULARY_TOKENS)
    for first, second in [(int(stream[5]), int(stream[6])), (2000, int(stream[6])), (2000, 2001)]:
        total = trigram.probabilities(torch.full_like(last, first), torch.full_like(last, second), last).sum()
        assert math.isclose(float(total), 1.0, rel_tol=1e-9)


@pytest.mark.slow
def test_model_beats_the_trigram_model(script: ModuleType) -> None:
    """On held-out files the model predicts clearly better than Kneser-Ney trigrams, at late positions too."""
    corpus = script.standard_library()
    if len(corpus.training) < MINIMUM_CORPUS_FILES:
        pytest.skip("this Python comes without the source of its standard library")
    found = script.evaluate(CAUSAL, corpus, windows=SLICE_WINDOWS)
    assert found.model_perplexity < 0.9 * found.trigram_perplexity, found.report()
    assert found.long_window_perplexity < 0.9 * found.trigram_perplexity, found.report()
