"""Trainers to paste: transformers' Trainer and TRL's SFTTrainer, as far as they take the measured steps.

Both make micro-batches of the samples in the order that they are given in, count the tokens of a step over all of them, and have
words of their own for what a choice does (`Choice.trainer`); what they have none for is done to the model before they get it.
"""

from __future__ import annotations

from advisor.advice.recommendation import Recommendation
from advisor.errors import BadInput
from advisor.knobs import KNOBS, call_arguments, choices_of, traits_of
from advisor.nouns.configuration import Configuration
from advisor.nouns.model import ModelSource
from advisor.show.carried import Carried
from advisor.show.source_lines import Setup, call_lines, checkpoint_of, indented, loading_lines, setup_of
from advisor.show.training_script import function_sources, pass_size, sample_lines, variable_lines
from advisor.workloads import Running, Workload, kind_of

#: What a step is, as it was measured: what a trainer would choose otherwise, or learns otherwise by.
_AS_MEASURED = {
    "learning_rate": "5e-5",
    "lr_scheduler_type": "'constant'",
    "seed": "0",
    "max_grad_norm": "1.0",
    "weight_decay": "0.0",
    "train_sampling_strategy": "'sequential'",
    "remove_unused_columns": "False",
    "logging_steps": "1",
    "report_to": "'none'",
    "save_strategy": "'no'",
}

_LOSSES = """for entry in trainer.state.log_history:
    if "loss" in entry:
        print(f"step {entry['step']}: loss {entry['loss']:.6f}")"""

#: What is not measured, and a run of one's own needs.
_YOURS = """# Yours to choose: learning_rate and its schedule, num_train_epochs, train_sampling_strategy; and to keep what was
# trained: trainer.save_model("trained")"""

_COPIES = "accelerate, on which it stands, makes a copy of logits in fp32 under bf16: more memory than was measured"


def refuse_untrained(library: str, source: ModelSource, workload: Workload) -> None:
    """Raise BadInput where the work is no training."""
    if not workload.trains:
        text = f"--format {library} trains {source.name}, and {workload.output} was asked for"
        raise BadInput(text, "--format python prints a script")


def refuse_untokenised(library: str, source: ModelSource, workload: Workload) -> None:
    """Raise BadInput where the work is no training, or there is no tokenizer, which SFTTrainer can't do without."""
    refuse_untrained(library, source, workload)
    if not source.has_tokenizer:
        text = f"--format {library} needs a tokenizer, and {source.name} has none"
        raise BadInput(text, "--format trainer takes token ids")


def hinders_sft(configuration: Configuration, recommendation: Recommendation) -> str:
    """Return why TRL's SFTTrainer can't take the measured steps, "" where it can."""
    traits, facts, workload = traits_of(configuration), recommendation.facts, recommendation.study.workload
    added, offset, takes = call_arguments(configuration), facts.position_offset, {"position_ids", "cu_seq_lens_q"}
    forward = "it puts a forward pass of its own in the model's place, and that is not what was compiled"
    rounds = "it rounds adapters beside quantised weights to bf16, and they were measured in fp32"
    is_marked = traits.loaded_in_bits or facts.prequantized
    known = (
        (bool(added), f"it takes no arguments of every call ({', '.join(added)})"),
        (not traits.keeps_logits, "it has a loss without logits of its own, and refuses Liger's"),
        (traits.compiles_model and not traits.compiles_regions, forward),
        (traits.compiles_loss, "it has a loss of its own, and what was compiled of the model's would never run"),
        (workload.trains_adapters and bool(is_marked), rounds),
        (traits.packs and offset > 0, f"it counts positions in a row from 0, and this model's begin at {offset}"),
        (
            traits.packs and not takes <= set(facts.accepts),
            "it says where sequences begin, and this model does not take that",
        ),
    )
    return next((why for hinders, why in known if hinders), "")


def trainer_lines(carried: Carried, device: str) -> str:
    """Return a script that takes the measured steps with transformers' Trainer."""
    configuration, recommendation = carried.configuration, carried.recommendation
    facts, source, work = recommendation.facts, recommendation.source, carried.workload
    kind = kind_of(work)
    running, prepared = kind.running(work, facts), kind.preparation(work, facts, source.files, device)
    around = setup_of(configuration, prepared, by_trainer=True)
    making = [
        *call_lines(configuration, facts, '[sample["input_ids"] for sample in samples]'),
        f"return {running.labelled}(call, places)",
    ]
    functions = function_sources(configuration, running, facts, (running.labelled,))
    collate = (
        f'def collate(samples):\n    """Make the batch that was measured, with its labels."""\n{indented(making, 4)}'
    )
    told = [_COPIES] if traits_of(configuration).autocasts else []
    return _document(
        carried.head(*told),
        _begun(
            carried,
            device,
            running,
            around,
            "from typing import Any",
            "from transformers import Trainer, TrainingArguments",
        ),
        *functions,
        collate,
        [
            *sample_lines(configuration, work, facts),
            'samples = [{"input_ids": sequences[i]} for step in steps for i in step]',
            "",
            _call("arguments = TrainingArguments", _arguments(configuration, work, device)),
            "trainer = Trainer(model, arguments, data_collator=collate, train_dataset=samples)",
            "trainer.train()",
            _LOSSES,
            _YOURS,
        ],
    )


