"""Runtime: how a worker runs a workload and compares what comes out. A kind's own stands beside it and imports torch.

This face is imported without torch: who only asks what a workload is must not wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from advisor.workloads.kind import Running
    from advisor.workloads.tally_torch import Tally
    from advisor.workloads.workload import Workload

#: Of every sequence its row, its first column and the column after its last.
Places = tuple[tuple[int, int, int], ...]

#: Makes the arguments of a call from token ids, and says where each sequence lies: a layout does.
Collate = Callable[[Sequence[Any]], tuple[dict[str, Any], Sequence[tuple[int, int, int]]]]


@dataclass(frozen=True)
class Call:
    """One call of the model: its arguments, which sequences are in it, in order, and where each lies."""

    arguments: dict[str, Any]
    sequences: tuple[int, ...]
    places: Places

    def on(self, device: str) -> dict[str, Any]:
        """Return the arguments with every tensor on the device."""
        return {k: v.to(device, non_blocking=True) if hasattr(v, "to") else v for k, v in self.arguments.items()}

    @property
    def is_packed(self) -> bool:
        """Whether several sequences share a row."""
        return len({row for row, _, _ in self.places}) < len(self.places)

    @property
    def lengths(self) -> tuple[int, ...]:
        """The sequences' lengths."""
        return tuple(end - start for _, start, end in self.places)


class Runtime:
    """How a worker runs a workload, and compares what comes out: as work does whose sequences have one output each.

    A kind overrides what is otherwise with it. Made anew for every request.
    """

    def __init__(self, workload: Workload, running: Running) -> None:
        """Hold the workload, and the one function that runs a call of it."""
        from importlib import import_module

        self.workload, self.running = workload, running
        self._function = getattr(import_module(running.module), running.name)

    def calls(self, tokens: Sequence[torch.Tensor], batches: Iterable[Sequence[int]], collate: Collate) -> list[Call]:
        """Return one call per batch, on the CPU. tokens: of all sequences; batches: which of them go together."""
        made = []
        for batch in batches:
            arguments, places = collate([tokens[number] for number in batch])
            made.append(Call(arguments, tuple(batch), tuple(places)))
        return made

    def mode(self) -> AbstractContextManager[Any]:
        """Return the context that everything is run in."""
        import torch

        return torch.inference_mode()

    def timed(self, calls: Sequence[Call]) -> list[Call]:
        """Return the calls that are timed, of those that are judged: here the same."""
        return list(calls)

    def in_order(self, calls: Sequence[Call]) -> list[list[Call]]:
        """Return the groups of timed calls within which a layout may sort sequences: here all of them are one."""
        return [list(calls)]

    def shapes(self, calls: Sequence[Call]) -> list[int]:
        """Return how many sequences each forward pass of the first timed call has."""
        return [len(calls[0].sequences)]

    def kept(self, model: Any, device: str) -> Any:  # noqa: ARG002
        """Return what is given back to the model after a trial, None where running it changes nothing."""
        return None

    def give_back(self, model: Any, kept: Any, device: str) -> None:
        """Make the model be as it was when this was kept."""

    def refuse_blocked(self, model: Any, device: str) -> None:
        """Raise ValueError where work that trains can't teach a model what it should."""

    def course(self, model: Any, calls: Sequence[Call], device: str, *, steps: int) -> dict[str, Any]:  # noqa: ARG002
        """Return how work that changes the model goes on from call to call; nothing where none does."""
        return {}

    def reference_course(
        self,
        model: Any,  # noqa: ARG002
        tokens: Sequence[torch.Tensor],  # noqa: ARG002
        device: str,  # noqa: ARG002
        *,
        steps: int,  # noqa: ARG002
    ) -> dict[str, Any]:
        """Return the same of a reference: one sequence at a time. model: in fp32."""
        return {}

    def deviations(self, ours: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, float]:  # noqa: ARG002
        """Return how far what :meth:`course` gave is from the reference's, by figures of a `Quality`."""
        return {}

    def run(self, model: Any, call: Call, device: str, positions: Sequence[int] | None = None) -> torch.Tensor:
        """Run a call on the device and return what was asked for: the one way in which it is timed, judged and printed.

        positions: more of the same output, by the distance from a sequence's end, [pairs, …]; what a sequence has one of stays
        as it is.
        """
        asked = self.running.positions if positions is None else tuple(positions)
        values: torch.Tensor = self._function(model, call.on(device), list(call.places), asked, **self.running.given)
        return values

    def of_tokens(self, model: Any, call: Call, device: str) -> tuple[str, list[torch.Tensor]] | None:  # noqa: ARG002
        """Run a call and return the values of every token, [tokens, width] a sequence, after what a model's output calls them.

        None: this work has an output a sequence, and none a token.
        """
        return None

    def arguments(self, call: Call) -> Call:
        """Return a call as a user makes it by hand, `model(**arguments)`: with what asks for no more than the output."""
        return call

    def positions(self, workload: Workload) -> list[int]:  # noqa: ARG002
        """Return the distances from a sequence's end at which outputs are compared: [0] where a sequence has one output."""
        return [0]

    def by_sequence(self, model: Any, call: Call, device: str, positions: Sequence[int]) -> list[torch.Tensor]:
        """Run a call and return every sequence's values, [positions, width] in fp32, nearest its end first.

        Here what a sequence has one row of, or one number: that is one position.
        """
        from advisor.workloads.tally_torch import comparable

        values = comparable(self.run(model, call, device, positions))
        return list(values.reshape(len(values), 1, -1))

    def deviation(self, values: Sequence[torch.Tensor]) -> float:
        """Return the standard deviation that differences are counted in, of all sequences' values: the σ of every figure.

        Here over the sequences.
        """
        from advisor.workloads.tally_torch import deviation_over_sequences

        return deviation_over_sequences(values)

    def tally(self, positions: Sequence[int], noise: float) -> Tally:  # noqa: ARG002
        """Return what compares outputs with the reference's. noise: a margin of the reference below it counts as a tie."""
        from advisor.workloads.tally_torch import Tally

        return Tally(positions)


def plain(values: Mapping[str, Any]) -> str:
    """Return keyword arguments as Python source: they are plain values."""
    return "".join(f", {name}={value!r}" for name, value in values.items())
