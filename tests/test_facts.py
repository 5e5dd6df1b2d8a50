"""Facts are what a model is, or a line says why it can't be measured: nothing that is not understood becomes a default."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from advisor.errors import BadInput  # noqa: E402
from advisor.knobs import choice_of  # noqa: E402
from advisor.measure.messages import Subject  # noqa: E402
from advisor.measure.session_torch import loaded, runtime_of  # noqa: E402
from advisor.models.beside import read_beside  # noqa: E402
from advisor.models.checkpoint import find_model  # noqa: E402
from advisor.models.declared import max_positions, notes_on, refuse_foreign  # noqa: E402
from advisor.networks import config_torch, facts_torch, load_torch, packed_torch  # noqa: E402
from advisor.nouns.configuration import Configuration  # noqa: E402
from advisor.nouns.model import ModelFacts, ModelSource  # noqa: E402
from advisor.search.cost import useful_operations  # noqa: E402
from advisor.show.script import script_for  # noqa: E402
from advisor.workloads import Call  # noqa: E402
from advisor.workloads.forward import Forward, default_output, refuse_unpooled  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread", "offline")

#: A small shape under the names that most classes use.
SHAPE = {
    "vocab_size": 256,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
}
GQA = {**SHAPE, "num_key_value_heads": 2}
GPT2 = {"vocab_size": 256, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
MOE = {**GQA, "num_local_experts": 8, "num_experts_per_tok": 2}
FALCON_H1 = {
    **GQA,
    "head_dim": 16,
    "mamba_d_ssm": 128,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_chunk_size": 16,
}
ZAMBA2 = {
    "vocab_size": 256,
    "hidden_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "mamba_d_state": 16,
    "n_mamba_heads": 8,
    "mamba_headdim": 16,
    "mamba_ngroups": 1,
    "num_mem_blocks": 1,
    "layers_block_type": ["mamba", "hybrid"] * 3,
    "chunk_size": 16,
}
GEMMA4 = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "global_head_dim": 32,
    "sliding_window": 16,
    "max_position_embeddings": 64,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": 256,
    "num_kv_shared_layers": 0,
}


def written(folder: Path, kind: str, **entries: Any) -> ModelSource:
    """Write a config.json and find it."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": kind, **entries}))
    return find_model(str(folder / "config.json"))


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., ModelFacts]:
    """Give what writes a config.json and reads the facts of its default output, or another."""

    def facts(kind: str, output: str = "", **entries: Any) -> ModelFacts:
        source = written(tmp_path, kind, **entries)
        asked = output or default_output(source.config)
        return ModelFacts.of(facts_torch.read_facts(source.files, Forward((8,), 1, asked).needs))

    return facts


# ------------------------------------------------------------------------------------------------ pooling and its steps


@pytest.mark.parametrize(
    ("config", "pooling", "problem"),
    [
        ({"pooling_mode": "cls"}, "cls", ""),
        ({"pooling_mode": ["cls"]}, "cls", ""),
        ({"pooling_mode": "mean"}, "mean", ""),
        ({"pooling_mode": "lasttoken"}, "last", ""),
        ({"pooling_mode_lasttoken": True}, "last", ""),
        ({}, "mean", ""),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls", ""),
        ({"pooling_mode": "max"}, None, "pooling by max is not served"),
        ({"pooling_mode": "mean_sqrt_len_tokens"}, None, "pooling by mean_sqrt_len_tokens is not served"),
        ({"pooling_mode": "weightedmean"}, None, "pooling by weightedmean is not served"),
        ({"pooling_mode_weightedmean_tokens": True}, None, "pooling by weightedmean is not served"),
        ({"pooling_mode": "of a later version"}, None, "pooling by of a later version is not served"),
        ({"pooling_mode_new_kind": True}, None, "pooling by pooling_mode_new_kind is not served"),
        ({"pooling_mode": ["cls", "mean"]}, None, "joins cls, mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True}, None, "joins cls, max"),
        ({"pooling_mode": "cls", "include_prompt": False}, None, "leaves the prompt's tokens out"),
        ([1], None, "holds no settings"),
    ],
)
def test_every_way_of_pooling_is_read_or_named(tmp_path: Path, config: Any, pooling: str | None, problem: str) -> None:
    """What sentence-transformers wrote before and since 5.4 is understood; what is not served is said, never taken for mean."""
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(config))
    beside = read_beside(tmp_path)

    assert beside["pooling"] == pooling
    assert problem in beside["problem"]
    assert bool(beside["problem"]) == bool(problem)


