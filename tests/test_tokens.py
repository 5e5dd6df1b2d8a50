"""The tokens that are run: the user's own texts as they are sent, or the bundled text as the library would send it."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from made_databases import probed

from advisor.errors import AdvisorError, BadInput
from advisor.machine import probe
from advisor.measure.messages import Subject
from advisor.measure.runner import LocalRunner
from advisor.models.checkpoint import find_model
from advisor.models.lengths import lengths_from
from advisor.models.tokenizing import FILES, has_tokenizer
from advisor.nouns.configuration import Configuration
from advisor.nouns.entry import Sent, Texts
from advisor.nouns.model import ModelSource
from advisor.nouns.objective import Budget, Objective
from advisor.nouns.trial import Outcome
from advisor.show.support import LLAMA
from advisor.storage.store import Store
from advisor.study.tune import tune
from advisor.study.tuning import Job
from advisor.workloads.forward import Forward

tokens_torch = pytest.importorskip("advisor.measure.tokens_torch")
transformers = pytest.importorskip("transformers")

MODELS = Path(__file__).parent / "models"
CAUSAL, ENCODER = str(MODELS / "causal"), str(MODELS / "encoder")


def subject_of(source: ModelSource, texts: Texts | None = None, vocabulary: int = 2048) -> Subject:
    """Return what the worker is told of tokens."""
    work, default = Forward((8,), 1), Configuration.of({"attention": "sdpa"})
    facts = replace(LLAMA, vocabulary=vocabulary)
    return Subject(source=source.files, facts=facts, workload=work, configuration=default, texts=texts)


def test_the_users_own_texts_are_run_as_they_are_sent(tmp_path: Path) -> None:
    """The worker's tokens are those that transformers gives for the rows of the file, cut as it cuts; a part of them too."""
    source, tokenizer = find_model(ENCODER), transformers.AutoTokenizer.from_pretrained(ENCODER)
    texts = ["word " * n for n in (40, 3, 9, 3)]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"text": text, "id": n}) + "\n" for n, text in enumerate(texts)))
    found = lengths_from(str(file), source, 24, sent=Sent.PLAIN)
    subject = subject_of(source, found.texts)
    wanted = [tokenizer(text, truncation=True, max_length=24)["input_ids"] for text in texts]

    assert [ids.tolist() for ids in tokens_torch.tokens_of(subject, Forward(found.lengths, 2, "hidden"))] == wanted
    part = Forward((found.lengths[2], found.lengths[1]), 2, "hidden")
    assert [ids.tolist() for ids in tokens_torch.tokens_of(subject, part)] == [wanted[2], wanted[1]]
    assert str(tmp_path) not in tokens_torch.words_of(subject)
    assert "4 of your own texts" in tokens_torch.words_of(subject)


def test_a_file_that_changed_is_not_run(tmp_path: Path) -> None:
    """Where the rows are no longer those that were counted, that is told, whatever they became."""
    source, file = find_model(CAUSAL), tmp_path / "a.txt"
    file.write_text("one\ntwo words\n")
    subject = subject_of(source, lengths_from(str(file), source, 2048).texts)
    workload = Forward(subject.texts.lengths, 2)
    for content in ("one\ntwo wordz\n", "on\n\n", ""):
        file.write_text(content)
        with pytest.raises(BadInput, match="has changed since"):
            tokens_torch.tokens_of(subject, workload)
    file.unlink()
    with pytest.raises(BadInput, match="No such file"):
        tokens_torch.tokens_of(subject, workload)


