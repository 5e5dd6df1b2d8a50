"""The gate's three parts by themselves: the independence probe, the layout in fp32, and the reference, on tiny models."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from advisor.errors import BadInput  # noqa: E402
from advisor.knobs.attention import fp32_torch as attention_in_fp32  # noqa: E402
from advisor.knobs.attention.fp32_torch import flash_in_fp32, sdpa_in_chunks  # noqa: E402
from advisor.measure import figures_torch, fp32_torch, gate_torch, layout_torch, reference_torch  # noqa: E402
from advisor.measure.gate import figures_found, known_figures, layout_request  # noqa: E402
from advisor.measure.messages import Gate, ReferenceAsked, ReferenceWritten  # noqa: E402
from advisor.measure.session_torch import Session  # noqa: E402
from advisor.models.checkpoint import find_model  # noqa: E402
from advisor.networks import facts_torch  # noqa: E402
from advisor.nouns.configuration import Configuration  # noqa: E402
from advisor.nouns.model import ModelFacts  # noqa: E402
from advisor.nouns.trial import Outcome, Quality, Trial  # noqa: E402
from advisor.quality.judge import GATE_VERSION, wrong  # noqa: E402
from advisor.quality.limits import LAYOUT_LIMIT  # noqa: E402
from advisor.workloads.forward import Forward  # noqa: E402

LENGTHS = (7, 19, 5, 33, 12, 25, 8, 16)
BASE = Configuration.of({"attention": "sdpa", "precision": "bf16", "quantization": "none", "packing": "padded"})
SIZES = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread, and put the number back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Give tiny models, in bf16 where a floor could hide something, by kind."""
    folder, made = tmp_path_factory.mktemp("gate-parts"), {}
    configs = {
        "llama": transformers.LlamaConfig(**SIZES, num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2),
        "mistral": transformers.MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=8, pad_token_id=0),
        "bert": transformers.BertConfig(**SIZES),
        "roberta": transformers.RobertaConfig(**{**SIZES, "max_position_embeddings": 66}, pad_token_id=1),
        "falcon": transformers.FalconConfig(**SIZES, alibi=True, multi_query=False, num_kv_heads=4),
        "gpt2": transformers.GPT2Config(vocab_size=256, n_embd=64, n_layer=2, n_head=4, n_positions=64,
                                        initializer_range=0.15),
        "mixtral": transformers.MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=1,
                                              sliding_window=None, pad_token_id=0),
        "bart": transformers.BartConfig(vocab_size=256, d_model=64, decoder_layers=2, encoder_layers=1, decoder_ffn_dim=96,
                                        encoder_ffn_dim=96, decoder_attention_heads=4, max_position_embeddings=64,
                                        is_decoder=True, is_encoder_decoder=False, init_std=0.15),
        "recurrent_gemma": transformers.RecurrentGemmaConfig(
            **{**SIZES, "num_hidden_layers": 3, "max_position_embeddings": 512}, num_key_value_heads=1, lru_width=64,
            attention_window_size=32),
        "mobilebert": transformers.MobileBertConfig(
            **{**SIZES, "intermediate_size": 64}, embedding_size=32, true_hidden_size=32, intra_bottleneck_size=32),
        "fnet": transformers.FNetConfig(vocab_size=256, hidden_size=64, num_hidden_layers=2, intermediate_size=96,
                                        max_position_embeddings=64, initializer_range=0.15),
    }  # fmt: skip
    for name, config in configs.items():
        torch.manual_seed(0)
        auto = (
            transformers.AutoModel
            if name in ("bert", "roberta", "fnet", "mobilebert")
            else transformers.AutoModelForCausalLM
        )
        model = auto.from_config(config).to(
            torch.float32 if name == "fnet" else torch.bfloat16
        )  # there is no FFT in bf16
        model.save_pretrained(folder / name)
        made[name] = find_model(str(folder / name))
    return made


