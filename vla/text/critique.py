"""Critique and revision (Constitutional AI, Bai 2022): a model criticizes and rewrites its own
answers by given principles."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import yaml

from vla.files.reading import read_yaml
from vla.text.language_model import required_context
from vla.text.open_ended_run import OpenEndedRun
from vla.text.prompts import Completion, continue_prompts
from vla.training.resumable_work import ResumableWork


@dataclass(frozen=True)
class Principle:
    """What a critique looks for, and what a revision is asked to do."""

    critique: str
    revision: str


BUILT_IN_PRINCIPLES = (
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
class Revision:
    """A first answer, its critiques, and the last rewritten answer."""

    first: Completion
    critiques: tuple[str, ...]
    last: Completion


def read_constitution(path: str | None) -> tuple[Principle, ...]:
    """Principles from YAML: {principles: [{critique: ..., revision: ...}, ...]}.

    Raises ValueError naming the file when it holds none or something else.
    """
    if path is None:
        return BUILT_IN_PRINCIPLES
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


def revise(
    mode: OpenEndedRun,
    answers: list[Completion],
    principles: tuple[Principle, ...],
    rounds: int,
    pieces: ResumableWork,
) -> list[Revision]:
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
    _, asking = required_context(mode.generation)
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
        said_critiques = continue_prompts(mode.sampling_policy, chat, prompts, ids, room, pieces)
        ids = [
            [
                *critique.prompt_ids,
                *critique.ids,
                *chat.next_turn(_user(principle.revision), critique.finished),
            ]
            for critique, principle in zip(said_critiques, drawn, strict=True)
        ]
        revisions = continue_prompts(mode.sampling_policy, chat, prompts, ids, room, pieces)
        for own, critique in zip(critiques, said_critiques, strict=True):
            own.append(critique.text)
        # the next round, and training, see the revision as the answer to the bare question
        last = [
            Completion(
                first.prompt, first.prompt_ids, revision.text, revision.ids, revision.finished
            )
            for first, revision in zip(answers, revisions, strict=True)
        ]
    return [Revision(a, tuple(c), b) for a, c, b in zip(answers, critiques, last, strict=True)]


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def complete_revisions(revisions: list[Revision]) -> list[Revision]:
    """Revisions that ended by themselves and hold some text."""
    return [r for r in revisions if r.last.finished and r.last.text.strip()]