@pytest.mark.parametrize("path", [CAUSAL, ENCODER])
def test_the_bundled_text_has_the_tokenizers_special_tokens(path: str) -> None:
    """Every sequence begins and ends as the tokenizer makes a text begin and end, has the length asked for, and is its own."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    bare, whole = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    place = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    lengths = (9, 30, 3000, 5, 2, 1)
    tokens = [t.tolist() for t in tokens_torch.tokens_of(subject_of(find_model(path)), Forward(lengths, 2, "hidden"))]

    assert tuple(map(len, tokens)) == lengths
    for ids in tokens[:4]:
        assert ids[:place] == whole[:place]
        assert ids[len(ids) - (len(whole) - place - len(bare)) :] == whole[place + len(bare) :]
    assert tokens[0] != tokens[1][:9]


def test_tokens_are_drawn_anew_for_another_model_or_other_texts(tmp_path: Path) -> None:
    """What is kept in a worker is known by the model, its vocabulary, the texts and the lengths."""
    source, workload, keys = find_model(CAUSAL), Forward((2, 2), 2), set()
    for number, text in enumerate(("one two\none two\n", "two one\ntwo one\n")):
        file = tmp_path / f"{number}.txt"
        file.write_text(text)
        keys.add(tokens_torch.key_of(subject_of(source, lengths_from(str(file), source, 2048).texts), workload))
    others = [subject_of(source), subject_of(source, vocabulary=3000), subject_of(replace(source, path=ENCODER))]
    keys |= {tokens_torch.key_of(subject, workload) for subject in others}

    assert len(keys) == 5
    assert tokens_torch.key_of(subject_of(source), workload) in keys


@pytest.mark.parametrize("case", ["smaller embedding", "a pad token beyond"])
def test_a_tokenizer_larger_than_the_embedding_is_refused_before_a_reference(tmp_path: Path, case: str) -> None:
    """Ids that have no row are told with both numbers, in one line, before anything is run."""
    folder = tmp_path / "model"
    shutil.copytree(MODELS / "causal", folder)
    if case == "smaller embedding":
        config = transformers.GPT2Config(vocab_size=300, n_embd=64, n_layer=2, n_head=4, n_positions=256)
        transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    else:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        tokenizer.add_special_tokens({"pad_token": "[PADDING]"})
        tokenizer.save_pretrained(folder)
    job = Job(find_model(str(folder)), Forward((8, 4), 2), Objective(), Budget(None, 1, blocks=0), probe.machine("cpu"))
    runner = LocalRunner(job.machine)
    with Store.open(f"sqlite:///{tmp_path}/x.db", write=True) as store:
        try:
            with pytest.raises(AdvisorError) as told:
                tune(job, store, runner, lambda event: None)
        finally:
            runner.close()
        assert store.studies() == []
    assert "gives ids up to" in str(told.value)
    assert f"has {300 if case == 'smaller embedding' else 2048} rows" in str(told.value)
    assert "Error" not in str(told.value)


def test_gate_and_timing_use_the_texts_and_say_so(tmp_path: Path) -> None:
    """A tune with a file stores of its texts how many they were and their digest: no path and no word of them."""
    source, file = find_model(CAUSAL), tmp_path / "secret-name.jsonl"
    file.write_text("".join(json.dumps({"text": "zebra crossing " * n}) + "\n" for n in (3, 9, 5, 7)))
    found = lengths_from(str(file), source, 2048)
    job = Job(
        source,
        Forward(found.lengths, 2),
        Objective(),
        Budget(None, 1, blocks=0),
        probe.machine("cpu"),
        texts=found.texts,
    )
    runner = LocalRunner(job.machine)
    with Store.open(probed(f"sqlite:///{tmp_path}/x.db"), write=True) as store:
        try:
            study = tune(job, store, runner, lambda event: None)
        finally:
            runner.close()
        trial = next(t for t in store.trials(study) if t.requested["packing"] == "padded")
    assert trial.outcome is Outcome.OK
    assert isinstance(trial.requested, Configuration)
    assert trial.quality is not None
    assert f"4 of your own texts (digest {found.texts.digest})" in trial.quality.reference
    stored = b"".join(file.read_bytes() for file in tmp_path.glob("x.db*"))
    assert not any(word in stored for word in (b"secret-name", b"zebra", str(tmp_path).encode() + b"/s"))


def test_every_name_that_transformers_has_for_a_vocabulary_is_known(tmp_path: Path) -> None:
    """A folder with one of the files that a class of transformers names has a tokenizer, and one without any has none."""
    wanted: set[str] = set()
    for file in Path(transformers.__file__).parent.glob("models/*/tokenization_*.py"):
        declared = re.findall(r'"(?:vocab_file|tokenizer_file|spm_file|source_spm)": "([\w.-]+)"', file.read_text())
        wanted |= set(declared)
    assert len(wanted) > 10
    assert wanted - set(FILES) == set()
    assert not has_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    assert not has_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    assert has_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "qwen.tiktoken").touch()
    assert has_tokenizer(tmp_path)
