"""Ready: a model loaded as it is recommended, and how to call it as it was measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from advisor.errors import BadInput
from advisor.nouns.configuration import Configuration
from advisor.nouns.environment import Machine
from advisor.nouns.model import ModelFacts
from advisor.workloads import Head, Workload, kind_of

if TYPE_CHECKING:  # the database's driver takes time to import
    from advisor.advice.recommendation import Recommendation


@dataclass(frozen=True)
class Ready:
    """A model, loaded as recommended, and how to call it as it was measured.

    Call it with a padded batch, as a model of transformers is called, or with token ids through `batches` and `results`.

    model: the torch module, in evaluation mode, on `device`; batch: how many sequences it was measured with at once.
    """

    model: Any = field(repr=False)
    recommendation: Recommendation = field(repr=False)
    device: str
    batch: int
    _session: Any = field(repr=False)
    _subject: Any = field(repr=False)

    def __call__(self, input_ids: Any, attention_mask: Any = None, *, logits_to_keep: int = 0, **more: Any) -> Any:
        """Run a padded batch as it was measured, packed too, and return what a model of transformers returns, in its shape.

        input_ids, attention_mask: [batch, columns], pads on either side; no mask: no pads. Returns a ModelOutput with what was
        measured: `logits` [batch, columns, vocabulary] of a language model, those of the last `logits_to_keep` columns alone
        where that is given; `last_hidden_state` [batch, columns, width], also where an embedding was measured (which
        :meth:`results` gives); `logits` [batch, labels] of a classification head. Pads have zeros. Raises BadInput for what
        is no such batch, and for arguments that would be other work than was measured.
        """
        import torch
        from transformers import modeling_outputs

        from advisor.faces import sequences_torch

        is_real = sequences_torch.real_tokens(input_ids, attention_mask)
        sequences_torch.refuse_unmeasured(more, is_real, self._subject.facts)
        is_of_logits = self._workload.needs.head is Head.LANGUAGE
        kept = sequences_torch.columns_kept(logits_to_keep, is_of_logits=is_of_logits)
        call = self._call([row[kept] for row, kept in zip(input_ids, is_real, strict=True)])
        with torch.inference_mode():
            found = self._runtime.of_tokens(self.model, call, self.device)
            if found is None and self._workload.needs.head is not Head.CLASSIFICATION:
                what = f"what was measured, {self._workload.output}, is no output of a model for a padded batch"
                raise BadInput(what, "use results()")
            if found is None:
                scores = self._runtime.run(self.model, call, self.device)
                return modeling_outputs.SequenceClassifierOutput(logits=scores)
            name, values = found
            padded = values[0].new_zeros((*is_real.shape, values[0].shape[-1]))
            padded[is_real.to(padded.device)] = torch.cat(values)
        if name == "logits":
            return modeling_outputs.CausalLMOutput(logits=padded[:, -kept:])
        return modeling_outputs.BaseModelOutput(last_hidden_state=padded)

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.model.config

    def collate(self, sequences: Iterable[Any]) -> dict[str, Any]:
        """Return the arguments of `model(**arguments)` for a batch of token ids, on the device: padded, or in one row.

        sequences: lists or 1-D tensors of whole numbers, none of them empty. Where the last logits are asked for, those of
        every sequence's end alone are computed, in the order of the sequences, as far as the model's class can. Raises
        BadInput for what is no token id of this model, and for scores of a packed row, which only :meth:`results` can read.
        """
        call = self._call(sequences)
        if call.is_packed and self._workload.needs.head is Head.CLASSIFICATION:
            raise BadInput("model(**arguments) gives one score a row, and these sequences share one", "use results()")
        return dict(self._runtime.arguments(call).on(self.device))

    def results(self, sequences: Iterable[Any]) -> Any:
        """Run a batch and return what was asked for, a row a sequence: its last logits, its embedding or its scores.

        Hidden states and all logits come as the model gives them, [rows, columns, width]. Raises BadInput for what is no
        token id of this model, or longer than its positions.
        """
        import torch

        with torch.inference_mode():
            return self._runtime.run(self.model, self._call(sequences), self.device)

    def batches(self, sequences: Sequence[Any]) -> list[list[int]]:
        """Return, batch by batch, the places in `sequences` of those to run together: by length where that was measured."""
        from advisor.faces import sequences_torch
        from advisor.knobs import traits_of

        if hasattr(sequences, "__len__") and not len(sequences):
            return []
        lengths = tuple(len(each) for each in sequences_torch.sequences_of(sequences, self._subject.facts))

        by_length = traits_of(self._configuration).by_length
        work = replace(self._workload, lengths=lengths, batch=self.batch)
        return [list(batch) for batch in work.batches(by_length=by_length)]

    @property
    def _configuration(self) -> Configuration:
        chosen = self.recommendation.chosen
        assert chosen is not None  # nothing else is loaded
        return chosen.configuration

    @property
    def _workload(self) -> Workload:
        return self.recommendation.study.workload

    @property
    def _runtime(self) -> Any:
        from advisor.measure import session_torch

        return session_torch.runtime_of(self._subject)

    def _call(self, sequences: Iterable[Any]) -> Any:
        """Return the worker's call for a batch."""
        from advisor.faces import sequences_torch

        tensors = sequences_torch.sequences_of(sequences, self._subject.facts)
        (call,) = self._session.calls_of(self._subject, self._configuration, tensors, [range(len(tensors))])
        return call


def loaded(recommendation: Recommendation, machine: Machine) -> Ready:
    """Load what is recommended through the worker's own session: the lines that were measured. Raises BadInput."""
    import torch

    from advisor.measure import session_torch
    from advisor.measure.messages import Subject
    from advisor.networks import facts_torch

    assert recommendation.chosen is not None
    if recommendation.study.workload.trains:
        text = "load runs forward passes, and what was measured is a step of training"
        raise BadInput(text, "advisor suggest prints it: --format python, trainer or trl")
    configuration, source = recommendation.chosen.configuration, recommendation.source.files
    workload = recommendation.study.workload.under(configuration)
    # Read anew: stored facts can be those of a class that gives another output.
    facts = ModelFacts.of(facts_torch.read_facts(source, workload.needs))
    kind_of(workload).refuse(workload, facts, recommendation.source.name)
    subject = Subject(source=source, facts=facts, workload=workload, configuration=configuration)
    if not machine.environment.is_cuda:
        torch.set_num_threads(machine.environment.threads or 1)
    session = session_torch.Session(lambda _: None, machine.user_device)
    session.load(subject, configuration)
    return Ready(session.model, recommendation, machine.user_device, workload.size, session, subject)
