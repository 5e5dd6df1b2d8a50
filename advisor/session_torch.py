"""One device, at most one loaded model, and what belongs to it. Loaded by the worker, and by `advisor.load`."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from advisor import facts_torch, fp32_torch, tokens_torch
from advisor.configuration import Configuration
from advisor.knobs import Batching, call_arguments, choices_of, collate, traits_of, weights_of
from advisor.model import ModelFacts
from advisor.workloads import Workload, workload_of
from advisor.workloads import forward_torch as forward


class Session:
    """One device, at most one loaded model, and what belongs to it."""

    def __init__(self, send: Callable[[dict[str, Any]], None]) -> None:
        """Hold nothing yet. send: writes one message to the parent."""
        self.send = send
        self.last_stage = "start"
        self.model: Any = None
        self.settings: Any = None
        self.loaded_as: tuple[Any, ...] | None = None
        self.loaded_attention = ""
        self.names: dict[str, Any] = {}
        self.tokens_of: tuple[str, list[torch.Tensor]] | None = None
        #: What sequences are alone in fp32, on the CPU, by (layers, attempt) and number: of the loaded weights.
        self.alone: dict[tuple[int, int], dict[int, torch.Tensor]] = {}

    def stage(self, name: str) -> None:
        """Tell the parent what is going on."""
        self.last_stage = name
        self.send({"event": "stage", "stage": name})

    def tokens(self, request: Mapping[str, Any]) -> list[torch.Tensor]:
        """Return the tokens of the workload's sequences, read or drawn once."""
        workload = workload_of(request["workload"])
        key = tokens_torch.key_of(request, workload)
        if self.tokens_of is None or self.tokens_of[0] != key:
            self.tokens_of, self.alone = (key, tokens_torch.tokens_of(request, workload)), {}
        return self.tokens_of[1]

    def sampled(self, request: Mapping[str, Any]) -> tuple[Workload, list[torch.Tensor]]:
        """Return the work on the sequences that the gate judges, request["sample"], and their tokens: those that are timed."""
        tokens, sample = self.tokens(request), request["sample"]
        return workload_of(request["workload"]).of_sequences(sample), [tokens[number] for number in sample]

    def load(self, request: Mapping[str, Any], configuration: Configuration) -> float:
        """Make the model be loaded as the configuration says and return the seconds it took; 0.0 if it is already.

        Attention is switched on the loaded model where the class can (and read back later); else the model is loaded anew.
        """
        self.stage("load")
        began, choices = time.perf_counter(), choices_of(configuration)
        self.names = names = facts_torch.statements(choices)
        key = weights_key(request, configuration)
        if self.loaded_as != key:
            self.unload()
            output = request["workload"]["output"]
            self.model = facts_torch.load(request["source"], configuration, request["device"], output, names)
            self.settings = fp32_torch.Settings(self.model)
            self.loaded_as = key
        elif configuration["attention"] != self.loaded_attention:
            arguments = facts_torch.arguments_of(choices, configuration, names)
            self.model.set_attn_implementation(arguments["attn_implementation"])
        self.loaded_attention = configuration["attention"]
        synchronize(request["device"])
        return time.perf_counter() - began

    def unload(self) -> None:
        """Free the model."""
        self.model, self.loaded_as, self.settings, self.alone = None, None, None, {}
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def switch(self, implementation: str) -> None:
        """Have the loaded model attend by transformers' implementation of this name."""
        if str(self.model.config._attn_implementation) != implementation:
            self.model.set_attn_implementation(implementation)
            self.loaded_attention = ""

    def batching(self, request: Mapping[str, Any], configuration: Configuration) -> Batching:
        """Return what a batch must be made for."""
        facts = ModelFacts.of(request["facts"])
        return Batching(
            facts_torch.pad_token_of(self.model),
            causal=facts.is_causal,
            first_position=facts.position_offset,
            apart=traits_of(configuration).tells_apart,
            dtype=self.model.dtype,
            left=facts.pads_left,
        )

    def calls(
        self,
        request: Mapping[str, Any],
        workload: Workload,
        configuration: Configuration,
        tokens: Sequence[torch.Tensor],
    ) -> list[forward.Call]:
        """Return one call per batch, on the CPU, without what asks for an output. tokens: of the workload's sequences."""
        batches = workload.batches(by_length=traits_of(configuration).by_length)
        return [self.call(request, configuration, batch, [tokens[i] for i in batch]) for batch in batches]

    def call(
        self,
        request: Mapping[str, Any],
        configuration: Configuration,
        batch: Sequence[int],
        tokens: Sequence[torch.Tensor],
    ) -> forward.Call:
        """Return the call for a batch, with what choices add to every call. batch: the numbers of its sequences."""
        arguments, places = collate(configuration, tokens, self.batching(request, configuration))
        arguments = facts_torch.accepted(arguments, request["facts"]["accepts"])
        arguments |= facts_torch.evaluated(call_arguments(configuration), self.names)
        return forward.Call(arguments, tuple(batch), tuple(places))


def weights_key(request: Mapping[str, Any], configuration: Configuration) -> tuple[Any, ...]:
    """Return what the loaded weights depend on: configurations with the same share a loaded model."""
    fixed = weights_of(configuration, switches_attention=request["facts"]["switches_attention"])
    source = request["source"]
    return (source["path"], source["digest"], request["workload"]["output"], request["device"], fixed)


def asked_of(request: Mapping[str, Any]) -> forward.Asked:
    """Return what a request asks of the model."""
    facts = request["facts"]
    return forward.Asked(request["workload"]["output"], tuple(facts["accepts"]), facts.get("pooling", "last"))


def synchronize(device: str) -> None:
    """Wait for what was launched on a GPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
