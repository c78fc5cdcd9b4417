"""Critique and revision of answers by principles (Constitutional AI, Bai 2022)."""

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
    """A request for a critique and a request for a revision."""

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
    """Principles of a YAML file: {principles: [{critique: ..., revision: ...}, ...]}.

    The built-in principles where `path` is None.

    Raises:
        ValueError: the file cannot be read, has another form, or holds no principles.
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
    open_ended: OpenEndedRun,
    answers: list[Completion],
    principles: tuple[Principle, ...],
    rounds: int,
    pieces: ResumableWork,
) -> list[Revision]:
    """`rounds` critiques and revisions of every answer, each by a principle drawn at random."""
    rng = random.Random(open_ended.run.seed("principles"))
    chat = open_ended.parts.chat
    width = open_ended.generation.max_prompt_tokens
    requests = [
        text for principle in principles for text in (principle.critique, principle.revision)
    ]
    longest = max(len(chat.next_turn(_user(text), finished=False)) for text in requests)
    # a prompt holds question, answer, request, critique and request
    room = width + 2 * (open_ended.generation.max_new_tokens + longest)
    _, setting_names = required_context(open_ended.generation)
    open_ended.parts.check_context(
        room + open_ended.generation.max_new_tokens, f"{setting_names} with critiques and revisions"
    )
    last = list(answers)
    critiques: list[list[str]] = [[] for _ in answers]
    for _ in range(rounds):
        drawn = [rng.choice(principles) for _ in answers]
        prompts = [answer.prompt for answer in last]
        ids = [
            [
                *answer.prompt_ids,
                *answer.ids,
                *chat.next_turn(_user(principle.critique), answer.finished),
            ]
            for answer, principle in zip(last, drawn, strict=True)
        ]
        new_critiques = continue_prompts(
            open_ended.sampling_policy, chat, prompts, ids, room, pieces
        )
        ids = [
            [
                *critique.prompt_ids,
                *critique.ids,
                *chat.next_turn(_user(principle.revision), critique.finished),
            ]
            for critique, principle in zip(new_critiques, drawn, strict=True)
        ]
        revisions = continue_prompts(open_ended.sampling_policy, chat, prompts, ids, room, pieces)
        for texts, critique in zip(critiques, new_critiques, strict=True):
            texts.append(critique.text)
        # the next round, and training, take the revision as the answer to the bare question
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
    """Revisions that are not truncated and not empty."""
    return [r for r in revisions if r.last.finished and r.last.text.strip()]
