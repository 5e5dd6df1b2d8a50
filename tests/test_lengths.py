"""The lengths of somebody's own texts: read from files as they come, counted as the model counts, and nothing kept."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from advisor.errors import BadInput
from advisor.models.checkpoint import find_model
from advisor.models.lengths import earlier, entries_of, lengths_from, sampled
from advisor.models.texts import index_of, read, source_of
from advisor.nouns.entry import Chat, Sent
from advisor.nouns.model import ModelSource

MODEL = str(Path(__file__).parent / "models" / "causal")
SECRET = "the quick brown fox jumps over the lazy dog"
TEXTS = ["one", "two words", "and a longer text, with a comma", "ünïcödé ✓"]


@pytest.fixture(scope="module")
def source() -> ModelSource:
    """Find the shipped model."""
    return find_model(MODEL)


@pytest.fixture(scope="module")
def expected() -> list[int]:
    """Count the texts as transformers' own tokenizer of the model does."""
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    return [len(tokenizer(text)["input_ids"]) for text in TEXTS]


def written(folder: Path, name: str, content: str | bytes) -> str:
    """Write a file and return its name."""
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(file)


def rows(*values: Any) -> str:
    """Return values of JSON, a line each."""
    return "".join(json.dumps(value) + "\n" for value in values)


#: Files that hold TEXTS: name, what to add to it, content.
FILES: dict[str, tuple[str, str, str | bytes]] = {
    "lines": ("a.txt", "", "\n".join(TEXTS)),
    "lines of Windows": ("a.txt", "", "\r\n".join(TEXTS).encode("utf-8-sig")),
    "blank lines": ("a.txt", "", "\n\n".join([*TEXTS, ""])),
    "strings": ("a.jsonl", "", rows(*TEXTS)),
    "prompts": ("a.jsonl", "", rows(*({"id": 1, "prompt": text} for text in TEXTS))),
    "every entry": (
        "a.jsonl",
        "",
        rows({"text": TEXTS[0]}, {"prompt": TEXTS[1]}, {"content": TEXTS[2]}, {"input": TEXTS[3]}),
    ),
    "a table": ("a.csv", ":text", "id,text\n" + "".join(f'{n},"{text}"\n' for n, text in enumerate(TEXTS))),
    "an upper-case name": ("a.TXT", "", "\n".join(TEXTS)),
}


@pytest.mark.parametrize("case", FILES)
def test_lengths_are_the_models_own(tmp_path: Path, source: ModelSource, expected: list[int], case: str) -> None:
    """Every kind of file gives the same lengths in its order: those that the model's tokenizer counts, specials included."""
    name, column, content = FILES[case]
    found = lengths_from(written(tmp_path, name, content) + column, source, 2048)

    assert list(found.lengths) == expected
    assert (found.cut, found.empty, found.null, found.rows) == (0, 0, 0, len(TEXTS))
    assert [note.startswith("read 4 rows: ") for note in found.notes] == [True]


def texts_of(file: str) -> list[Any]:
    """Return the texts of a file, chats as they are counted without a template."""
    named = source_of(file)
    index = index_of(named)
    found = [entry for row, _ in read(named, index.places(range(len(index))), Sent.PLAIN) for entry in row.entries]
    return [entry.joined if isinstance(entry, Chat) else entry.text for entry in found]


def test_a_chat_counts_as_its_contents_joined(tmp_path: Path) -> None:
    """Messages, alone or in an object, with contents in parts or not, are one text: their contents, a line each."""
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": [{"type": "text", "text": "b"}]}]
    file = written(tmp_path, "a.jsonl", rows(chat, {"messages": chat}, {"prompt": chat}, {"content": "c", "extra": 1}))

    assert texts_of(file) == ["a\nb", "a\nb", "a\nb", "c"]


def test_a_cell_may_hold_lines_and_be_long(tmp_path: Path) -> None:
    """A quoted cell keeps its line breaks, and one longer than Python's csv allows by itself is read."""
    long = "x" * 200_000
    file = written(tmp_path, "a.csv", f'text,n\n"one\ntwo",1\n{long},2\n')

    assert texts_of(f"{file}:text") == ["one\ntwo", long]


def test_long_texts_are_cut_and_told(tmp_path: Path, source: ModelSource) -> None:
    """What is longer than the model's positions is cut to them; how many that are is a note, and so are empty texts."""
    texts = [SECRET, "a", "", SECRET]
    found = lengths_from(written(tmp_path, "a.jsonl", rows(*texts)), source, 3)

    assert found.lengths[0] == found.lengths[-1] == 3
    assert found.cut == 2
    assert found.notes[1] == f"2 of {len(found.lengths)} texts are longer than the model's 3 positions and were cut"
    assert len(found.lengths) + found.empty == len(texts)
    assert lengths_from(str(tmp_path / "a.jsonl"), source, None).cut == 0


