"""The training workload: fine-tuning a language model, a step of its optimizer on so many sequences at a time.

What is trained is the user's choice (all weights, or adapters beside them); how a step is computed is what is tuned. Every
configuration does the same samples a step and the same token-normalised loss (rule T2): how many of them share a forward pass is
a knob *within* the step (`advisor.knobs.micro_batch`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, ClassVar, Self, cast

from advisor.errors import BadInput, named
from advisor.models.declared import is_encoder
from advisor.nouns.checked import Test, checked, matches
from advisor.nouns.model import ModelFacts, ModelFiles, ModelSource
from advisor.workloads.kind import Kind, Preparation, Running
from advisor.workloads.runtime import Runtime
from advisor.workloads.train_figures import METRICS
from advisor.workloads.train_memory import bytes_of_step, trained_values
from advisor.workloads.train_options import (
    ALPHA_OVER_RANK,
    COMMANDS,
    DEFAULT_STEPS,
    OPTIONS,
    OWN_TARGETS,
    RANK,
    no_step,
)
from advisor.workloads.train_refused import ALL_LINEAR, FULL, LORA, METHODS, QLORA, refuse_untrainable
from advisor.workloads.work import Head, Needs, Work
from advisor.workloads.workload import Batches, Workload

NAME = "train"

#: No layer is so wide that more would be of low rank.
MOST_RANK = 8192

#: A step's passes: forward, and backward, which is worth two; one, where the weights it passes are not trained.
_PASSES = {FULL: 3.0, LORA: 2.0, QLORA: 2.0}


@dataclass(frozen=True)
class Training(Workload):
    """Steps of an optimizer: batch is how many sequences one has. method: of METHODS.

    rank, targets: of adapters; targets: the names of the modules that get one, none for those that peft has for the type of
    model, ("all-linear",) for every linear layer but the output's.
    """

    method: str = FULL
    rank: int = RANK
    targets: tuple[str, ...] = OWN_TARGETS

    TESTS: ClassVar[Mapping[str, Test]] = {
        "rank": lambda rank: 0 < rank <= MOST_RANK,
        "targets": lambda names: all(map(matches(r"[\w.-]{1,100}"), names)),
    }
    trains: ClassVar[bool] = True
    usual_batches: ClassVar[int] = DEFAULT_STEPS

    def __post_init__(self) -> None:
        """Refuse what is not a workload."""
        super().__post_init__()
        if self.batch is None:
            raise no_step()
        if self.method not in METHODS:
            raise BadInput(f"{named('method')} must be one of {', '.join(METHODS)}, not {self.method!r}")
        if not 1 <= self.rank <= MOST_RANK:
            raise BadInput(f"{named('rank')} must be at least 1 and at most {MOST_RANK}, not {self.rank}")
        if min(self.lengths) < 2:
            raise BadInput("of a sequence of one token nothing is learned", "leave out what has not at least 2 tokens")

    @property
    def kind(self) -> str:
        """The word that it is stored by."""
        return NAME

    @property
    def output(self) -> str:
        """What is trained, with what adapters are like."""
        if not self.trains_adapters:
            return self.method
        targets = f", {'+'.join(self.targets)}" if self.targets else ""
        return f"{self.method} of rank {self.rank}{targets}"

    @property
    def needs(self) -> Needs:
        """A head that predicts the next token."""
        return Needs(Head.LANGUAGE, next_token=True, otherwise="what is fine-tuned here are models of the next token")

    @property
    def features(self) -> dict[str, float | str]:
        """What makes two workloads alike or not: of what is trained all is words, and another method is two of them."""
        trained, base = str(self.trains_adapters), str(self.quantises_base)
        known: dict[str, float | str] = {**super().features, "output": self.method, "adapters": trained, "base": base}
        return {**known, "rank": str(self.rank), "targets": str(self.targets)} if self.trains_adapters else known

    @property
    def described(self) -> dict[str, object]:
        """What two workloads differ in, by name, for people."""
        known = {name: value for name, value in super().described.items() if name != "output"}
        targets = "+".join(self.targets) or "peft's own"
        return {
            **known,
            "method": self.method,
            **({"rank": self.rank, "targets": targets} if self.trains_adapters else {}),
        }

    @property
    def own_payload(self) -> dict[str, Any]:
        """What is trained; adapters with what they are like."""
        return {"method": self.method, "rank": self.rank, "targets": list(self.targets)}

    @property
    def own_flags(self) -> str:
        """The kind, and what is trained."""
        adapters = "" if self.method == FULL or self.rank == RANK else f" --rank {self.rank}"
        targets = f" --targets {','.join(self.targets)}" if self.targets else ""
        return f"--workload {NAME} --method {self.method}{adapters}{targets}"

    @classmethod
    def of(cls, payload: Mapping[str, Any]) -> Self:
        """Build one from its payload. Raises Malformed for a value that can't be."""
        own = {each.name: payload[each.name] for each in fields(Training)}
        tests = {"lengths": lambda lengths: all(n < 2**31 for n in lengths), **Training.TESTS}
        return cls(**checked(Training, own, tests))

    @property
    def trains_adapters(self) -> bool:
        """Whether adapters are trained."""
        return self.method != FULL

    @property
    def quantises_base(self) -> bool:
        """Whether the weights beside them are in fewer bits."""
        return self.method == QLORA

    @property
    def passes(self) -> float:
        """What a step is worth in forward passes."""
        return _PASSES[self.method]

    def predictions(self) -> int:
        """Return how many positions logits are computed for: every one has a loss."""
        return self.tokens

    def kept(self, rows: int, columns: int) -> int:
        """Return how many positions' logits are in memory at once: all of a forward pass's."""
        return rows * columns

    def step_bytes(self, work: Work, facts: ModelFacts, traits: Any) -> float:
        """Return the bytes that a step holds beside the weights."""
        everywhere, adapters = self.targets != OWN_TARGETS, self.trains_adapters
        trained = trained_values(facts, adapters=adapters, rank=self.rank, everywhere=everywhere)
        accumulates = isinstance(self, Accumulated)
        return bytes_of_step(work, facts, traits, trained=trained, adapters=adapters, accumulates=accumulates)

    @property
    def dealt(self) -> Self:
        """The work with whole steps."""
        return self

    def under(self, configuration: Mapping[str, str]) -> Self:
        """Return this work with as many sequences a forward pass as a configuration chooses."""
        size = micro_size(configuration.get("micro_batch") or "")
        if size is None or size >= self.size:
            return self
        own = {each.name: getattr(self, each.name) for each in fields(Training)}
        return cast("Self", Accumulated(**own, micro=size))  # work of the same key

    def steps(self) -> Batches:
        """Return the steps as indices into `lengths`."""
        places = tuple(range(len(self.lengths)))
        return tuple(places[i : i + self.size] for i in range(0, len(places), self.size))

    def batches(self, *, by_length: bool = False) -> Batches:  # noqa: ARG002
        """Return the forward passes as indices into `lengths`: here a step is one, and has no order."""
        return self.steps()


