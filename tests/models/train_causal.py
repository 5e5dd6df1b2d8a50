"""Train, or only evaluate, the small causal language model kept in ``tests/models/causal``.

The project's tests need a real decoder-only checkpoint: one whose output gets measurably worse when
something is wrong with how it is run.  Random weights cannot show that, and a download would make the
tests depend on a network.  So this script trains a Llama of about two million parameters on text that
every machine with Python already has, the source of the standard library, on one CPU core.

Usage::

    python tests/models/train_causal.py --train DIR      # about 25 minutes on one core
    python tests/models/train_causal.py --evaluate DIR   # less than a minute, no training

Both print the held-out perplexity of the model and of an interpolated trigram model with modified
Kneser-Ney smoothing over the very same tokens, and exit with status 1 unless the model is better.
"""

from __future__ import annotations

import argparse
import math
import sys
import sysconfig
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import tokenizers
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

SEED = 20261123
PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"
VOCABULARY_TOKENS = 2048
POSITIONS_TOKENS = 2048

STEPS = 2500
WARMUP_STEPS = 100
TOKENS_PER_STEP = 2048
SHORT_WINDOW_TOKENS = 256
LONG_STEP_EVERY_STEPS = 8
PEAK_LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.1
GRADIENT_NORM_LIMIT = 1.0
CHECK_EVERY_STEPS = 100
CHECK_WINDOWS = 16

EVALUATION_WINDOW_TOKENS = 512
EVALUATION_WINDOWS = 96
FIRST_SCORED_POSITION = 2

LEFT_OUT_DIRECTORIES = frozenset(
    {
        *("test", "tests", "idle_test", "idlelib", "lib2to3", "encodings", "pydoc_data"),
        *("site-packages", "dist-packages", "lib-dynload", "__pycache__"),
    }
)
"""Tests, tables (character maps, grammars, the text of ``help()``), and what is not standard library."""

LEFT_OUT_PREFIXES = ("_sysconfigdata", "sitecustomize", "usercustomize")
"""Files that describe one machine, so that two machines with the same Python train on the same text."""


@dataclass(frozen=True)
class Corpus:
    """The standard library's source, split by file."""

    training: list[str]
    tuning: list[str]
    held_out: list[str]


def read_corpus(root: Path) -> Corpus:
    """Read the library below ``root`` and split it by a hash of each file's relative name.

    A hash holds out about one file in twenty, as counting would, but a file keeps its side when another
    Python version adds or removes its neighbours: a model trained under one version is then not
    evaluated on its own training text under the next.
    """
    corpus = Corpus([], [], [])
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        machine_specific = name.name.startswith(LEFT_OUT_PREFIXES) or name.parts[0].startswith("config-")
        if machine_specific or LEFT_OUT_DIRECTORIES.intersection(name.parts):
            continue
        text = path.read_bytes().decode("utf-8", errors="replace")
        side = zlib.crc32(name.as_posix().encode()) % 40
        if side in (0, 20):
            corpus.held_out.append(text)
        elif side == 1:
            corpus.tuning.append(text)
        else:
            corpus.training.append(text)
    return corpus


def standard_library() -> Corpus:
    """Read the corpus of the Python that runs this script."""
    return read_corpus(Path(sysconfig.get_paths()["stdlib"]))


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Learn a byte-level BPE: it has no unknown token, so any text survives a round trip."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_TOKENS,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    wrap: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast  # its own signature is untyped
    return wrap(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=POSITIONS_TOKENS,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """One stream of token numbers, each document between ``bos`` and ``eos``.

    The library underneath is called directly: it does not warn about documents longer than a window.
    """
    stream: list[int] = []
    for text in texts:
        ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        stream += [cast("int", tokenizer.bos_token_id), *ids, cast("int", tokenizer.eos_token_id)]
    return torch.tensor(stream, dtype=torch.int64)


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Make a Llama small enough to be kept in git: float32 weights below 9 MB.

    Widths are multiples of 128, so that group-wise quantisers accept every matrix, and there are four
    query heads to a key-value head, so that grouped-query attention is exercised.
    """
    config = LlamaConfig(
        vocab_size=VOCABULARY_TOKENS,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=POSITIONS_TOKENS,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        dtype="float32",
    )
    return LlamaForCausalLM(config)


def training_batches(stream: torch.Tensor, bos_id: int) -> Iterator[torch.Tensor]:
    """Yield one batch of ``TOKENS_PER_STEP`` tokens for every step.

    Most steps take short windows, the cheapest per token, one of them from the start of a document.
    Every eighth takes one window of the full length, so that late positions are trained too.
    """
    generator = torch.Generator().manual_seed(SEED)
    document_starts = torch.nonzero(stream == bos_id).flatten()
    document_starts = document_starts[document_starts + SHORT_WINDOW_TOKENS <= len(stream)]
    for step in range(STEPS):
        window_tokens = POSITIONS_TOKENS if step % LONG_STEP_EVERY_STEPS == 0 else SHORT_WINDOW_TOKENS
        windows = TOKENS_PER_STEP // window_tokens
        starts = torch.randint(len(stream) - window_tokens + 1, (windows,), generator=generator)
        if windows > 1:
            starts[0] = document_starts[torch.randint(len(document_starts), (), generator=generator)]
        yield stream[starts[:, None] + torch.arange(window_tokens)]


def learning_rate(step: int) -> float:
    """Linear warm-up, then half a cosine down to nothing."""
    if step < WARMUP_STEPS:
        return PEAK_LEARNING_RATE * (step + 1) / WARMUP_STEPS
    progress = (step - WARMUP_STEPS) / (STEPS - WARMUP_STEPS)
    return PEAK_LEARNING_RATE * 0.5 * (1.0 + math.cos(math.pi * progress))


def new_optimizer(model: LlamaForCausalLM) -> torch.optim.AdamW:
    """AdamW that decays matrices only: shrinking the gains of the norms would only cost accuracy."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    gains = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": gains, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_LEARNING_RATE, betas=(0.9, 0.95))


