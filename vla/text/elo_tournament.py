"""Text models against each other: all answer the same held-out prompts, a judge prefers, Elo says
who is stronger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from vla.config import TextConfig, freeze
from vla.config.compose import read_settings
from vla.data.messages import prompt_key
from vla.data.rows import RowReader
from vla.evaluation.elo import CENTRE, PlayerRating, Preferences, rank_players
from vla.files.writing import write_atomically, write_json
from vla.generation.sampling import Sampling
from vla.report.charts import Interval, interval_chart
from vla.report.page import command_block, fact_list, page, section, table
from vla.rewards.gold_rewards import find_gold_reward
from vla.rewards.judges import BothOrders, GoldJudge, Judge, UrlJudge
from vla.text.comparisons import read_rubric
from vla.text.language_model import load_language_parts
from vla.text.prompts import PromptSets, make_prompt_sets, sample_completions
from vla.training.progress import Progress
from vla.training.run_folder import describe_environment, to_plain

NUM_SHOWN = 12


@dataclass(frozen=True)
class Player:
    """A run on open prompts, or the model that such a run began with (`before`)."""

    name: str
    config: TextConfig
    model: Path | None


def find_players(runs: Sequence[Path]) -> list[Player]:
    """The models that the runs ended with, and those that they began with, each once.

    Raises ValueError for a folder that is no finished run on open prompts.
    """
    found: dict[str, Player] = {}
    for run in runs:
        values = read_settings(run) if (run / "config.yaml").exists() else {}
        if not {"prompts", "gold"} <= values.get("text", {}).keys():
            raise ValueError(
                f"{run} is no run on open prompts: Elo is for text=rlhf and its like, where no answer is right"
            )
        if not (run / "model").is_dir():
            raise ValueError(f"{run} holds no model: finish the run")
        config = freeze({**values, "resume": None})
        assert isinstance(config, TextConfig)
        start = config.language_model
        before = f"before: {getattr(start, 'repository', start.name)}"
        found.setdefault(before, Player(before, config, None))
        found[str(run)] = Player(str(run), config, run / "model")
    return list(found.values())


def held_out_prompts(players: Sequence[Player]) -> PromptSets:
    """The first run's prompts, to judge by its held-out ones; ValueError where another run trained
    on one of them."""
    sets: list[PromptSets] = [
        make_prompt_sets(player.config.text.prompts, RowReader(player.config.text.on_bad_row))
        for player in players
    ]
    for player, own in zip(players, sets, strict=True):
        judged_by = {
            prompt_key(sets[0].messages_for(prompt)): prompt for prompt in sets[0].evaluation
        }
        seen = {
            judged_by[key]
            for key in map(prompt_key, map(own.messages_for, own.train))
            if key in judged_by
        }
        if seen:
            raise ValueError(
                f"{player.name} trained on {min(seen)!r}, which the first run judges by: compare runs of one split"
            )
    return sets[0]


def answer_prompts(player: Player, sets: PromptSets) -> list[str]:
    """One greedy answer to every held-out prompt."""
    generation, settings = player.config.text.generation, player.config.language_model
    if player.model is not None:
        values = {
            "name": "hub",
            "repository": str(player.model),
            "lora": None,
            "gradient_checkpointing": False,
        }
        loaded = freeze(
            {**player.config.model_dump(mode="json"), "language_model": {**values, "engine": "own"}}
        )
        settings = loaded.language_model
    own = make_prompt_sets(player.config.text.prompts, RowReader(player.config.text.on_bad_row))
    parts = load_language_parts(settings, player.config.train, generation.system, own.train)
    speaker = parts.policy(Sampling(**generation.sampling.model_dump()), generation.max_new_tokens)
    said = sample_completions(
        speaker,
        parts.chat,
        sets.evaluation,
        1,
        generation.max_prompt_tokens,
        greedy=True,
        messages_for=sets.messages_for,
    )
    return [completions[0].text for completions in said]


def compare_answers(
    answers: Sequence[Sequence[str]], prompts: Sequence[str], judge: Judge
) -> Preferences:
    """Every pair of players on every prompt; what the judge cannot say is left out."""
    rows = [
        (i, j, score, number)
        for number, prompt in enumerate(prompts)
        for i, j in combinations(range(len(answers)), 2)
        if (score := judge.prefer(prompt, answers[i][number], answers[j][number])) == score
    ]
    if not rows:
        raise ValueError("the judge decided nothing: see that it answers")
    first, second, scores, questions = zip(*rows, strict=True)
    return Preferences(
        np.array(first), np.array(second), np.array(scores, np.float64), np.array(questions)
    )


def make_tournament_judge(url: str | None, model: str, config: TextConfig) -> Judge:
    """The run's gold reward, or a server that speaks OpenAI's protocol, asked in both orders."""
    if url is None:
        return GoldJudge(find_gold_reward(config.text.gold))
    return BothOrders(UrlJudge(url, model, read_rubric(None)))


def run_tournament(runs: Sequence[Path], output: Path, url: str | None, model: str) -> Path:
    """Judge the models of several runs against each other; the folder with elo.json and
    elo.html."""
    players = find_players(runs)
    sets, progress = held_out_prompts(players), Progress()
    prompts = sets.evaluation
    progress.print_line(f"{len(players)} models answer {len(prompts)} held-out prompts")
    answers = [answer_prompts(player, sets) for player in players]
    preferences = compare_answers(
        answers, prompts, make_tournament_judge(url, model, players[0].config)
    )
    found = rank_players([player.name for player in players], preferences)
    for standing in found:
        progress.print_line(f"  {standing}")
    judge = (
        f"gold reward {players[0].config.text.gold}"
        if url is None
        else f"{model} at {url}, both orders"
    )
    said = {player.name: said for player, said in zip(players, answers, strict=True)}
    result = {
        "standings": found,
        "judge": judge,
        "prompts": prompts,
        "answers": said,
        **describe_environment(),
    }
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "elo.json", to_plain(result))
    write_atomically(output / "elo.html", elo_page(found, result))
    return output


def elo_page(found: Sequence[PlayerRating], result: dict[str, Any]) -> str:
    """Who is stronger, and what they said."""
    shown = [
        Interval(
            s.name,
            "chance",
            *(expected_score(r) for r in (s.rating, *s.interval)),
            f"{100 * expected_score(s.rating):.0f} %",
        )
        for s in found
    ]
    rows = [
        (
            s.name,
            f"{s.rating:.0f}",
            f"{s.interval[0]:.0f} to {s.interval[1]:.0f}",
            f"{100 * s.win_rate:.1f} %",
        )
        for s in found
    ]
    said = [
        (prompt, *(result["answers"][s.name][i] for s in found))
        for i, prompt in enumerate(result["prompts"][:NUM_SHOWN])
    ]
    head = ("model", "Elo", "95 % bootstrap interval", "preferred")
    note = "400 points are odds of ten to one; 1000 is the mean. Whole prompts are resampled for the interval."
    made = {
        "judge": result["judge"],
        "prompts": len(result["prompts"]),
        "machine": result["machine"],
    }
    parts = [
        section(
            "Standing",
            interval_chart("Chance to be preferred", "to one of Elo 1000; 95 % interval", shown),
            table(head, rows),
            note=note,
        ),
        section("What they said", table(("prompt", *(s.name for s in found)), said)),
        section("Reproduction", command_block(result["command"]), fact_list(made)),
    ]
    return page("Elo", f"{len(found)} models on {len(result['prompts'])} held-out prompts", parts)


def expected_score(rating: float) -> float:
    """How often one of this rating is preferred to one of the mean."""
    return 1 / (1 + 10 ** ((CENTRE - rating) / 400))
