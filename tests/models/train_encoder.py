"""Train, or only evaluate, the small encoder kept in ``tests/models/encoder``.

The causal model's counterpart: a BERT of about two million parameters, trained on the same text, the source
of the standard library, to fill in masked tokens and to tell whether one piece of text continues another.

Usage::

    python tests/models/train_encoder.py --train DIR      # about ten minutes on one core
    python tests/models/train_encoder.py --evaluate DIR   # less than a minute, no training

Both print how well the model predicts masked tokens of held-out files, and how well trigrams with modified
Kneser-Ney smoothing do when they know the neighbours on both sides, and exit with status 1 unless the model's
perplexity is within 15 % of theirs: a random model's is the vocabulary's 2,048.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import tokenizers
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from train_causal import SEED, VOCABULARY_TOKENS, Corpus, TrigramModel, cut_windows, new_optimizer, standard_library
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    PreTrainedTokenizerFast,
)

SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[MASK]")
PAD, CLS, SEP, MASK = range(4)
POSITIONS_TOKENS = 512
HIDDEN = 192
HEAD_DIM = 32
HEAD_OFFSETS = (-1, 1, -2, 2, -3, 3)
"""Which neighbour each head looks at before training."""

STEPS = 3000
WARMUP_STEPS = 100
TOKENS_PER_STEP = 2048
SHORTEST_WINDOW_TOKENS = 32
PAIR_EVERY_STEPS = 4
LAYERS_FROM_STEP = {0: 1, 450: 2, 1050: 4}
MASKED_SHARE = 0.4
PEAK_LEARNING_RATE = 4e-3
GRADIENT_NORM_LIMIT = 1.0
REPORT_EVERY_STEPS = 200
REPORT_WINDOWS = 48

EVALUATION_WINDOW_TOKENS = 256
EVALUATION_WINDOWS = 96
FIRST_SCORED_POSITION = 4
SCORE_EVERY_TOKENS = 8
WINDOWS_AT_ONCE = 8

GOOD_ENOUGH = 1.15
"""How many times the trigrams' perplexity the model's may be."""


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Learn a byte-level BPE as the causal model's, that puts a text between ``[CLS]`` and ``[SEP]``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_TOKENS,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    wrap: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast  # its own signature is untyped
    return wrap(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL[PAD],
        cls_token=SPECIAL[CLS],
        sep_token=SPECIAL[SEP],
        mask_token=SPECIAL[MASK],
        model_max_length=POSITIONS_TOKENS,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """One stream of token numbers, with ``[SEP]`` after each document."""
    stream: list[int] = []
    for text in texts:
        stream += [*tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids, SEP]
    return torch.tensor(stream, dtype=torch.int64)


def new_model() -> BertForPreTraining:
    """Make a BERT small enough to be kept in git: float32 weights below 9 MB."""
    model = BertForPreTraining(
        BertConfig(
            vocab_size=VOCABULARY_TOKENS,
            hidden_size=HIDDEN,
            intermediate_size=2 * HIDDEN,
            num_hidden_layers=max(LAYERS_FROM_STEP.values()),
            num_attention_heads=len(HEAD_OFFSETS),
            max_position_embeddings=POSITIONS_TOKENS,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=PAD,
            dtype="float32",
        )
    )
    look_at_neighbours(model)
    return model


@torch.no_grad()
def look_at_neighbours(model: BertForPreTraining) -> None:
    """Set the first weights so that each head attends to one neighbour and further layers change nothing.

    From BERT's usual first weights, hours go by on one core before any head finds out that positions
    matter; until then the model knows no more than how frequent each token is.  Here a position is written
    as sines and cosines into components that the tokens leave free at first.  To go on by some tokens is to
    rotate each pair of them, and that is how queries differ from keys.
    """
    pairs = HEAD_DIM // 2
    frequencies = math.pi * (0.05 / math.pi) ** (torch.arange(pairs) / (pairs - 1))
    angles = torch.arange(POSITIONS_TOKENS)[:, None] * frequencies
    embeddings = model.bert.embeddings
    embeddings.token_type_embeddings.weight.zero_()
    embeddings.word_embeddings.weight.normal_(0.0, 0.1)[:, :HEAD_DIM] = 0.0
    embeddings.position_embeddings.weight.zero_()[:, :HEAD_DIM] = 0.15 * torch.cat([angles.sin(), angles.cos()], 1)
    for index, layer in enumerate(model.bert.encoder.layer):
        attention = layer.attention.self
        for head, offset in enumerate(HEAD_OFFSETS):
            rows = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
            cosines, sines = torch.diag((offset * frequencies).cos()), torch.diag((offset * frequencies).sin())
            rotation = torch.cat([torch.cat([cosines, sines], 1), torch.cat([-sines, cosines], 1)])
            attention.query.weight[rows, :HEAD_DIM] += 1.1 * rotation
            attention.key.weight[rows, :HEAD_DIM] += 1.1 * torch.eye(HEAD_DIM)
        attention.value.weight.normal_(0.0, HIDDEN**-0.5)[:, :HEAD_DIM] = 0.0
        layer.attention.output.dense.weight.normal_(0.0, 0.0 if index else HIDDEN**-0.5)
        layer.output.dense.weight.zero_()


@dataclass(frozen=True)
class Batch:
    """Windows of one length, with what is to be found out about them."""

    tokens: torch.Tensor
    types: torch.Tensor
    shown: torch.Tensor
    asked: torch.Tensor
    continues: torch.Tensor | None


def training_batches(stream: torch.Tensor) -> Iterator[Batch]:
    """Yield one batch of about ``TOKENS_PER_STEP`` tokens for every step, all windows of a random length.

    Every fourth step takes pairs: the second half continues the first, or comes from anywhere else.
    """
    generator = torch.Generator().manual_seed(SEED)

    def starts(windows: int, tokens: int) -> torch.Tensor:
        return torch.randint(len(stream) - tokens + 1, (windows, 1), generator=generator)

    for step in range(STEPS):
        doublings = math.log2(POSITIONS_TOKENS / SHORTEST_WINDOW_TOKENS)
        length = int(SHORTEST_WINDOW_TOKENS * 2 ** (doublings * torch.rand((), generator=generator).item()))
        windows = TOKENS_PER_STEP // length
        cls, sep = torch.full((windows, 1), CLS), torch.full((windows, 1), SEP)
        if step % PAIR_EVERY_STEPS:
            continues = None
            tokens = torch.cat([cls, stream[starts(windows, length - 2) + torch.arange(length - 2)], sep], 1)
            types = torch.zeros_like(tokens)
        else:
            half = (length - 3) // 2
            continues = torch.randint(2, (windows,), generator=generator)
            first = starts(windows, 2 * half)
            second = torch.where(continues[:, None] == 1, first + half, starts(windows, half))
            places = torch.arange(half)
            tokens = torch.cat([cls, stream[first + places], sep, stream[second + places], sep], 1)
            types = (torch.arange(2 * half + 3) >= half + 2).long().expand_as(tokens)
        shown, asked = mask(tokens, generator)
        yield Batch(tokens, types, shown, asked, continues)


def mask(tokens: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose the tokens to ask for; of those, mask eight in ten, show one wrong and one as it is."""
    asked = (torch.rand(tokens.shape, generator=generator) < MASKED_SHARE) & (tokens >= len(SPECIAL))
    fate = torch.rand(tokens.shape, generator=generator)
    wrong = torch.randint(len(SPECIAL), VOCABULARY_TOKENS, tokens.shape, generator=generator)
    shown = torch.where(asked & (fate < 0.8), MASK, tokens)
    return torch.where(asked & (fate >= 0.9), wrong, shown), asked


