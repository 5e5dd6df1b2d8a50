"""The forward workload: batches of sequences in, logits, hidden states, embeddings or scores out; no generation, no cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from advisor.errors import BadInput, named
from advisor.models.declared import architectures, is_encoder, refuse_unpadded, unserved_head
from advisor.nouns.entry import Sent
from advisor.nouns.metrics import MEMORY, Metric, rate_of, seconds
from advisor.nouns.model import ModelFacts, ModelFiles, ModelSource
from advisor.nouns.option import Option
from advisor.workloads.figures import ENERGY, THROUGHPUT
from advisor.workloads.kind import Kind, Preparation, Running, Served
from advisor.workloads.options import LIST_OPTIONS
from advisor.workloads.runtime import Runtime
from advisor.workloads.work import Head, Needs
from advisor.workloads.workload import Workload

#: What may be asked of the forward pass. pooled: one embedding a sequence; scores: a classification head's outputs.
LAST, ALL, HIDDEN, EMBEDDINGS, SCORES = OUTPUTS = ("last-logits", "all-logits", "hidden", "pooled", "scores")

#: The outputs that are logits over the vocabulary.
LOGITS = (LAST, ALL)

#: The word that work is stored by which embeds: it was a kind of its own once.
EMBED = "embed"

_OTHERWISE = "ask for hidden, pooled or scores"

_NEEDS = {
    LAST: Needs(Head.LANGUAGE, next_token=True, otherwise=_OTHERWISE),
    ALL: Needs(Head.LANGUAGE, otherwise=_OTHERWISE),
    HIDDEN: Needs(Head.NONE),
    EMBEDDINGS: Needs(Head.NONE, sent=Sent.APART),
    SCORES: Needs(Head.CLASSIFICATION, sent=Sent.PAIRED),
}

#: What a sequence gets, in words.
_RESULTS = {
    LAST: "the last logits",
    ALL: "all logits",
    HIDDEN: "the hidden states",
    EMBEDDINGS: "the embedding",
    SCORES: "the scores",
}


@dataclass(frozen=True)
class Forward(Workload):
    """A forward pass over sequences, and what output is asked for."""

    output: str = LAST

    def __post_init__(self) -> None:
        """Refuse what is not a workload."""
        super().__post_init__()
        if self.output not in OUTPUTS:
            raise BadInput(f"{named('output')} must be one of {', '.join(OUTPUTS)}, not {self.output!r}")

    @property
    def kind(self) -> str:
        """Return embed where a sequence gives one embedding, else forward."""
        return EMBED if self.output == EMBEDDINGS else "forward"

    @property
    def needs(self) -> Needs:
        """What the output needs of a model's class."""
        return _NEEDS[self.output]

    @property
    def own_payload(self) -> dict[str, Any]:
        """The output."""
        return {"output": self.output}

    @property
    def own_flags(self) -> str:
        """The flag of the output."""
        return f"--output {self.output}"

    def predictions(self) -> int:
        """Return how many positions logits are asked for."""
        return {LAST: len(self.lengths), ALL: self.tokens}.get(self.output, 0)

    def kept(self, rows: int, columns: int) -> int:
        """Return how many positions' logits are in memory at once: all of a call's, where all are asked for."""
        return rows * columns if self.output == ALL else 0


# ------------------------------------------------------------------------------------------------------------- metrics


def _slowest_batch_s(_: Workload, rounds: Mapping[str, Any]) -> Sequence[float]:
    return list(rounds["slowest_s"])


def _sequences_per_s(workload: Workload, rounds: Mapping[str, Any]) -> Sequence[float]:
    return [len(workload.lengths) / s for s in rounds["wall_s"]]


def _embeds(workload: Workload) -> bool:
    return workload.needs.embeds


#: What is made the best of by default comes first. People count embeddings rather than tokens: there texts are shown too.
METRICS = (
    THROUGHPUT,
    Metric(
        "",
        "sequences_per_s",
        "sequences/s",
        less_is_better=False,
        words="texts per second",
        head="texts/s",
        show=rate_of("texts/s"),
        samples=_sequences_per_s,
        applies=_embeds,
    ),
    Metric(
        "latency",
        "slowest_batch_s",
        "s",
        less_is_better=True,
        words="seconds of the slowest batch",
        head="slowest batch",
        show=seconds,
        samples=_slowest_batch_s,
        is_latency=True,
    ),
    MEMORY,
    ENERGY,
)


# ------------------------------------------------------------------------------------------------- options and the model


_OPTIONS = (
    *LIST_OPTIONS,
    Option("output", "what is asked of the model (default: what its class is made for)", choices=OUTPUTS),
)


def _parse(asked: Mapping[str, Any], source: ModelSource, lengths: tuple[int, ...]) -> Forward:
    output = asked["output"] or default_output(source.config, source.name)
    refuse_unpooled(source, output)
    refuse_output(source.name, source.config, output, asked["batch"])
    return Forward(lengths, asked["batch"], output)


