"""The parent's side of the gate: the reference that a study is held to, and what need not be looked at twice.

The worker measures (`advisor.measure.figures_torch`), `advisor.quality.judge` says what it means; here is what a trial's request
carries so that the parts that depend on less than the whole configuration are measured once: the reference once a study, the
layout in fp32 once a layout and attention, the independence probe once for these and the weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from advisor.knobs import KNOBS, choices_of, traits_of
from advisor.measure.messages import Figure
from advisor.nouns.configuration import Configuration
from advisor.nouns.trial import Quality, Trial
from advisor.quality.judge import GATE_VERSION

#: Figures of `advisor.nouns.trial.Quality` by the part of the gate that finds them.
LAYOUT_FIGURES = ("layout", "layout_words", "layout_pads")
PROBE_FIGURES = ("neighbours", "pads", "own", "repeat", "probe_void", "probed")


def known_figures(trials: Iterable[Trial], configuration: Configuration) -> dict[str, Figure]:
    """Return the figures that this version found for the same layout, attention and weights: the newest count."""
    found: dict[str, Figure] = {}
    for trial in trials:
        quality = trial.quality
        if trial.phase != "search" or quality is None or quality.gate != GATE_VERSION or trial.ran != trial.requested:
            continue
        # What the layout in fp32 depends on; the independence probe depends on the weights too.
        if quality.layout is not None and _layout_of(trial.requested) == _layout_of(configuration):
            found |= _figures(quality, LAYOUT_FIGURES)
        if quality.probed and trial.requested == configuration:
            found |= _figures(quality, PROBE_FIGURES)
    return found


def _layout_of(configuration: Configuration) -> Configuration:
    """Return a configuration without what is about its numbers alone; what nobody knows may well be about the layout."""
    return Configuration.of({knob: name for knob, name in configuration.items() if not _is_of_numbers(knob)})


def _is_of_numbers(knob: str) -> bool:
    return knob in KNOBS and KNOBS[knob].numbers


def _figures(quality: Quality, names: Iterable[str]) -> dict[str, Figure]:
    return {name: getattr(quality, name) for name in names}


def layout_request(
    configuration: Configuration, plain: Configuration, known: Mapping[str, Figure]
) -> Configuration | None:
    """Return the configuration whose layout is to be looked at before a trial that can't do it with its own weights.

    plain: the default's: a configuration that quantises is looked at with the default's weights. None
    where nothing is missing, or where the default is quantised too: then nobody has floats to look with.
    """
    traits = traits_of(configuration)
    if not traits.quantises or traits_of(plain).quantises:
        return None
    missing = "layout" not in known or (not traits.independent and "probed" not in known)
    same = dict(plain.over(knob for knob in KNOBS if _is_of_numbers(knob)))
    return configuration.replaced(**same) if missing else None


def figures_found(looked: Mapping[str, Figure], configuration: Configuration) -> dict[str, Figure]:
    """Return what of a look at a layout counts for the configuration that it was made for.

    The probe counts only where the configuration's own arithmetic can't be probed: else it is probed itself.
    """
    dependent = [choice.name for choice in choices_of(configuration) if not choice.traits.independent]
    names = (*LAYOUT_FIGURES, *PROBE_FIGURES) if dependent else LAYOUT_FIGURES
    found = {name: looked[name] for name in names if name in looked}
    if "probed" in found:
        found["probed"] = (
            f"{found['probed']}; without {', '.join(dependent)}, which depends on the whole batch by design"
        )
    return found
