"""Which texts a file of rows holds, and how they are sent to the model: counted whole, or refused in one true line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from advisor.errors import BadInput
from advisor.models.checkpoint import find_model
from advisor.models.lengths import Lengths, lengths_from
from advisor.nouns.entry import Sent
from advisor.nouns.model import ModelSource

MODELS = Path(__file__).parent / "models"
LONG = "Explain in detail how rivers carve valleys over thousands of years, and why the shape of a valley changes."
CHAT = [
    {"role": "system", "content": "You are helpful."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "2+2?"},
]
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}<|bos|>{{ m['role'] }}\n{{ m['content'] }}<|eos|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|bos|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def causal() -> ModelSource:
    """Find the shipped language model, which has no chat template."""
    return find_model(str(MODELS / "causal"))


@pytest.fixture(scope="module")
def encoder() -> ModelSource:
    """Find the shipped encoder, whose tokenizer adds a token before and one after."""
    return find_model(str(MODELS / "encoder"))


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    """Give the language model a chat template."""
    folder = tmp_path_factory.mktemp("chatty") / "model"
    shutil.copytree(MODELS / "causal", folder)
    declared = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**declared, "chat_template": TEMPLATE}))
    return find_model(str(folder))


def tokenizer_of(source: ModelSource) -> Any:
    """Return transformers' own tokenizer of a model."""
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(source.path)


def written(folder: Path, name: str, *values: Any) -> str:
    """Write values of JSON, a line each; return the file's name."""
    (folder / name).write_text("".join(json.dumps(value) + "\n" for value in values))
    return str(folder / name)


def note_of(found: Lengths) -> str:
    """Return the line that says what was read."""
    return next(note for note in found.notes if note.startswith("read "))


# ------------------------------------------------------------------------------------------------------ which texts of a row

#: A row, the text that is sent for it (texts of their own: a list), and what is said of what was read and not.
ROWS: dict[str, tuple[Any, str | list[str], str]] = {
    "alpaca": ({"instruction": LONG, "input": "Hi.", "output": "…", "id": 7}, f"{LONG}\nHi.\n…",
               "instruction + input + output joined; not read: id"),
    "alpaca without input": ({"instruction": LONG, "input": "", "output": "yes"}, f"{LONG}\nyes", "instruction + input + output"),
    "alpaca with a null": ({"instruction": LONG, "input": None, "output": "yes"}, f"{LONG}\nyes", "instruction + input + output"),
    "alpaca rendered": ({"instruction": "a", "output": "b", "text": LONG}, LONG, "text; not read: instruction, output"),
    "prompt and completion": ({"prompt": LONG, "completion": " yes"}, f"{LONG} yes", "prompt + completion joined"),
    "prompt and response": ({"prompt": LONG, "response": "yes"}, f"{LONG}\nyes", "prompt + response joined"),
    "question and answer": ({"question": LONG, "answer": 42}, f"{LONG}\n42", "question + answer joined"),
    "squad": ({"id": "1", "context": LONG, "question": "Why?", "answers": {"text": ["x"]}}, f"{LONG}\nWhy?",
              "context + question joined; not read: answers, id"),
    "orca": ({"system_prompt": "Be brief.", "question": "Why?", "response": LONG}, f"Be brief.\nWhy?\n{LONG}", "system_prompt"),
    "input and output": ({"input": LONG, "output": "yes"}, f"{LONG}\nyes", "input + output joined"),
    "input": ({"input": LONG, "label": 1}, LONG, "input; not read: label"),
    "capital letters": ({"Instruction": LONG, "Response": "yes"}, f"{LONG}\nyes", "Instruction + Response joined"),
    "an unknown key": ({"utterance": LONG, "label": 3, "tags": ["a"]}, LONG, "utterance; not read: label, tags"),
    "document": ({"title": "Rivers", "document": LONG}, LONG, "document; not read: title"),
    "messages beside prompt": ({"prompt": "Hi", "messages": [CHAT[1], {"role": "assistant", "content": LONG}]},
                               f"Hi\n{LONG}", "messages joined, for the model has no chat template; not read: prompt"),
    "ShareGPT": ({"id": "1", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": LONG}]}, f"Hi\n{LONG}",
                 "conversations joined, for the model has no chat template; not read: id"),
    "ShareGPT with system": ({"system": "Be brief.", "conversations": [{"from": "human", "value": LONG}]}, f"Be brief.\n{LONG}",
                             "system + conversations"),
    "chats of prompt and completion": ({"prompt": CHAT[:2], "completion": CHAT[2:3]}, "You are helpful.\nHi\nHello",
                                       "prompt + completion"),
    "parts": ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": LONG}]}]},
              f"a\n{LONG}", "messages"),
    "a bare chat": (CHAT[1:3], "Hi\nHello", "messages"),
    "an array": ([{"text": LONG}, {"text": "Hi."}, {"text": "Yes."}], [LONG, "Hi.", "Yes."], "read 3 rows: text"),
    "an array of strings": ([LONG, "Hi."], [LONG, "Hi."], "read 2 rows"),
    "chats in an array": ([CHAT[1:3], CHAT[1:2]], ["Hi\nHello", "Hi"], "read 2 rows"),
}  # fmt: skip