class Bench:
    """One model in a session, with its reference written: gives the figures of any configuration of it."""

    def __init__(
        self,
        source: Any,
        output: str,
        folder: Path,
        precision: str = "bf16",
        lengths: tuple[int, ...] = LENGTHS,
        batch: int = 4,
    ) -> None:
        """Write the reference."""
        self.facts = ModelFacts.of(facts_torch.read_facts(source.files, Forward((8,), 1, output).needs))
        workload = Forward(lengths, batch, output)
        self.session = Session(lambda _: None)
        self.request = ReferenceAsked(
            source=source.files,
            facts=self.facts,
            workload=workload,
            sample=workload.sample(self.facts.windows),
            path=str(folder / "reference.pt"),
            configuration=BASE.replaced(precision=precision),
        )
        reference = reference_torch.write_reference(self.session, self.request)
        assert isinstance(reference, ReferenceWritten)
        self.reference = reference

    def figures(self, more: dict[str, Any] | None = None, **choices: str) -> Quality:
        """Return the figures of the base configuration with these choices."""
        configuration = BASE.replaced(**choices)
        gate = Gate(path=self.request.path, reference=self.reference.words, known=more or {})
        with torch.inference_mode():  # as a trial does
            self.session.load(self.request, configuration)
            return figures_torch.figures_of(self.session, self.request, gate, configuration)[0]

    def wrong(self, **choices: str) -> str:
        """Return what is wrong with them."""
        ran = BASE.replaced(**choices)
        trial = Trial(1, ran, ran, Outcome.OK, quality=self.figures(**choices))
        return "; ".join(wrong(trial, None, self.facts))


def without_positions(facts: ModelFacts) -> ModelFacts:
    """Return the facts of a class that takes no positions."""
    return replace(facts, accepts=tuple(name for name in facts.accepts if name != "position_ids"))


# ---------------------------------------------------------------------------------------------------- independence probe