def modules(folder: Path, *listed: tuple[str, str], **configs: Any) -> None:
    """Write a modules.json of kinds and paths, and the configs of modules by path."""
    entries = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (kind, path) in enumerate(listed)
    ]
    (folder / "modules.json").write_text(json.dumps(entries))
    for path, config in configs.items():
        (folder / path).mkdir(parents=True, exist_ok=True)
        (folder / path / "config.json").write_text(json.dumps(config))


def test_modules_json_says_where_the_pooling_is_and_what_follows(tmp_path: Path) -> None:
    """The pooling is read where modules.json places it, whatever lies in 1_Pooling, and the steps after it are listed."""
    listed = [
        ("Transformer", ""),
        ("Pooling", "own"),
        ("Dense", "2_Dense"),
        ("Dropout", "d"),
        ("Normalize", "3_Normalize"),
    ]
    modules(
        tmp_path,
        *listed,
        own={"pooling_mode": "cls"},
        **{"1_Pooling": {"pooling_mode": "mean"}},
        **{"2_Dense": {"activation_function": "torch.nn.modules.activation.Tanh"}},
    )
    assert "has no model.safetensors" in read_beside(tmp_path)["problem"]
    (tmp_path / "2_Dense" / "model.safetensors").touch()

    expected = {
        "pooling": "cls",
        "after_pooling": ["dense 2_Dense tanh", "normalize"],
        "problem": "",
        "folder": str(tmp_path),
    }
    assert read_beside(tmp_path) == expected


@pytest.mark.parametrize(
    "listed",
    [
        [("Transformer", ""), ("Pooling", "p"), ("WeightedLayerPooling", "w")],
        [("Router", ""), ("Pooling", "p")],
        [("Transformer", ""), ("CNN", "c"), ("Pooling", "p")],
        [("MLMTransformer", ""), ("SpladePooling", "p")],
        [("Transformer", "")],
    ],
)
def test_modules_that_are_not_served_are_said(tmp_path: Path, listed: list[tuple[str, str]]) -> None:
    """An embedding that other modules make is refused for `pooled`, and only for that."""
    modules(tmp_path, *listed, p={"pooling_mode": "cls"})
    source = written(tmp_path, "bert", architectures=["BertModel"], **SHAPE)

    with pytest.raises(BadInput, match="served"):
        refuse_unpooled(source, "pooled")
    with pytest.raises(BadInput, match="served"):
        facts_torch.read_facts(source.files, Forward((8,), 1, "pooled").needs)
    refuse_unpooled(source, "hidden")


