"""The script that `--format python` prints: complete, safe, clean, and right."""

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
from functools import cache
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import advisor as package  # noqa: E402
from advisor.knobs import choice_of, compiles  # noqa: E402
from advisor.machine import probe  # noqa: E402
from advisor.models.checkpoint import find_model  # noqa: E402
from advisor.networks import facts_torch, load_torch, readback_torch  # noqa: E402
from advisor.nouns.configuration import Configuration  # noqa: E402
from advisor.nouns.model import ModelFacts, ModelSource  # noqa: E402
from advisor.nouns.objective import Objective, Tier  # noqa: E402
from advisor.search.space import build_space  # noqa: E402
from advisor.show import script as scripts  # noqa: E402
from advisor.show import source_lines  # noqa: E402
from advisor.show.script import script_for  # noqa: E402
from advisor.workloads.forward import OUTPUTS, Forward  # noqa: E402

ROOT = Path(package.__file__).parent.parent
CAUSAL = Path(__file__).parent / "models" / "causal"
SOURCE = find_model(str(CAUSAL))
WORKLOAD = Forward((9, 4, 6, 12, 3), 2)

DEFAULT = Configuration.of({"attention": "sdpa", "precision": "fp32", "quantization": "none", "packing": "padded"})

#: Tiny models of other kinds, as config.json files: what they accept differs.
BLOOM = {"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64}
OTHERS = {
    "bloom": BLOOM,
    "falcon": {
        "model_type": "falcon",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 64,
    },
    "opt": {
        "model_type": "opt",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 64,
        "ffn_dim": 64,
        "max_position_embeddings": 64,
        "word_embed_proj_dim": 32,
    },
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread and put it and the mode of matrix products back, whatever the scripts set."""
    threads, mode = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(mode)


def facts_of(source: ModelSource, output: str = "last-logits") -> ModelFacts:
    """Read a model's facts as the worker does."""
    return ModelFacts.of(facts_torch.read_facts(source.files, Forward((8,), 1, output).needs))


FACTS = facts_of(SOURCE)


def admissible() -> list[Configuration]:
    """Return every admissible configuration of the shipped model on this machine's CPU, quantised ones too."""
    machine = probe.machine("cpu")
    space = build_space(FACTS, WORKLOAD, machine.environment, Objective(Tier.FOUR_BIT), machine.free_bytes)
    assert len(space.admissible) >= 2 * 3 * 3
    return list(space.admissible)


def shipped(configuration: Configuration = DEFAULT, output: str = "last-logits", **more: Any) -> str:
    """Return the script of the shipped model."""
    workload = Forward(WORKLOAD.lengths, WORKLOAD.batch, output)
    return script_for(more.get("source", SOURCE), configuration, workload, more.get("facts", FACTS), "cpu")


def in_order(names: dict[str, Any]) -> list[torch.Tensor]:
    """Run a script's own loop and return its results in the order of the sequences."""
    found: dict[int, torch.Tensor] = {}
    names["run"](found.__setitem__)
    return [found[place] for place in range(len(names["sequences"]))]


def described(configuration: Configuration) -> str:
    """Name a configuration in a test's id."""
    return "-".join(configuration.values())


CONFIGURATIONS = admissible()
UNQUANTISED = [c for c in CONFIGURATIONS if c["quantization"] == "none"]
#: Without what is compiled for some seconds each; flex_attention is run by tests/test_attention.py.
EXACT = [c for c in UNQUANTISED if c["precision"] == "fp32" and not compiles(c)]
#: Of that, one of each way.
COMPILED = [
    c
    for c in UNQUANTISED
    if (c["attention"], c["precision"], c["packing"]) == ("sdpa", "fp32", "packed") and c["compilation"] != "off"
]


def check_form(script: str) -> None:
    """See that a script compiles, and that it has no blank line too many, no blank end of line, and one line at its end."""
    tree = ast.parse(script)
    compile(tree, "script", "exec")
    assert script.endswith("\n")
    assert not script.endswith("\n\n")
    assert "\n\n\n\n" not in script
    assert all(line == line.rstrip() for line in script.splitlines())
    lines = script.splitlines()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == "run":  # the others are sources of our own
            assert all(lines[node.lineno - 1 : node.end_lineno]), node.name
    for place in re.finditer(r"\n\n\n", script):
        assert re.match(r"(@|def |#|run\(drop\))", script[place.end() :]), script[place.end() : place.end() + 40]


@pytest.fixture(scope="module", autouse=True)
def _sources_read_once() -> Iterator[None]:
    """Read each function's source once for 1,500 scripts: the files stay as they are meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        read = cache(source_lines.function_source)
        for module in (source_lines, scripts):
            patch.setattr(module, "function_source", read)
        yield


@pytest.fixture(scope="module")
def every_script() -> dict[str, str]:
    """Return the script of every admissible configuration and every output, on the CPU and on a GPU."""
    return {
        f"{described(configuration)}-{output}-{device}": script_for(
            SOURCE, configuration, Forward(WORKLOAD.lengths, 2, output), FACTS, device
        )
        for configuration in CONFIGURATIONS
        for output in OUTPUTS
        for device in ("cpu", "cuda")
    }


def test_every_script_is_whole(every_script: dict[str, str]) -> None:
    """Whatever is admissible, and whatever is asked of the model, its script is Python without gaps."""
    for script in every_script.values():
        check_form(script)


def test_every_script_is_clean(every_script: dict[str, str], tmp_path: Path) -> None:
    """Ruff finds no error, no unused name and no bad white space in any script; long lines are allowed."""
    for name, script in every_script.items():
        (tmp_path / f"{name}.py").write_text(script)
    for name, config in OTHERS.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(config))
        source = find_model(str(tmp_path / f"{name}.json"))
        for configuration in (DEFAULT, DEFAULT.replaced(precision="bf16"), DEFAULT.replaced(quantization="nf4")):
            script = shipped(configuration, source=source, facts=facts_of(source))
            (tmp_path / f"{name}-{described(configuration)}.py").write_text(script)
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--isolated",
        "--no-cache",
        "--select",
        "E,F,W",
        "--ignore",
        "E501",
    ]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout[-3000:]


@pytest.fixture(scope="module")
def last_lines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Run scripts one after another in a process that knows nothing of this package; return the last line each prints."""
    folder, packings = tmp_path_factory.mktemp("scripts"), ["padded", "sorted", "packed"]
    for packing in packings:
        (folder / f"{packing}.py").write_text(shipped(DEFAULT.replaced(packing=packing)))
    code = "import runpy, sys\nfor name in sys.argv[1:]:\n    runpy.run_path(f'{name}.py', run_name='__main__')\n    print('end')"
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code, *packings],
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
        timeout=240,
        env={**variables, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    printed = done.stdout.split("end\n")[:-1]
    return {packing: text.splitlines()[-1] for packing, text in zip(packings, printed, strict=True)}


@pytest.mark.parametrize("packing", ["padded", "sorted", "packed"])
def test_a_script_runs_and_prints_its_speed(last_lines: dict[str, str], packing: str) -> None:
    """Run by itself, without this package, the script ends well and its last line is the useful tokens per second."""
    assert re.fullmatch(r"\d+\.\d tokens/s", last_lines[packing])


def namespace_of(script: str) -> dict[str, Any]:
    """Execute a script, without its timing, and return its names."""
    before = script.partition("\n\nrun(drop)  # warm-up\n")[0]
    names: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries, when they are imported for the first time
        exec(compile(before, "script", "exec"), names)
    return names


def one_at_a_time(names: dict[str, Any], output: str) -> list[Any]:
    """Run every sequence of a script alone, without padding and without a mask, on the model it loaded."""
    found = []
    with torch.inference_mode():
        for tokens in names["sequences"]:
            outputs = names["model"](input_ids=tokens[None], use_cache=False)
            values = outputs.last_hidden_state[0] if output == "hidden" else outputs.logits[0]
            found.append(values[-1] if output == "last-logits" else values)
    return found


@pytest.mark.parametrize("output", OUTPUTS[:3])
@pytest.mark.parametrize("configuration", EXACT, ids=described)
def test_a_script_gives_what_each_sequence_alone_gives(configuration: Configuration, output: str) -> None:
    """The results are those of every sequence run alone, in the order of the sequences, to 1e-4."""
    names = namespace_of(shipped(configuration, output))
    results = in_order(names)

    assert [len(tokens) for tokens in names["sequences"]] == list(WORKLOAD.lengths)
    for result, alone in zip(results, one_at_a_time(names, output), strict=True):
        torch.testing.assert_close(result, alone, atol=1e-4, rtol=0)


@pytest.mark.slow  # compiles for some seconds each
@pytest.mark.parametrize("configuration", COMPILED, ids=described)
def test_a_script_that_compiles_gives_the_same(configuration: Configuration) -> None:
    """What is compiled runs from the printed lines alone."""
    names = namespace_of(shipped(configuration, OUTPUTS[0]))

    for result, alone in zip(in_order(names), one_at_a_time(names, OUTPUTS[0]), strict=True):
        torch.testing.assert_close(result, alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("output", ["last-logits", "hidden"])
def test_a_script_leaves_out_what_a_model_does_not_take(tmp_path: Path, kind: str, output: str) -> None:
    """For a config.json of a kind that takes fewer arguments, the script runs and is right too."""
    (tmp_path / "config.json").write_text(json.dumps(OTHERS[kind]))
    source = find_model(str(tmp_path / "config.json"))
    facts = facts_of(source, output)
    names = namespace_of(shipped(DEFAULT.replaced(attention="eager"), output, source=source, facts=facts))

    for result, alone in zip(in_order(names), one_at_a_time(names, output), strict=True):
        torch.testing.assert_close(result, alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_random_weights_are_those_that_were_measured(precision: str) -> None:
    """For a config.json the script draws the weights that the worker draws, and converts them as it does."""
    source = find_model(str(CAUSAL / "config.json"))
    configuration = DEFAULT.replaced(precision=precision)
    drawn = namespace_of(shipped(configuration, source=source))["model"]
    names = load_torch.statements([choice_of(knob, name) for knob, name in configuration.items()])
    state = torch.get_rng_state()
    measured = load_torch.load(source.files, configuration, "cpu", WORKLOAD.needs, names)
    assert torch.equal(torch.get_rng_state(), state)

    assert drawn.dtype == measured.dtype == getattr(torch, {"fp32": "float32", "bf16": "bfloat16"}[precision])
    for (name, ours), (_, theirs) in zip(drawn.named_parameters(), measured.named_parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=0, rtol=0, msg=name)
    for (name, ours), (_, theirs) in zip(drawn.named_buffers(), measured.named_buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=0, rtol=0, msg=name)


@pytest.mark.parametrize("path", ["", "config.json"], ids=["trained", "random"])
def test_a_quantised_script_quantises(path: str) -> None:
    """A script with four-bit weights loads them, from a checkpoint and drawn from a config.json alike, and runs."""
    pytest.importorskip("bitsandbytes")
    source = find_model(str(CAUSAL / path))
    names = namespace_of(shipped(DEFAULT.replaced(quantization="nf4"), source=source))

    assert "Linear4bit:nf4" in readback_torch.linears_of(names["model"])
    assert all(torch.isfinite(result).all() for result in in_order(names))


@pytest.mark.parametrize("path", ["", "config.json"], ids=["trained", "random"])
@pytest.mark.parametrize("name", ["torchao-int8", "torchao-int8-dynamic", "torchao-fp8"])
def test_a_script_with_torchao_quantises(name: str, path: str) -> None:
    """The lines of every torchao choice that a CPU runs are run as they are printed, and their layers read back as its own."""
    pytest.importorskip("torchao")
    source = find_model(str(CAUSAL / path))
    names = namespace_of(shipped(DEFAULT.replaced(quantization=name), source=source))

    assert choice_of("quantization", name).traits.linear in readback_torch.linears_of(names["model"])
    assert all(torch.isfinite(result).all() for result in in_order(names))


NAMES = [
    "it's",
    'say "x"',
    '"""',
    "'''",
    "back\\slash",
    "ends in \\",
    'ends in "',
    "two\nlines",
    "\\N{BULLET}",
    "\\u12",
    "tab\tand\rreturn",
    '"""\nimport os\nos.abort()\n"""',
    "'); raise SystemExit('",
    "{braces}",
    "%s",
    "模型",
    "\udce9",
    "\u2028raise SystemExit",
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
@pytest.mark.parametrize("weights", ["trained", "random"])
def test_a_models_name_stays_a_text(name: str, weights: str) -> None:
    """Whatever a model is called, its name is a string in the call and a text in the docstring, and nothing else."""
    source = replace(SOURCE, name=name, path=name, weights=weights)
    script = shipped(source=source)
    script.encode()
    tree, plain = ast.parse(script), ast.parse(shipped(source=replace(SOURCE, name="x", path="x", weights=weights)))

    assert (ast.get_docstring(tree, clean=False) or "").startswith(f"{name}: {DEFAULT}")
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and node.value == name]
    assert len(texts) == 1
    assert [type(node) for node in ast.walk(tree)] == [type(node) for node in ast.walk(plain)]
