"""The training workload with tensors: a step, its labels, what is given back after it, and how far training goes astray.

Worker only. A step's forward passes are calls of their own for the gate, which looks at what the model gives for each token, as
of any language model; for timing they are one call, whose result is the loss and the gradients' norm.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from advisor.nouns.model import ModelFacts
from advisor.workloads.kind import Running
from advisor.workloads.runtime import Call, Runtime
from advisor.workloads.tokens_torch import TokenTally, deviation_at_positions, distances_of, values_of_tokens
from advisor.workloads.train import ALLOCATOR
from advisor.workloads.train_around_torch import blocking, first_gradients, without_dropout
from advisor.workloads.workload import Workload

#: Labels of what has no loss, as torch's cross entropy and transformers have it.
IGNORED = -100


def train_step(model: Any, calls: list[dict[str, Any]]) -> torch.Tensor:
    """Do a step of `model.optimizer` and return its loss and the norm of its gradients before clipping, [2] in fp32.

    calls: the arguments of each forward pass of the step; each holds `labels` and the step's `num_items_in_batch`, so that their
    losses add up to the mean over all of its tokens, however many passes there are. `model.autocast`: a dtype, or None.
    """
    losses, autocast = [], getattr(model, "autocast", None)
    for call in calls:
        with torch.autocast(call["input_ids"].device.type, autocast, enabled=autocast is not None):
            loss = model(**call).loss
        loss.backward()
        losses.append(loss.detach().float())
    norm = torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], 1.0)
    model.optimizer.step()
    model.optimizer.zero_grad()
    return torch.stack([torch.stack(losses).sum(), norm.float()])


def with_labels(call: dict[str, Any], places: list[tuple[int, int, int]]) -> dict[str, Any]:
    """Return the arguments of a forward pass with labels: its ids, but -100 at pads and at each sequence's first token.

    Nothing predicts that one: else the last token of the sequence before it in its row is taught to (rule T3). places: of each
    sequence its row, first column and the column after its last.
    """
    ids = call["input_ids"]
    labels = torch.full_like(ids, -100)
    for row, start, end in places:
        labels[row, start + 1 : end] = ids[row, start + 1 : end]
    return {"labels": labels, **call}


def counted(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a step's forward passes with how many tokens of the whole step have a loss, over which it is the mean."""
    count = sum(int((call["labels"][..., 1:] != -100).sum()) for call in calls)
    return [{**call, "num_items_in_batch": torch.tensor(count)} for call in calls]


