"""The knob of quantization with all of its choices: weights as they are, and as a checkpoint brings them, stand here.

Fewer bits save memory; they save time where the products themselves are in fewer bits, and mostly not where weights are turned
into floats again for every product (levers.md, Q20). The libraries that quantise are in files of their own.
"""

from __future__ import annotations

from advisor.knobs.choice import Choice, Knob, Reason, Situation, Verdict
from advisor.knobs.quantization import bitsandbytes, torchao
from advisor.knobs.quantization.common import NONE, about, effective, proof, quantised_already
from advisor.knobs.traits import Traits
from advisor.nouns.model import ModelFacts
from advisor.workloads import Workload

#: How checkpoints are quantised whose quantizers in transformers say that no gradient passes through (`is_trainable`).
_UNTRAINABLE = frozenset({"mxfp4", "nvfp4", "fbgemm_fp8", "fp8"})


def _training_why_not(situation: Situation) -> list[Reason]:
    """Rules Q18 and Q19, of adapters beside what a checkpoint brings."""
    workload, traits, reasons = situation.workload, situation.traits, []
    if workload.trains and situation.facts.prequantized in _UNTRAINABLE:
        text = f"transformers' quantizer does not support training beside {situation.facts.prequantized} weights"
        reasons.append(Reason("Q18", Verdict.INVALID, text))
    if workload.trains and traits.compiles_model and not traits.compiles_regions:
        text = "transformers refuses to train a quantised model that is compiled as a whole"
        reasons.append(Reason("Q19", Verdict.INVALID, text, about=about(situation, "compilation")))
    return reasons


def _checkpoint_why_not(situation: Situation) -> list[Reason]:
    facts, environment = situation.facts, situation.environment
    if not facts.prequantized:
        return [Reason("Q16", Verdict.INVALID, "the checkpoint is not quantised")]
    capability = environment.compute_capability or (0, 0)
    reasons = _training_why_not(situation)
    if facts.prequantized == "fp8" and (not environment.is_cuda or capability < (8, 9)):
        reasons.append(
            Reason("Q7", Verdict.WARN, "below compute capability 8.9 transformers turns fp8 weights into bf16")
        )
    if facts.prequantized == "mxfp4" and (not environment.is_cuda or capability < (7, 5)):
        reasons.append(Reason("Q13", Verdict.WARN, "without its kernels transformers turns mxfp4 weights into bf16"))
    if facts.prequantized == "awq" and situation.traits.dtype == "bfloat16":
        text = "AWQ computes in fp16: bf16 is turned into it"
        reasons.append(Reason("Q15", Verdict.ALIAS, text, about=about(situation, "precision")))
    return reasons


def _default(facts: ModelFacts) -> str:
    return "checkpoint" if facts.prequantized else NONE


def _of_work(facts: ModelFacts, workload: Workload) -> str:
    """In four bits where that is asked for, as TRL's `load_in_4bit` has it, unless the checkpoint is quantised already."""
    return "nf4" if workload.quantises_base and not facts.prequantized else ""


def _none_why_not(situation: Situation) -> list[Reason]:
    if situation.workload.quantises_base and not situation.facts.prequantized:
        return [Reason("Q17", Verdict.INVALID, "QLoRA is asked for: the weights are in fewer bits", "--method lora")]
    return quantised_already(situation)


_NONE = Choice(
    "quantization",
    NONE,
    "weights as they are",
    bitsandbytes.SOURCE,
    why_not=_none_why_not,
    proof=proof(NONE),
)
_CHECKPOINT = Choice(
    "quantization",
    "checkpoint",
    "quantised weights as the checkpoint brings them",
    bitsandbytes.SOURCE,
    why_not=_checkpoint_why_not,
    proof=proof("checkpoint"),
    traits=Traits(quantises=True, as_stored=True),
)

KNOB = Knob(
    name="quantization",
    summary="weights in fewer bits",
    reload=True,
    default=_default,
    of_work=_of_work,
    effective=effective,
    choices={choice.name: choice for choice in (_NONE, _CHECKPOINT, *bitsandbytes.CHOICES, *torchao.CHOICES)},
    implied=NONE,
    place=30,
    numbers=True,
)
