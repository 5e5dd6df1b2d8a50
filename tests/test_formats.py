"""What `--format` prints to be pasted: each is run, by what it is for, on the shipped models."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import advisor  # noqa: E402
from advisor.advice.recommendation import Recommendation  # noqa: E402
from advisor.errors import BadInput  # noqa: E402
from advisor.faces.cli import run  # noqa: E402
from advisor.faces.commands import _answer  # noqa: E402
from advisor.knobs import KNOBS  # noqa: E402
from advisor.nouns.answer import Conclusion  # noqa: E402
from advisor.nouns.configuration import Configuration  # noqa: E402
from advisor.show.as_data import Unsayable, value_of  # noqa: E402
from advisor.show.carried import carried  # noqa: E402
from advisor.show.documents import configuration_payload  # noqa: E402
from advisor.show.formats import FORMATS, NAMES  # noqa: E402
from advisor.show.report import recommendation_payload  # noqa: E402

MODELS = Path(__file__).parent / "models"
CAUSAL, ENCODER = MODELS / "causal", MODELS / "encoder"
WORK: dict[str, Any] = {
    "lengths": 24,
    "padding": 0.3,
    "batch": 2,
    "batches": 2,
    "device": "cpu",
    "quality": "exact",
    "threads": 1,
}
EFFORT: dict[str, Any] = {"trials": 2, "blocks": 0, "only": {"attention": "sdpa", "packing": ["padded", "sorted"]}}

TEXTS = ["A short one.", "One that is longer, so that the batch has pads.", "Yes", "And a fourth, of middle length."]

#: The formats of work that does not train: the others are run by tests/test_training_formats.py.
UNTRAINED = [name for name in FORMATS if name not in ("trainer", "trl")]

#: A name that would end a text, a comment or a word of every language that is printed here.
HOSTILE = "a\"\"\"\nimport os # ' : {x} $(exit 9) `exit 9`\n''' - !!python/name:os.system \u2028 é"


@pytest.fixture(scope="module", autouse=True)
def _here(tmp_path_factory: pytest.TempPathFactory, one_thread: None, offline: None) -> Iterator[None]:
    """Keep what is measured in a database of these tests, one thread here, and the mode of matrix products as it was."""
    mode = torch.get_float32_matmul_precision()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADVISOR_DATABASE_URL", f"sqlite:///{tmp_path_factory.mktemp('formats')}/advisor.db")
        yield
    torch.set_float32_matmul_precision(mode)


@pytest.fixture(scope="module")
def embeds() -> Recommendation:
    """Measure embeddings of the shipped encoder, two layouts."""
    return advisor.tune(str(ENCODER), output="pooled", **WORK, **EFFORT)


@pytest.fixture(scope="module")
def hidden() -> Recommendation:
    """Measure hidden states of the shipped encoder."""
    return advisor.tune(str(ENCODER), output="hidden", **WORK, **EFFORT)


@pytest.fixture(scope="module")
def speaks() -> Recommendation:
    """Measure hidden states of the shipped decoder."""
    return advisor.tune(str(CAUSAL), output="hidden", **WORK, **EFFORT)


@pytest.fixture(scope="module")
def classifies(tmp_path_factory: pytest.TempPathFactory) -> Recommendation:
    """Measure scores of the shipped encoder with a head of three labels, which was drawn."""
    folder = tmp_path_factory.mktemp("made") / "a classifier's"
    torch.manual_seed(0)
    transformers.AutoModelForSequenceClassification.from_pretrained(ENCODER, num_labels=3).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ENCODER / name, folder / name)
    return advisor.tune(str(folder), output="scores", **WORK, **EFFORT)


def having(recommendation: Recommendation, **choices: str) -> Recommendation:
    """Return the same that recommends a configuration with these choices, as if that had been measured to be best."""
    chosen = recommendation.chosen
    assert chosen is not None
    trial = replace(chosen.trial, effective=Configuration.of({**chosen.configuration, **choices}))
    return replace(recommendation, chosen=replace(chosen, trial=trial))


def named(recommendation: Recommendation, name: str) -> Recommendation:
    """Return the same of a model that is called something else."""
    return replace(recommendation, source=replace(recommendation.source, name=name))


def ran(text: str, result: str, tmp_path: Path) -> Any:
    """Run a printed script on our texts in a process of its own, and return what it has under a name then."""
    lines = text.splitlines()
    (place,) = [number for number, line in enumerate(lines) if line.startswith("texts = ")]
    lines[place] = f"texts = {TEXTS!r}"
    lines.append(f"torch.save({result}, {str(tmp_path / 'result.pt')!r})")
    script = tmp_path / "pasted.py"
    script.write_text("\n".join(lines), encoding="utf-8")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return torch.load(tmp_path / "result.pt")


def alone(auto: Any, path: str, **more: Any) -> list[Any]:
    """Return what a model, loaded plainly, gives of each text by itself."""
    tokenizer, model = transformers.AutoTokenizer.from_pretrained(path), auto.from_pretrained(path, **more).eval()
    with torch.inference_mode():
        return [model(**tokenizer(text, return_tensors="pt")) for text in TEXTS]


# ------------------------------------------------------------------------------------------------------------------ data


def test_every_choice_can_be_said_in_data() -> None:
    """Of every choice of every knob each argument of loading has a value, and it means what the expression does."""
    torchao = pytest.importorskip("torchao.quantization")
    names = {**vars(torchao), "torch": torch}
    names |= {name: getattr(transformers, name) for name in ("BitsAndBytesConfig", "TorchAoConfig")}
    seen = 0
    for knob in KNOBS.values():
        for choice in knob.choices.values():
            for expression in choice.load(Configuration.of({knob.name: choice.name})).values():
                value, meant = value_of(expression), eval(expression, names)
                if isinstance(value, dict):
                    assert json.loads(json.dumps(value)) == value
                    value, meant = type(meant).from_dict(dict(value)).to_dict(), meant.to_dict()
                elif isinstance(meant, torch.dtype):
                    meant = str(meant).removeprefix("torch.")
                assert value == meant, expression
                assert json.loads(json.dumps(value)) == value
                seen += 1
    assert seen >= 15


@pytest.mark.parametrize("expression", ["made()", "Other(a=1)", "torch.nn.Linear(2, 2)", "1 +", "{1, 2}", "b'a'"])
def test_what_no_data_says_is_told(expression: str) -> None:
    """Anything but a literal, a dtype and a known config is said to be unsayable, and is not guessed."""
    with pytest.raises(Unsayable):
        value_of(expression)


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"attention": "eager", "precision": "bf16"},
        {"quantization": "nf4"},
        {"quantization": "int8"},
        {"quantization": "torchao-int8-dynamic"},
    ],
    ids=["default", "eager-bf16", "nf4", "int8", "torchao-int8-dynamic"],
)
def test_data_is_what_from_pretrained_takes(hidden: Recommendation, choices: dict[str, str]) -> None:
    """JSON and YAML hold the same arguments, and a model that is loaded with them is what was measured."""
    recommendation = having(hidden, **choices)
    document = yaml.safe_load(FORMATS["yaml"].write(recommendation, "cpu"))
    payload = json.loads(json.dumps(recommendation_payload(recommendation, "cpu")))
    model = getattr(transformers, document["class"]).from_pretrained(document["model"], **document["model_kwargs"])

    assert document["model_kwargs"] == payload["model_kwargs"]
    assert model.config._attn_implementation == choices.get("attention", "sdpa")
    assert model.dtype == (torch.bfloat16 if choices.get("precision") == "bf16" else torch.float32)
    layer = {"nf4": "Linear4bit", "int8": "Linear8bitLt"}.get(choices.get("quantization", ""), "Linear")
    assert type(model.encoder.layer[0].output.dense).__name__ == layer


def test_yaml_is_read_back(embeds: Recommendation) -> None:
    """What PyYAML reads is what was written, with the work, the proof, and what is to be run around loading."""
    document = yaml.safe_load(FORMATS["yaml"].write(having(embeds, attention="bettertransformer"), "cpu"))
    asked = carried("yaml", having(embeds, attention="bettertransformer"), lambda _, __: "")

    assert document == configuration_payload(asked, "cpu")
    assert document["batch_size"] == 2
    assert document["before_loading"] == ['torch.set_float32_matmul_precision("highest")']
    assert document["after_loading"] == ["model = fuse_encoder(model)"]
    assert document["functions"] == ["fuse_encoder"]
    assert document["proof"]["versions"]["torch"] == torch.__version__
    assert document["proof"]["quality"]["judged"] is True
    assert document["batching"]["name"] in ("padded", "sorted")


# -------------------------------------------------------------------------------------------------------------- pipeline


@pytest.mark.parametrize(
    "choices",
    [{"packing": "padded"}, {"packing": "sorted"}, {"attention": "bettertransformer"}, {"quantization": "nf4"}],
    ids=["padded", "sorted", "bettertransformer", "nf4"],
)
def test_a_pipeline_gives_hidden_states(hidden: Recommendation, choices: dict[str, str], tmp_path: Path) -> None:
    """A pipeline of features gives what the model, loaded plainly, gives of each text alone, the pads cut off."""
    text = FORMATS["pipeline"].write(having(hidden, **choices), "cpu")
    more = {}
    if "quantization" in choices:
        more["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        )
    plain = alone(transformers.AutoModel, str(ENCODER), **more)

    # On a CPU with AVX512-BF16 bitsandbytes multiplies 4-bit weights in bf16, and otherwise for a row than for several.
    within = {"atol": 2e-2, "rtol": 2e-2} if "quantization" in choices else {"atol": 1e-4, "rtol": 1e-3}
    for found, wanted in zip(ran(text, "results", tmp_path), plain, strict=True):
        torch.testing.assert_close(found, wanted.last_hidden_state[0], **within)


def test_a_pipeline_gives_a_decoders_hidden_states(speaks: Recommendation, tmp_path: Path) -> None:
    """Of a decoder too, whose pads were measured on the left: that they stand on the right here is said."""
    text = FORMATS["pipeline"].write(speaks, "cpu")

    assert "# pads stand on the right here" in text
    for found, wanted in zip(ran(text, "results", tmp_path), alone(transformers.AutoModel, str(CAUSAL)), strict=True):
        torch.testing.assert_close(found, wanted.last_hidden_state[0], atol=1e-4, rtol=1e-3)


def test_a_pipeline_gives_scores(classifies: Recommendation, tmp_path: Path) -> None:
    """A pipeline of a classifier gives the scores that were measured, and not their probabilities."""
    plain = alone(transformers.AutoModelForSequenceClassification, classifies.source.path)
    results = ran(FORMATS["pipeline"].write(classifies, "cpu"), "results", tmp_path)

    for found, wanted in zip(results, plain, strict=True):
        labelled = [found[f"LABEL_{place}"] for place in range(3)]
        torch.testing.assert_close(torch.tensor(labelled), wanted.logits[0], atol=1e-4, rtol=1e-3)


# -------------------------------------------------------------------------------------------------- sentence-transformers


def near(found: Any, wanted: Any) -> None:
    """See that embeddings are the same, [texts, width]."""
    torch.testing.assert_close(found.float().cpu(), wanted.float(), atol=1e-4, rtol=1e-3)


def results_of(path: str) -> Any:
    """Return the embeddings that `advisor.load` gives of our texts."""
    ready = advisor.load(path, output="pooled", **WORK)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    return torch.stack([ready.results([tokenizer(text)["input_ids"]])[0] for text in TEXTS])


@pytest.mark.parametrize("made", ["encoder", "causal", "modules", pytest.param("cls", marks=pytest.mark.slow)])
def test_sentence_transformers_gives_the_embeddings(made: str, tmp_path: Path) -> None:
    """It gives the embeddings that were measured: with modules of its own, and where it would guess otherwise."""
    pytest.importorskip("sentence_transformers")
    folder = tmp_path / "it's a model"
    shutil.copytree(CAUSAL if made == "causal" else ENCODER, folder)
    if made == "cls":
        (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    if made == "modules":
        kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
        listed = [
            {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for n, (path, kind) in enumerate(kinds.items())
        ]
        (folder / "modules.json").write_text(json.dumps(listed))
        (folder / "2_Normalize").mkdir()
    found = advisor.tune(str(folder), output="pooled", **WORK, **EFFORT)
    text = FORMATS["sentence-transformers"].write(found, "cpu")

    near(ran(text, "embeddings", tmp_path), results_of(str(folder)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nf4", "int8"])
def test_sentence_transformers_quantises(embeds: Recommendation, name: str, tmp_path: Path) -> None:
    """A quantised configuration is loaded so."""
    pytest.importorskip("sentence_transformers")
    text = FORMATS["sentence-transformers"].write(having(embeds, quantization=name), "cpu")
    layer = "type(encoder[0].auto_model.encoder.layer[0].output.dense).__name__"

    assert ran(text, layer, tmp_path) == {"nf4": "Linear4bit", "int8": "Linear8bitLt"}[name]


# ----------------------------------------------------------------------------------------------- what can't be carried


@pytest.mark.parametrize("name", ["pipeline", "sentence-transformers"])
def test_packed_is_not_dropped_silently(embeds: Recommendation, hidden: Recommendation, name: str) -> None:
    """Where packed is recommended, the best that was measured and is right is printed, and what was left is said."""
    found = hidden if name == "pipeline" else embeds
    kept = found.chosen
    assert kept is not None
    recommendation = replace(having(found, packing="packed"), runners_up=(kept, *found.runners_up))
    text = FORMATS[name].write(recommendation, "cpu")

    assert f"# {name} can't carry what is recommended, sdpa · fp32 · packed: it gives every sequence a row" in text
    assert f"what remains is {kept.configuration}: 1.00 × the default" in text
    assert f"\n# not what is recommended: 1.00 × the default, which it is (trial {kept.trial.number}); measured" in text
    with pytest.raises(BadInput, match="nothing that it can carry was measured and is right"):
        FORMATS[name].write(replace(recommendation, runners_up=()), "cpu")
    assert FORMATS["yaml"].write(recommendation, "cpu").startswith(f"# {ENCODER}: sdpa · fp32 · packed")


def test_that_encode_sorts_is_said(embeds: Recommendation) -> None:
    """Where the given order is recommended, it is said that encode() sorts, and what that was measured to be."""
    padded = having(embeds, packing="padded")
    line = "# encode() sorts texts by length, and the recommended layout does not: "
    twin = having(embeds, packing="sorted").chosen
    assert twin is not None

    known = FORMATS["sentence-transformers"].write(replace(padded, runners_up=(twin,)), "cpu")
    assert f"{line}measured so: " in known
    unknown = FORMATS["sentence-transformers"].write(replace(padded, runners_up=()), "cpu")
    assert f"{line}that was not measured, or is not right" in unknown
    assert line not in FORMATS["sentence-transformers"].write(having(embeds, packing="sorted"), "cpu")


REFUSED = {
    "logits in a pipeline": (CAUSAL, "last-logits", "pipeline", "text-generation or fill-mask is another workload"),
    "embeddings in a pipeline": (ENCODER, "pooled", "pipeline", "no pipeline pools"),
    "hidden states as embeddings": (ENCODER, "hidden", "sentence-transformers", "gives embeddings, and hidden was"),
    "drawn weights in a pipeline": (ENCODER / "config.json", "hidden", "pipeline", "its weights drawn at random"),
    "drawn weights": (ENCODER / "config.json", "pooled", "sentence-transformers", "its weights drawn at random"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_library_does_not_do_is_refused_before_it_is_measured(
    case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`tune` measures nothing for a format that nothing could be printed in: one line, with what to do, and status 2."""
    model, output, form, words = REFUSED[case]
    status = run(["tune", str(model), "--lengths", "8", "--device", "cpu", "--output", output, "--format", form])
    printed, told = capsys.readouterr()

    assert (status, printed, told.count("\n")) == (2, "", 1)
    assert words in told
    assert "--format" in told.partition(words)[2] or "config.json" in told