def test_what_follows_the_pooling_is_measured_and_printed(tmp_path: Path) -> None:
    """Dense, LayerNorm and Normalize are part of the embedding that is timed, judged and printed, as its owner gets it."""
    from safetensors.torch import save_file

    transformers.BertModel(transformers.BertConfig(**SHAPE)).save_pretrained(tmp_path)
    listed = [("Transformer", ""), ("Pooling", "p"), ("Dense", "2_Dense"), ("LayerNorm", "3_LN"), ("Normalize", "4_N")]
    modules(tmp_path, *listed, p={"pooling_mode": "mean"}, **{"2_Dense": {}, "3_LN": {}})
    dense, bias, scale = torch.randn(32, 64), torch.randn(32), torch.rand(32)
    save_file({"linear.weight": dense, "linear.bias": bias}, tmp_path / "2_Dense" / "model.safetensors")
    save_file({"norm.weight": scale, "norm.bias": bias}, tmp_path / "3_LN" / "model.safetensors")
    source = find_model(str(tmp_path))
    facts = ModelFacts.of(facts_torch.read_facts(source.files, Forward((8,), 1, "pooled").needs))
    base = {"attention": "sdpa", "precision": "fp32", "quantization": "none", "packing": "padded"}
    workload = Forward((7, 12, 3), 3, "pooled")
    script = script_for(source, Configuration.of(base), workload, facts, "cpu")
    names: dict[str, Any] = {}
    exec(compile(script.partition("\n\nrun(drop)  # warm-up\n")[0], "script", "exec"), names)
    found: dict[int, torch.Tensor] = {}
    names["run"](found.__setitem__)

    configuration = Configuration.of(base)
    choices = [choice_of(knob, name) for knob, name in configuration.items()]
    subject = Subject(source=source.files, facts=facts, workload=workload, configuration=configuration)
    model = loaded(subject, configuration, "cpu", load_torch.statements(choices))
    runtime = runtime_of(subject)
    with torch.inference_mode():
        for place, tokens in enumerate(names["sequences"]):
            hidden = model(input_ids=tokens[None]).last_hidden_state[0].mean(0)
            expected = torch.nn.functional.layer_norm(torch.tanh(dense @ hidden + bias), (32,), scale, bias)
            expected = expected / expected.norm()
            call = Call({"input_ids": tokens[None]}, (0,), ((0, 0, len(tokens)),))
            torch.testing.assert_close(found[place], expected, atol=1e-5, rtol=0)
            torch.testing.assert_close(runtime.run(model, call, "cpu")[0], expected, atol=1e-5, rtol=0)


