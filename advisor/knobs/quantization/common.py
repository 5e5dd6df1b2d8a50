"""What the libraries that quantise share: the rules of every choice that does, what is read back, and the proof of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from advisor.knobs.choice import KNOBS, Reading, Reason, Situation, Term, Verdict
from advisor.knobs.traits import Traits
from advisor.nouns.environment import Environment

#: The choice that quantises nothing.
NONE = "none"

#: A choice that quantises is proven where at least this share of the linear layers was: the output layer is left out by
#: custom, layers of a class or a shape that the quantizer does not take are left out without a word.
LEAST_SHARE = 0.5

#: Tokens of a batch from which on products, and not reading the weights, are what a linear layer waits for.
MANY_TOKENS = 4096


def absent(environment: Environment, packages: Sequence[str], requirements: Mapping[str, str]) -> Reason | None:
    """Return rule Q0 for the first package that isn't installed. requirements: what pip is given, where not the name."""
    for package in packages:
        if environment.version(package) is None:
            wanted = requirements.get(package, package)
            return Reason("Q0", Verdict.INVALID, f"the package {package} isn't installed", f"pip install {wanted}")
    return None


def about(situation: Situation, knob: str) -> str:
    """Return the other knob's choice as a reason names it."""
    return f"{knob}={situation.configuration[knob]}"


def quantised_already(situation: Situation) -> list[Reason]:
    """Refuse what takes weights that are floats (rule Q16)."""
    facts = situation.facts
    if facts.prequantized:
        return [Reason("Q16", Verdict.INVALID, f"the checkpoint is quantised already ({facts.prequantized})")]
    return []


def training_why_not(situation: Situation, *, trainable: bool = True) -> list[Reason]:
    """Rules Q17 and Q18: weights in few bits are not trained, but adapters beside those that gradients pass through.

    trainable: whether transformers' quantizer says that they do: torchao's of 8 bits, and not of 4 (`is_trainable`).
    """
    workload = situation.workload
    if not workload.trains:
        return []
    if not workload.trains_adapters:
        text = "weights in so few bits can't be trained: only adapters beside them can"
        return [Reason("Q17", Verdict.INVALID, text, "--method qlora")]
    if not workload.quantises_base:
        return [Reason("Q17", Verdict.INVALID, "LoRA leaves the weights as they are", "--method qlora")]
    if not trainable:
        return [Reason("Q18", Verdict.INVALID, "transformers' quantizer does not support training with it")]
    if situation.traits.compiles_model and not situation.traits.compiles_regions:
        text = "transformers refuses to train a quantised model that is compiled as a whole"
        about_ = about(situation, "compilation")
        return [Reason("Q19", Verdict.INVALID, text, "choose compiled-regional", about=about_)]
    return []


def quantising_why_not(situation: Situation) -> list[Reason]:
    """Return the rules of every choice that quantises: there are floats, and linear layers of them."""
    reasons = quantised_already(situation) + training_why_not(situation)
    if situation.facts.linear_parameters == 0:
        reasons.append(Reason("Q22", Verdict.ALIAS, f"{situation.facts.architecture} has no linear layer to quantise"))
    return reasons


def dequantising_why_not(situation: Situation) -> list[Reason]:
    """Return these and the rules of weights that are turned into floats again for every product."""
    reasons = quantising_why_not(situation)
    plain = situation.traits.bytes_per_value > 2 and situation.traits.float32_matmul == Traits.float32_matmul
    if plain and situation.environment.is_cuda:
        reasons.append(Reason("Q3", Verdict.SLOW, "quantised layers computing in fp32 use no tensor cores"))
    many = situation.workload.tokens >= MANY_TOKENS * len(situation.workload.batches())
    if many and not situation.workload.trains:  # there memory is what is asked for
        reasons.append(Reason("Q20", Verdict.SLOW, "with many tokens a batch, dequantising costs more than it saves"))
    return reasons


def rates(rate: float, training: float | None = None) -> Callable[[Situation], Mapping[Term, float]]:
    """Return the rates of a choice that is as fast everywhere: on what linear layers compute. training: those of a step."""

    def found(situation: Situation) -> Mapping[Term, float]:
        is_step = training is not None and situation.workload.trains
        return {Term.LINEAR: training if is_step and training is not None else rate}

    return found


def effective(reading: Reading) -> str:
    """Return the choice that ran, by the linear layers; the worker adds to a quantised one's name what it was set to.

    A checkpoint that is quantised already has them too: the worker says so, for it alone knows who quantised.
    """
    quantized = {name for name in reading.linears if name != "Linear"}
    if reading.prequantized:
        return "checkpoint" if quantized else NONE
    known = _made_by()
    found = sorted({known[name] for name in quantized if name in known})
    return "+".join(found) if found else NONE


def proof(name: str) -> Callable[[Reading], str | None]:
    """Return the proof that a choice ran, on LEAST_SHARE of the linear layers where it quantises."""

    def proved(reading: Reading) -> str | None:
        ran = effective(reading)
        if ran == name and name != NONE and not reading.prequantized and share_of(reading)[0] < LEAST_SHARE:
            return f"only {share_words(reading)}"
        if ran == name:
            return None
        return f"the linear layers are {', '.join(sorted(reading.linears))}: {ran}"

    return proved


def share_of(reading: Reading) -> tuple[float, int, int]:
    """Return the share of the linear layers that are quantised, how many they are, and of how many."""
    known, total = _made_by(), sum(reading.linears.values())
    count = sum(n for name, n in reading.linears.items() if name in known)
    return count / max(total, 1), count, total


def share_words(reading: Reading) -> str:
    """Return the same in words, "" where none is."""
    _, count, total = share_of(reading)
    return f"{count} of {total} linear layers quantised" if count else ""


def _made_by() -> dict[str, str]:
    """Return the choice that makes each class of quantised linear layers, as the worker names them with their settings."""
    choices = KNOBS["quantization"].choices
    return {choice.traits.linear: name for name, choice in choices.items() if choice.traits.linear}
