"""One device, at most one loaded model, and what belongs to it. Loaded by the worker, and by `advisor.load`."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from advisor.knobs import KNOBS, Batching, call_arguments, choices_of, collate, function_of, traits_of, weights_of
from advisor.measure import fp32_torch, tokens_torch
from advisor.measure.messages import Event, StageEvent, Subject
from advisor.networks import call_torch, load_torch
from advisor.nouns.configuration import Configuration
from advisor.workloads import Call, Runtime, Workload, kind_of


class Session:
    """One device, at most one loaded model, and what belongs to it. uuid: of a GPU, None where its gauges are not read."""

    def __init__(self, send: Callable[[Event], None], device: str = "cpu", uuid: str | None = None) -> None:
        """Hold nothing yet. send: writes one message to the parent; device: as torch names it."""
        self.send, self.device, self.uuid = send, device, uuid
        self.last_stage = "start"
        self.model: Any = None
        self.settings: Any = None
        self.loaded_as: tuple[Any, ...] | None = None
        self.loaded_attention = ""
        #: The seconds that it took to load what is loaded; the same where the last load found it loaded, None where it was that.
        self.loaded_in_s = 0.0
        self.found_load_s: float | None = None
        #: The statements that changed the loaded model as its configuration asks, and that are taken back for another's.
        #: None amid a change, and where one failed: then nobody knows what the model is like. compiling: those that compile.
        self.on_model: tuple[str, ...] | None = ()
        self.compiling: frozenset[str] = frozenset()
        self.names: dict[str, Any] = {}
        self.tokens_of: tuple[str, list[torch.Tensor]] | None = None
        #: What work that changes the loaded model gives back to it, None where nobody looked at it yet.
        self.kept: Any = None
        #: What sequences are alone in fp32, on the CPU, by (layers, attempt) and number: of the loaded weights.
        self.alone: dict[tuple[int, int], dict[int, torch.Tensor]] = {}

    def stage(self, name: str) -> None:
        """Tell the parent what is going on."""
        self.last_stage = name
        self.send(StageEvent(stage=name))

    def tokens(self, subject: Subject) -> list[torch.Tensor]:
        """Return the tokens of the workload's sequences, read or drawn once."""
        key = tokens_torch.key_of(subject, subject.workload)
        if self.tokens_of is None or self.tokens_of[0] != key:
            self.tokens_of, self.alone = (key, tokens_torch.tokens_of(subject, subject.workload)), {}
        return self.tokens_of[1]

    def sampled(self, subject: Subject) -> tuple[Workload, list[torch.Tensor]]:
        """Return the work on the sequences that the gate judges, the subject's sample, and their tokens: those that are timed."""
        tokens, sample = self.tokens(subject), subject.sample
        return subject.workload.of_sequences(sample), [tokens[number] for number in sample]

    def load(self, subject: Subject, configuration: Configuration, device: str | None = None) -> float:
        """Make the model be loaded as the configuration says and return the seconds it took; next to none if it is already.

        Then `found_load_s` says what the load before took. The model's class, which all need, is imported before; what a choice
        imports for itself counts where it is imported first.

        Attention is switched on the loaded model where the class can (and read back later); else the model is loaded anew.
        device: another than the session's.
        """
        device = device or self.device
        self.stage("load")
        load_torch.import_class(subject.source, subject.workload.needs)
        began, choices = time.perf_counter(), choices_of(configuration)
        self.names = names = load_torch.statements(choices)
        key = weights_key(subject, configuration, device)
        self.found_load_s = self.loaded_in_s if self.loaded_as == key else None
        if self.loaded_as != key:
            self.unload()
            self.model = loaded(subject, configuration, device, names)
            self.settings = fp32_torch.Settings(self.model)
            self.loaded_as = key
        elif configuration["attention"] != self.loaded_attention:
            arguments = load_torch.arguments_of(choices, configuration, names)
            self.model.set_attn_implementation(arguments["attn_implementation"])
        self.loaded_attention = configuration["attention"]
        self.compiling = frozenset(line for choice in choices if choice.traits.compiles_any for line in choice.on_model)
        self._change(tuple(dict.fromkeys(line for choice in choices for line in choice.on_model)))
        synchronize(device)
        took_s = time.perf_counter() - began
        if self.found_load_s is None:
            self.loaded_in_s = took_s
        return took_s

    def _change(self, lines: tuple[str, ...]) -> None:
        """Have the loaded model be changed by these statements and no others."""
        if lines == self.on_model:
            return
        self.on_model = None
        for knob in KNOBS.values():
            if knob.undo is not None:
                knob.undo(self.model)
        for line in lines:
            exec(line, {**self.names, "model": self.model})  # noqa: S102  (our own lines: the ones that the suggestion prints)
        self.on_model = lines

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Have the loaded model be as it was loaded for a while."""
        with self._changed_to(()):
            yield

    @contextmanager
    def uncompiled(self) -> Iterator[None]:
        """Have the loaded model be as its configuration asks for a while, with nothing of it compiled."""
        with self._changed_to(tuple(line for line in self.on_model or () if line not in self.compiling)):
            yield

    @contextmanager
    def _changed_to(self, lines: tuple[str, ...]) -> Iterator[None]:
        """Have the loaded model be changed by these statements alone for a while."""
        own = self.on_model
        assert own is not None, "a change failed, and the trial went on"
        self._change(lines)
        try:
            yield
        finally:
            self._change(own)

    def unload(self) -> None:
        """Free the model. What was changed with it in its class's module is taken back: the next one would have it too."""
        if self.model is not None:
            self._change(())
        self.model, self.loaded_as, self.settings, self.alone, self.on_model = None, None, None, {}, ()
        self.kept = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def keep(self, runtime: Runtime) -> None:
        """Remember what a run of the loaded model changes, before the first one."""
        if self.kept is None:
            self.kept = runtime.kept(self.model, self.device)

    def give_back(self, runtime: Runtime) -> None:
        """Make the loaded model be as it was when it was loaded, whatever was run with it since."""
        if self.model is not None and self.kept is not None:
            runtime.give_back(self.model, self.kept, self.device)

    def switch(self, implementation: str) -> None:
        """Have the loaded model attend by transformers' implementation of this name."""
        if str(self.model.config._attn_implementation) != implementation:
            self.model.set_attn_implementation(implementation)
            self.loaded_attention = ""

    def batching(self, subject: Subject, configuration: Configuration) -> Batching:
        """Return what a batch must be made for."""
        facts = subject.facts
        return Batching(
            call_torch.pad_token_of(self.model),
            causal=facts.is_causal,
            first_position=facts.position_offset,
            apart=traits_of(configuration).tells_apart,
            dtype=self.model.dtype,
            left=facts.pads_left,
        )

    def calls(
        self,
        subject: Subject,
        workload: Workload,
        configuration: Configuration,
        tokens: Sequence[torch.Tensor],
    ) -> list[Call]:
        """Return one call per batch, on the CPU. tokens: of the workload's sequences."""
        batches = workload.batches(by_length=traits_of(configuration).by_length)
        return self.calls_of(subject, configuration, tokens, batches)

    def calls_of(
        self,
        subject: Subject,
        configuration: Configuration,
        tokens: Sequence[torch.Tensor],
        batches: Iterable[Sequence[int]],
    ) -> list[Call]:
        """Return one call per batch, on the CPU, with what choices add to every call.

        batches: which of the tokens go together, by their places.
        """
        batching, accepts = self.batching(subject, configuration), subject.facts.accepts

        def laid_out(sequences: Sequence[torch.Tensor]) -> tuple[dict[str, Any], Sequence[tuple[int, int, int]]]:
            arguments, places = collate(configuration, sequences, batching)
            own = load_torch.evaluated(call_arguments(configuration), self.names)
            return call_torch.accepted(arguments, accepts) | own, places

        return runtime_of(subject).calls(tokens, batches, laid_out)