def test_two_models_of_one_shape_keep_their_own_pooling(tmp_path: Path) -> None:
    """They share timings, and so the facts that are stored; each is answered with what lies in its own folder."""
    for name in ("mean", "cls"):
        (tmp_path / name / "1_Pooling").mkdir(parents=True)
        (tmp_path / name / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": name}))
    sources = {name: written(tmp_path / name, "bert", architectures=["BertModel"], **SHAPE) for name in ("mean", "cls")}
    facts = ModelFacts.of(facts_torch.read_facts(sources["mean"].files, Forward((8,), 1, "pooled").needs))

    assert sources["mean"].architecture_key == sources["cls"].architecture_key
    assert facts.for_source(sources["mean"], classifies=False).pooling == "mean"
    assert facts.for_source(sources["cls"], classifies=False).pooling == "cls"


def test_what_the_key_leaves_out_is_the_models_own(tmp_path: Path) -> None:
    """Where positions begin and whether a classifier can pad depend on pad_token_id, which is not in the key."""
    roberta = written(tmp_path / "a", "roberta", pad_token_id=1, **SHAPE)
    other = written(tmp_path / "b", "roberta", pad_token_id=0, **SHAPE)
    facts = ModelFacts.of(facts_torch.read_facts(roberta.files, Forward((8,), 1, "pooled").needs))
    llama = written(tmp_path / "c", "llama", pad_token_id=0, **GQA)
    unpadded = written(tmp_path / "d", "llama", **GQA)
    scores = ModelFacts.of(facts_torch.read_facts(llama.files, Forward((8,), 1, "scores").needs))

    assert roberta.architecture_key == other.architecture_key
    assert (facts.position_offset, facts.for_source(other, classifies=False).position_offset) == (2, 1)
    assert (scores.pads, scores.for_source(unpadded, classifies=True).pads) == (True, False)
    many = {"id2label": {str(n): str(n) for n in range(5000)}}
    assert written(tmp_path / "e", "roberta", **SHAPE, **many).architecture_key != roberta.architecture_key


# ----------------------------------------------------------------------------------------------------------- positions


@pytest.mark.parametrize(
    ("kind", "entries", "limit"),
    [
        ("xlnet", {"vocab_size": 256, "d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 128}, None),
        ("deberta-v2", {**SHAPE, "relative_attention": True, "position_biased_input": False}, None),
        ("deberta-v2", {**SHAPE, "relative_attention": True, "position_biased_input": True}, 64),
        ("bloom", {"vocab_size": 256, "hidden_size": 64, "n_layer": 2, "n_head": 4, "seq_length": 32}, None),
        ("falcon", {**SHAPE, "alibi": True}, None),
        ("falcon", {**SHAPE, "alibi": False}, 64),
        ("bert", SHAPE, 64),
        ("roberta", SHAPE, 62),
        ("gpt2", GPT2, 64),
        ("opt", {**SHAPE, "ffn_dim": 128, "word_embed_proj_dim": 64}, 64),
        ("nystromformer", SHAPE, 64),
        ("llama", GQA, 64),
        ("llama", {**GQA, "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, 256),
        ("llama", {**GQA, "rope_scaling": {"type": "linear", "factor": 2.0}}, 128),
        (
            "qwen2",
            {**GQA, "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
            256,
        ),
        ("llama", {**GQA, "max_position_embeddings": 10**12}, None),
        ("jamba", {**GQA, "num_experts": 2, "num_experts_per_tok": 1, "use_mamba_kernels": False}, None),
    ],
)
def test_limits_are_true(
    read: Callable[..., ModelFacts], tmp_path: Path, kind: str, entries: dict[str, Any], limit: int | None
) -> None:
    """A table of positions bounds truly, a rope by what is declared times its factor, and nothing else bounds at all."""
    facts = read(kind, "hidden", **entries)
    most = None if facts.max_positions is None else facts.max_positions - facts.position_offset

    assert most == limit
    assert max_positions(json.loads((tmp_path / "config.json").read_text())) == limit


@pytest.mark.parametrize(
    ("value", "limit"), [(-1, None), (0, None), (None, None), (1e30, None), (True, None), (32.0, 32)]
)
def test_sentinels_are_no_limits(value: Any, limit: int | None) -> None:
    """Values that stand for "none" are not taken for a number of positions."""
    assert max_positions({"model_type": "llama", "max_position_embeddings": value}) == limit


@pytest.mark.parametrize(
    ("kind", "entries", "row"),
    [
        ("bert", SHAPE, None),
        ("fnet", SHAPE, 64),
        ("convbert", SHAPE, 64),
        ("deberta-v2", SHAPE, 64),
        ("big_bird", SHAPE, 64),
        ("roformer", SHAPE, 64),
        ("llama", GQA, None),
        ("gpt2", GPT2, None),
    ],
)
def test_rows_are_bounded_by_buffers(
    read: Callable[..., ModelFacts], kind: str, entries: dict[str, Any], row: int | None
) -> None:
    """Where a class cuts a buffer to the row's length, or takes no positions, a packed row can't be longer than that."""
    assert read(kind, "hidden", **entries).max_row == row


OPT = {
    "vocab_size": 256,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 128,
    "word_embed_proj_dim": 64,
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    ("kind", "output", "entries", "packed"),
    [
        ("llama", "last-logits", GQA, ""),
        ("falcon", "last-logits", {**SHAPE, "alibi": False}, ""),
        ("opt", "last-logits", OPT, "wrong"),
        ("rwkv", "last-logits", {"vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 2}, "wrong"),
        (
            "xglm",
            "last-logits",
            {"vocab_size": 256, "d_model": 64, "ffn_dim": 128, "num_layers": 2, "attention_heads": 4},
            "wrong",
        ),
        ("bert", "hidden", SHAPE, ""),
        ("roberta", "pooled", {**SHAPE, "max_position_embeddings": 66}, ""),
        ("bert", "scores", SHAPE, ""),
        ("esm", "hidden", {**SHAPE, "pad_token_id": 1}, "raises"),
        ("deberta", "hidden", SHAPE, "raises"),
        ("longformer", "hidden", {**SHAPE, "attention_window": [16, 16]}, "raises"),
    ],
)
def test_a_packed_row_is_asked_of_a_small_copy(
    read: Callable[..., ModelFacts], kind: str, output: str, entries: dict[str, Any], packed: str
) -> None:
    """Documents that come out otherwise in one row than alone, and classes that can't be called so, are known beforehand."""
    assert read(kind, output, **entries).packed_row == packed


@pytest.mark.parametrize(
    ("kind", "entries", "packed"), [("llama", GQA, ""), ("opt", OPT, "wrong"), ("bert", SHAPE, "")]
)
def test_of_a_large_model_the_mask_is_asked(
    read: Callable[..., ModelFacts], monkeypatch: pytest.MonkeyPatch, kind: str, entries: dict[str, Any], packed: str
) -> None:
    """Where no copy is small enough: does what makes the mask get the positions? On device meta, so whatever its size."""
    monkeypatch.setattr(packed_torch, "MOST_COPIED", 0)

    assert read(kind, "hidden" if kind == "bert" else "last-logits", **entries).packed_row == packed


# ---------------------------------------------------------------------------------------------------- what it is made of


@pytest.mark.parametrize(
    ("kind", "entries", "expected"),
    [
        ("gemma4_text", GEMMA4, {"head_dim": 32, "windows": (16,), "recurrent": False}),
        ("falcon_h1", FALCON_H1, {"recurrent": True}),
        ("mamba", {"vocab_size": 256, "hidden_size": 64}, {"recurrent": True}),
        ("mixtral", MOE, {"experts": 8, "recurrent": False}),
        ("llama", GQA, {"experts": 0, "windows": ()}),
        ("mistral", {**GQA, "sliding_window": 32}, {"windows": (32,)}),
        ("qwen2", {**GQA, "sliding_window": 32, "use_sliding_window": False}, {"windows": ()}),
        ("llama", {**GQA, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, {"windows": (64,)}),
    ],
)
def test_structure(
    read: Callable[..., ModelFacts], kind: str, entries: dict[str, Any], expected: dict[str, Any]
) -> None:
    """Head sizes of unlike layers, states, and windows are read of the class and its configuration."""
    facts = read(kind, "hidden", **entries)

    assert {name: getattr(facts, name) for name in expected} == expected


COUNTED = {
    "llama": GQA,
    "gpt2": GPT2,
    "albert": {**SHAPE, "embedding_size": 32},
    "bert": SHAPE,
    "deberta-v2": SHAPE,
    "mixtral": MOE,
    "zamba2": ZAMBA2,
    "falcon": SHAPE,
    "opt": {**SHAPE, "ffn_dim": 128, "word_embed_proj_dim": 64},
    "mpnet": SHAPE,
    "qwen3_moe": {**GQA, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16},
    "gpt_neox": SHAPE,
    "bloom": {"vocab_size": 256, "hidden_size": 64, "n_layer": 2, "n_head": 4},
}


@pytest.mark.parametrize("kind", COUNTED)
def test_useful_operations_are_never_more_than_torch_counts(
    read: Callable[..., ModelFacts], tmp_path: Path, kind: str
) -> None:
    """Of one sequence without pads: as many as the flop counter sees on a CPU, or fewer by what causality leaves out."""
    from torch.utils.flop_counter import FlopCounterMode

    facts, tokens = read(kind, "all-logits", **COUNTED[kind]), 48
    source = find_model(str(tmp_path / "config.json"))
    config = config_torch.config_of(source.files)
    moe = {"experts_implementation": "eager"} if facts.experts else {}  # the counter sees no grouped products
    model = getattr(transformers, facts.logits_class).from_config(config, attn_implementation="eager", **moe).eval()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(input_ids=torch.arange(5, 5 + tokens)[None])
    useful, seen = useful_operations(facts, Forward((tokens,), 1, "all-logits")), counter.get_total_flops()

    assert useful <= seen * 1.0001
    assert useful > 0.6 * seen or kind == "zamba2"
    assert facts.linear_parameters <= facts.parameters
    assert facts.linear_parameters > 0.4 * facts.parameters


def test_shared_layers_and_experts_are_counted_as_they_run(read: Callable[..., ModelFacts]) -> None:
    """ALBERT's one layer runs twice, a token passes two of eight experts, GPT-2's Conv1D is linear."""
    albert, mixtral = read("albert", "hidden", **SHAPE, embedding_size=64), read("mixtral", "hidden", **MOE)
    gpt2 = read("gpt2", "hidden", **GPT2)
    layer, experts = 4 * 64 * 64 + 2 * 64 * 128, 3 * 64 * 128

    assert albert.active_linear_parameters == 64 * 64 + 2 * layer
    routers = 2 * 8 * 64
    assert mixtral.linear_parameters - mixtral.active_linear_parameters == 2 * 6 * experts - routers
    assert gpt2.linear_parameters == gpt2.active_linear_parameters == 2 * (4 + 8) * 64 * 64


# ----------------------------------------------------------------------------------------------------------- what it is


def test_the_defaults_dtype_is_transformers_own(tmp_path: Path) -> None:
    """Of a checkpoint of several dtypes, transformers takes the first tensor's by name: so do the facts, and so does the key."""
    from safetensors.torch import load_file, save_file

    config = transformers.BertConfig(**SHAPE)
    transformers.BertModel(config).save_pretrained(tmp_path / "m")
    state = {name: t.half() for name, t in load_file(tmp_path / "m" / "model.safetensors").items()}
    first = min(state)
    state[first] = state[first].to(torch.bfloat16)
    save_file(state, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    entries = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({k: v for k, v in entries.items() if k != "dtype"}))
    source = find_model(str(tmp_path / "m"))
    loaded = transformers.AutoModel.from_pretrained(tmp_path / "m")

    facts = facts_torch.read_facts(source.files, Forward((8,), 1, "hidden").needs)
    assert facts["checkpoint_dtype"] == "bfloat16" == str(loaded.config.dtype).removeprefix("torch.")
    assert source.architecture_key != find_model(str(tmp_path / "m" / "config.json")).architecture_key


def test_only_the_weights_that_are_loaded_count(tmp_path: Path) -> None:
    """Bytes of a checkpoint are those of the files that transformers loads, not of others beside them."""
    transformers.BertModel(transformers.BertConfig(**SHAPE)).save_pretrained(tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size
    (tmp_path / "consolidated.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes())

    facts = facts_torch.read_facts(find_model(str(tmp_path)).files, Forward((8,), 1, "hidden").needs)
    assert facts["parameter_bytes"] == size


def test_a_quantised_config_without_weights_is_drawn_unquantised_and_says_so(tmp_path: Path) -> None:
    """Nothing of a quantised checkpoint's speed is claimed where its weights were drawn in the config's dtype."""
    source = written(tmp_path, "llama", **GQA, dtype="bfloat16", quantization_config={"quant_method": "fp8"})
    facts = facts_torch.read_facts(source.files, Forward((8,), 1, "last-logits").needs)

    assert (facts["prequantized"], facts["checkpoint_dtype"]) == (None, "bfloat16")
    assert any("UNQUANTISED" in note for note in notes_on(source))
    assert not hasattr(config_torch.config_of(source.files), "quantization_config")


def test_code_that_a_model_brings_is_noted_or_refused(tmp_path: Path) -> None:
    """Where transformers has the class itself, that is what is measured, and a note says so; else a line refuses it."""
    auto_map = {"AutoModelForCausalLM": "modeling_x.X"}
    known = written(tmp_path / "a", "llama", architectures=["LlamaForCausalLM"], auto_map=auto_map, **GQA)
    unknown = written(tmp_path / "b", "llama", architectures=["LlamaOfMineForCausalLM"], auto_map=auto_map, **GQA)

    assert any("never run" in note for note in notes_on(known))
    refuse_foreign(known)
    with pytest.raises(BadInput, match="LlamaOfMineForCausalLM comes with the model as Python code"):
        refuse_foreign(unknown)
    for name in ("T5EncoderModel", "GPT2DoubleHeadsModel", "BertLMHeadModel", "DistilBertModel"):
        assert not notes_on(written(tmp_path / name, "bert", architectures=[name]))


@pytest.mark.parametrize("asked", ["kernels-community/flash-attn", "sdpa|me/kernel", {"": "me/kernel"}])
def test_a_hub_kernel_is_not_loaded_on_a_configs_word(tmp_path: Path, asked: Any) -> None:
    """An attention that is code from the hub is left out, and said, wherever the configuration asks for it."""
    source = written(tmp_path, "llama", _attn_implementation=asked, **GQA)

    assert any("code from the hub" in note for note in notes_on(source))
    assert facts_torch.read_facts(source.files, Forward((8,), 1, "hidden").needs)["default_attention"] in (
        "sdpa",
        "eager",
    )


@pytest.mark.parametrize(
    ("kind", "entries", "words"),
    [
        ("vit", {"architectures": ["ViTModel"]}, "reads pixel_values, not token ids"),
        ("wav2vec2", {"architectures": ["Wav2Vec2Model"]}, "reads input_values, not token ids"),
        ("canine", {"architectures": ["CanineModel"], "num_hidden_layers": 2}, "has no vocabulary"),
        ("bros", {**SHAPE, "architectures": ["BrosModel"]}, "also reads bbox"),
        ("clip", {"architectures": ["CLIPModel"]}, "also reads pixel_values"),
        ("t5", {"architectures": ["T5EncoderModel"], "is_encoder_decoder": False}, "T5EncoderModel is one half"),
        ("umt5", {"architectures": ["UMT5EncoderModel"]}, "UMT5EncoderModel is one half"),
        ("bart", {"architectures": ["BartModel"]}, "an encoder with a decoder"),
        ("llama", {**GQA, "num_attention_heads": 5}, "can't build a llama model|can't build such a model|does not run"),
        ("dpr", {**SHAPE, "architectures": ["DPRQuestionEncoder"]}, "gives no hidden states"),
    ],
)
def test_what_does_not_run_on_ids_is_refused(
    read: Callable[..., ModelFacts], kind: str, entries: dict[str, Any], words: str
) -> None:
    """Models of images, sound, boxes or characters, and halves of others, are refused in words of our own."""
    with pytest.raises(BadInput, match=words):
        read(kind, "pooled", **entries)


@pytest.mark.parametrize(
    "head",
    [
        "BertForTokenClassification",
        "RobertaForQuestionAnswering",
        "BertForMultipleChoice",
        "BertForNextSentencePrediction",
        "ViTForImageClassification",
    ],
)
def test_heads_that_are_not_served_are_refused(head: str) -> None:
    """Such a model is not measured as an embedding; its body is where the user asks for hidden states."""
    with pytest.raises(BadInput, match=f"{head}, and advisor does not run that head"):
        default_output({"model_type": "bert", "architectures": [head]})


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"adapter_config.json": "{}", "adapter_model.safetensors": ""}, "is an adapter"),
        ({"adapter_config.json": "{}", "config.json": '{"model_type": "llama"}'}, "is an adapter"),
        ({"model.gguf": "GGUF", "config.json": '{"model_type": "llama"}'}, "as GGUF alone"),
        (
            {
                "modules.json": '[{"path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}]',
                "0_Transformer/config.json": "{}",
            },
            "with its transformer in 0_Transformer",
        ),
        ({"modules.json": '[{"path": "", "type": "sentence_transformers.models.StaticEmbedding"}]'}, "StaticEmbedding"),
    ],
)
def test_other_forms_of_models_are_named(tmp_path: Path, files: dict[str, str], words: str) -> None:
    """An adapter, GGUF and a folder of modules are told as what they are, with what to do."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    with pytest.raises(BadInput, match=words):
        find_model(str(tmp_path))


def test_an_old_folders_transformer_finds_its_pooling(tmp_path: Path) -> None:
    """Given the transformer's own folder, the pooling is read where modules.json of the folder above places it."""
    modules(
        tmp_path,
        ("Transformer", "0_Transformer"),
        ("Pooling", "1_Pooling"),
        **{"1_Pooling": {"pooling_mode_cls_token": True}},
    )
    source = written(tmp_path / "0_Transformer", "bert", architectures=["BertModel"], **SHAPE)

    assert source.beside["pooling"] == "cls"


def test_facts_of_an_earlier_version_are_read(read: Callable[..., ModelFacts]) -> None:
    """Stored facts that lack what this version reads have defaults that refuse nothing."""
    payload = read("llama", "last-logits", **GQA).payload
    new = (
        "experts",
        "recurrent",
        "windows",
        "takes_positions",
        "max_row",
        "active_linear_parameters",
        "attention_width",
        "after_pooling",
    )
    old = ModelFacts.of({name: value for name, value in payload.items() if name not in new})

    assert (old.experts, old.recurrent, old.windows, old.max_row, old.after_pooling) == (0, False, (), None, ())
    assert ModelFacts.of(json.loads(json.dumps(payload))).payload == payload
