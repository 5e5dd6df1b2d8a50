"""Every command of the README and of docs/ is run, on the shipped model and on studies that are tuned here, but for a GPU's."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from made_databases import probed

from advisor.faces.arguments import build_parser
from advisor.faces.cli import run

ROOT = Path(__file__).parent.parent
MODEL = str(Path(__file__).parent / "models" / "causal")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

#: What a page's command is run with beside its own words, so that it takes seconds: the answers are not what is looked at.
_SMALL = {
    "tune": ["--trials", "2", "--blocks", "0", "--device", "cpu", "--quality", "exact"],
    "suggest": ["--device", "cpu", "--quality", "exact"],
    "reproduce": ["--processes", "3"],
}

#: Commands that need a GPU, or rows of one: they are only parsed.
_OF_A_GPU = re.compile(r"--on H200|reproduce-seed|cuda")

#: Commands of the daemon are only parsed: two of them never end, and the others need one of these.
_OF_THE_DAEMON = frozenset({"serve", "worker", "submit", "jobs", "cancel"})


def commands() -> list[str]:
    """Return the command lines of all pages: lines of blocks, and code in sentences that has more than a command's name."""
    found: dict[str, None] = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            lines = (line.removeprefix("$ ") for line in block.replace("\\\n", " ").splitlines())
            found |= dict.fromkeys(line.partition("  #")[0].strip() for line in lines if line.startswith("advisor "))
        sentences = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        found |= dict.fromkeys(each for each in re.findall(r"`(advisor [^`]+)`", sentences) if len(each.split()) > 1)
    return list(found)


def test_there_are_commands_of_every_kind() -> None:
    """The pages are read: the two commands of the README are among what is found, and each names a command that there is."""
    names = {line.split()[1] for line in commands()}
    (known,) = [action.choices for action in build_parser()._actions if isinstance(action.choices, dict)]
    assert names <= set(known) | {"COMMAND"}
    assert {"tune", "suggest", "report", "map", "reproduce", "trials", "db"} <= names
    assert "advisor tune MODEL --lengths-from prompts.jsonl" in commands()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Make a folder with a user's texts and a database with five studies, each tuned for real."""
    folder = tmp_path_factory.mktemp("docs")
    texts = [{"prompt": " ".join(["word"] * (3 + n % 7))} for n in range(16)]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, texts)) + "\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADVISOR_DATABASE_URL", probed(f"sqlite:///{folder}/advisor.db"))
        patch.chdir(folder)
        for longest, trials in ((8, 3), (16, 1), (24, 8), (24, 2)):
            work = ["--lengths", str(longest), "--padding", "0.3", "--batch", "4", "--batches", "2", "--device", "cpu"]
            quality = ["--quality", "dtype" if trials == 2 else "exact"]
            assert run(["tune", MODEL, *work, *quality, "--trials", str(trials), "--blocks", "0"]) == 0
        demo = [
            "--lengths",
            "96",
            "--padding",
            "0.5",
            "--batch",
            "8",
            "--batches",
            "4",
            "--quality",
            "exact",
        ]  # the README's
        assert run(["tune", MODEL, *demo, "--device", "cpu", "--threads", "1", "--trials", "1", "--blocks", "0"]) == 0
        (folder / "studies.jsonl").write_text(exported(), encoding="utf-8")
        yield folder


def exported() -> str:
    """Return what `advisor export` writes."""
    with redirect_stdout(StringIO()) as written:
        assert run(["export"]) == 0
    return written.getvalue()


@pytest.mark.parametrize("line", commands())
def test_a_command_of_a_page_runs(line: str, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It is taken as it stands, and ends as what it is about does; what it prints is for others to look at."""
    words = shlex.split(re.split(r" [|<>] ?| …", line)[0])[1:]
    if words[:1] == ["COMMAND"] or words == ["NAME"]:
        return
    if "--help" in words:
        with pytest.raises(SystemExit) as ended:
            run(words)
        assert ended.value.code == 0
        assert capfd.readouterr().out.startswith("usage: advisor")
        return
    build_parser().parse_args(_with_defaults(words))
    if _OF_A_GPU.search(line) or words[0] in _OF_THE_DAEMON or "--server" in words:
        return
    known = {"MODEL": MODEL, "tests/models/causal": MODEL, "STUDY.NUMBER": "3.0", "1.2": "1.0", "NAME": "json"}
    asked = [known.get(word, word) for word in _with_defaults(words)]
    small = _SMALL.get(asked[0], [])
    if "--exhaustive" in asked:  # it says itself how far it goes
        small = [*small[2:], "--lengths", "8", "--only", "attention=sdpa", "--only", "packing=padded,sorted"]
        small += ["--fix", "compilation=off"]
    status = run([*asked, *small])
    said = capfd.readouterr()

    assert status in (0, 1, 3), said.err
    assert "Traceback" not in said.err
    assert said.out or asked[0] == "completion"


def _with_defaults(words: list[str]) -> list[str]:
    """Return a command that a sentence only names with what it can't do without."""
    needs = {
        "tune": ["MODEL"],
        "suggest": ["MODEL", "--lengths", "24", "--padding", "0.3", "--batch", "4", "--batches", "2"],
        "map": ["MODEL"],
        "show": ["3.7"],
        "reproduce": ["3.0"],  # the default: what is slower may be stopped early
        "export": [],
        "import": ["studies.jsonl"],
        "db": ["path"],
        "completion": ["bash"],
        "submit": ["MODEL"],
        "cancel": ["JOB"],
    }
    return [*words, *needs.get(words[0], [])] if len(words) == 1 else words