def train_model(model: LlamaForCausalLM, stream: torch.Tensor, tuning_windows: torch.Tensor) -> None:
    """Train in place and leave the weights that predicted the tuning files best."""
    optimizer = new_optimizer(model)
    best_perplexity, best_state = math.inf, model.state_dict()
    started_s = time.monotonic()
    for step, batch in enumerate(training_batches(stream, cast("int", model.config.bos_token_id))):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        model.train()
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM_LIMIT)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % CHECK_EVERY_STEPS == 0 or step + 1 == STEPS:
            perplexity = model_perplexity(model, tuning_windows)
            if perplexity < best_perplexity:
                best_perplexity = perplexity
                best_state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            print(
                f"step {step + 1:5d}  loss {loss.item():.3f}  tuning perplexity {perplexity:7.2f}  "
                f"{time.monotonic() - started_s:6.0f} s",
                flush=True,
            )
    model.load_state_dict(best_state)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Write a checkpoint that every user may read (transformers leaves the weights to their owner)."""
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    (directory / "generation_config.json").unlink(missing_ok=True)
    for path in directory.iterdir():
        path.chmod(0o644)


def cut_windows(stream: torch.Tensor, window_tokens: int, limit: int | None = None) -> torch.Tensor:
    """Cut a stream into full windows that do not overlap; with a limit, take them evenly spread."""
    windows = stream[: len(stream) // window_tokens * window_tokens].view(-1, window_tokens)
    if limit is None or limit >= len(windows):
        return windows
    return windows[torch.arange(limit) * len(windows) // limit]


@torch.inference_mode()
def model_perplexity(model: LlamaForCausalLM, windows: torch.Tensor) -> float:
    """Perplexity per token from ``FIRST_SCORED_POSITION`` on: each window starts without a past."""
    model.train(False)
    losses = []
    for window in windows.unsqueeze(1):
        logits = model(input_ids=window, use_cache=False).logits[0, FIRST_SCORED_POSITION - 1 : -1]
        targets = window[0, FIRST_SCORED_POSITION:]
        losses.append(torch.nn.functional.cross_entropy(logits.float(), targets).double())
    return math.exp(torch.stack(losses).mean().item())


@dataclass(frozen=True)
class NgramLevel:
    """The n-grams of one order, as sorted numbers, with what modified Kneser-Ney needs about them."""

    ngrams: torch.Tensor
    discounted_counts: torch.Tensor
    contexts: torch.Tensor
    context_totals: torch.Tensor
    context_reserves: torch.Tensor

    @classmethod
    def count(cls, ngrams: torch.Tensor, counts: torch.Tensor) -> NgramLevel:
        """Discount by Chen and Goodman's three estimates, for counts of one, two, and more."""
        n1, n2, n3, n4 = (float((counts == times).sum()) for times in (1, 2, 3, 4))
        base = n1 / (n1 + 2 * n2)
        discounts = torch.tensor(
            [0.0, 1 - 2 * base * n2 / n1, 2 - 3 * base * n3 / n2, 3 - 4 * base * n4 / n3],
            dtype=torch.float64,
        )
        removed = discounts[counts.clamp(max=3)]
        contexts, owner = torch.unique_consecutive(ngrams // VOCABULARY_TOKENS, return_inverse=True)
        zeros = torch.zeros(len(contexts), dtype=torch.float64)
        return cls(
            ngrams=ngrams,
            discounted_counts=counts.double() - removed,
            contexts=contexts,
            context_totals=zeros.index_add(0, owner, counts.double()),
            context_reserves=zeros.index_add(0, owner, removed),
        )

    def probabilities(self, ngrams: torch.Tensor, lower: torch.Tensor) -> torch.Tensor:
        """Interpolate with the next lower order's probabilities of the same last tokens."""
        index, known = find(self.ngrams, ngrams)
        count = torch.where(known, self.discounted_counts[index], 0.0)
        index, known = find(self.contexts, ngrams // VOCABULARY_TOKENS)
        total = torch.where(known, self.context_totals[index], 1.0)
        reserve = torch.where(known, self.context_reserves[index], 1.0)
        return (count + reserve * lower) / total


def find(ordered: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each wanted number is in an ordered tensor, and whether it is there at all."""
    index = torch.searchsorted(ordered, wanted).clamp(max=len(ordered) - 1)
    return index, ordered[index] == wanted


class TrigramModel:
    """Interpolated trigrams with modified Kneser-Ney smoothing, the strongest usual n-gram model."""

    def __init__(self, stream: torch.Tensor) -> None:
        """Count trigrams; lower orders count the distinct contexts that an n-gram follows."""
        self.levels: list[NgramLevel] = []
        size = VOCABULARY_TOKENS
        keys = (stream[:-2] * size + stream[1:-1]) * size + stream[2:]
        for order in (3, 2, 1):
            keys, counts = torch.unique(keys, return_counts=True)
            self.levels.append(NgramLevel.count(keys, counts))
            keys = keys % size ** (order - 1)

    def probabilities(self, first: torch.Tensor, second: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """Return the probability of each ``last`` token after ``first`` and ``second``."""
        size = VOCABULARY_TOKENS
        result = torch.full(last.shape, 1.0 / size, dtype=torch.float64)
        for level, ngrams in zip(
            reversed(self.levels),
            (last, second * size + last, (first * size + second) * size + last),
            strict=True,
        ):
            result = level.probabilities(ngrams, result)
        return result

    def perplexity(self, windows: torch.Tensor) -> float:
        """Perplexity per token over the same positions that ``model_perplexity`` scores."""
        probabilities = self.probabilities(
            windows[:, :-2].flatten(), windows[:, 1:-1].flatten(), windows[:, 2:].flatten()
        )
        return math.exp(-probabilities.log().mean().item())


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation found."""

    model_perplexity: float
    trigram_perplexity: float
    long_window_perplexity: float
    scored_tokens: int
    held_out_tokens: int

    def report(self) -> str:
        """Put the figures in words, with the share of the held-out tokens that they rest on."""
        return (
            f"held-out tokens: {self.held_out_tokens}, of which {self.scored_tokens} scored, "
            f"in windows of {EVALUATION_WINDOW_TOKENS}\n"
            f"model perplexity:   {self.model_perplexity:.3f}\n"
            f"trigram perplexity: {self.trigram_perplexity:.3f} (modified Kneser-Ney, same tokens)\n"
            f"model perplexity in about as many tokens in windows of {POSITIONS_TOKENS}: "
            f"{self.long_window_perplexity:.3f}"
        )


def evaluate(directory: Path, corpus: Corpus, windows: int | None = EVALUATION_WINDOWS) -> Evaluation:
    """Compare a checkpoint with the trigram model over held-out windows, all of them for ``None``.

    The trigram model counts the tuning files too; the model has only chosen its best state by them.
    """
    tokenizer = cast("PreTrainedTokenizerFast", AutoTokenizer.from_pretrained(directory, local_files_only=True))
    model = cast("LlamaForCausalLM", AutoModelForCausalLM.from_pretrained(directory, local_files_only=True))
    trigram = TrigramModel(encode(tokenizer, corpus.training + corpus.tuning))
    held_out = encode(tokenizer, corpus.held_out)
    short = cut_windows(held_out, EVALUATION_WINDOW_TOKENS, windows)
    long = cut_windows(held_out, POSITIONS_TOKENS, math.ceil(short.numel() / POSITIONS_TOKENS))
    return Evaluation(
        model_perplexity=model_perplexity(model, short),
        trigram_perplexity=trigram.perplexity(short),
        long_window_perplexity=model_perplexity(model, long),
        scored_tokens=short[:, FIRST_SCORED_POSITION:].numel(),
        held_out_tokens=len(held_out),
    )


def train(directory: Path, corpus: Corpus) -> None:
    """Train tokenizer and model and write them to ``directory``."""
    torch.manual_seed(SEED)
    tokenizer = train_tokenizer(corpus.training)
    stream = encode(tokenizer, corpus.training)
    model = new_model(tokenizer)
    print(
        f"python {sys.version.split()[0]}, torch {torch.__version__}, tokenizers {tokenizers.__version__}; "
        f"{len(corpus.training)} training files, {len(stream)} tokens; {model.num_parameters()} parameters",
        flush=True,
    )
    tuning = encode(tokenizer, corpus.tuning)
    train_model(model, stream, cut_windows(tuning, EVALUATION_WINDOW_TOKENS, CHECK_WINDOWS))
    save(model, tokenizer, directory)


def main() -> int:
    """Run from the command line; the exit status says whether the model beats the trigram model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--train", type=Path, metavar="DIR", help="train, write DIR, evaluate on all windows")
    mode.add_argument("--evaluate", type=Path, metavar="DIR", help="only evaluate DIR, on a fixed slice")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    corpus = standard_library()
    if arguments.train:
        train(arguments.train, corpus)
        evaluation = evaluate(arguments.train, corpus, windows=None)
    else:
        evaluation = evaluate(arguments.evaluate, corpus)
    print(evaluation.report())
    return 0 if evaluation.model_perplexity < evaluation.trigram_perplexity else 1


if __name__ == "__main__":
    sys.exit(main())
