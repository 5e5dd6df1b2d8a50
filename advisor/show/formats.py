"""Formats: what a recommendation can be printed as, for a user to paste. A new one is an entry here and its writer.

What a format can't carry is said in it, and what it can't carry at all is refused: see `advisor.show.carried`, which picks among
what was measured and is right, in advice's order. Which library's call does which work is said by the kind of work
(`Kind.served`). Importing this takes no time: it is what `--help` lists.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the database's driver takes time to import
    from advisor.advice.recommendation import Recommendation
    from advisor.nouns.model import ModelSource
    from advisor.workloads import Workload


def _never(_: ModelSource, __: Workload) -> None:
    return None


@dataclass(frozen=True)
class Format:
    """A format that is pasted.

    name: what `--format` calls it; summary: what it is, for `--help`. write(recommendation, device): its text, ending with a line
    feed, of a recommendation that recommends something; raises BadInput where it can carry nothing of it.
    refuse(model, workload): raises BadInput where no configuration of that work can be said in it, which is known before
    anything is measured.
    """

    name: str
    summary: str
    write: Callable[[Recommendation, str], str]
    refuse: Callable[[ModelSource, Workload], None] = _never


def _python(recommendation: Recommendation, device: str) -> str:
    from advisor.show.script import recommended_script

    return recommended_script(recommendation, device)


def _yaml(recommendation: Recommendation, device: str) -> str:
    from advisor.show.carried import carried
    from advisor.show.documents import yaml_document

    return yaml_document(carried("yaml", recommendation, lambda _, __: ""), device)


def _env(recommendation: Recommendation, device: str) -> str:
    from advisor.show.carried import carried
    from advisor.show.documents import environment_lines

    return environment_lines(carried("env", recommendation, lambda _, __: ""), device)


def _pipeline(recommendation: Recommendation, device: str) -> str:
    from advisor.show.carried import carried
    from advisor.show.libraries import hinders_pipeline, pipeline_lines

    _refuse("pipeline")(recommendation.source, recommendation.study.workload)
    return pipeline_lines(carried("pipeline", recommendation, hinders_pipeline), device)


def _sentence_transformers(recommendation: Recommendation, device: str) -> str:
    from advisor.show.carried import carried
    from advisor.show.libraries import encoder_lines, hinders_encoder

    _refuse("sentence-transformers")(recommendation.source, recommendation.study.workload)
    return encoder_lines(carried("sentence-transformers", recommendation, hinders_encoder), device)


def _trainer(recommendation: Recommendation, device: str) -> str:
    from advisor.show.carried import carried
    from advisor.show.trainers import trainer_lines

    _refuse_untrained("trainer")(recommendation.source, recommendation.study.workload)
    return trainer_lines(carried("trainer", recommendation, lambda _, __: ""), device)


def _trl(recommendation: Recommendation, device: str) -> str:
    from advisor.show.carried import carried
    from advisor.show.trainers import hinders_sft, sft_lines

    _refuse_untokenised("trl")(recommendation.source, recommendation.study.workload)
    return sft_lines(carried("trl", recommendation, hinders_sft), device)


def _refuse_untrained(library: str) -> Callable[[ModelSource, Workload], None]:
    def refuse(source: ModelSource, workload: Workload) -> None:
        from advisor.show.trainers import refuse_untrained

        refuse_untrained(library, source, workload)

    return refuse


def _refuse_untokenised(library: str) -> Callable[[ModelSource, Workload], None]:
    def refuse(source: ModelSource, workload: Workload) -> None:
        from advisor.show.trainers import refuse_untokenised

        refuse_untokenised(library, source, workload)

    return refuse


def _refuse(library: str) -> Callable[[ModelSource, Workload], None]:
    def refuse(source: ModelSource, workload: Workload) -> None:
        from advisor.show.libraries import served

        served(library, source, workload)

    return refuse


FORMATS = {
    each.name: each
    for each in (
        Format("python", "a complete script that prints its own speed", _python),
        Format("yaml", "the same facts for a config file, with the proof", _yaml),
        Format("pipeline", "a call of transformers.pipeline, where that does the work", _pipeline, _refuse("pipeline")),
        Format(
            "sentence-transformers",
            "SentenceTransformer and encode(), for embeddings",
            _sentence_transformers,
            _refuse("sentence-transformers"),
        ),
        Format("trainer", "a script with transformers.Trainer, of training", _trainer, _refuse_untrained("trainer")),
        Format("trl", "a script with TRL's SFTTrainer, of training", _trl, _refuse_untokenised("trl")),
        Format("env", "shell lines: variables and pinned packages", _env),
    )
}

#: What `--format` takes where an answer is printed, the one for people first.
NAMES = ("text", "json", *FORMATS)
