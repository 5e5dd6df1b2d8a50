"""What `--help` shows below the flags: what people ask, and three examples a command."""

from __future__ import annotations

from collections.abc import Mapping

#: By command, command lines, each with what it does.
Examples = Mapping[str, tuple[tuple[str, str], ...]]

#: A question in the words of people, and the command that answers it.
ASKED = (
    ("the fastest for my own texts", "advisor tune MODEL --lengths-from prompts.jsonl"),
    ("what is it, without a GPU", "advisor suggest MODEL --lengths-from prompts.jsonl"),
    ("why not 4-bit", "advisor suggest MODEL --lengths-from prompts.jsonl --why-not nf4"),
    ("does it fit in 24 GiB", "advisor suggest MODEL --lengths-from prompts.jsonl --max-memory 24GiB"),
    ("the fastest way to fine-tune", "advisor tune MODEL --workload train --method lora --lengths 2048 --batch 8"),
    ("show me the plot", "advisor report"),
    ("give me the code", "advisor suggest MODEL --lengths-from prompts.jsonl --format python"),
)

#: Three command lines a command, each with what it does.
EXAMPLES: Examples = {
    "probe": (
        ("advisor probe", "what can be chosen here, and what is missing for the rest"),
        ("advisor probe --ceilings", "what the device reaches at best, in products and copies"),
        ("advisor probe --csv", "every choice as a row"),
    ),
    "tune": (
        ("advisor tune MODEL --lengths-from prompts.jsonl", "your own texts, as your library sends them"),
        ("advisor tune MODEL --lengths 2048 --padding 0.3 --batch auto --budget 20m", "the batch too, in 20 minutes"),
        ("advisor tune MODEL --lengths 2048 --quality 4bit --max-memory 24GiB", "4-bit allowed, within 24 GiB"),
    ),
    "suggest": (
        ("advisor suggest MODEL --lengths 2048 --padding 0.3 --batch 8 --format python", "the script to run"),
        ("advisor suggest MODEL --lengths-from prompts.jsonl --why-not nf4", "why 4-bit is not recommended"),
        ("advisor suggest MODEL --lengths 2048 --max-memory 24GiB --on H200", "within 24 GiB, as an H200 measured"),
    ),
    "trials": (
        ("advisor trials MODEL --limit 0", "all that was measured of a model"),
        ("advisor trials --failed", "what failed or was wrong, and how"),
        ("advisor trials --study 3 --csv", "a study's trials as rows"),
    ),
    "show": (
        ("advisor show 3.7", "trial 7 of study 3, as advisor trials lists them"),
        ("advisor show 3 'sdpa · bf16 · sorted'", "the trial of a configuration, by its label"),
        ("advisor show 3.7 --format json", "all of it, for a program"),
    ),
    "report": (
        ("advisor report 3 -o report.html", "study 3 as a page, with its plots and its code"),
        ("advisor report --compare 3 5", "two studies beside each other"),
        ("advisor report", "the newest study"),
    ),
    "map": (
        ("advisor map MODEL", "which choice wins over length and padding, as this device measured"),
        ("advisor map MODEL --on H200", "as an H200 measured"),
        ("advisor map MODEL -o map.html", "into a file of this name"),
    ),
    "reproduce": (
        ("advisor reproduce 3.7", "run trial 7 of study 3 again, and compare"),
        ("advisor reproduce 3.7 --anyway", "although a driver or a version differs by now"),
        ("advisor reproduce 3.7 --model ./moved --format json", "the model is elsewhere now"),
    ),
    "reproduce-seed": (
        ("advisor reproduce-seed", "the advice's three cases on this GPU"),
        ("advisor reproduce-seed --svg figures.svg", "drawn, too"),
        ("advisor reproduce-seed --case 1024:0.5:8 --budget 5m", "another case, in five minutes"),
    ),
    "serve": (
        ("advisor serve", "answer at http://127.0.0.1:8420, and tune on this host's devices"),
        ("ADVISOR_TOKEN=… advisor serve --host 0.0.0.0 --model-root /models", "for a team, with its models"),
        ("advisor serve --only 22:00-07:00 --workers auto", "answer always, tune at night"),
    ),
    "worker": (
        ("ADVISOR_DATABASE_URL=postgresql://… advisor worker", "bring this host's GPUs to the team's daemon"),
        ("advisor worker --workers cpu", "this host's CPU"),
        ("advisor worker --assume-idle", "in a container, where who else uses a GPU can't be seen"),
    ),
    "submit": (
        ("advisor submit MODEL --lengths 2048 --padding 0.3 --batch 8", "have it tuned when a device is idle"),
        ("advisor submit MODEL --lengths 2048 --on H200 --priority 10", "on an H200, before others"),
        ("advisor submit MODEL --lengths 2048 --server http://gpu1:8420", "by the daemon of another host"),
    ),
    "jobs": (
        ("advisor jobs", "what waits, runs, and is done"),
        ("advisor jobs --watch", "tell what changes, until nothing waits or runs"),
        ("advisor jobs 1m8f3 --format json", "all of one job, for a program"),
    ),
    "cancel": (
        ("advisor cancel 1m8f3vaxe615", "what it runs is killed; what it measured stays"),
        ("advisor cancel 1m8f", "by the beginning of its id"),
        ("advisor cancel 1m8f --server http://gpu1:8420", "at another host's daemon"),
    ),
    "export": (
        ("advisor export > studies.jsonl", "all studies"),
        ("advisor export --study 3 --study 4 > two.jsonl", "two of them"),
        ("advisor export | ssh other advisor import -", "into another machine's database"),
    ),
    "import": (
        ("advisor import studies.jsonl", "add what advisor export wrote"),
        ("advisor import - < studies.jsonl", "from stdin"),
        ("ADVISOR_DATABASE_URL=sqlite:///team.db advisor import studies.jsonl", "into another database"),
    ),
    "db": (
        ("advisor db path", "where the SQLite file is"),
        ("advisor db url", "which database is used"),
        ("advisor db upgrade", "bring it to this version, and answer again by its rules"),
    ),
    "completion": (
        ("advisor completion bash > ~/.local/share/bash-completion/completions/advisor", "for bash"),
        ("advisor completion zsh > ~/.zfunc/_advisor", "for zsh, with ~/.zfunc on fpath"),
        ("advisor completion tcsh > ~/.advisor.tcsh", "for tcsh, which sources it"),
    ),
}


def epilog(command: str | None = None, own: Examples | None = None) -> str:
    """Return what stands below the flags of a command; None: of them all. own: a kind of work's examples, by command."""
    if command is None:
        lines = [text for question, line in ASKED for text in (f"  {question}:", f"      {line}")]
        return "\n".join(
            ["what people ask:", *lines, "", "advisor COMMAND --help has the flags of a command, and examples"]
        )
    shown = (own or {}).get(command) or EXAMPLES.get(command, ())
    return "\n".join(["examples:", *(f"  {line}\n      {words}" for line, words in shown)])
