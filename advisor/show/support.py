"""The support table in docs/support.md: a row per choice, asked of the choices themselves on a few machines and models.

`python -m advisor.show.support` prints it, `--write FILE` puts it between the file's markers, and `--check FILE` ends with status
1 where the file has another one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

from advisor.knobs import KNOBS, Choice, Situation, baseline_choices, choice_of, knobs_for
from advisor.nouns.configuration import Configuration
from advisor.nouns.environment import Environment
from advisor.nouns.model import ModelFacts
from advisor.workloads import KINDS

BEGIN, END = "<!-- support table -->", "<!-- /support table -->"

_PACKAGES = {"torch": "2.11.0", "transformers": "5.17.0", "accelerate": "1.15.0", "bitsandbytes": "0.50.2"}
_ALL_PACKAGES = {**_PACKAGES, "flash-attn": "2.8.3", "kernels": "0.16.2", "triton": "3.6.0", "torchao": "0.18.0"}
_MORE = {"flash-attn-3": "3.0.0", "flash-attn-4": "4.0.0b18", "liger-kernel": "0.8.5"}

#: The machines that have a column, with every package that a choice can need.
MACHINES = {
    "NVIDIA H200": Environment("cuda", "NVIDIA H200", (9, 0), 150 * 10**9, "580.95.05", "13.0", packages=_ALL_PACKAGES),
    "T4": Environment("cuda", "Tesla T4", (7, 5), 16 * 10**9, "580.95.05", "13.0", packages=_ALL_PACKAGES),
    "CPU": Environment("cpu", "CPU", None, 64 * 10**9, threads=1, packages=_ALL_PACKAGES),
}

#: More machines that are asked for rules only: old, and without packages.
OTHERS = (
    replace(MACHINES["NVIDIA H200"], packages={}),
    replace(MACHINES["NVIDIA H200"], packages={**_PACKAGES, "flash-attn": "2.3.3"}),
    replace(
        MACHINES["NVIDIA H200"], compute_capability=(10, 0), packages={**_ALL_PACKAGES, "flash-attn-4": "4.0.0b36"}
    ),
    replace(MACHINES["NVIDIA H200"], cuda="12.9", packages={**_ALL_PACKAGES, "torch": "2.10.0"}),
    replace(MACHINES["NVIDIA H200"], packages={**_ALL_PACKAGES, **_MORE}),
    replace(MACHINES["NVIDIA H200"], packages={**_ALL_PACKAGES, "flash-attn-4": "4.0.0b36+overwritten"}),
    replace(MACHINES["T4"], compute_capability=(7, 0)),
    replace(MACHINES["T4"], compute_capability=(5, 2)),
)

#: What is known of Llama-3-8B, as an example of a model.
LLAMA = ModelFacts(
    "LlamaForCausalLM",
    "llama",
    "bfloat16",
    8 * 10**9,
    16 * 10**9,
    75 * 10**8,
    32,
    4096,
    32,
    8,
    128,
    128256,
    131072,
    supports_sdpa=True,
    supports_flash=True,
    switches_attention=True,
    default_attention="sdpa",
    repeated_layers=32,
)

#: Models that differ in what rules look at.
_MODELS = (
    LLAMA,
    replace(LLAMA, checkpoint_dtype="float32"),
    replace(LLAMA, checkpoint_dtype="float16", head_dim=320, softcap=True),
    replace(LLAMA, alibi=True, supports_sdpa=False, supports_flash=False, default_attention="eager"),
    replace(LLAMA, model_type="gpt_oss", sliding_window=128, layer_types=("sliding_attention",)),
    replace(LLAMA, layer_types=("full_attention", "linear_attention"), prequantized="awq"),
    replace(LLAMA, linear_parameters=0, switches_attention=False, max_row=100, packed_row="wrong", repeated_layers=0),
    replace(LLAMA, is_causal=False, sliding_window=16, layer_types=("sliding_attention",), packed_row="raises"),
    replace(LLAMA, head_dim=192, hidden_size=4104, sliding_window=16, drops_attention=True, supports_flex=True),
    replace(LLAMA, prequantized="fp8"),
    replace(LLAMA, prequantized="mxfp4", checkpoints=False),
    replace(
        LLAMA, is_causal=False, fused_encoder=True, supports_flex=True, position_offset=2, checkpoint_dtype="float32"
    ),
)

#: The workloads that rules are asked about: examples of every kind.
_WORKLOADS = tuple(dict.fromkeys(workload for kind in KINDS.values() for workload in kind.examples))


def support_table() -> str:
    """Return the table as Markdown, a row per choice in the order of the knobs, numbers last in one row; ends with a newline."""
    heads = ["knob", "choice", "what it is", *MACHINES, "quality tier", "rules that can refuse it", "source"]
    found = rules_of_choices()
    rows = [_row(choice, *found[choice.knob, choice.name]) for choice in choices() if choice.knob not in _sizes()]
    rows += [_row_of_sizes([c for c in choices() if c.knob == name], found) for name in _sizes()]
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def rules_of_choices() -> dict[tuple[str, str], tuple[set[str], bool]]:
    """Return by knob and choice the ids of the rules that refused it anywhere, and whether one did everywhere."""
    rules: dict[tuple[str, str], set[str]] = {(choice.knob, choice.name): set() for choice in choices()}
    lacking: dict[tuple[str, str], list[Environment]] = {key: [] for key in rules}
    admitted = set()
    for choice, environment in product(choices(), (*MACHINES.values(), *OTHERS)):
        if (reason := choice.unavailable(environment)) is not None:
            rules[choice.knob, choice.name].add(reason.rule)
            lacking[choice.knob, choice.name].append(environment)
    for alike in situations():
        for key in alike[0].configuration.over(KNOBS):
            why_not = choice_of(*key).why_not
            for situation in alike:
                refusing = {reason.rule for reason in why_not(situation) if reason.verdict.refuses}
                rules[key] |= refusing
                if not refusing and key not in admitted and situation.environment not in lacking[key]:
                    admitted.add(key)
    return {key: (found, key not in admitted) for key, found in rules.items()}


def choices() -> list[Choice]:
    """Return every choice, in the order of the knobs and of their tables."""
    return [choice for knob in KNOBS.values() for choice in knob.choices.values()]


def situations() -> Iterator[list[Situation]]:
    """Yield every pair of choices, the other knobs as they are by default, for every model and workload: one for each machine."""
    machines = (*MACHINES.values(), *OTHERS[:5])
    for facts, workload in product(_MODELS, _WORKLOADS):
        default = Configuration.of(baseline_choices(facts, workload))
        for one, other in combinations(knobs_for(workload).values(), 2):
            for first, second in product(one.choices, other.choices):
                configuration = default.replaced(**{one.name: first, other.name: second})
                work = workload.under(configuration)
                yield [Situation(configuration, work, environment, facts) for environment in machines]


def _sizes() -> list[str]:
    """Return the knobs whose choices are numbers."""
    return [knob.name for knob in KNOBS.values() if all(name.isdigit() for name in knob.choices)]


def _row_of_sizes(sizes: Sequence[Choice], found: Mapping[tuple[str, str], tuple[set[str], bool]]) -> list[str]:
    """Return one row for a knob whose choices are numbers: they differ in nothing else."""
    rules = set().union(*(found[choice.knob, choice.name][0] for choice in sizes))
    knob, _, _, *rest = _row(sizes[0], rules, all(found[choice.knob, choice.name][1] for choice in sizes))
    names = ", ".join(f"`{choice.name}`" for choice in sizes)
    return [knob, names, KNOBS[knob].summary, *rest]


def _row(choice: Choice, rules: set[str], always: bool) -> list[str]:
    reasons = [choice.unavailable(environment) for environment in MACHINES.values()]
    tiers = sorted({choice.tier(facts) for facts in _MODELS}, key=lambda tier: tier.rank)
    return [
        choice.knob,
        f"`{choice.name}`",
        choice.summary,
        *("yes" if reason is None else f"no ({reason.rule})" for reason in reasons),
        " or ".join(map(str, tiers)),
        ("always: " if always else "") + (", ".join(sorted(rules, key=by_number)) or "–"),
        f"[source]({choice.source})" if choice.source else "–",
    ]


def by_number(rule: str) -> tuple[str, int]:
    """Return what orders rules by letter, then by number."""
    return rule[0], int(rule[1:]) if rule[1:].isdigit() else 0


def with_table(text: str) -> str:
    """Return a document with the table between its markers. Raises ValueError where it has not both, in order."""
    before, begin, rest = text.partition(f"{BEGIN}\n")
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no line {BEGIN} with {END} after it")
    return before + begin + support_table() + end + after


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, write it to a document or compare it with one; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m advisor.show.support", description="The support table.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--write", type=Path, metavar="FILE", help="put the table between the file's markers")
    what.add_argument("--check", type=Path, metavar="FILE", help="status 1 where the file's table is another one")
    options = parser.parse_args(arguments)
    file = options.write or options.check
    if file is None:
        sys.stdout.write(support_table())
        return 0
    try:
        text = file.read_text(encoding="utf-8")
        wanted = with_table(text)
        if options.write:
            file.write_text(wanted, encoding="utf-8")
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{file}: {error}\n")
        return 2
    if options.check and text != wanted:
        sys.stderr.write(f"{file} is not in step with the code: python -m advisor.show.support --write {file}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