def sft_lines(carried: Carried, device: str) -> str:
    """Return a script that takes the measured steps with TRL's SFTTrainer, which lays batches out by itself."""
    configuration, recommendation = carried.configuration, carried.recommendation
    facts, source, work = recommendation.facts, recommendation.source, carried.workload
    kind, packs = kind_of(work), traits_of(configuration).packs
    running, prepared = kind.running(work, facts), kind.preparation(work, facts, source.files, device)
    around = setup_of(configuration, by_trainer=True)
    more = {"dataset_kwargs": "{'skip_prepare_dataset': True}", "max_length": "None", "packing": "False"}
    arguments = {**_arguments(configuration, work, device), "padding_free": str(packs), **more}
    imports = [
        "from datasets import Dataset",
        "from transformers import AutoTokenizer",
        "from trl import SFTConfig, SFTTrainer",
        *(["from peft import LoraConfig"] if prepared.adapters else []),
    ]
    made = {
        "args": "arguments",
        "train_dataset": "samples",
        "processing_class": f"AutoTokenizer.from_pretrained({checkpoint_of(source)!r})",
        **({"peft_config": prepared.adapters} if prepared.adapters else {}),
    }
    padded = facts.pads_left and not packs
    told = [
        "SFTTrainer makes no logits but of some tokens at a time, and what was measured made all: it takes less memory",
        "pads stand on the right here, where nothing reads them; what was measured had them on the left"
        if padded
        else "",
        _COPIES if traits_of(configuration).autocasts else "",
    ]
    return _document(
        carried.head(*told),
        _begun(carried, device, running, around, *imports),
        [
            *sample_lines(configuration, work, facts),
            "rows = [sequences[i].tolist() for step in steps for i in step]",
            'samples = Dataset.from_list([{"input_ids": row, "labels": [-100, *row[1:]]} for row in rows])',
            "",
            _call("arguments = SFTConfig", arguments),
            _call("trainer = SFTTrainer", {"model": "model", **made}),
            "trainer.train()",
            _LOSSES,
            _YOURS,
        ],
    )


def _arguments(configuration: Configuration, workload: Workload, device: str) -> dict[str, str]:
    """Return the arguments of training, as expressions: of the work, of the choices, and of what a step is."""
    size = pass_size(workload)
    own = {name: text for choice in choices_of(configuration) for name, text in choice.trainer.items()}
    # What is not said may be on: SFTConfig switches on what saves memory.
    known = (choice.trainer for knob in KNOBS.values() for choice in knob.choices.values())
    off = {name: "False" for words in known for name, text in words.items() if text == "True"}
    return {
        "output_dir": "'trained'",
        "num_train_epochs": "1",
        "per_device_train_batch_size": str(size),
        "gradient_accumulation_steps": str(-(-workload.size // size)),
        **off,
        **own,
        **_AS_MEASURED,
        **({"use_cpu": "True"} if device == "cpu" else {}),
    }


def _begun(carried: Carried, device: str, running: Running, around: Setup, *imports: str) -> list[str]:
    """Return what comes before the samples: variables of the environment, imports, and the model, loaded and prepared."""
    recommendation, work = carried.recommendation, carried.workload
    place, _, number = device.partition(":")
    seen = f'os.environ.setdefault("CUDA_VISIBLE_DEVICES", {number or "0"!r})  # a trainer would use every GPU that it sees'
    where = (recommendation.facts, work, place)
    loading = loading_lines(recommendation.source, carried.configuration, *where, around)
    threads = [f"torch.set_num_threads({carried.threads})"] if carried.threads else []
    return [
        "import os",
        "",
        *variable_lines(running),
        *([] if place == "cpu" else [seen]),
        "",
        *dict.fromkeys([*imports, *loading, *threads]),
    ]


def _document(head: list[str], begun: list[str], *parts: str | list[str]) -> str:
    """Return a script: its head, what comes first, and functions and statements, apart by two empty lines."""
    texts = [part if isinstance(part, str) else "\n".join(part) for part in parts]
    return "\n\n\n".join(["\n".join([*head, "", *begun]), *texts]) + "\n"


def _call(what: str, arguments: dict[str, str]) -> str:
    """Return a call, an argument a line."""
    return "\n".join([f"{what}(", *(f"    {name}={text}," for name, text in arguments.items()), ")"])