@pytest.mark.parametrize("form", FORMATS)
def test_nothing_is_printed_where_nothing_is_recommended(
    embeds: Recommendation, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where nothing is right, stdout stays empty, stderr has a line, and the status says so."""
    nothing = replace(embeds, chosen=None, verdict=Conclusion.NONE_RIGHT)
    status = _answer(Namespace(format=form, pareto=False, refusals=False), nothing, "cpu")
    printed, told = capsys.readouterr()

    assert (status, printed, told.count("\n")) == (4, "", 1)


@pytest.mark.parametrize("form", UNTRAINED)
def test_every_format_says_whose_quality_is_unknown(embeds: Recommendation, form: str, hidden: Recommendation) -> None:
    """Where other weights of the same shapes were measured, each format says so before anything else is read."""
    found = hidden if form == "pipeline" else embeds
    other = replace(found, source=replace(found.source, weights_digest="another"))

    assert "own was not measured. To measure it: " in FORMATS[form].write(other, "cpu").partition("\n\n\n")[0]
    assert "own was not measured" not in FORMATS[form].write(found, "cpu")


# --------------------------------------------------------------------------------------------------------------- hostile


@pytest.mark.parametrize("form", ["pipeline", "sentence-transformers", "python"])
def test_a_name_stays_a_text_in_python(embeds: Recommendation, hidden: Recommendation, form: str) -> None:
    """Whatever a model is called, a script has the same statements, and the name is a text or a comment in it."""
    found = hidden if form == "pipeline" else embeds
    plain, hostile = (FORMATS[form].write(named(found, name), "cpu") for name in ("org/name", HOSTILE))

    kinds: Callable[[str], list[str]] = lambda text: [type(node).__name__ for node in ast.walk(ast.parse(text))]  # noqa: E731
    assert kinds(plain) == kinds(hostile)
    assert HOSTILE in [node.value for node in ast.walk(ast.parse(hostile)) if isinstance(node, ast.Constant)]


def test_a_name_stays_a_text_in_yaml(embeds: Recommendation) -> None:
    """Whatever a model is called, YAML gives it back as it is, and nothing of it is a key or a tag."""
    plain, hostile = (yaml.safe_load(FORMATS["yaml"].write(named(embeds, name), "cpu")) for name in ("a", HOSTILE))

    assert hostile == {**plain, "model": HOSTILE}


# ------------------------------------------------------------------------------------------------------------------- env


@pytest.mark.parametrize("name", ["org/name with spaces", HOSTILE])
def test_the_environment_is_lines_of_a_shell(embeds: Recommendation, name: str, tmp_path: Path) -> None:
    """The lines are read by sh, set what the run had, and name requirements that pip finds satisfied here."""
    lines = FORMATS["env"].write(named(having(embeds, quantization="nf4"), name), "cpu")
    script = tmp_path / "lines.sh"
    script.write_text(lines, encoding="utf-8")
    # pip itself is asked, by this Python, to show what it would do: all of it is here already.
    asking = f'pip() {{ shift; "{sys.executable}" -m pip install --dry-run --no-deps --no-index "$@"; }}'
    command = f'{asking}\n. "{script}"\necho "threads $OMP_NUM_THREADS"'
    done = subprocess.run(["sh", "-e", "-c", command], capture_output=True, text=True, check=False)

    assert subprocess.run(["sh", "-n", script], check=False).returncode == 0
    assert done.returncode == 0, done.stderr
    assert "threads 1\n" in done.stdout
    assert "Would install" not in done.stdout
    for package in ("torch", "transformers", "accelerate", "bitsandbytes"):
        assert f"Requirement already satisfied: {package}==" in done.stdout
    assert all(line.startswith(("#", "export ", "pip install ")) for line in lines.splitlines())


def test_builds_and_versions_of_a_gpus_study(embeds: Recommendation) -> None:
    """A build is told in words and left out of the pin; a version that can't be one is told; a GPU sets no threads."""
    versions = {"torch": "2.13.0+cu130", "transformers": "5.24.0", "accelerate": "1; rm -rf", "flash-attn": "2.8.3"}
    environment = replace(embeds.study.environment, device="cuda", cuda="13.0", threads=0, packages=versions)
    study = replace(embeds.study, environment=environment)
    flash = having(replace(embeds, study=study), attention="flash_attention_2")
    lines = FORMATS["env"].write(flash, "cuda").splitlines()

    assert "# torch 2.13.0 was the build for CUDA 13.0 (cu130)" in lines
    assert "# accelerate: its version, 1; rm -rf, can't be pinned" in lines
    assert lines[-2:] == [
        "pip install torch==2.13.0 transformers==5.24.0",
        "pip install --no-build-isolation flash-attn==2.8.3",
    ]
    assert [line for line in lines if line.startswith("export")] == ["export CUDA_DEVICE_ORDER=PCI_BUS_ID"]


# ------------------------------------------------------------------------------------------------------------------ docs


def shown(name: str) -> list[str]:
    """Return the lines of code in a format's section of the page."""
    page = (MODELS.parents[1] / "docs" / "formats.md").read_text(encoding="utf-8")
    section = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    return section.split("```")[1].splitlines()[1:]


def masked(lines: Sequence[str]) -> list[str]:
    """Return code without comments, where the model is here, the batch, versions and figures."""
    text = "\n".join(line for line in lines if line.strip() and not line.startswith(("#", '"""')))
    return re.sub(r"\d[\d.]*", "0", text.replace(str(ENCODER), "tests/models/encoder")).splitlines()


@pytest.mark.parametrize("form", ["pipeline", "sentence-transformers", "env"])
def test_the_page_shows_what_is_printed(embeds: Recommendation, hidden: Recommendation, form: str) -> None:
    """docs/formats.md shows what the writers print of the shipped encoder, up to figures and versions."""
    found = having(embeds, packing="padded") if form == "sentence-transformers" else having(hidden, packing="sorted")

    page, printed = shown(form), FORMATS[form].write(found, "cpu").splitlines()
    if form != "env":  # ruff formats the Python of pages: the statements are the same
        page, printed = (ast.unparse(ast.parse("\n".join(lines))).splitlines() for lines in (page, printed))

    assert masked(page) == masked(printed)


def test_the_page_shows_data_and_the_script(hidden: Recommendation) -> None:
    """It shows the keys of the YAML, the arguments in the JSON, and how the script begins."""
    found = having(hidden, packing="sorted")
    document, excerpt = yaml.safe_load("\n".join(shown("yaml"))), json.loads("\n".join(shown("json")))
    printed, payload = yaml.safe_load(FORMATS["yaml"].write(found, "cpu")), recommendation_payload(found, "cpu")
    script = masked(FORMATS["python"].write(found, "cpu").splitlines())

    assert (list(document), list(document["proof"])) == (list(printed), list(printed["proof"]))
    assert {key: document[key] for key in ("model_kwargs", "batching", "before_loading")} == {
        key: printed[key] for key in ("model_kwargs", "batching", "before_loading")
    }
    assert excerpt["model_kwargs"] == payload["model_kwargs"]
    assert masked(excerpt["load"]) == masked(payload["load"])
    begun = masked(shown("python"))[:-1]
    assert begun == script[: len(begun)]


def test_the_page_has_every_format() -> None:
    """docs/formats.md has a section for each."""
    assert all(map(shown, NAMES[1:]))
