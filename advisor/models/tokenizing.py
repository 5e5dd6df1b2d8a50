"""How texts and chats are sent to a model: with the tokenizer's special tokens, its chat template, a library's prompts.

One way for whoever counts and whoever runs: the parent counts with it, the worker takes its tokens from it. `tokenizers` is
enough for plain texts where tokenizer.json says all, so that `suggest` needs no transformers there.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from advisor.errors import BadInput
from advisor.nouns.entry import Chat, Entry, Sent, Text, clean

#: The files of which a tokenizer has at least one: what transformers' own classes name (vocab_files_names), tests look.
FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "vocab.bpe",
    "bpe.codes",
    "dict.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "spm.model",
    "spm_char.model",
    "source.spm",
    "prophetnet.tokenizer",
    "vocab-src.json",
    "byte_maps.json",
    "tekken.json",
)

#: Tokenizer classes that need no vocabulary: bytes or characters are their tokens.
_WITHOUT_VOCABULARY = ("ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer")

#: The tokenizer classes that are tokenizer.json and nothing else.
_PLAIN = ("PreTrainedTokenizerFast", "TokenizersBackend")

#: Entries of tokenizer_config.json by which transformers changes what tokenizer.json does.
_CHANGES = ("add_bos_token", "add_eos_token", "add_prefix_space", "auto_map", "fix_mistral_regex")

#: Libraries that some tokenizers need beside transformers.
_NEEDED = ("sentencepiece", "tiktoken", "protobuf", "mistral_common", "blobfile", "rjieba", "sacremoses", "fugashi")

#: Where sentence-transformers keeps the settings of its first module.
_SENTENCE_FILES = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)

#: Where a model's chat template stands, beside tokenizer_config.json.
_TEMPLATES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")

#: A text is first looked at up to this many characters for each token that there is room for: a line of a gigabyte is none.
_CHARACTERS = 256


@dataclass(frozen=True)
class Sentences:
    """What sentence-transformers does before its tokenizer: prompts by name, the default's name, and the limit in tokens."""

    prompts: Mapping[str, str] = field(default_factory=dict)
    default: str = ""
    limit: int | None = None
    lower: bool = False

    def prompt(self, part: str) -> str:
        """Return what stands before a text: encode()'s, or encode_query()'s and encode_document()'s where the row tells."""
        wanted = {"query": ("query",), "document": ("document", "passage", "corpus")}.get(part, ())
        name = next((name for name in wanted if name in self.prompts), self.default)
        return self.prompts.get(name, "")

    def of(self, text: str, part: str) -> str:
        """Return a text as it reaches the tokenizer."""
        text = (self.prompt(part) + text).strip()
        return text.lower() if self.lower else text


