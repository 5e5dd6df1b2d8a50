"""What `--format python`, `trainer` and `trl` print of training: each is run, and its losses are those that were measured."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("trl")

import advisor  # noqa: E402
from advisor.advice.recommendation import Recommendation  # noqa: E402
from advisor.errors import BadInput  # noqa: E402
from advisor.faces.cli import run  # noqa: E402
from advisor.knobs import Batching, choices_of, collate, traits_of  # noqa: E402
from advisor.networks import load_torch  # noqa: E402
from advisor.nouns.configuration import Configuration  # noqa: E402
from advisor.show.candidate_tables import figures_of  # noqa: E402
from advisor.show.formats import FORMATS  # noqa: E402
from advisor.show.support import MACHINES  # noqa: E402
from advisor.workloads import kind_of  # noqa: E402
from advisor.workloads import train as training  # noqa: E402

CAUSAL = Path(__file__).parent / "models" / "causal"
FORMS = ("python", "trainer", "trl")

WORK: dict[str, Any] = {
    "workload": "train",
    "method": "full",
    "lengths": 24,
    "padding": 0.4,
    "batch": 4,
    "batches": 2,
    "device": "cpu",
    "quality": "dtype",
    "threads": 1,
    "trials": 1,
    "blocks": 0,
    "only": {"attention": "sdpa", "packing": "padded", "compilation": "off", "precision": "fp32"},
}

#: What is trained, and the choices beside the default's.
CASES: dict[str, tuple[str, dict[str, str]]] = {
    "full-padded": ("full", {}),
    "full-packed": ("full", {"packing": "packed"}),
    "full-sorted-micro": ("full", {"packing": "sorted", "micro_batch": "micro-2"}),
    "full-autocast-checkpointed": ("full", {"autocast": "autocast-bf16", "checkpointing": "checkpointed"}),
    "lora-packed-micro": ("lora", {"packing": "packed", "micro_batch": "micro-2"}),
    "qlora-torchao": ("qlora", {"quantization": "torchao-int8"}),
    "lora-checkpointed-micro": ("lora", {"checkpointing": "checkpointed", "micro_batch": "micro-1"}),
}

#: Runs scripts one after another in a process that knows nothing of this package, and says what each printed.
DRIVER = """
import contextlib, io, json, pathlib, sys
printed = {}
for name in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()) as told:
        exec(compile(pathlib.Path(name).read_text(), name, "exec"), {"__name__": "__main__"})
    printed[name] = told.getvalue()
print("\\n" + json.dumps(printed))
"""


@pytest.fixture(scope="module", autouse=True)
def _here(tmp_path_factory: pytest.TempPathFactory, one_thread: None, offline: None) -> Iterator[None]:
    """Keep what is measured in a database of these tests, one thread here, and the mode of matrix products as it was."""
    mode = torch.get_float32_matmul_precision()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADVISOR_DATABASE_URL", f"sqlite:///{tmp_path_factory.mktemp('formats')}/advisor.db")
        yield
    torch.set_float32_matmul_precision(mode)


@pytest.fixture(scope="module")
def trains() -> Recommendation:
    """Measure two steps of fine-tuning the shipped decoder, as transformers does it when told nothing."""
    return advisor.tune(str(CAUSAL), **WORK)


def case_of(recommendation: Recommendation, method: str, **choices: str) -> Recommendation:
    """Return the same that trains in another way and recommends these choices, as if that had been measured to be best."""
    chosen, study = recommendation.chosen, recommendation.study
    assert chosen is not None
    trial = replace(chosen.trial, effective=Configuration.of({**chosen.configuration, **choices}))
    work = training.Training(study.workload.lengths, study.workload.batch, method)
    return replace(recommendation, chosen=replace(chosen, trial=trial), study=replace(study, workload=work))


def ours(recommendation: Recommendation) -> list[float]:
    """Return the losses of the steps as the worker takes them: with its loading, its layouts and its runtime."""
    assert recommendation.chosen is not None
    configuration, facts, source = recommendation.chosen.configuration, recommendation.facts, recommendation.source
    work = recommendation.study.workload.under(configuration)
    choices = choices_of(configuration)
    names = load_torch.statements(choices)
    model = load_torch.load(source.files, configuration, "cpu", work.needs, names)
    prepared = kind_of(work).preparation(work, facts, source.files, "cpu")
    names["model"] = model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peft and transformers among themselves
        for line in (*prepared.imports, *prepared.statements, *(line for each in choices for line in each.on_model)):
            exec(line, names)
        runtime = kind_of(work).runtime(work, facts)
        torch.manual_seed(0)
        tokens = [torch.randint(16, facts.vocabulary, (n,)) for n in work.lengths]
        batching = Batching(0, causal=True, left=facts.pads_left)
        batches = work.batches(by_length=traits_of(configuration).by_length)
        calls = runtime.calls(tokens, batches, lambda batch: collate(configuration, batch, batching))
        with runtime.mode():
            steps = runtime.timed(calls)
            return [runtime.run(names["model"], step, "cpu")[0].item() for step in steps]


@pytest.fixture(scope="module")
def scripts(trains: Recommendation) -> dict[str, str]:
    """Return every case's script in every format."""
    return {
        f"{name}-{form}.py": FORMATS[form].write(case_of(trains, method, **choices), "cpu")
        for name, (method, choices) in CASES.items()
        for form in FORMS
    }


