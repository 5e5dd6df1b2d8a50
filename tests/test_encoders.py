"""Encoders and heads: hidden states, embeddings and scores are right however they are batched, or the gate says they are not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from advisor.errors import BadInput  # noqa: E402
from advisor.faces.cli import run  # noqa: E402
from advisor.measure import worker  # noqa: E402
from advisor.measure.messages import Gate, ReferenceAsked, Timing, TrialAsked, TrialDone  # noqa: E402
from advisor.measure.stopping import Stopping  # noqa: E402
from advisor.models.checkpoint import find_model  # noqa: E402
from advisor.networks import facts_torch  # noqa: E402
from advisor.nouns.configuration import Configuration  # noqa: E402
from advisor.nouns.model import ModelFacts, ModelSource  # noqa: E402
from advisor.nouns.trial import Outcome  # noqa: E402
from advisor.show.script import script_for  # noqa: E402
from advisor.workloads.forward import Forward  # noqa: E402

BASE = Configuration.of({"attention": "sdpa", "precision": "fp32", "quantization": "none", "packing": "padded"})
LENGTHS = (7, 19, 5, 33, 12, 8, 9, 30, 3, 21, 11, 14)
SHAPE = {
    "vocab_size": 500,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ModelSource]]:
    """Save small models of three kinds with heads of 3, 1 and 2 labels, weights large enough for errors to show."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("encoders")
    made = {
        "bert": transformers.BertForSequenceClassification(transformers.BertConfig(**SHAPE, num_labels=3)),
        "roberta": transformers.RobertaForSequenceClassification(
            transformers.RobertaConfig(**SHAPE, pad_token_id=1, num_labels=1)
        ),
        "llama": transformers.LlamaForSequenceClassification(
            transformers.LlamaConfig(**SHAPE, pad_token_id=0, num_labels=2)
        ),
    }
    for name, model in made.items():
        model.save_pretrained(folder / name)
    yield {name: find_model(str(folder / name)) for name in made}
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def judged(models: dict[str, ModelSource], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TrialDone]:
    """Give what runs one configuration in a session with the gate and returns the worker's result.

    The facts and the reference of a model's output are the same whatever is judged by them: each is made once.
    """
    folder = tmp_path_factory.mktemp("references")

    @cache
    def prepared(model: str, output: str, size: int | None) -> ReferenceAsked:
        source = models[model]
        workload = Forward(LENGTHS, size, output)
        base = BASE if size is not None else BASE.replaced(batch="1")
        request = ReferenceAsked(
            source=source.files,
            facts=facts_of(source, output),
            workload=workload,
            sample=workload.sample(),
            path=str(folder / f"{model}-{output}-{size}.pt"),
            configuration=base.replaced(attention="eager"),
        )
        worker.write_reference(worker.Session(lambda _: None), request)
        return request

    def run(
        model: str, output: str, size: int | None = 4, more: dict[str, str] | None = None, **choices: str
    ) -> TrialDone:
        base, request = BASE if size is not None else BASE.replaced(batch="1"), prepared(model, output, size)
        session = worker.Session(lambda _: None)
        gate = Gate(path=request.path, reference="fp32")
        configuration = base.replaced(**choices, **(more or {}))
        timing = Timing(stopping=Stopping(least=1, most=1))  # the output is looked at: one round shows that it runs
        return worker.run_trial(session, TrialAsked.of(request, gate=gate, timing=timing, configuration=configuration))

    return run