class Tokenizing:
    """A model's tokenizer as its library calls it. Raises BadInput where it can't be used."""

    def __init__(self, name: str, path: str, sent: Sent) -> None:
        """Name a model's folder. sent: how texts are sent: APART is how sentence-transformers does."""
        self.name, self.path = name, Path(path)
        self.sentences = sentences_of(self.path) if sent is Sent.APART else None

    @property
    def has_template(self) -> bool:
        """Whether the model has a chat template."""
        return bool(self._settings.get("chat_template")) or any((self.path / name).exists() for name in _TEMPLATES)

    def ids(self, entries: Sequence[Entry], longest: int | None) -> list[list[int]]:
        """Return the tokens of texts and chats, special ones included. longest: more than these are not needed exactly."""
        found: list[list[int]] = []
        for entry in entries:
            if isinstance(entry, Chat):
                found.append(self._chat(entry) if self.has_template else self._text(Text(entry.joined), longest))
            else:
                found.append(self._text(entry, longest))
        return found

    def cut(self, ids: list[int], most: int) -> list[int]:
        """Return tokens cut to so many, those that end every text kept."""
        _, suffix = self.ends
        end = list(suffix) if suffix and tuple(ids[-len(suffix) :]) == suffix and len(suffix) < most else []
        return ids if len(ids) <= most else ids[: most - len(end)] + end

    def plain(self, text: str) -> list[int]:
        """Return the tokens of a text, without those that are put around it."""
        return self._encode(text, None, special=False)

    @cached_property
    def pad(self) -> list[int]:
        """The token that the tokenizer pads with, or none."""
        declared = self._settings.get("pad_token")
        text = declared.get("content") if isinstance(declared, dict) else declared
        return self.plain(text)[:1] if isinstance(text, str) and text else []

    @cached_property
    def ends(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The tokens that are put before and after every text."""
        bare, whole = self._encode("a", None, special=False), self._encode("a", None, special=True)
        for start in range(len(whole) - len(bare) + 1):
            if bare and whole[start : start + len(bare)] == bare:
                return tuple(whole[:start]), tuple(whole[start + len(bare) :])
        return (), ()

    @cached_property
    def transformers(self) -> Any:
        """The model's tokenizer as transformers makes it."""
        if importlib.util.find_spec("transformers") is None:
            raise BadInput(
                f"the tokenizer of {self.name} can't be used without transformers", "pip install transformers"
            )
        from transformers import AutoTokenizer
        from transformers.utils import logging

        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.path, trust_remote_code=False, local_files_only=True)
        except Exception as error:  # noqa: BLE001 - transformers raises whatever it meets
            raise self._unusable(error) from None
        finally:
            logging.set_verbosity(verbosity)
        tokenizer.model_max_length = 10**30  # else it warns of long texts; they are cut and told elsewhere
        return tokenizer

    def _unusable(self, error: Exception) -> BadInput:
        said = str(error).lower()
        lacks = next((name for name in _NEEDED if name in said and importlib.util.find_spec(name) is None), None)
        if "auto_map" in self._settings or "trust_remote_code" in said:
            return BadInput(
                f"the tokenizer of {self.name} can't be used: it needs code that comes with the model, "
                "and that is never run"
            )
        why = f"it needs {lacks}" if lacks else "its files are damaged, or of a kind that transformers does not know"
        return BadInput(
            f"the tokenizer of {self.name} can't be used: {why}",
            f"pip install {lacks}" if lacks else "download it again",
        )

    @property
    def words(self) -> str:
        """In words, what is done to texts beside tokenizing; "" where nothing is."""
        if self.sentences is None:
            return "not as chats: the model's chat template is left out" if self.has_template else ""
        prompt = self.sentences.prompts.get(self.sentences.default, "")
        return f"with sentence-transformers' prompt {clean(prompt)!r} before each" if prompt else ""

    @cached_property
    def _settings(self) -> Mapping[str, Any]:
        return _object(self.path / "tokenizer_config.json")

    def _text(self, entry: Text, longest: int | None) -> list[int]:
        first, second = _whole(entry.text), None if entry.pair is None else _whole(entry.pair)
        if self.sentences is not None:
            first = self.sentences.of(first, entry.part)
        if longest is not None and second is None and len(first) > (most := max(longest * _CHARACTERS, 2**20)):
            ids = self._encode(first[:most], None, special=True)
            if len(ids) > longest:
                return ids
        return self._encode(first, second, special=True)

    def _chat(self, chat: Chat) -> list[int]:
        tokenizer, messages = self.transformers, [dict(message) for message in chat.messages]
        if importlib.util.find_spec("jinja2") is None:
            raise BadInput("chats can't be counted without jinja2", "pip install jinja2")
        from jinja2 import TemplateError

        try:
            return list(
                tokenizer.apply_chat_template(
                    messages,
                    tools=list(chat.tools) or None,
                    add_generation_prompt=messages[-1]["role"] != "assistant",
                    tokenize=True,
                    return_dict=True,
                )["input_ids"]
            )
        except TemplateError as error:
            said = clean(str(error.message or ""), 120)
            raise BadInput(f"the chat template of {self.name} refuses a chat of {_roles(chat)}: {said}") from None
        except (ValueError, TypeError, KeyError, AttributeError):
            raise BadInput(f"the chat template of {self.name} can't take a chat of {_roles(chat)}") from None

    @cached_property
    def _encode(self) -> Callable[..., list[int]]:
        """Return what gives the tokens of a text, or of two that are sent together: (text, pair or None, special=…)."""
        file = self.path / "tokenizer.json"
        alone = importlib.util.find_spec("transformers") is None
        plain = self._settings.get("tokenizer_class") in _PLAIN and not any(name in self._settings for name in _CHANGES)
        if not file.is_file() or not (plain or alone):
            tokenizer = self.transformers
            return lambda text, pair, special: tokenizer(text, pair, add_special_tokens=special)["input_ids"]
        from tokenizers import Tokenizer

        try:
            fast = Tokenizer.from_file(str(file))
        except Exception as error:  # noqa: BLE001 - the library raises Exception itself
            raise self._unusable(error) from None
        fast.no_truncation()  # some files ask for it, down to 128 tokens, and for padding to as many
        fast.no_padding()
        return lambda text, pair, special: fast.encode(text, pair, add_special_tokens=special).ids


def has_tokenizer(path: Path) -> bool:
    """Whether a model's folder holds a tokenizer, whatever transformers calls its files."""
    if any((path / name).is_file() for name in FILES) or any(path.glob("*.tiktoken")) or any(path.glob("tekken*.json")):
        return True
    return _object(path / "tokenizer_config.json").get("tokenizer_class") in _WITHOUT_VOCABULARY


def sentences_of(path: Path) -> Sentences | None:
    """Return how sentence-transformers prepares texts for a folder of its own, None where the folder is none."""
    modules = _read(path / "modules.json")
    if not isinstance(modules, list):
        return None
    first = next((m for m in modules if isinstance(m, dict) and str(m.get("type", "")).endswith("Transformer")), {})
    folder = path / str(first.get("path") or "")
    settings = next((found for name in _SENTENCE_FILES if (found := _object(folder / name))), {})
    declared = _object(path / "config_sentence_transformers.json")
    prompts = declared.get("prompts")
    kept = {k: v for k, v in prompts.items() if isinstance(v, str)} if isinstance(prompts, dict) else {}
    limit = settings.get("max_seq_length") or _object(folder / "tokenizer_config.json").get("model_max_length")
    return Sentences(
        kept,
        str(declared.get("default_prompt_name") or ""),
        int(limit) if isinstance(limit, int) and 0 < limit < 10**9 else None,
        bool(settings.get("do_lower_case")),
    )


def _whole(text: str) -> str:
    """Return the text without half characters, which JSON can spell and tokenizers refuse."""
    return text.encode("utf-8", "replace").decode()


def _roles(chat: Chat) -> str:
    return clean(
        ", ".join(message["role"] for message in chat.messages[:6]) + ("…" if len(chat.messages) > 6 else ""), 80
    )


def _object(file: Path) -> Mapping[str, Any]:
    value = _read(file)
    return value if isinstance(value, dict) else {}


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