def default_output(config: Mapping[str, Any], name: str = "the model") -> str:
    """Return what is asked of a model when the user does not say: what its class in config.json was made to give.

    A classifier gives scores, a language model the logits of the last token, anything else an embedding. Raises BadInput for
    a class whose head advisor does not run: its body alone would be something else than what the user has.
    """
    names = architectures(config)
    if unserved := unserved_head(config):
        raise BadInput(
            f"{name} is a {unserved}, and advisor does not run that head",
            f"{named('output', HIDDEN)} measures the model without it",
        )
    if any(each.endswith("ForSequenceClassification") for each in names):
        return SCORES
    if is_encoder(config):
        return EMBEDDINGS
    speaks = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
    return LAST if not names or any(each.endswith(speaks) for each in names) else EMBEDDINGS


def refuse_unpooled(source: ModelSource, output: str) -> None:
    """Raise BadInput where what is beside the weights makes an embedding that advisor can't give."""
    if output == EMBEDDINGS and source.beside.get("problem"):
        raise BadInput(
            f"{source.name}: {source.beside['problem']}",
            f"{named('output', HIDDEN)} measures the model without pooling",
        )


def refuse_output(name: str, config: Mapping[str, Any], output: str, batch: int | None) -> None:
    """Raise BadInput where a model can't give this output, as far as its configuration tells: the worker tells the rest.

    batch: how many sequences at once, None where that is to be found.
    """
    text = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    needs_pads = output == SCORES and not is_encoder(config)
    refuse_unpadded(name, pads=not needs_pads or text.get("pad_token_id", 0) is not None, batch=batch)
    if output == LAST and is_encoder(config):
        raise BadInput(
            f"{named('output', LAST)}: {name} is an encoder ({config['model_type']}) and predicts no next token",
            f"leave {named('output')} out, or ask for pooled, scores, hidden or all-logits",
        )


# ----------------------------------------------------------------------------------------------------------- how it runs

_WITH_TENSORS, _OF_TOKENS = "advisor.workloads.forward_torch", "advisor.workloads.tokens_torch"


def _running(workload: Workload, facts: ModelFacts) -> Running:
    output = workload.output
    result = _RESULTS[output]
    if output == EMBEDDINGS:
        return Running(_WITH_TENSORS, "run_pooled", {"how": facts.pooling}, result=result)
    if output == SCORES:
        return Running(_WITH_TENSORS, "run_scores", result=result)
    kind, keeps = ("logits", "logits_to_keep" in facts.accepts) if output in LOGITS else ("last_hidden_state", False)
    is_last = output == LAST
    return Running(_OF_TOKENS, "run_tokens", {"kind": kind, "keeps": keeps}, (0,) if is_last else None, is_last, result)


def _preparation(workload: Workload, facts: ModelFacts, source: ModelFiles, device: str) -> Preparation:
    """Return what gives the model the steps after pooling, as sentence-transformers would."""
    if not workload.needs.embeds or not facts.after_pooling:
        return Preparation()
    folder, steps = source.beside.get("folder", source.path), list(facts.after_pooling)
    return Preparation(
        imports=("import torch", "from collections.abc import Callable, Sequence"),
        functions=(("advisor.workloads.after_torch", "after_pooling_of"),),
        statements=(f"model.after_pooling = after_pooling_of({folder!r}, {steps!r}, {device!r})",),
    )


#: What transformers' pipelines call it, or why none does it.
_PIPELINES = {
    SCORES: Served("text-classification"),
    HIDDEN: Served("feature-extraction"),
    EMBEDDINGS: Served(
        refused="no pipeline pools hidden states into an embedding",
        instead="--format sentence-transformers does, and --format python",
    ),
}


def _served(library: str, workload: Workload) -> Served:
    """Return which call of a library gives this output. A pipeline of a language model generates: that is other work."""
    if library == "pipeline":
        other = f"{workload.output} is one pass, and a pipeline's text-generation or fill-mask is another workload"
        return _PIPELINES.get(workload.output, Served(refused=other))
    if library == "sentence-transformers" and workload.needs.embeds:
        return Served("embeddings")
    return Served(refused=f"{library} gives embeddings, and {workload.output} was measured")


def _runtime(workload: Workload, facts: ModelFacts) -> Runtime:
    from advisor.workloads.forward_torch import ForwardRuntime

    return ForwardRuntime(workload, facts, _running(workload, facts))


#: Lists of lengths: with pads that sorting saves, with pads that it does not, without pads; scores; batch as a knob.
_EXAMPLES = (
    Forward((64, 32, 48, 16), 2),
    Forward((64, 48, 32, 16), 2),
    Forward((4096, 4096, 4096, 4096), 2),
    Forward((64, 32, 48, 16), 2, SCORES),
    Forward((64, 32, 48, 16), None),
)

KIND = Kind(
    name="forward",
    summary="one pass over every sequence: logits, hidden states, embeddings or scores",
    stored_as=("forward", EMBED),
    workload=Forward,
    metrics=METRICS,
    parse=_parse,
    running=_running,
    runtime=_runtime,
    examples=_EXAMPLES,
    preparation=_preparation,
    served=_served,
    options=_OPTIONS,
)