@pytest.mark.parametrize("packing", ["padded", "sorted", "packed"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("output", ["hidden", "pooled", "scores"])
@pytest.mark.parametrize("model", ["bert", "roberta"])
def test_encoders_are_right_in_every_batching(
    judged: Callable[..., TrialDone], model: str, output: str, attention: str, packing: str
) -> None:
    """Each sequence's hidden states, embedding or scores are those it has alone, and what was asked for is what ran."""
    result = judged(model, output, attention=attention, packing=packing)

    assert result.outcome == Outcome.OK, (result.reason, result.quality)
    assert result.alias == ""
    assert result.quality.rms < 1e-5


@pytest.mark.parametrize(
    ("model", "packing"),
    [
        ("bert", "packed-no-mask"),
        ("bert", "packed-2d-mask"),
        ("roberta", "packed-no-mask"),
        ("roberta", "packed-positions-from-0"),
    ],
)
@pytest.mark.parametrize("output", ["hidden", "pooled", "scores"])
def test_wrong_packing_of_encoders_is_caught(
    judged: Callable[..., TrialDone], model: str, output: str, packing: str
) -> None:
    """Rules P2, P8 and P19: what they refuse gives another output, and the gate says so for every kind of output."""
    result = judged(model, output, packing=packing)

    assert result.outcome == Outcome.WRONG_OUTPUT
    assert result.quality.rms > 0.1


@pytest.mark.parametrize("packing", ["padded", "sorted"])
def test_a_decoder_with_a_classification_head_is_right(judged: Callable[..., TrialDone], packing: str) -> None:
    """A Llama with a head of two labels scores every sequence as it does alone."""
    result = judged("llama", "scores", packing=packing)

    assert result.outcome == Outcome.OK
    assert result.quality.kl < 1e-9


def test_embeddings_keep_their_neighbours(judged: Callable[..., TrialDone]) -> None:
    """The gate of embeddings counts the ten nearest that stay: all of a right batching's, not all of a wrong one's."""
    right, wrong = (judged("bert", "pooled", packing=packing).quality for packing in ("packed", "packed-no-mask"))

    assert right.top10 == 1.0
    assert right.cosine > 0.999999
    assert wrong.top10 < 1.0


@pytest.mark.parametrize("batch", ["1", "4", "16"])
def test_batch_is_a_knob_where_it_is_left_open(judged: Callable[..., TrialDone], batch: str) -> None:
    """With --batch auto the worker forms batches of the size chosen, and reads that size back from the calls."""
    result = judged("bert", "pooled", None, {"batch": batch})

    assert result.outcome == Outcome.OK
    assert result.effective["batch"] == batch
    assert result.reading["inputs"]["rows"] == min(int(batch), len(LENGTHS))


def facts_of(source: ModelSource, output: str) -> ModelFacts:
    """Read a model's facts as the worker does."""
    return ModelFacts.of(facts_torch.read_facts(source.files, Forward((8,), 1, output).needs))


def in_order(names: dict[str, Any]) -> list[torch.Tensor]:
    """Run a script's own loop and return its results in the order of the sequences."""
    found: dict[int, torch.Tensor] = {}
    names["run"](found.__setitem__)
    return [found[place] for place in range(len(names["sequences"]))]


@pytest.mark.parametrize("packing", ["padded", "sorted", "packed"])
@pytest.mark.parametrize("output", ["hidden", "pooled", "scores"])
@pytest.mark.parametrize("model", ["bert", "roberta"])
def test_the_script_gives_what_each_sequence_alone_gives(
    models: dict[str, ModelSource], model: str, output: str, packing: str
) -> None:
    """The script that is printed for an encoder computes the same as one sequence at a time, in the callers' order."""
    source, workload = models[model], Forward(LENGTHS, 4, output)
    facts = facts_of(source, output)
    script = script_for(source, BASE.replaced(packing=packing), workload, facts, "cpu")
    names: dict[str, Any] = {}
    exec(compile(script.partition("\n\nrun(drop)  # warm-up\n")[0], "script", "exec"), names)

    with torch.inference_mode():
        for tokens, result in zip(names["sequences"], in_order(names), strict=True):
            outputs = names["model"](input_ids=tokens[None])
            hidden = outputs.logits[0] if output == "scores" else outputs.last_hidden_state[0]
            alone = hidden.mean(0) if output == "pooled" else hidden
            torch.testing.assert_close(result, alone, atol=1e-4, rtol=0)


def test_facts_say_what_an_encoder_is(models: dict[str, ModelSource], tmp_path: Path) -> None:
    """Facts tell encoders from decoders, where positions begin, how heads read, and what a pooling file declares."""
    bert, roberta = facts_of(models["bert"], "scores"), facts_of(models["roberta"], "scores")
    llama = facts_of(models["llama"], "scores")
    pooling = Path(models["bert"].path) / "1_Pooling" / "config.json"
    pooling.parent.mkdir(exist_ok=True)
    pooling.write_text(json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}))

    assert (bert.is_causal, bert.position_offset, bert.head, bert.pooling) == (False, 0, "pooler", "mean")
    assert (roberta.is_causal, roberta.position_offset, roberta.head) == (False, 2, "features")
    assert (llama.is_causal, llama.position_offset, llama.head, llama.pooling) == (True, 0, "", "last")
    assert facts_of(find_model(models["bert"].path), "pooled").pooling == "cls"
    pooling.unlink()


def test_an_encoder_gives_no_next_token(models: dict[str, ModelSource]) -> None:
    """Asked for the last token's logits, an encoder is refused in words that say what to ask for instead."""
    with pytest.raises(BadInput, match="ask for hidden, pooled or scores"):
        facts_of(models["bert"], "last-logits")


def test_a_classifier_without_a_pad_token_is_told_at_once(
    models: dict[str, ModelSource], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that finds a sequence's end by its pad token and has none is refused before anything runs, but for batches of one."""
    config = json.loads((Path(models["llama"].path) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "pad_token_id": None}))
    tune = ["tune", str(tmp_path / "config.json"), "--device", "cpu", "--lengths", "8,4", "--dry-run"]

    for batch in ("2", "auto"):
        assert run([*tune, "--batch", batch]) == 2
        assert "pad token, and its config.json names none (--batch 1, or set pad_token_id" in capsys.readouterr().err
    assert run([*tune, "--batch", "1"]) == 0


@pytest.mark.parametrize(
    ("shipped", "missing"), [("causal", "score.weight"), ("encoder", "classifier.bias, classifier.weight")]
)
def test_scores_of_a_model_without_a_head_are_refused(
    shipped: str, missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A head that is not in the checkpoint would be drawn anew at every load, and what is right would look wrong."""
    model = str(Path(__file__).parent / "models" / shipped)

    assert run(["tune", model, "--device", "cpu", "--output", "scores", "--lengths", "8", "--dry-run"]) == 2
    assert f"the checkpoint has no weights for {missing}: its scores would be random" in capsys.readouterr().err