@dataclass(frozen=True)
class Accumulated(Training):
    """The same with gradients accumulated: micro sequences share a forward pass."""

    micro: int = 1

    def batches(self, *, by_length: bool = False) -> Batches:
        """Return the forward passes as indices into `lengths`; by length: of neighbours in length within their step."""
        return _micro_batches(self, by_length)


@lru_cache(maxsize=64)
def _micro_batches(work: Accumulated, by_length: bool) -> Batches:
    found: list[tuple[int, ...]] = []
    for step in work.steps():
        order = sorted(step, key=lambda index: -work.lengths[index]) if by_length else step
        found += [tuple(order[i : i + work.micro]) for i in range(0, len(order), work.micro)]
    return tuple(found)


def micro_size(name: str) -> int | None:
    """Return how many sequences share a forward pass, by the name of a choice of the knob; None where a step is one."""
    last = name.rpartition("-")[2]
    return int(last) if last.isdigit() else None


# ------------------------------------------------------------------------------------------------- options and the model


def _parse(asked: Mapping[str, Any], source: ModelSource, lengths: tuple[int, ...]) -> Training:
    if is_encoder(source.config):
        raise BadInput(
            f"{source.name} is an encoder ({source.config['model_type']})",
            f"{named('workload')} {NAME} fine-tunes models of the next token",
        )
    method, targets = asked["method"], asked["targets"] or OWN_TARGETS
    if method == FULL and targets:
        raise BadInput(f"{named('targets')} goes with {named('method')} {LORA} or {QLORA}: all weights are trained")
    if method == FULL and asked["rank"] != RANK:
        raise BadInput(f"{named('rank')} goes with {named('method')} {LORA} or {QLORA}: all weights are trained")
    return Training(lengths, asked["batch"], method, asked["rank"], targets)