@pytest.fixture(scope="module")
def printed(scripts: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Run them all and return what each printed."""
    folder = tmp_path_factory.mktemp("scripts")
    for name, text in scripts.items():
        (folder / name).write_text(text, encoding="utf-8")
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, *scripts],
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
        timeout=240,
        env={**variables, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("case", CASES)
def test_a_script_trains_as_was_measured(case: str, trains: Recommendation, printed: dict[str, str]) -> None:
    """The losses of both steps, the second after weights were changed by the first, are those of the worker's steps."""
    method, choices = CASES[case]
    expected = ours(case_of(trains, method, **choices))

    assert len(expected) == 2
    assert expected[0] != pytest.approx(expected[1], rel=1e-4)
    for form in FORMS:
        losses = re.findall(r"^step \d+: loss ([\d.]+)", printed[f"{case}-{form}.py"], re.MULTILINE)
        assert [float(loss) for loss in losses] == pytest.approx(expected, rel=1e-4), form


@pytest.mark.parametrize("case", CASES)
def test_a_script_prints_its_speed(case: str, printed: dict[str, str]) -> None:
    """The last line of the plain script is the useful tokens per second."""
    assert re.fullmatch(r"\d+\.\d tokens/s", printed[f"{case}-python.py"].splitlines()[-1])


def test_a_script_says_what_the_configuration_does(scripts: dict[str, str]) -> None:
    """What a trainer has a word for is told by that and not done to the model; the allocator is set before torch is imported."""
    for name, text in scripts.items():
        begun, _, _ = text.partition("import torch\n")
        assert "os.environ.setdefault('PYTORCH_CUDA_ALLOC_CONF', 'expandable_segments:True')" in begun
        assert "inference_mode" not in text
        assert ("model.optimizer = " in text) == name.endswith("python.py")
    both = [scripts[f"full-autocast-checkpointed-{form}.py"] for form in ("trainer", "trl")]
    plain = [scripts[f"full-padded-{form}.py"] for form in ("trainer", "trl")]
    for text in both:
        assert {"bf16=True", "activation_checkpointing=True"} <= set(re.findall(r"\w+=True", text))
        assert "model.autocast" not in text
        assert "gradient_checkpointing_enable" not in text
    for text in plain:
        assert {"bf16=False", "activation_checkpointing=False", "use_liger_kernel=False"} <= set(
            re.findall(r"\w+=False", text)
        )
    assert "padding_free=True" in scripts["lora-packed-micro-trl.py"]
    assert "per_device_train_batch_size=2,\n    gradient_accumulation_steps=2" in scripts["lora-packed-micro-trl.py"]


def test_scripts_are_clean(trains: Recommendation, scripts: dict[str, str], tmp_path: Path) -> None:
    """Ruff finds no error and no unused name in any of them, those for a GPU with Liger, compiled layers and 8 bits too."""
    gpu = {"kernels": "liger", "optimizer": "adamw_8bit", "compilation": "compiled-regional"}
    more = {f"gpu-{form}.py": FORMATS[form].write(case_of(trains, "lora", **gpu), "cuda:1") for form in FORMS}
    for name, text in {**scripts, **more}.items():
        compile(text, name, "exec")
        (tmp_path / name).write_text(text)
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--select", "E,F,W"]
    done = subprocess.run([*command, "--ignore", "E501", str(tmp_path)], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout[-3000:]
    for form in ("trainer", "trl"):
        text = more[f"gpu-{form}.py"]
        assert "optim='adamw_8bit'" in text
        assert "use_liger_kernel=True" in text
        assert "bitsandbytes" not in text
        assert "_apply_liger_kernel" not in text
        assert "compile_layers(model)" in text
        assert "setdefault(\"CUDA_VISIBLE_DEVICES\", '1')" in text


@pytest.mark.parametrize(
    ("method", "choices", "words"),
    [
        ("lora", {"quantization": "nf4"}, "rounds adapters beside quantised weights to bf16"),
        ("full", {"kernels": "liger-loss"}, "a loss without logits of its own"),
        ("full", {"compilation": "compiled-loss"}, "what was compiled of the model's would never run"),
        ("full", {"compilation": "compiled"}, "a forward pass of its own"),
    ],
    ids=["quantised", "liger-loss", "compiled-loss", "whole"],
)
def test_what_trl_changes_is_not_printed(
    trains: Recommendation, method: str, choices: dict[str, str], words: str
) -> None:
    """What SFTTrainer would do otherwise is not printed as if it had been measured, and Trainer carries it."""
    found = case_of(trains, method, **choices)

    with pytest.raises(BadInput, match=words):
        FORMATS["trl"].write(replace(found, runners_up=()), "cpu")
    compile(FORMATS["trainer"].write(found, "cpu"), "trainer", "exec")


def test_the_lines_for_a_shell_say_what_training_needs(trains: Recommendation) -> None:
    """What was set of the allocator on a GPU, and peft where adapters are trained."""
    for method, needs in (("full", False), ("lora", True)):
        found = case_of(trains, method)
        on_gpu, on_cpu = (FORMATS["env"].write(found, device) for device in ("cuda", "cpu"))
        assert f"\nexport PYTORCH_CUDA_ALLOC_CONF={training.ALLOCATOR}\n" in on_gpu
        assert "ALLOC_CONF" not in on_cpu
        assert [("peft" in text) for text in (on_gpu, on_cpu)] == [needs, needs]


def test_how_long_sequences_may_be_is_told_of_a_gpu(trains: Recommendation) -> None:
    """With what it is within; a CPU's process has more in memory than what is predicted, so that nothing is said of one."""
    assert trains.payload["longest_tokens"] is None
    on_gpu = replace(trains, study=replace(trains.study, environment=MACHINES["NVIDIA H200"]))
    bounded = replace(on_gpu, objective=replace(on_gpu.objective, max_memory_bytes=2**30))
    for found, within in ((on_gpu, "in 90 % of the device's"), (bounded, "in the 1.0 GiB allowed")):
        assert found.chosen is not None
        words = f"by arithmetic, a step of 4 sequences of up to {found.payload['longest_tokens']:,} tokens each fits {within}"
        assert words in figures_of(found, found.chosen)


REFUSED: dict[str, tuple[Path, list[str], str, str]] = {
    "forward work in Trainer": (CAUSAL, [], "trainer", "--format trainer trains"),
    "forward work in TRL": (CAUSAL, [], "trl", "--format trl trains"),
    "training in a pipeline": (
        CAUSAL,
        ["--workload", "train", "--batch", "2"],
        "pipeline",
        "no call that is known to do",
    ),
    "TRL without a tokenizer": (
        CAUSAL / "config.json",
        ["--workload", "train", "--batch", "2"],
        "trl",
        "needs a tokenizer",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_format_does_not_do_is_refused_before_it_is_measured(
    case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`tune` measures nothing for a format that nothing could be printed in: one line, with what to do, and status 2."""
    model, work, form, words = REFUSED[case]
    status = run(["tune", str(model), "--lengths", "64", "--device", "cpu", *work, "--format", form])
    out, told = capsys.readouterr()

    assert (status, out, told.count("\n")) == (2, "", 1)
    assert words in told
    assert "--format" in told.partition(words)[2]


def test_adapters_without_peft_are_refused(trains: Recommendation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where peft isn't installed, adapters are refused before a trial, with what installs it; all weights are trained."""
    monkeypatch.setattr("advisor.workloads.train_refused.find_spec", lambda _: None)
    lora, full = (case_of(trains, method).study.workload for method in ("lora", "full"))

    with pytest.raises(BadInput, match=r"peft isn't installed .*pip install peft"):
        training.KIND.refuse(lora, trains.facts, "a model")
    training.KIND.refuse(full, trains.facts, "a model")


def shown(name: str) -> str:
    """Return the code in a format's section of docs/formats.md."""
    page = (CAUSAL.parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    section = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    return section.split("```")[1].partition("\n")[2]


@pytest.mark.parametrize("form", ["trainer", "trl"])
def test_the_page_shows_what_is_printed(form: str, scripts: dict[str, str]) -> None:
    """docs/formats.md shows the statements that are printed of adapters and packed batches, from the samples on."""
    page = ast.unparse(ast.parse(shown(form))).replace("tests/models/causal", str(CAUSAL))
    printed = ast.unparse(ast.parse(scripts[f"lora-packed-micro-{form}.py"]))

    assert all(ast.unparse(statement) in printed for statement in ast.parse(page).body)
    assert printed.endswith(page.partition("arguments = ")[2])