def weights_key(subject: Subject, configuration: Configuration, device: str) -> tuple[Any, ...]:
    """Return what the loaded weights depend on: configurations with the same share a loaded model."""
    fixed = weights_of(configuration, switches_attention=subject.facts.switches_attention)
    prepared = kind_of(subject.workload).preparation(subject.workload, subject.facts, subject.source, device)
    return (subject.source.path, subject.source.digest, subject.workload.needs, device, fixed, prepared.statements)


def runtime_of(subject: Subject) -> Runtime:
    """Return how the workload of a subject is run."""
    return kind_of(subject.workload).runtime(subject.workload, subject.facts)


def loaded(subject: Subject, configuration: Configuration, device: str, names: dict[str, Any]) -> Any:
    """Load the model of a subject as a configuration says, and do with it what its kind of work does first.

    names: what the choices' lines may use, see :func:`advisor.networks.load_torch.statements`.
    """
    workload, source = subject.workload, subject.source
    prepared = kind_of(workload).preparation(workload, subject.facts, source, device)
    own = {"torch": torch} | {name: function_of(module, name) for module, name in prepared.functions}
    # Weights that are made in inference mode can't be given other data for a while, as the gate does in fp32.
    with torch.inference_mode(False), torch.no_grad():
        own["model"] = load_torch.load(source, configuration, device, workload.needs, names)
        for line in (*prepared.imports, *prepared.statements):
            exec(line, own)  # noqa: S102  (our own lines: the ones that the suggestion prints)
    return own["model"]


def synchronize(device: str) -> None:
    """Wait for what was launched on a GPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