@pytest.mark.parametrize("packing", ["padded", "sorted", "packed"])
@pytest.mark.parametrize(
    ("model", "output"),
    [
        ("llama", "last-logits"),
        ("llama", "all-logits"),
        ("mistral", "hidden"),
        ("bert", "pooled"),
        ("roberta", "hidden"),
    ],
)
def test_right_layouts_do_not_move_by_a_bit(
    models: dict[str, Any], tmp_path: Path, model: str, output: str, packing: str
) -> None:
    """Changed neighbours and pads leave a sequence's output bitwise the same in bf16; its own tokens move it."""
    found = Bench(models[model], output, tmp_path).figures(packing=packing)

    assert found.neighbours == 0.0
    assert found.pads in (0.0, None)
    assert found.own is not None
    assert found.own > 0
    assert found.probe_void == ""
    assert found.layout is not None
    assert found.layout < LAYOUT_LIMIT


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("attention", ["sdpa", "bettertransformer"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_layout_of_a_model_that_a_trial_loaded_is_looked_at(
    models: dict[str, Any], tmp_path: Path, attention: str, precision: str
) -> None:
    """Weights that came in inference mode could not be widened: fp16 and fused layers passed for what can't be looked at."""
    bench = Bench(models["bert"], "pooled", tmp_path)
    bench.session.unload()  # the reference loaded it outside a trial
    found = bench.figures(attention=attention, precision=precision, packing="sorted")

    assert found.layout is not None, found.layout_words
    assert found.layout < LAYOUT_LIMIT
    assert not any(parameter.is_inference() for parameter in bench.session.model.parameters())


@pytest.mark.parametrize(
    ("model", "output", "packing"),
    [
        ("llama", "last-logits", "packed-cached"),
        ("llama", "last-logits", "packed-2d-mask"),
        ("llama", "all-logits", "packed-cu-seq-lens-only"),
        ("llama", "last-logits", "packed-two-rows"),
        ("bert", "pooled", "packed-no-mask"),
        ("bert", "hidden", "packed-2d-mask"),
    ],
)
def test_documents_that_read_one_another_are_caught_in_bf16(
    models: dict[str, Any], tmp_path: Path, model: str, output: str, packing: str
) -> None:
    """The probe's positive controls: every form that leaks says "reads its neighbours", however coarse the dtype."""
    if (
        packing == "packed-two-rows"
    ):  # under sdpa positions tell rows apart: it leaks under FlashAttention alone (rule P4)
        assert Bench(models[model], output, tmp_path).wrong(packing=packing) == ""
        return
    assert "reads its neighbours" in Bench(models[model], output, tmp_path).wrong(packing=packing)


def test_a_leak_behind_nf4_is_caught(models: dict[str, Any], tmp_path: Path) -> None:
    """With random weights a lossy choice has no quality, but whether documents read one another does not depend on it."""
    pytest.importorskip("bitsandbytes")
    bench = Bench(models["llama"], "last-logits", tmp_path)
    known = {"layout": 0.0, "layout_words": "as unquantised"}

    leaking = bench.figures(known, quantization="nf4", packing="packed-cached")
    right = bench.figures(known, quantization="nf4", packing="packed")
    assert leaking.neighbours is not None
    assert leaking.neighbours > 0.01
    assert right.neighbours == 0.0


def test_what_bitsandbytes_cannot_pack_for_a_cpu_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU with bfloat16 instructions 4-bit layers of other shapes fail at their first call; here the layer is named."""
    modules = pytest.importorskip("bitsandbytes.nn.modules")
    config = transformers.LlamaConfig(**{**SIZES, "intermediate_size": 96}, num_key_value_heads=2, pad_token_id=0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "misfit")
    bench = Bench(find_model(str(tmp_path / "misfit")), "last-logits", tmp_path)
    nf4 = BASE.replaced(quantization="nf4")

    monkeypatch.setattr(modules, "has_avx512bf16", lambda: False)
    bench.session.load(bench.request, nf4)
    bench.session.unload()
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: True)
    with pytest.raises(BadInput, match=r"down_proj has 96 inputs and 64 outputs, and it needs multiples of 64 and 32"):
        bench.session.load(bench.request, nf4)


def test_a_class_that_reads_its_pads_is_said_to(models: dict[str, Any], tmp_path: Path) -> None:
    """FNet takes no mask: padded batches read their pads, and differ from one sequence at a time in fp32 too."""
    said = Bench(models["fnet"], "pooled", tmp_path, "fp32").wrong(attention="eager", precision="fp32")

    assert "reads its pads" in said
    assert "layout is wrong" in said


def test_pads_that_are_found_by_their_id_are_probed_by_their_vectors(models: dict[str, Any], tmp_path: Path) -> None:
    """A class that counts its positions by the pad's id takes other ids for text: the vectors of its pads are changed."""
    bench = Bench(models["roberta"], "hidden", tmp_path)
    bench.request = bench.request.replaced(facts=without_positions(bench.facts))
    bench.session.batching = lambda *a: replace(Session.batching(bench.session, *a), left=True)  # type: ignore[method-assign]
    found = bench.figures()

    assert found.pads == 0.0
    assert found.probed.endswith("pads, whose ids the class looks for, by their vectors")


@pytest.mark.parametrize(
    ("model", "output", "lengths"),
    [
        ("recurrent_gemma", "last-logits", (60, 300, 120, 250)),
        ("recurrent_gemma", "hidden", (60, 300, 120, 250)),
        ("mobilebert", "pooled", (8, 64, 20, 61)),
        ("bart", "last-logits", LENGTHS),
    ],
)
def test_right_ones_that_look_at_pads_or_count_them_are_right(
    models: dict[str, Any], tmp_path: Path, model: str, output: str, lengths: tuple[int, ...]
) -> None:
    """However little the token after a text weighs in long ones; and positions that are made of ids are no vectors of them."""
    bench = Bench(models[model], output, tmp_path, lengths=lengths)
    found = bench.figures()

    assert found.layout is not None
    assert found.layout < LAYOUT_LIMIT
    assert bench.wrong() == ""


def test_pads_that_are_read_and_neutral_are_right(models: dict[str, Any], tmp_path: Path) -> None:
    """MobileBERT looks at the token after each: a pad whose vector is zero is the end of the text, any other is text."""
    bench = Bench(models["mobilebert"], "hidden", tmp_path)
    assert bench.wrong() == ""
    assert (bench.figures().layout_pads or 0.0) > 1

    torch.nn.init.normal_(bench.session.model.get_input_embeddings().weight.data[0])
    said = bench.wrong()
    assert "reads its pads" in said
    assert "layout is wrong" in said


@pytest.mark.parametrize("model", ["bert", "roberta"])
def test_a_kernel_that_reads_pads_in_16_bits_alone_is_caught(
    models: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    """The layout in fp32 is right, and that pads are found by their id excuses nothing: what is in them is read."""
    attend = torch.nn.functional.scaled_dot_product_attention

    def without_mask(query: Any, *arguments: Any, **more: Any) -> Any:
        return attend(query, *arguments, **(more if query.dtype == torch.float32 else {**more, "attn_mask": None}))

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", without_mask)
    said = Bench(models[model], "hidden", tmp_path).wrong()

    assert "reads its pads" in said
    assert "layout" not in said


def test_left_pads_without_positions_are_the_layouts_fault(models: dict[str, Any], tmp_path: Path) -> None:
    """Nothing is read that should not be, and yet GPT-2 is wrong where pads on its left are counted: part 1b says so."""
    bench = Bench(models["gpt2"], "last-logits", tmp_path)
    bench.request = bench.request.replaced(facts=without_positions(bench.facts))
    right = bench.figures()
    assert right.layout is not None
    assert right.layout < LAYOUT_LIMIT  # without positions pads go to the right, where nothing reads them

    bench.session.batching = lambda *a: replace(Session.batching(bench.session, *a), left=True)  # type: ignore[method-assign]
    shifted = bench.figures()
    assert shifted.neighbours == shifted.pads == 0.0
    assert shifted.layout is not None
    assert shifted.layout > 100 * LAYOUT_LIMIT


def test_a_token_that_rounding_sends_to_another_expert_is_no_fault_of_the_layout(
    models: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pair of tokens goes elsewhere in batches: with other contents nothing does. A leak is there with any contents."""
    bench = Bench(models["mixtral"], "hidden", tmp_path)
    _, tokens = bench.session.sampled(bench.request)
    pair, flipped = tokens[3][10:12], list[Any]()
    bench.session.load(bench.request, BASE)

    def watch(_: Any, arguments: Any, more: dict[str, Any]) -> None:
        ids = more["input_ids"]
        at = (ids[:, :-1] == pair[0]) & (ids[:, 1:] == pair[1])
        flipped[:] = torch.nn.functional.pad(at, (1, 0)).flatten().nonzero().tolist() if len(ids) > 1 else []

    def flip(_: Any, arguments: Any, output: Any) -> Any:
        logits, scores, experts = output
        for (place,) in flipped:
            experts[place] = (experts[place] + 1) % 4
        return logits, scores, experts

    bench.session.model.register_forward_pre_hook(watch, with_kwargs=True)
    routers = [module for module in bench.session.model.modules() if type(module).__name__.endswith("Router")]
    assert routers
    for router in routers:
        router.register_forward_hook(flip)

    assert (bench.figures().layout or 1.0) < LAYOUT_LIMIT
    monkeypatch.setattr(layout_torch, "_ATTEMPTS_WITH_EXPERTS", 1)
    assert (bench.figures().layout or 0.0) > 10 * LAYOUT_LIMIT
    monkeypatch.undo()
    assert "layout is wrong" in bench.wrong(packing="packed-cached")


def test_positions_of_another_start_are_the_layouts_fault(models: dict[str, Any], tmp_path: Path) -> None:
    """RoBERTa packed with positions from 0 reads no neighbour: the probe sees nothing, the layout in fp32 does."""
    found = Bench(models["roberta"], "hidden", tmp_path).figures(packing="packed-positions-from-0")

    assert found.neighbours == 0.0
    assert found.layout is not None
    assert found.layout > 100 * LAYOUT_LIMIT


def test_an_attention_that_is_another_function_is_the_layouts_fault(models: dict[str, Any], tmp_path: Path) -> None:
    """Falcon with ALiBi can't be switched on a loaded model, and its sdpa is not its eager: bf16's floor hides it."""
    bench = Bench(models["falcon"], "last-logits", tmp_path)

    assert not bench.facts.switches_attention
    assert "its layout is wrong" in bench.wrong()
    assert bench.wrong(attention="eager") == ""


def test_a_probe_that_can_not_fail_is_void(models: dict[str, Any], tmp_path: Path) -> None:
    """Where a sequence's own tokens do not move its output, a leak would not either: that is a finding, not a pass."""
    bench = Bench(models["llama"], "last-logits", tmp_path)
    bench.session.load(bench.request, BASE)
    for parameter in bench.session.model.model.embed_tokens.parameters():
        torch.nn.init.zeros_(parameter)
    gate = Gate(path=None, reference="", known={"layout": 0.0})
    with torch.inference_mode():
        found, _ = figures_torch.figures_of(bench.session, bench.request, gate, BASE)

    assert found.probe_void == "a sequence's own tokens do not move its output"


def test_special_ids_stay_and_are_never_put_in() -> None:
    """Contents are changed to ordinary ids alone; what the tokenizer or the config names stays where it is."""
    ids = gate_torch.Ids.of(20, {0, 1, 2, 7})
    before = torch.tensor([1, 5, 6, 7, 9, 2, 0, 12])
    after = ids.instead_of(before, 3)

    kept = torch.isin(before, torch.tensor([0, 1, 2, 7]))
    assert torch.equal(after[kept], before[kept])
    assert not torch.isin(after[~kept], torch.tensor([0, 1, 2, 7])).any()
    assert (after[~kept] != before[~kept]).all()


# ---------------------------------------------------------------------------------------------------------- the reference


@pytest.mark.parametrize("share", [0.0, 1.0], ids=["block by block", "at once"])
@pytest.mark.parametrize("model", ["llama", "mistral", "bert", "gpt2"])
def test_widened_weights_give_the_fp32_model(
    models: dict[str, Any], model: str, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model in bf16 inside in_fp32 computes what the checkpoint loaded in fp32 does, and is itself again afterwards."""
    monkeypatch.setattr(fp32_torch, "AT_ONCE_SHARE", share)
    path, auto = models[model].path, transformers.AutoModel
    narrow, wide = (auto.from_pretrained(path, dtype=dtype).eval() for dtype in (torch.bfloat16, torch.float32))
    ids = torch.randint(16, 256, (2, 20))
    before = {name: tensor.clone() for name, tensor in narrow.state_dict().items()}

    with torch.inference_mode(), fp32_torch.in_fp32(narrow, "cpu"):
        found = narrow(input_ids=ids).last_hidden_state
    with torch.inference_mode():
        expected = wide(input_ids=ids).last_hidden_state

    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in narrow.state_dict().items())


@pytest.mark.parametrize("kind", ["Funnel", "SqueezeBert"])
def test_lists_of_lists_and_layers_called_by_their_forward_are_widened(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever way a layer is run by: Funnel has lists of lists, SqueezeBERT calls its layers' forward."""
    monkeypatch.setattr(fp32_torch, "AT_ONCE_SHARE", 0.0)
    sizes = {
        "Funnel": {
            "d_model": 64,
            "n_head": 4,
            "d_head": 16,
            "d_inner": 96,
            "block_sizes": [1, 1],
            "num_decoder_layers": 1,
        },
        "SqueezeBert": {**SIZES, "embedding_size": 64, "num_hidden_layers": 2},
    }[kind]
    config = getattr(transformers, f"{kind}Config")(**{"vocab_size": 256, **sizes})
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(config).to(torch.bfloat16).eval()
    wide, ids = copy.deepcopy(model).float(), torch.arange(2, 13)[None]

    with torch.inference_mode():
        expected = wide(input_ids=ids).last_hidden_state
        with fp32_torch.in_fp32(model, "cpu"):
            found = model(input_ids=ids).last_hidden_state

    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not any("forward" in vars(part) for part in model.modules())


@pytest.mark.parametrize("share", [0.0, 1.0], ids=["block by block", "at once"])
def test_where_memory_ends_half_way_the_weights_are_given_back(
    models: dict[str, Any], share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that could not be widened is what it was: the trial goes on with it."""
    monkeypatch.setattr(fp32_torch, "AT_ONCE_SHARE", share)
    model = transformers.AutoModel.from_pretrained(models["llama"].path, dtype=torch.bfloat16).eval()
    own, widened = fp32_torch._Widened.enter, []

    def enter(self: Any) -> None:
        widened.append(1)
        if len(widened) == (1 if share else 2):
            self.tensors[3:] = [None]  # what comes after the third can't be had
        own(self)

    monkeypatch.setattr(fp32_torch._Widened, "enter", enter)
    with pytest.raises(AttributeError), torch.inference_mode(), fp32_torch.in_fp32(model, "cpu"):
        model(input_ids=torch.arange(2, 9)[None])

    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_settings_that_a_model_changes_are_put_back() -> None:
    """Numbers, texts, truths and parts that a model's modules had when it was loaded are theirs again, and no others."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.1)).eval()
    kept = fp32_torch.Settings(model)
    model[1].p, model[1].training, model[0].out_features = 0.7, True, 5
    first = model[0]
    model[0] = torch.nn.Identity()

    kept.restore()

    assert (model[1].p, model[1].training, model[0], first.out_features) == (0.1, False, first, 2)


@given(st.lists(st.integers(1, 600), min_size=1, max_size=300))
def test_who_is_compared_of_a_batch(lengths: list[int]) -> None:
    """All of a small batch; of a large one both ends, the longest, the shortest and the lengths between, no gap wider than 6."""
    places = gate_torch.to_compare(lengths)
    found, most = [lengths[place] for place in places], gate_torch.MOST_COMPARED

    assert places == sorted(set(places))
    assert len(places) == len(lengths) if len(lengths) <= most else most - 2 <= len(places) <= most
    assert {0, len(lengths) - 1} <= set(places)
    assert (max(found), min(found)) == (max(lengths), min(lengths))
    ranks = sorted(range(len(lengths)), key=lambda place: lengths[place])
    seen = [rank for rank, place in enumerate(ranks) if place in set(places)]
    assert all(b - a <= 6 for a, b in itertools.pairwise(seen))


def test_a_sequence_alone_is_run_once_for_all_layouts(models: dict[str, Any], tmp_path: Path) -> None:
    """What a sequence is alone in fp32 is kept while the weights stay, and the layouts' figures are the same to the bit."""
    bench, runs = Bench(models["llama"], "last-logits", tmp_path), list[int]()
    alone = gate_torch.alone

    def counted(looked: gate_torch.Looked, tokens: dict[int, Any], accepts: Any) -> dict[int, Any]:
        runs.extend(tokens)
        return alone(looked, tokens, accepts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate_torch, "alone", counted)
        bench.figures(packing="padded")
        first = len(runs)
        shared = bench.figures(packing="packed", attention="eager")
        assert 0 < first <= len(LENGTHS)
        assert len(runs) == first
    fresh = Bench(models["llama"], "last-logits", tmp_path).figures(packing="packed", attention="eager")
    assert (shared.layout, shared.layout_words) == (fresh.layout, fresh.layout_words)


@pytest.mark.parametrize("queries", [1, 5, 9])
@pytest.mark.parametrize("mask", ["none", "causal", "bool", "added", "one row"])
def test_torchs_attention_in_chunks_is_torchs_attention(
    monkeypatch: pytest.MonkeyPatch, mask: str, queries: int
) -> None:
    """Whatever mask it is given, with grouped heads, and where keys are more than queries."""
    attend = torch.nn.functional.scaled_dot_product_attention
    drawn = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, queries, 8, generator=drawn)
    key, value = (torch.randn(2, 2, 9, 8, generator=drawn) for _ in range(2))
    seen = torch.rand(2, 1, 1 if mask == "one row" else queries, 9, generator=drawn) > 0.3
    given = {"none": None, "causal": None, "bool": seen, "added": torch.where(seen, 0.5, -1e9), "one row": seen}[mask]
    monkeypatch.setattr(attention_in_fp32, "SCORES_BYTES", 2 * 4 * 9 * 4 * 2)  # two queries at a time
    options = {"attn_mask": given, "is_causal": mask == "causal", "scale": 0.3, "enable_gqa": True}
    with sdpa_in_chunks():
        found = torch.nn.functional.scaled_dot_product_attention(query, key, value, **options)

    assert torch.nn.functional.scaled_dot_product_attention is attend
    torch.testing.assert_close(found, attend(query, key, value, **options))


def test_where_all_scores_do_not_fit_the_layout_is_looked_at_in_chunks(
    models: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An 8B's default at 32,768 tokens was not looked at: sdpa writes all scores in fp32 where heads are grouped.

    And what is wrong is seen so too.
    """
    attend = torch.nn.functional.scaled_dot_product_attention

    def written(query: Any, *args: Any, **options: Any) -> Any:
        if query.dtype == torch.float32 and query.shape[-2] > 7:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 128.00 GiB.")
        return attend(query, *args, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", written)
    monkeypatch.setattr(attention_in_fp32, "SCORES_BYTES", 1)  # one query at a time
    bench = Bench(models["llama"], "last-logits", tmp_path)
    found = bench.figures(packing="sorted")
    together = bench.figures(packing="packed-cached")

    assert found.layout is not None, found.layout_words
    assert found.layout < LAYOUT_LIMIT
    assert found.layout_words == "sdpa in chunks, 1 of 2 layers, fp32"
    assert together.layout is not None
    assert together.layout > 100 * LAYOUT_LIMIT


def test_a_large_batch_is_judged_by_some_of_its_sequences(
    models: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a batch larger than MOST_COMPARED the reference holds some; a leak between documents is caught by those all the same."""
    monkeypatch.setattr(gate_torch, "MOST_COMPARED", 4)
    bench = Bench(models["llama"], "last-logits", tmp_path, batch=8)
    values = torch.load(bench.request.path, weights_only=True)["values"]

    assert set(values) == {"0", "7", "2", "3"}  # both ends, the shortest and the longest
    assert bench.wrong(packing="packed", attention="eager") == ""
    assert "reads its neighbours" in bench.wrong(packing="packed-cached")


def test_a_reference_is_in_fp32_whatever_the_checkpoint(models: dict[str, Any], tmp_path: Path) -> None:
    """A checkpoint in bf16 has a reference in fp32: the fp32 configuration is within its rounding, bf16 is not."""
    bench = Bench(models["llama"], "last-logits", tmp_path)

    assert bench.reference.words.startswith("fp32, eager")
    assert bench.figures(precision="fp32").rms < 1e-5
    assert bench.figures().rms > 1e-3


def test_attention_in_chunks_is_eager_attention(models: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries some at a time give what all at once give: the mask's rows go with them."""
    model = transformers.AutoModel.from_pretrained(models["mistral"].path, dtype=torch.float32).eval()
    ids = torch.randint(16, 256, (1, 40))
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        expected = model(input_ids=ids, use_cache=False).last_hidden_state
        monkeypatch.setattr(fp32_torch, "SCORES_BYTES", 4 * 4 * 40 * 7)  # seven queries at a time
        fp32_torch.register_chunks()
        assert fp32_torch.can_chunk(model)
        model.set_attn_implementation(fp32_torch.IN_CHUNKS)
        found = model(input_ids=ids, use_cache=False).last_hidden_state

    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_first_layers_hold_every_kind(models: dict[str, Any]) -> None:
    """One of each kind is enough; the model has all its layers back afterwards."""
    alike = transformers.AutoModel.from_config(transformers.LlamaConfig(**{**SIZES, "num_hidden_layers": 6}))
    mixed = transformers.AutoModel.from_config(
        transformers.Gemma2Config(**{**SIZES, "num_hidden_layers": 6}, num_key_value_heads=2, head_dim=16)
    )
    assert fp32_torch.first_of_each_kind(alike, 6) == 1
    assert fp32_torch.first_of_each_kind(mixed, 6) == 2
    with fp32_torch.first_layers(alike, 6, 1):
        assert len(alike.layers) == 1
    assert [name for name, _ in alike.layers.named_children()] == list("012345")


def test_shared_layers_are_looked_at_whole() -> None:
    """Where layers share weights, what the first do says nothing of all."""
    model = transformers.AutoModel.from_config(transformers.LlamaConfig(**{**SIZES, "num_hidden_layers": 3}))
    model.layers[2].mlp.gate_proj.weight = model.layers[0].mlp.gate_proj.weight

    assert fp32_torch.first_of_each_kind(model, 3) == 3


# --------------------------------------------------------------------------------------------- FlashAttention's interface


@pytest.mark.parametrize("model", ["llama", "mistral"])
def test_flash_attentions_path_in_fp32_is_right_by_every_way_in(models: dict[str, Any], model: str) -> None:
    """Through transformers' own FlashAttention code: pads by a mask, cu_seq_lens, and positions that start again in a row."""
    from transformers.integrations.flash_attention import flash_attention_forward

    own = transformers.AutoModel.from_pretrained(models[model].path, dtype=torch.float32).eval()
    own.set_attn_implementation("eager")
    transformers.AttentionInterface.register("stand_in", flash_attention_forward)
    transformers.masking_utils.AttentionMaskInterface.register(
        "stand_in", transformers.masking_utils.flash_attention_mask
    )
    sequences = [torch.randint(16, 256, (n,)) for n in (5, 21, 12)]
    with torch.inference_mode():
        alone = [own(input_ids=s[None], use_cache=False).last_hidden_state[0] for s in sequences]
        own.set_attn_implementation("stand_in")
        with flash_in_fp32("stand_in"):
            row, positions = torch.cat(sequences)[None], torch.cat([torch.arange(len(s)) for s in sequences])[None]
            ends = torch.tensor([0, 5, 26, 38], dtype=torch.int32)
            varlen = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": 21, "max_length_k": 21}
            ids = torch.zeros((3, 21), dtype=torch.long)
            mask = torch.zeros_like(ids)
            for n, s in enumerate(sequences):
                ids[n, : len(s)], mask[n, : len(s)] = s, 1
            by_positions = own(input_ids=row, position_ids=positions, use_cache=False).last_hidden_state[0]
            by_ends = own(input_ids=row, position_ids=positions, use_cache=False, **varlen).last_hidden_state[0]
            padded = own(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state

    for n, (expected, start) in enumerate(zip(alone, (0, 5, 26), strict=True)):
        for found in (
            by_positions[start : start + len(expected)],
            by_ends[start : start + len(expected)],
            padded[n, : len(expected)],
        ):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------------------------------------- what is known already


def test_layout_and_probe_are_looked_at_once() -> None:
    """A layout is known by attention and packing, the probe by the weights too; a figure that is missing is asked for."""
    quality = Quality(
        0.0,
        0.0,
        None,
        None,
        1,
        layout=1e-6,
        layout_words="sdpa",
        neighbours=0.0,
        probed="neighbours",
        gate=GATE_VERSION,
    )
    trials = [Trial(0, BASE, BASE, Outcome.OK, quality=quality)]

    assert known_figures(trials, BASE)["neighbours"] == 0.0
    assert known_figures(trials, BASE.replaced(precision="fp16")) == {
        "layout": 1e-6,
        "layout_words": "sdpa",
        "layout_pads": None,
    }
    assert known_figures(trials, BASE.replaced(packing="packed")) == {}
    older = [replace(trials[0], quality=replace(quality, gate="gate/1"))]
    assert known_figures(older, BASE) == {}  # what another version found may mean something else


def test_what_quantises_has_its_layout_looked_at_without() -> None:
    """nf4 needs a look at the layout in the default's weights once; LLM.int8 needs the probe from there too."""
    nf4, int8 = BASE.replaced(quantization="nf4", precision="fp16"), BASE.replaced(quantization="int8")
    layout = {"layout": 0.0, "layout_words": ""}

    assert layout_request(BASE, BASE, {}) is None
    assert layout_request(nf4, BASE, {}) == BASE
    assert layout_request(nf4, BASE, layout) is None
    assert layout_request(int8, BASE, layout) == BASE
    assert layout_request(int8, BASE.replaced(quantization="checkpoint"), {}) is None
    seen = {**layout, "neighbours": 0.0, "probed": "neighbours"}
    assert "neighbours" not in figures_found(seen, nf4)
    assert "without int8" in figures_found(seen, int8)["probed"]


def test_the_sample_covers_the_list() -> None:
    """The longest, the shortest and the most uneven batch and every shape class are judged, wherever in the list they are."""
    lengths = [16, 16, 15, 16] * 400 + [90, 100, 3, 16]
    chosen = Forward(tuple(lengths), 4).sample(windows=(32,))

    assert {1600, 1601, 1602, 1603} <= set(chosen)
    assert len(chosen) < len(lengths)
    assert any(lengths[i : i + 4] == [16, 16, 15, 16] for i in chosen if i % 4 == 0)
    assert sum(lengths[i] for i in chosen) < 50_000