@dataclass(frozen=True)
class Step(Call):
    """A step: the arguments and places are of its first forward pass, the sequences those of all of them."""

    parts: tuple[Call, ...] = ()

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths of the sequences of all of its forward passes."""
        return tuple(n for part in self.parts for n in part.lengths)


@dataclass
class Kept:
    """What is given back after a trial: the values of all that a step changes, on the CPU, and the random state."""

    values: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    random: torch.Tensor | None = None
    random_of_device: torch.Tensor | None = None


class TrainingRuntime(Runtime):
    """How a worker trains."""

    def __init__(self, workload: Workload, facts: ModelFacts, running: Running) -> None:
        """Hold the workload and what the facts say of the model's vocabulary and arguments."""
        super().__init__(workload, running)
        self.vocabulary, self.accepts = facts.vocabulary, facts.accepts

    @contextmanager
    def mode(self) -> Iterator[None]:
        """Run everything with gradients, and with blocks of a GPU's memory that grow (`ALLOCATOR`)."""
        with torch.enable_grad():
            _set_allocator(ALLOCATOR)
            try:
                yield
            finally:
                _set_allocator(os.environ.get("PYTORCH_CUDA_ALLOC_CONF") or ALLOCATOR.replace("True", "False"))

    # ------------------------------------------------------------------------------------------------------------ calls

    def timed(self, calls: Sequence[Call]) -> list[Call]:
        """Return one call per step, with labels: the sequences of a step are those of the list, in whatever order."""
        steps, waiting, count = list[Call](), list[Call](), 0
        for call in calls:
            waiting.append(call)
            count += len(call.sequences)
            if count >= self.workload.size or call is calls[-1]:
                steps.append(_step(waiting))
                waiting, count = [], 0
        return steps

    def in_order(self, calls: Sequence[Call]) -> list[list[Call]]:
        """Return the calls within which sequences may be sorted: those of one step, whose forward passes are in `parts`."""
        return [list(call.parts) for call in calls if isinstance(call, Step)]

    def shapes(self, calls: Sequence[Call]) -> list[int]:
        """Return how many sequences each forward pass of the first step has."""
        first = calls[0]
        return [len(part.sequences) for part in first.parts] if isinstance(first, Step) else [len(first.sequences)]

    def run(self, model: Any, call: Call, device: str, positions: Sequence[int] | None = None) -> torch.Tensor:  # noqa: ARG002
        """Do a step on the device; return its loss and its gradients' norm. Dropout is as the model's configuration has it."""
        assert isinstance(call, Step), "a step is timed, a forward pass is judged"
        values: torch.Tensor = self._function(model, [part.on(device) for part in call.parts])
        return values

    # ------------------------------------------------------------------------------------- what the gate looks at

    def positions(self, workload: Workload) -> list[int]:
        """Return the distances from a sequence's end at which logits are compared."""
        return distances_of(workload, self.vocabulary)

    def by_sequence(self, model: Any, call: Call, device: str, positions: Sequence[int]) -> list[torch.Tensor]:
        """Run a forward pass without labels and return every sequence's logits, [positions, vocabulary] in fp32.

        Less its loss at a sequence's last token, where that is taught the first one of the sequence after it (rule T3): so what
        it gives depends on its neighbour, as its training does.

        Without dropout, and in training as a step is: bitsandbytes takes a pass in evaluation on a CPU for the end of training,
        and no gradient passes its layers of 4 bits from then on. What is compiled is run with gradients: else it would be
        compiled anew.
        """
        arguments = {name: value for name, value in call.arguments.items() if name != "labels"}
        is_compiled = any(module._compiled_call_impl is not None for module in model.modules())
        gradients = nullcontext() if is_compiled else torch.no_grad()
        with without_dropout(model), gradients, _as_it_computes(model, device):
            found = values_of_tokens(model, replace(call, arguments=arguments), device, positions, self.accepts)
        return _with_what_is_taught([values.detach() for values in found], call, positions)

    def deviation(self, values: Sequence[torch.Tensor]) -> float:
        """Return the standard deviation of logits at a position, over all sequences."""
        return deviation_at_positions(values)

    def tally(self, positions: Sequence[int], noise: float) -> TokenTally:
        """Return what compares logits with the reference's."""
        return TokenTally(positions, noise)

    # ------------------------------------------------------------------------------------------- how training goes

    def kept(self, model: Any, device: str) -> Kept:
        """Return a copy of all that a step changes, on the CPU."""
        on_gpu = device.startswith("cuda")

        def copied(tensor: torch.Tensor) -> torch.Tensor:
            value = tensor.detach().cpu()
            return value.pin_memory() if on_gpu else value.clone()  # what is pinned is given back ten times as fast

        changed = [tensor for tensor in (*model.parameters(), *model.buffers()) if _can_change(tensor)]
        state = torch.cuda.get_rng_state(device) if on_gpu else None
        return Kept([(tensor, copied(tensor)) for tensor in changed], torch.get_rng_state(), state)

    def give_back(self, model: Any, kept: Kept, device: str) -> None:
        """Make the model, its optimizer and the random state be as they were, to the bit."""
        with torch.no_grad():
            for tensor, value in kept.values:
                tensor.grad = None
                tensor.copy_(value)
        if (optimizer := getattr(model, "optimizer", None)) is not None:
            optimizer.state.clear()
        if kept.random is not None:
            torch.set_rng_state(kept.random)
        if kept.random_of_device is not None:
            torch.cuda.set_rng_state(kept.random_of_device, device)

    def refuse_blocked(self, model: Any, device: str) -> None:
        """Raise ValueError where gradients do not pass some kind of the model's linear layers on their way back."""
        with _as_it_computes(model, device):
            kinds = blocking(model, device)
        if kinds:
            raise ValueError(
                f"no gradient passes its linear layers ({', '.join(kinds)}): what is before them learns nothing"
            )

    def course(self, model: Any, calls: Sequence[Call], device: str, *, steps: int) -> dict[str, Any]:
        """Train from the weights as they are; return what a reference and a configuration are compared by.

        {"losses", "norms": of each step; "gradient": some of the first step's gradients, by the weight's name, with the share of
        them that is some}. calls: of forward passes. Without dropout; the weights are changed.
        """
        found: dict[str, Any] = {"losses": [], "norms": [], "gradient": {}}
        made = self.timed(calls)
        with without_dropout(model):
            for number in range(steps):
                with first_gradients(model, found["gradient"]) if not number else nullcontext():
                    loss, norm = self.run(model, made[number % len(made)], device).tolist()
                found["losses"].append(loss)
                found["norms"].append(norm)
        return found

    def reference_course(
        self, model: Any, tokens: Sequence[torch.Tensor], device: str, *, steps: int
    ) -> dict[str, Any]:
        """Return the same of one document at a time, accumulated; {"why": …} where that is another step. model: in fp32."""
        more = {} if "no_use_cache" in self.accepts else {"use_cache": False}
        calls = [
            Call({"input_ids": ids[None], **more}, (number,), ((0, 0, len(ids)),)) for number, ids in enumerate(tokens)
        ]
        if why := _no_sum(model, calls[0], device):
            return {"why": why}
        return self.course(model, calls, device, steps=steps)

    def deviations(self, ours: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, float]:
        """Return how far a course is from the reference's.

        "gradient": the size of the difference of the first step's gradients, over the size of the reference's; "loss": the
        largest difference of a step's loss over all steps, in nats; "norm": the largest of the gradients' norms, over the
        reference's.
        """
        differences = sizes = 0.0
        for name, (theirs, each) in reference["gradient"].items():
            mine = ours["gradient"].get(name, (torch.zeros_like(theirs), each))[0]
            differences += each * float((mine - theirs).double().square().sum())
            sizes += each * float(theirs.double().square().sum())
        count = min(len(ours["losses"]), len(reference["losses"]))
        losses = zip(ours["losses"][:count], reference["losses"][:count], strict=True)
        norms = zip(ours["norms"][:count], reference["norms"][:count], strict=True)
        return {
            "gradient": (differences / max(sizes, 1e-300)) ** 0.5,
            "loss": max(abs(a - b) for a, b in losses),
            "norm": max(abs(a - b) / max(b, 1e-30) for a, b in norms),
        }


