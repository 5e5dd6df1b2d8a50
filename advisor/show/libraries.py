"""Calls of other libraries to paste: transformers' pipeline and sentence-transformers, as far as they do the measured work.

Both take texts, tokenise and pad by themselves and pass the model ids and a mask: a packed row can't be said to them, nor an
argument of every call. Both are told to pad on the right: they pass no positions, and nothing reads pads that stand at the end.
"""

from __future__ import annotations

from pathlib import Path

from advisor.advice.recommendation import Recommendation
from advisor.errors import BadInput
from advisor.knobs import call_arguments, traits_of
from advisor.models.beside import MODES
from advisor.nouns.configuration import Configuration
from advisor.nouns.model import ModelSource
from advisor.show.carried import Carried, sorted_twin
from advisor.show.source_lines import Setup, checkpoint_of, setup_of
from advisor.workloads import Served, Workload, kind_of

_TEXTS = 'texts = ["Put your own texts here.", "They may be of any length."]'


def served(library: str, source: ModelSource, workload: Workload) -> Served:
    """Return how a library does a workload with a model. Raises BadInput where it does not, with what does."""
    found = kind_of(workload).served(library, workload)
    if found.refused:
        raise BadInput(f"--format {library}: {found.refused}", found.instead)
    if source.has_random_weights:
        text = f"--format {library} loads a checkpoint, and {source.name} is a config.json, its weights drawn at random"
        raise BadInput(text, "name a checkpoint; --format python prints a script that draws them")
    if not source.has_tokenizer:
        text = f"--format {library} takes texts, and {source.name} has no tokenizer"
        raise BadInput(text, "--format python runs token ids")
    return found


def hinders_pipeline(configuration: Configuration, recommendation: Recommendation) -> str:
    """Return why a pipeline can't run a configuration, "" where it can."""
    study, source = recommendation.study, recommendation.source
    if traits_of(configuration).packs:
        return "it gives every sequence a row of its own"
    if call_arguments(configuration):
        return f"it takes no arguments of every call ({', '.join(call_arguments(configuration))})"
    if kind_of(study.workload).preparation(study.workload, recommendation.facts, source.files, "cpu").statements:
        return "what comes after the model is not its own"
    return ""


def hinders_encoder(configuration: Configuration, _: Recommendation) -> str:
    """Return why sentence-transformers can't run a configuration, "" where it can."""
    if traits_of(configuration).packs:
        return "it gives every sequence a row of its own, as far as it can be told to"
    if call_arguments(configuration):
        return f"it takes no arguments of every call ({', '.join(call_arguments(configuration))})"
    return "the model is changed after it is loaded" if setup_of(configuration).after else ""


def pipeline_lines(carried: Carried, device: str) -> str:
    """Return a script that runs texts through a pipeline as the model was measured."""
    recommendation, configuration = carried.recommendation, carried.configuration
    task = served("pipeline", recommendation.source, recommendation.study.workload).task
    around = setup_of(configuration)
    arguments = {**around.arguments, "device_map": repr(_numbered(device))}
    dtype = arguments.pop("dtype", '"auto"')
    size = carried.workload.size
    order = "sorted(range(len(texts)), key=lambda i: -lengths[i])" if traits_of(configuration).by_length else None
    classifies = task == "text-classification"
    given = (
        repr(task),
        f"model={checkpoint_of(recommendation.source)!r}",
        f"device={_numbered(device)!r}",
        f"dtype={dtype}",
        f"model_kwargs={_dict(arguments)}",
        f"batch_size={size}",
    )
    lines = [
        *_begun(carried, around, "from transformers import pipeline", *_padded_words(carried)),
        *("pipe = pipeline(", *(f"    {each}," for each in given), ")"),
        *(["model = pipe.model", *around.after, "pipe.model = model"] if around.after else []),
        'pipe.tokenizer.padding_side = "right"',
        *(["pipe.model.config.use_cache = False"] if recommendation.facts.is_causal else []),
        "",
        _TEXTS,
        'lengths = [len(pipe.tokenizer(text)["input_ids"]) for text in texts]',
        f"order = {order or 'range(len(texts))'}",
        "results = [None] * len(texts)",
    ]
    if classifies:
        lines += [
            "# The scores as they were measured, before softmax or sigmoid; leave function_to_apply out for probabilities.",
            'outputs = pipe([texts[i] for i in order], function_to_apply="none", top_k=None)',
            "for i, scores in zip(order, outputs):\n    results[i] = {each['label']: each['score'] for each in scores}",
            "print(results)",
        ]
    else:
        lines += [
            "outputs = pipe([texts[i] for i in order], return_tensors=True)",
            "for i, hidden in zip(order, outputs):\n    results[i] = hidden[0, : lengths[i]]  # [tokens, width], pads cut off",
            "print([tuple(result.shape) for result in results])",
        ]
    return "\n".join([*lines, ""])