@pytest.mark.parametrize("case", ROWS)
def test_the_whole_of_a_row_is_counted_and_said(tmp_path: Path, causal: ModelSource, case: str) -> None:
    """A row gives all the text that is sent for it, and one line says what was read and what was not."""
    row, texts, said = ROWS[case]
    tokenizer = tokenizer_of(causal)
    found = lengths_from(written(tmp_path, "a.jsonl", row), causal, 2048)

    wanted = [texts] if isinstance(texts, str) else texts
    assert list(found.lengths) == [len(tokenizer(text)["input_ids"]) for text in wanted]
    assert said in note_of(found)


def test_null_content_beside_a_tool_call_is_a_chat(tmp_path: Path, causal: ModelSource, chatty: ModelSource) -> None:
    """A turn that calls a tool has no content: what it calls counts, and with a template what the template makes of it."""
    chat = [
        CHAT[1],
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "1", "content": "Sunny"},
    ]
    file, tokenizer = written(tmp_path, "a.jsonl", {"messages": chat}), tokenizer_of(chatty)
    rendered = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]

    assert lengths_from(file, chatty, 2048).lengths == (len(rendered),)
    assert lengths_from(file, causal, 2048).lengths[0] > len(tokenizer("Hi\nSunny")["input_ids"])


@pytest.mark.parametrize(
    "more", [{}, {"tools": [{"type": "function", "function": {"name": "weather", "parameters": {}}}]}]
)
@pytest.mark.parametrize("turns", [1, 2, 3, 4])
def test_a_chat_counts_with_the_models_template(
    tmp_path: Path, chatty: ModelSource, turns: int, more: dict[str, Any]
) -> None:
    """Messages are sent through the template, with the row's tools; an answer is asked for where the last turn is none."""
    chat, tokenizer = CHAT[:turns], tokenizer_of(chatty)
    wanted = tokenizer.apply_chat_template(chat, add_generation_prompt=turns != 3, return_dict=True, **more)[
        "input_ids"
    ]
    found = lengths_from(written(tmp_path, "a.jsonl", {"messages": chat, **more}), chatty, 2048)

    assert found.lengths == (len(wanted),)
    assert "messages with the model's chat template" in note_of(found).replace("tools + ", "").replace(" + tools", "")


def test_shapes_may_change_from_row_to_row(tmp_path: Path, causal: ModelSource) -> None:
    """Every row is read by its own keys, what the file mixes is said, and rows without a text are left out and counted."""
    rows = ({"text": LONG}, {"prompt": LONG, "completion": "x"}, {"text": None, "id": 3}, LONG)
    found = lengths_from(written(tmp_path, "a.jsonl", *rows), causal, 2048)

    assert len(found.lengths) == 3
    assert "read 3 rows: 1 × text; 1 × prompt + completion joined; 1 × a string; not read: id" in note_of(found)
    assert "1 row without a text is left out" in found.notes