def _as_it_computes(model: Any, device: str) -> torch.autocast:
    """Return the autocast that a step of the model is computed under, a disabled one where it has none."""
    dtype = getattr(model, "autocast", None)
    return torch.autocast(torch.device(device).type, dtype, enabled=dtype is not None)


def _step(calls: Sequence[Call]) -> Step:
    """Return a step of these forward passes: with labels, and how many of the step's tokens have a loss."""
    labelled = counted([with_labels(call.arguments, list(call.places)) for call in calls])
    parts = tuple(replace(call, arguments=arguments) for call, arguments in zip(calls, labelled, strict=True))
    sequences = tuple(number for call in calls for number in call.sequences)
    return Step(parts[0].arguments, sequences, parts[0].places, parts)


def _no_sum(model: Any, call: Call, device: str) -> str:
    """Return why losses of several forward passes do not add up to that of a step (rule T2), "" where they do.

    Some classes ignore `num_items_in_batch`; others add a loss of their own to each pass.
    """
    (part,) = _step([call]).parts
    arguments, found = part.on(device), []
    with torch.no_grad(), without_dropout(model):
        for times in (1, 2):
            more = {"num_items_in_batch": times * arguments["num_items_in_batch"]}
            try:
                found.append(float(model(**{**arguments, **more}).loss))
            except (TypeError, AttributeError):
                return "the class gives no loss for labels"
    if abs(found[0] - 2 * found[1]) > 1e-3 * abs(found[0]):
        return "the class's loss is no sum over num_items_in_batch: passes of a step do not add up to it"
    return ""


def _with_what_is_taught(values: Sequence[torch.Tensor], call: Call, positions: Sequence[int]) -> list[torch.Tensor]:
    """Return sequences' logits less the loss at their last token where that has one. positions: the first is the end's, 0."""
    ids, labels = call.arguments["input_ids"], call.arguments.get("labels")
    if labels is None or positions[0] != 0:
        return list(values)
    found = []
    for each, (row, _, end) in zip(values, call.places, strict=True):
        has_loss = end < ids.shape[1] and int(labels[row, end]) != IGNORED
        taught = each.clone() if has_loss else each
        if has_loss:  # the label is the id there, whatever was put in its place since
            taught[0] += taught[0].log_softmax(-1)[int(ids[row, end])]
        found.append(taught)
    return found


def _set_allocator(settings: str) -> None:
    """Set torch's allocator of GPU memory for this process: it looks at its variable of the environment once alone."""
    if torch.cuda.is_available():
        torch._C._accelerator_setAllocatorSettings(settings)


def _can_change(tensor: torch.Tensor) -> bool:
    """Whether a step changes a tensor: a weight that is trained, or a buffer of floats."""
    return tensor.requires_grad or (not isinstance(tensor, torch.nn.Parameter) and tensor.is_floating_point())