def learning_rate(step: int) -> float:
    """Linear warm-up, then half a cosine down to nothing."""
    return PEAK_LEARNING_RATE * min(1.0, (step + 1) / WARMUP_STEPS) * 0.5 * (1.0 + math.cos(math.pi * step / STEPS))


def train_model(model: BertForPreTraining, stream: torch.Tensor, tuning_windows: torch.Tensor) -> None:
    """Train in place: one layer at first, the others put on top later, since shallow steps cost little."""
    optimizer = new_optimizer(model)
    layers = list(model.bert.encoder.layer)
    right: list[float] = []
    started_s, started_cpu_s = time.monotonic(), time.process_time()
    for step, batch in enumerate(training_batches(stream)):
        if step in LAYERS_FROM_STEP:
            model.bert.encoder.layer = torch.nn.ModuleList(layers[: LAYERS_FROM_STEP[step]])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        model.train()
        output = model.bert(batch.shown, token_type_ids=batch.types)
        logits = model.cls.predictions(output.last_hidden_state[batch.asked])
        loss = torch.nn.functional.cross_entropy(logits, batch.tokens[batch.asked])
        if batch.continues is not None:
            answers = model.cls.seq_relationship(output.pooler_output)
            loss = loss + torch.nn.functional.cross_entropy(answers, batch.continues)
            right.append((answers.argmax(1) == batch.continues).float().mean().item())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM_LIMIT)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % REPORT_EVERY_STEPS == 0 or step + 1 == STEPS:
            score = model_score(model, tuning_windows)
            print(
                f"step {step + 1:5d}  loss {loss.item():.3f}  tuning {score}  "
                f"continuation told right {sum(right) / len(right):.3f}  "
                f"{time.monotonic() - started_s:5.0f} s, {time.process_time() - started_cpu_s:5.0f} s of the processor",
                flush=True,
            )
            right.clear()