#: Rows that are refused, and words of the one line.
REFUSED: dict[str, tuple[Any, str]] = {
    "an image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
        "image",
    ),
    "two unknown texts": ({"alpha": "a b", "beta": "c d"}, "alpha, beta"),
    "two answers": ({"prompt": "a", "chosen": "b", "rejected": "c"}, "chosen and rejected"),
    "tokens": ({"input_ids": [1, 2, 3]}, "input_ids holds token ids"),
    "a number": (5, "neither a string nor an object"),
    "no text": ({"a": 1, "b": [2]}, "a, b"),
    "a number for a text": ({"text": 5}, "text is a number"),
    "messages of strings": ({"messages": ["a", "b"]}, "messages"),
    "a query and a passage for a decoder": ({"query": "a", "passage": "b"}, "query, passage"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_understood_is_refused_by_its_keys(tmp_path: Path, causal: ModelSource, case: str) -> None:
    """A row that can't be counted whole is refused in one line, with its number and the keys it has."""
    row, words = REFUSED[case]
    with pytest.raises(BadInput) as told:
        lengths_from(written(tmp_path, "a.jsonl", "fine", row), causal, 2048)

    assert words in str(told.value)
    assert "line 2" in str(told.value)


def test_a_query_and_its_passages_are_embedded_apart(tmp_path: Path, encoder: ModelSource) -> None:
    """An embedding model gets each on its own; a classifier of pairs gets them together."""
    file, tokenizer = written(tmp_path, "a.jsonl", {"query": "why", "pos": ["a b", LONG]}), tokenizer_of(encoder)
    apart = lengths_from(file, encoder, 512, sent=Sent.APART)
    paired = lengths_from(file, encoder, 512, sent=Sent.PAIRED)

    assert list(apart.lengths) == [len(tokenizer(text)["input_ids"]) for text in ("why", "a b", LONG)]
    assert list(paired.lengths) == [len(tokenizer("why", text)["input_ids"]) for text in ("a b", LONG)]


# ------------------------------------------------------------------------------------------------------------ which files

TABLE = [["id", "instruction", "output"], ["1", LONG, "yes"], ["2", "why\nnot", "no"]]

#: Files of two texts: name, what to add to the name, content.
FILES: dict[str, tuple[str, str, str]] = {
    "upper case": ("A.CSV", ":text", f'text,n\n"{LONG}",1\nyes,2\n'),
    "known columns": ("a.csv", "", f'id,text\n1,"{LONG}"\n2,yes\n'),
    "tabs": ("a.tsv", ":text", f"id\ttext\n1\t{LONG}\n2\tyes\n"),
    "a key": ("a.jsonl", ":b", json.dumps({"a": "x", "b": LONG}) + "\n" + json.dumps({"a": "x", "b": "yes"})),
    "a document": ("a.json", "", json.dumps([{"text": LONG}, {"text": "yes"}], indent=1)),
    "a document of columns": ("a.json", "", json.dumps({"text": [LONG, "yes"], "label": [0, 1]})),
    "a document with rows": ("a.json", "", json.dumps({"version": 1, "data": [{"text": LONG}, {"text": "yes"}]})),
    "long names": ("a.ndjson", "", json.dumps(LONG) + "\n" + json.dumps("yes")),
    "blank rows": ("a.jsonl", "", "\n" + json.dumps(LONG) + "\n  \n" + json.dumps("yes") + "\n\n"),
}


@pytest.mark.parametrize("case", FILES)
def test_files_give_their_texts(tmp_path: Path, causal: ModelSource, case: str) -> None:
    """Every kind of file gives the same two texts."""
    name, column, content = FILES[case]
    (tmp_path / name).write_text(content)
    tokenizer = tokenizer_of(causal)

    found = lengths_from(f"{tmp_path / name}{column}", causal, 2048)

    assert list(found.lengths) == [len(tokenizer(text)["input_ids"]) for text in (LONG, "yes")]


#: Files that are refused: name, content, words of the line.
BAD_FILES = {
    "UTF-16": ("a.txt", "text".encode("utf-16"), "UTF-16"),
    "UTF-16 without a mark": ("a.jsonl", '"text"'.encode("utf-16-le"), "UTF-16"),
    "compressed": ("a.jsonl.gz", b"\x1f\x8b", "compressed"),
    "a table of columns": ("a.parquet", b"PAR1", "a.parquet"),
    "several unknown columns": ("a.csv", b"alpha,beta\n1,2\n", "alpha, beta"),
    "a document over lines": ("a.jsonl", b'[\n {"text": "a"}\n]\n', "this is no JSON"),
    "a broken document": ("a.json", b'{"text": ', "this is no JSON"),
    "columns of other lengths": ("a.json", b'{"text": ["a", "b"], "label": [1]}', "text, label"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_files_that_are_not_read_say_why(tmp_path: Path, causal: ModelSource, case: str) -> None:
    """What is no file of texts is refused in one line that is true."""
    name, content, words = BAD_FILES[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput) as told:
        lengths_from(str(tmp_path / name), causal, 2048)

    assert words in str(told.value)
    assert "\n" not in str(told.value)


# ------------------------------------------------------------------------------------------------- how the library sends them


def test_sentence_transformers_prompts_and_limit(tmp_path: Path) -> None:
    """The default prompt stands before every text, which is lowered and cut as the folder says; both are told."""
    folder = tmp_path / "st"
    shutil.copytree(MODELS / "encoder", folder)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 20, "do_lower_case": True}))
    prompts = {"prompts": {"q": "search query: ", "document": "passage: "}, "default_prompt_name": "q"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    source = find_model(str(folder))
    tokenizer = tokenizer_of(source)
    texts = ["  Two Words ", LONG]
    wanted = [min(20, len(tokenizer(("search query: " + t).strip().lower())["input_ids"])) for t in texts]

    found = lengths_from(written(tmp_path, "a.jsonl", *texts), source, 512, sent=Sent.APART)

    assert list(found.lengths) == wanted
    assert any("20 tokens that sentence-transformers cuts to" in note for note in found.notes)
    assert "search query: " in note_of(found)
    assert lengths_from(str(tmp_path / "a.jsonl"), source, 512, sent=Sent.PLAIN).lengths != found.lengths


def test_the_ends_that_the_tokenizers_settings_ask_for_count(tmp_path: Path) -> None:
    """tokenizer_config.json can ask for a first and a last token that tokenizer.json says nothing of."""
    folder = tmp_path / "model"
    shutil.copytree(MODELS / "causal", folder)
    declared = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**declared, "add_bos_token": True, "add_eos_token": True})
    )
    source = find_model(str(folder))
    wanted = len(tokenizer_of(source)(LONG)["input_ids"])

    assert lengths_from(written(tmp_path, "a.jsonl", LONG), source, 2048).lengths == (wanted,)


def test_ids_beyond_the_vocabulary_are_refused(tmp_path: Path) -> None:
    """A tokenizer with ids that the embedding has no row for is refused with both numbers."""
    folder = tmp_path / "model"
    shutil.copytree(MODELS / "causal", folder)
    declared = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**declared, "vocab_size": 300}))
    with pytest.raises(
        BadInput, match=r"the tokenizer of .* gives ids up to \d+, and the model's embedding has 300 rows"
    ):
        lengths_from(written(tmp_path, "a.jsonl", LONG), find_model(str(folder)), 2048)


def test_a_chat_whose_calls_are_no_list_is_counted(tmp_path: Path, causal: ModelSource) -> None:
    """What is no list of calls is none: it does not end in a traceback."""
    turns = [{"role": "user", "content": LONG, "tool_calls": 5}]
    assert lengths_from(written(tmp_path, "a.jsonl", {"messages": turns}), causal, 2048).lengths[0] > 10
