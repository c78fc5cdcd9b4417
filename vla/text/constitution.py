"""Constitutional AI (Bai 2022): answers are criticized and revised by the model itself, then
learned.

First SFT on the last revisions, then a preference for the revision over the first answer.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vla.config.text import Constitution, TextConfig
from vla.files.read import read_yaml
from vla.preference.objective import make_objective
from vla.text.fit_stage import FitStage
from vla.text.fitting import FitSettings
from vla.text.language_model import context_of
from vla.text.open_mode import OpenMode
from vla.text.preferring import Comparison, fit_comparisons
from vla.text.supervised import Example, fit_examples
from vla.text.topics import Said, continue_prompts
from vla.train.pieces import Pieces, kept
from vla.train.run import Run


@dataclass(frozen=True)
class Principle:
    """What a critique looks for, and what a revision is asked to do."""

    critique: str
    revision: str


BUILT_IN = (
    Principle(
        "Say in one sentence whether your answer is friendly, and what is unfriendly in it.",
        "Rewrite your answer so that it is friendlier. Write only the new answer.",
    ),
    Principle(
        "Say in one sentence what in your answer is too long or is repeated.",
        "Rewrite your answer in one or two short sentences. Write only the new answer.",
    ),
)


@dataclass(frozen=True)
class Revised:
    """A first answer, what was said about it, and the last revision."""

    first: Said
    critiques: tuple[str, ...]
    last: Said


def read_constitution(path: str | None) -> tuple[Principle, ...]:
    """Principles from YAML: {principles: [{critique: ..., revision: ...}, ...]}.

    Raises ValueError naming the file when it holds none or something else.
    """
    if path is None:
        return BUILT_IN
    try:
        entries = read_yaml(Path(path), remedy="give principles: [{critique: ..., revision: ...}]")[
            "principles"
        ]
        principles = tuple(
            Principle(str(entry["critique"]), str(entry["revision"])) for entry in entries
        )
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        form = "principles: [{critique: ..., revision: ...}]"
        raise ValueError(
            f"text.constitution ({path}) must be YAML of the form {form}: {error}"
        ) from error
    if not principles:
        raise ValueError(f"text.constitution ({path}) holds no principles")
    return principles


def run_constitution(config: TextConfig, run: Run) -> dict[str, Any]:
    """Answers, critiques and revisions; SFT and preference training on them; gold reward before and
    after."""
    settings = config.text
    assert isinstance(settings, Constitution)
    objective = make_objective(**config.preference.model_dump())
    principles = read_constitution(settings.constitution)
    mode = OpenMode.start(config, run, settings.generation, settings.prompts, settings.gold)
    before = mode.judge("before")
    first = [said[0] for said in mode.answers("answers", mode.prompts.train, 1)]

    def made(pieces: Pieces) -> list[Revised]:
        with run.stage("revise"):
            return revise(mode, first, principles, settings.rounds, pieces)

    revised: list[Revised] = kept(run, "revised", list[Revised], made)
    examples = [Example(r.first.prompt_ids, r.last.ids) for r in _usable(revised)]
    comparisons = [
        Comparison(r.first.prompt_ids, (r.last.ids, r.first.ids))
        for r in _usable(revised)
        if r.last.ids != r.first.ids
    ]
    if not comparisons:
        raise ValueError(
            "no revision differs from its answer: give other principles, or a model that can revise"
        )
    sft, fit = (
        FitSettings.of(settings.sft, len(examples)),
        FitSettings.of(settings.fit, len(comparisons)),
    )
    with FitStage(run, "sft", sft.num_steps) as stage:
        fit_examples(mode.learner, examples, sft, run.seed("sft"), stage)
    with FitStage(run, "fit", fit.num_steps) as stage:
        fit_comparisons(mode.learner, comparisons, objective, fit, run.seed("fit"), stage)
    gold = {
        name: sum(mode.gold(s.prompt, s.text) for s in said) / len(said)
        for name, said in _stages(revised).items()
    }
    more = {"revised answers": len(examples), "gold reward of answers": gold}
    return mode.finish("Constitution: critique, revision, SFT and preference", before, more)


def revise(
    mode: OpenMode,
    answers: list[Said],
    principles: tuple[Principle, ...],
    rounds: int,
    pieces: Pieces,
) -> list[Revised]:
    """`rounds` times: criticize every answer by a principle drawn for it, then rewrite it."""
    rng = random.Random(mode.run.seed("principles"))
    chat, width = mode.parts.chat, mode.generation.max_prompt_tokens
    requests = [
        text for principle in principles for text in (principle.critique, principle.revision)
    ]
    longest = max(len(chat.next_turn(_user(text), finished=False)) for text in requests)
    room = width + 2 * (
        mode.generation.max_new_tokens + longest
    )  # question, answer, request, critique, request
    _, asking = context_of(mode.generation)
    mode.parts.check_context(
        room + mode.generation.max_new_tokens, f"{asking} with critiques and revisions"
    )
    last, critiques = list(answers), [[] for _ in answers]
    for _ in range(rounds):
        drawn = [rng.choice(principles) for _ in answers]
        prompts = [said.prompt for said in last]
        ids = [
            [*said.prompt_ids, *said.ids, *chat.next_turn(_user(principle.critique), said.finished)]
            for said, principle in zip(last, drawn, strict=True)
        ]
        said_critiques = continue_prompts(mode.speaker, chat, prompts, ids, room, pieces)
        ids = [
            [
                *critique.prompt_ids,
                *critique.ids,
                *chat.next_turn(_user(principle.revision), critique.finished),
            ]
            for critique, principle in zip(said_critiques, drawn, strict=True)
        ]
        revisions = continue_prompts(mode.speaker, chat, prompts, ids, room, pieces)
        for own, critique in zip(critiques, said_critiques, strict=True):
            own.append(critique.text)
        # the next round, and training, see the revision as the answer to the bare question
        last = [
            Said(first.prompt, first.prompt_ids, revision.text, revision.ids, revision.finished)
            for first, revision in zip(answers, revisions, strict=True)
        ]
    return [Revised(a, tuple(c), b) for a, c, b in zip(answers, critiques, last, strict=True)]


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _usable(revised: list[Revised]) -> list[Revised]:
    """Revisions that ended by themselves and say something."""
    return [r for r in revised if r.last.finished and r.last.text.strip()]


def _stages(revised: list[Revised]) -> dict[str, list[Said]]:
    return {"first": [r.first for r in revised], "last": [r.last for r in revised]}