def save(model: BertForPreTraining, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Write a checkpoint that every user may read, as a masked language model with its pooler.

    Every weight of a plain ``BertModel`` is then there, as in Google's own checkpoints.
    """
    weights = {name: tensor for name, tensor in model.state_dict().items() if "seq_relationship" not in name}
    masked = BertForMaskedLM(model.config)
    masked.save_pretrained(directory, state_dict=weights)
    tokenizer.save_pretrained(directory)
    pooling = directory / "1_Pooling" / "config.json"
    pooling.parent.mkdir(exist_ok=True)
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    content = {
        "word_embedding_dimension": HIDDEN,
        **{f"pooling_mode_{mode}": mode == "mean_tokens" for mode in modes},
        "include_prompt": True,
    }
    pooling.write_text(json.dumps(content, indent=2) + "\n")
    for path in directory.rglob("*.*"):
        if path.is_file():
            path.chmod(0o644)


def framed(stream: torch.Tensor, window_tokens: int, limit: int | None = None) -> torch.Tensor:
    """Cut a stream into windows, each between ``[CLS]`` and ``[SEP]``; with a limit, take them evenly spread."""
    windows = cut_windows(stream, window_tokens - 2, limit)
    return torch.nn.functional.pad(torch.nn.functional.pad(windows, (1, 0), value=CLS), (0, 1), value=SEP)


def scored(windows: torch.Tensor) -> torch.Tensor:
    """Every eighth token is asked for, so that its neighbours are always shown; special tokens are not."""
    places = torch.zeros_like(windows, dtype=torch.bool)
    places[:, FIRST_SCORED_POSITION::SCORE_EVERY_TOKENS] = True
    return places & (windows >= len(SPECIAL))


@dataclass(frozen=True)
class Score:
    """How well masked tokens were predicted."""

    perplexity: float
    accuracy: float
    tokens: int

    @classmethod
    def of(cls, predict: Callable[[torch.Tensor], torch.Tensor], windows: torch.Tensor) -> Score:
        """Score what predicts log-probabilities (up to a constant) at the places to score."""
        losses, hits = [], []
        for part in windows.split(WINDOWS_AT_ONCE):
            logits, targets = predict(part), part[scored(part)]
            losses.append(torch.nn.functional.cross_entropy(logits.double(), targets, reduction="none"))
            hits.append((logits.argmax(1) == targets).double())
        return cls(math.exp(torch.cat(losses).mean().item()), torch.cat(hits).mean().item(), len(torch.cat(hits)))

    def __str__(self) -> str:
        return f"perplexity {self.perplexity:7.3f}, {self.accuracy:.1%} right"


@torch.inference_mode()
def model_score(model: BertForMaskedLM | BertForPreTraining, windows: torch.Tensor) -> Score:
    """Score a model that sees ``[MASK]`` at every place to score."""
    model.train(False)

    def predict(part: torch.Tensor) -> torch.Tensor:
        places = scored(part)
        hidden = model.bert(torch.where(places, MASK, part)).last_hidden_state[places]
        return cast("torch.Tensor", model.cls.predictions(hidden))

    return Score.of(predict, windows)


def trigram_score(trigram: TrigramModel, windows: torch.Tensor) -> Score:
    """Score the trigram model's exact posterior: which token makes its two neighbours on each side likeliest."""

    def predict(part: torch.Tensor) -> torch.Tensor:
        row, column = scored(part).nonzero(as_tuple=True)
        here = torch.arange(VOCABULARY_TOKENS).repeat(len(row), 1)
        before2, before1, after1, after2 = (
            part[row, column + offset][:, None].repeat(1, VOCABULARY_TOKENS) for offset in (-2, -1, 1, 2)
        )
        triples = ((before2, before1, here), (before1, here, after1), (here, after1, after2))
        return torch.stack([trigram.probabilities(*triple).log() for triple in triples]).sum(0)

    return Score.of(predict, windows)


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation found."""

    model: Score
    trigram: Score
    long_window: Score
    held_out_tokens: int

    def report(self) -> str:
        """Put the figures in words, with the share of the held-out tokens that they rest on."""
        return (
            f"held-out tokens: {self.held_out_tokens}, of which {self.model.tokens} masked and scored, "
            f"in windows of {EVALUATION_WINDOW_TOKENS}\n"
            f"model:    {self.model}\n"
            f"trigrams: {self.trigram} (modified Kneser-Ney, two neighbours on each side)\n"
            f"model in about as much text in windows of {POSITIONS_TOKENS}: {self.long_window}"
        )


def evaluate(directory: Path, corpus: Corpus, windows: int | None = EVALUATION_WINDOWS) -> Evaluation:
    """Compare a checkpoint with the trigram model over held-out windows, all of them for ``None``.

    The trigram model counts the tuning files too, which the model has not seen.
    """
    tokenizer = cast("PreTrainedTokenizerFast", AutoTokenizer.from_pretrained(directory, local_files_only=True))
    model = cast("BertForMaskedLM", AutoModelForMaskedLM.from_pretrained(directory, local_files_only=True))
    trigram = TrigramModel(encode(tokenizer, corpus.training + corpus.tuning))
    held_out = encode(tokenizer, corpus.held_out)
    short = framed(held_out, EVALUATION_WINDOW_TOKENS, windows)
    long = framed(held_out, POSITIONS_TOKENS, math.ceil(short.numel() / POSITIONS_TOKENS))
    return Evaluation(
        model=model_score(model, short),
        trigram=trigram_score(trigram, short),
        long_window=model_score(model, long),
        held_out_tokens=len(held_out),
    )


def train(directory: Path, corpus: Corpus) -> None:
    """Train tokenizer and model and write them to ``directory``."""
    torch.manual_seed(SEED)
    tokenizer = train_tokenizer(corpus.training)
    stream = encode(tokenizer, corpus.training)
    model = new_model()
    print(
        f"python {sys.version.split()[0]}, torch {torch.__version__}, tokenizers {tokenizers.__version__}; "
        f"{len(corpus.training)} training files, {len(stream)} tokens; {model.num_parameters()} parameters",
        flush=True,
    )
    train_model(model, stream, framed(encode(tokenizer, corpus.tuning), EVALUATION_WINDOW_TOKENS, REPORT_WINDOWS))
    save(model, tokenizer, directory)


def main() -> int:
    """Run from the command line; the exit status says whether the model keeps up with the trigram model."""
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
    return 0 if evaluation.model.perplexity < GOOD_ENOUGH * evaluation.trigram.perplexity else 1


if __name__ == "__main__":
    sys.exit(main())