def test_a_small_file_is_read_whole_and_a_larger_one_sampled(tmp_path: Path, source: ModelSource) -> None:
    """A file within the limit gives all its lengths in its order; of a larger one rows of all sizes count, in that order too."""
    draw = random.Random(0)
    texts = ["word " * draw.randint(1, 300) for _ in range(2500)]
    file = written(tmp_path, "a.txt", "\n".join(texts))
    everything = lengths_from(file, source, 2048).lengths
    found = lengths_from(file, source, 2048, 100)

    assert len(everything) == 2500
    assert lengths_from(file, source, 2048, 2500).lengths == everything
    assert lengths_from(file, source, 2048, 9999).lengths == everything
    assert len(found.lengths) == 100
    assert found == lengths_from(file, source, 2048, 100)
    assert sorted(found.lengths) == pytest.approx(sorted(everything)[12::25], abs=5)
    assert "read 100 of 2,500 rows, spread evenly over all sizes and kept in the file's order" in found.notes[0]
    rest = iter(everything)
    assert all(length in rest for length in found.lengths)


@pytest.mark.parametrize("count", [1, 7, 64, 65, 1000])
@pytest.mark.parametrize("sizes", ["equal", "rising", "two", "drawn"])
def test_a_sample_takes_one_of_every_stratum(sizes: str, count: int) -> None:
    """It has as many rows as were asked for, in order, one of each stratum of the ranking by size, wherever sizes are equal."""
    draw = random.Random(1)
    made = {
        "equal": lambda i: 5,
        "rising": lambda i: i,
        "two": lambda i: i % 2,
        "drawn": lambda i: draw.randint(1, 50),
    }[sizes]
    rows = [made(i) for i in range(1000)]
    chosen = list(sampled(rows, count))
    ranking = sorted(range(1000), key=lambda i: (rows[i], i))
    strata = sorted(ranking.index(number) * count // 1000 for number in chosen)

    assert chosen == sorted(chosen)
    assert strata == list(range(count))


def test_what_was_stored_before_samples_is_looked_for(tmp_path: Path, source: ModelSource) -> None:
    """The whole file, where it is not too large, and its first texts are yielded as they were once stored; else nothing."""
    texts = ["word " * n for n in range(1, 301)]
    file = written(tmp_path, "a.txt", "\n".join(texts))
    everything = lengths_from(file, source, 2048).lengths

    assert list(earlier(file, source, 2048, 64, first=True)) == [
        ("the whole file", everything),
        ("the first 64 texts of the file", everything[:64]),
    ]
    assert [words for words, _ in earlier(file, source, 2048, 64, first=False)] == ["the whole file"]
    assert list(earlier(file, source, 2048, 300, first=True)) == []


def test_the_rows_can_be_found_again(tmp_path: Path, source: ModelSource) -> None:
    """The recipe leads to the texts that were counted, and its digest changes with them and with nothing else."""
    table = "id,text\n" + "".join(f'{n},"{"word " * n}\nend {n}"\n' for n in range(1, 200))
    file = written(tmp_path, "a.csv", table)
    found = lengths_from(f"{file}:text", source, 2048, 16)
    entries, digest = entries_of(found.texts, Sent.PLAIN)
    numbers = [int(entry.text.rsplit(" ", 1)[1]) for entry in entries]

    assert [len(entry.text) for entry in entries] == [5 * n + 1 + len(f"end {n}") for n in numbers]
    assert digest == found.texts.digest
    json.dumps(asdict(found.texts))
    written(tmp_path, "a.csv", table + '999,"more"\n')
    assert entries_of(found.texts, Sent.PLAIN)[1] == digest
    written(tmp_path, "a.csv", table.replace(f"end {numbers[3]}", f"eNd {numbers[3]}"))
    assert entries_of(found.texts, Sent.PLAIN)[1] != digest


def test_texts_stay_where_they_are(tmp_path: Path, source: ModelSource) -> None:
    """What is returned holds numbers alone: no text and no part of one."""
    found = lengths_from(written(tmp_path, "a.txt", SECRET), source, 4)

    assert not set(SECRET.split()) & set(repr(found).split())


#: Files that can't be read: name, what to add, content (None: no file), words of the error.
BROKEN: dict[str, tuple[str, str, str | bytes | None, str]] = {
    "not there": ("a.txt", "", None, "No such file or directory"),
    "another kind": ("a.parquet", "", "x", "can't read"),
    "no kind": ("texts", "", "x", "a .txt file has one text a line"),
    "empty lines": ("a.txt", "", "", "has no text"),
    "only blank lines": ("a.txt", "", "\n\n", "has no text"),
    "empty json": ("a.jsonl", "", "", "has no text"),
    "no JSON": ("a.jsonl", "", '"a"\n\n{"text": \n', "line 3: this is no JSON"),
    "deep JSON": ("a.jsonl", "", "[" * 100_000, "line 1: this is no JSON"),
    "a number": ("a.jsonl", "", '"a"\n5\n', "line 2: neither a string nor an object"),
    "an object without text": (
        "a.jsonl",
        "",
        '{"words": 1}\n',
        "no key of it holds a text: words (name one as FILE:COLUMN)",
    ),
    "a null": ("a.jsonl", "", '{"text": null}\n', "has no text"),
    "an empty chat": ("a.jsonl", "", "[]\n", "has no text"),
    "a chat with a picture": (
        "a.jsonl",
        "",
        '[{"content": [{"type": "image_url"}]}]\n',
        "line 1: a message holds a part",
    ),
    "no text": ("a.txt", "", b"good\n\xff\xfe\n", "line 2: this is no UTF-8 text"),
    "no text in JSON": ("a.jsonl", "", b'"good"\n"\xff"\n', "line 2: this is no UTF-8 text"),
    "no text in a table": ("a.csv", ":a", b"a\ngood\n\xff\n", "line 3: this is no UTF-8 text"),
    "no column named": (
        "a.csv",
        "",
        "a,b\n1,2\n",
        "line 2: which of its keys is the text? a, b (name one as FILE:COLUMN)",
    ),
    "another column": ("a.csv", ":c", "a,b\n1,2\n", "has no column 'c' (its columns: a, b)"),
    "an empty table": ("a.csv", ":a", "", "it is empty"),
    "a table of a head": ("a.csv", ":a", "a,b\n", "has no text"),
    "a short row": ("a.csv", ":b", "a,b\n1,2\n3\n", "line 3: there is no column 'b'"),
    "an open quote": ("a.csv", ":b", 'a,b\n1,"2\n', "line 2: unexpected end"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_can_not_be_read_is_told_with_its_line(tmp_path: Path, source: ModelSource, case: str) -> None:
    """A file that is missing, empty, of another kind or damaged is told in one line, with the number of the line."""
    name, column, content, words = BROKEN[case]
    file = str(tmp_path / name) if content is None else written(tmp_path, name, content)
    with pytest.raises(BadInput) as told:
        lengths_from(file + column, source, 2048)

    assert words in str(told.value)
    assert "\n" not in str(told.value)


def test_a_directory_is_no_file(tmp_path: Path, source: ModelSource) -> None:
    """A directory with a file's name is told as what it is."""
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(BadInput, match="Is a directory"):
        lengths_from(str(tmp_path / "a.txt"), source, 2048)


def test_a_model_without_tokenizer_is_told(tmp_path: Path) -> None:
    """A config.json alone has no tokenizer, and one that is damaged can't count: both are told in a line."""
    file = written(tmp_path, "a.txt", "text")
    with pytest.raises(BadInput, match="has no tokenizer"):
        lengths_from(file, find_model(f"{MODEL}/config.json"), 2048)

    folder = tmp_path / "damaged"
    folder.mkdir()
    for part in ("config.json", "model.safetensors"):
        (folder / part).symlink_to(Path(MODEL) / part)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(BadInput, match=r"the tokenizer of .* can't be used"):
        lengths_from(file, find_model(str(folder)), 2048)


def test_a_tokenizer_file_does_not_cut_or_pad(tmp_path: Path, source: ModelSource) -> None:
    """Some tokenizer.json ask for cutting and padding, as those of sentence-transformers do: lengths are the texts' own."""
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path / "cutting"
    folder.mkdir()
    for part in ("config.json", "model.safetensors"):
        (folder / part).symlink_to(Path(MODEL) / part)
    tokenizer = tokenizers.Tokenizer.from_file(f"{MODEL}/tokenizer.json")
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=6)
    tokenizer.save(str(folder / "tokenizer.json"))
    file = written(tmp_path, "a.txt", f"a\n{SECRET}\n")

    assert lengths_from(file, find_model(str(folder)), 2048) == lengths_from(file, source, 2048)


def test_a_vocabulary_alone_is_enough(tmp_path: Path) -> None:
    """Where there is no tokenizer.json, transformers builds the tokenizer of the model's kind, special tokens included."""
    pytest.importorskip("transformers")
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))
    (folder / "model.safetensors").symlink_to(Path(MODEL) / "model.safetensors")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *SECRET.split()]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(words)))
    file = written(tmp_path, "a.txt", f"the fox\n{SECRET}\n{SECRET * 200}\n")
    found = lengths_from(file, find_model(str(folder)), 512)

    assert found.lengths[:2] == (4, 11)
    assert (found.lengths[2], found.cut) == (512, 1)