def encoder_lines(carried: Carried, device: str) -> str:
    """Return a script that embeds texts with sentence-transformers as the model was measured, pooled in the same way."""
    recommendation, configuration = carried.recommendation, carried.configuration
    served("sentence-transformers", recommendation.source, recommendation.study.workload)
    around, where = setup_of(configuration), _numbered(device)
    arguments = _dict({**around.arguments, "device_map": repr(where)})
    folder, has_modules = _folder(recommendation.source)
    if has_modules:
        imports = ["from sentence_transformers import SentenceTransformer"]
        made = [
            f"encoder = SentenceTransformer(\n    {folder!r},\n    device={where!r},\n    model_kwargs={arguments},\n)"
        ]
    else:
        mode = next(name for name, ours in MODES.items() if ours == recommendation.facts.pooling)
        imports = [
            "from sentence_transformers import SentenceTransformer",
            "from sentence_transformers.sentence_transformer.modules import Pooling, Transformer",
        ]
        made = [
            "# There is no modules.json: the pooling that was measured is said here, as sentence-transformers 6 takes it.",
            f"transformer = Transformer({folder!r}, model_kwargs={arguments})",
            f"pooling = Pooling(transformer.get_embedding_dimension(), {mode!r})",
            f"encoder = SentenceTransformer(modules=[transformer, pooling], device={where!r})",
        ]
    twin = sorted_twin(carried)
    told = [
        f"encode() sorts texts by length, and the recommended layout does not: {twin}" if twin else "",
        "" if _is_fp32(configuration) else "it pools in the model's dtype; what was measured pools in float32",
        *_padded_words(carried),
    ]
    lines = [
        *_begun(carried, around, *imports, *told),
        *made,
        "encoder[0].unpad_inputs = False  # with flash attention it would pack by itself, which was not measured",
        'encoder.tokenizer.padding_side = "right"',
        "",
        _TEXTS,
        f"embeddings = encoder.encode(texts, batch_size={carried.workload.size}, convert_to_tensor=True)",
        "print(tuple(embeddings.shape))",
    ]
    return "\n".join([*lines, ""])


def _begun(carried: Carried, around: Setup, *more: str) -> list[str]:
    """Return how a script begins: its head, imports, functions and statements. more: imports, and lines for the head."""
    imports = [line for line in more if line.startswith("from ")]
    told = [line for line in more if line not in imports]
    needed = sorted({"import torch", *around.imports, *imports})
    threads = [f"torch.set_num_threads({carried.threads})"] if carried.threads else []
    return [*carried.head(*told), "", *needed, "", *around.functions, *around.before, *threads, ""]


def _padded_words(carried: Carried) -> list[str]:
    """Return what is to be told of the side that pads stand on."""
    left = carried.recommendation.facts.pads_left
    return (
        ["pads stand on the right here, where nothing reads them; what was measured had them on the left"]
        if left
        else []
    )


def _is_fp32(configuration: Configuration) -> bool:
    return traits_of(configuration).bytes_per_value >= 4


def _folder(source: ModelSource) -> tuple[str, bool]:
    """Return what to name to sentence-transformers, and whether it says by its modules.json what comes after the model."""
    root = Path(str(source.beside.get("folder", source.path)))
    if (root / "modules.json").is_file():
        return (str(root) if Path(source.name).exists() else source.name), True
    return checkpoint_of(source), False


def _numbered(device: str) -> str:
    """Return a device with its number: a model that is on it already is then not moved."""
    return "cuda:0" if device == "cuda" else device


def _dict(arguments: dict[str, str]) -> str:
    return f"{{{', '.join(f'{name!r}: {text}' for name, text in arguments.items())}}}"