# ----------------------------------------------------------------------------------------------------------- how it runs

_WITH_TENSORS = "advisor.workloads.train_torch"

#: What is set of torch's allocator, as PYTORCH_CUDA_ALLOC_CONF has it. The passes of a step are of many sizes, and blocks of the
#: default's do not fit each other: a third of the memory was lost to that on an H200.
ALLOCATOR = "expandable_segments:True"


def _running(_: Workload, __: ModelFacts) -> Running:
    return Running(
        _WITH_TENSORS,
        "train_step",
        by_sequence=False,
        result="the loss",
        labelled="with_labels",
        counted="counted",
        variables={"PYTORCH_CUDA_ALLOC_CONF": ALLOCATOR},
    )


def _preparation(workload: Workload, _: ModelFacts, __: ModelFiles, ___: str) -> Preparation:
    """Return what makes a model ready to be trained: adapters, where they are what is trained."""
    if not isinstance(workload, Training) or not workload.trains_adapters:
        return Preparation(statements=_AS_TRAINED)
    adapters = lora_config(workload)
    return Preparation(
        imports=("from peft import LoraConfig, get_peft_model",),
        statements=(
            "torch.manual_seed(0)  # of the adapters' weights",
            f"model = get_peft_model(model, {adapters})",
            *_AS_TRAINED,
        ),
        adapters=adapters,
        packages=("peft",),
    )


#: Dropout is as the model's configuration has it, and layers are computed again where that is asked for.
_AS_TRAINED = ("model = model.train()",)


def lora_config(workload: Training) -> str:
    """Return peft's configuration of the adapters as Python source."""
    named_ = {(): "None", (ALL_LINEAR,): repr(ALL_LINEAR)}.get(workload.targets, repr(list(workload.targets)))
    alpha = ALPHA_OVER_RANK * workload.rank
    return f"LoraConfig(r={workload.rank}, lora_alpha={alpha}, target_modules={named_}, task_type='CAUSAL_LM')"


def _runtime(workload: Workload, facts: ModelFacts) -> Runtime:
    from advisor.workloads.train_torch import TrainingRuntime

    return TrainingRuntime(workload, facts, _running(workload, facts))


_EXAMPLES = (
    Training((64, 32, 48, 16), 4),
    Training((64, 32, 48, 16), 4, LORA),
    Training((64, 32, 48, 16), 4, QLORA),
)


KIND = Kind(
    name=NAME,
    summary="fine-tuning a language model: a step of its optimizer at a time",
    stored_as=(NAME,),
    workload=Training,
    metrics=METRICS,
    parse=_parse,
    running=_running,
    runtime=_runtime,
    refuse=refuse_untrainable,
    examples=_EXAMPLES,
    preparation=_preparation,
    options=OPTIONS,
    commands=COMMANDS,
)
