"""Elo tournament of text models: a judge compares their answers to the same held-out prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from vla.config import TextConfig, freeze
from vla.config.compose import option_values, read_settings
from vla.config.text import Constitution, Control, Rlhf, TextPreference
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
"""Prompts in the report."""

OpenSettings = TextPreference | Rlhf | Control | Constitution
"""The settings of runs on open prompts."""


@dataclass(frozen=True)
class Player:
    """The model that a run on open prompts ended with, or began with (`model` None)."""

    name: str
    config: TextConfig
    text: OpenSettings
    model: Path | None


def find_players(runs: Sequence[Path]) -> list[Player]:
    """The models that the runs ended with, and those that they began with, each once.

    Raises:
        ValueError: a folder is no finished run on open prompts.
    """
    players: dict[str, Player] = {}
    for run in runs:
        values = read_settings(run) if (run / "config.yaml").exists() else {}
        if not {"prompts", "gold"} <= values.get("text", {}).keys():
            raise ValueError(
                f"{run} is no run on open prompts: Elo compares runs of text=rlhf, preference, "
                "control and constitution"
            )
        if not (run / "model").is_dir():
            raise ValueError(f"{run} holds no model: finish the run")
        config = freeze({**values, "resume": None})
        assert isinstance(config, TextConfig)
        text = config.text
        assert isinstance(text, OpenSettings)
        start = config.language_model
        before = f"before: {getattr(start, 'repository', start.name)}"
        players.setdefault(before, Player(before, config, text, None))
        players[str(run)] = Player(str(run), config, text, run / "model")
    return list(players.values())


def held_out_prompts(players: Sequence[Player]) -> PromptSets:
    """The first run's prompts; its held-out prompts are those of the tournament.

    Raises:
        ValueError: another run trained on one of them.
    """
    sets = [load_prompts(player) for player in players]
    for player, own in zip(players, sets, strict=True):
        evaluated = {
            prompt_key(sets[0].messages_for(prompt)): prompt for prompt in sets[0].evaluation
        }
        shared = {
            evaluated[key]
            for key in map(prompt_key, map(own.messages_for, own.train))
            if key in evaluated
        }
        if shared:
            raise ValueError(
                f"{player.name} trained on {min(shared)!r}, a held-out prompt of the first run: "
                "compare runs of one split"
            )
    return sets[0]


def load_prompts(player: Player) -> PromptSets:
    """The prompts of a player's run."""
    return make_prompt_sets(player.text.prompts, RowReader(player.text.on_bad_row))


def answer_prompts(player: Player, sets: PromptSets) -> list[str]:
    """One greedy answer to every held-out prompt."""
    generation = player.text.generation
    settings = player.config.language_model
    if player.model is not None:
        values = {
            **option_values("language_model", "hub"),
            "name": "hub",
            "repository": str(player.model),
            "lora": None,
            "gradient_checkpointing": False,
        }
        loaded = freeze(
            {**player.config.model_dump(mode="json"), "language_model": {**values, "engine": "own"}}
        )
        assert isinstance(loaded, TextConfig)
        settings = loaded.language_model
    prompts = load_prompts(player)
    parts = load_language_parts(settings, player.config.train, generation.system, prompts.train)
    policy = parts.policy(Sampling(**generation.sampling.model_dump()), generation.max_new_tokens)
    answers = sample_completions(
        policy,
        parts.chat,
        sets.evaluation,
        1,
        generation.max_prompt_tokens,
        greedy=True,
        messages_for=sets.messages_for,
    )
    return [completions[0].text for completions in answers]


def compare_answers(
    answers: Sequence[Sequence[str]], prompts: Sequence[str], judge: Judge
) -> Preferences:
    """Preferences of the judge between every pair of players on every prompt, without NaN.

    Raises:
        ValueError: the judge gave no preference at all.
    """
    rows = [
        (i, j, score, number)
        for number, prompt in enumerate(prompts)
        for i, j in combinations(range(len(answers)), 2)
        if (score := judge.prefer(prompt, answers[i][number], answers[j][number])) == score
    ]
    if not rows:
        raise ValueError("the judge decided nothing: check that its server answers")
    return Preferences(
        np.array([first for first, _, _, _ in rows]),
        np.array([second for _, second, _, _ in rows]),
        np.array([score for _, _, score, _ in rows], np.float64),
        np.array([number for _, _, _, number in rows]),
    )


def make_tournament_judge(url: str | None, model: str, gold: str) -> Judge:
    """A gold reward, or a server with OpenAI's protocol that compares pairs in both orders."""
    if url is None:
        return GoldJudge(find_gold_reward(gold))
    return BothOrders(UrlJudge(url, model, read_rubric(None)))


def run_tournament(runs: Sequence[Path], output: Path, url: str | None, model: str) -> Path:
    """Compare the models of several runs; returns the folder with elo.json and elo.html."""
    players = find_players(runs)
    sets = held_out_prompts(players)
    progress = Progress()
    prompts = sets.evaluation
    progress.print_line(f"{len(players)} models answer {len(prompts)} held-out prompts")
    answers = [answer_prompts(player, sets) for player in players]
    preferences = compare_answers(
        answers, prompts, make_tournament_judge(url, model, players[0].text.gold)
    )
    ranking = rank_players([player.name for player in players], preferences)
    for standing in ranking:
        progress.print_line(f"  {standing}")
    judge = (
        f"gold reward {players[0].text.gold}" if url is None else f"{model} at {url}, both orders"
    )
    answers_by_name = {player.name: texts for player, texts in zip(players, answers, strict=True)}
    result = {
        "standings": ranking,
        "judge": judge,
        "prompts": prompts,
        "answers": answers_by_name,
        **describe_environment(),
    }
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "elo.json", to_plain(result))
    write_atomically(output / "elo.html", elo_page(ranking, result))
    return output


def elo_page(ranking: Sequence[PlayerRating], result: Mapping[str, Any]) -> str:
    """The HTML page with the ranking and the answers."""
    intervals = [
        Interval(
            s.name,
            "chance",
            expected_score(s.rating),
            expected_score(s.interval[0]),
            expected_score(s.interval[1]),
            f"{100 * expected_score(s.rating):.0f} %",
        )
        for s in ranking
    ]
    rows = [
        (
            s.name,
            f"{s.rating:.0f}",
            f"{s.interval[0]:.0f} to {s.interval[1]:.0f}",
            f"{100 * s.win_rate:.1f} %",
        )
        for s in ranking
    ]
    answer_rows = [
        (prompt, *(result["answers"][s.name][i] for s in ranking))
        for i, prompt in enumerate(result["prompts"][:NUM_SHOWN])
    ]
    head = ("model", "Elo", "95 % bootstrap interval", "preferred")
    note = (
        "400 points are odds of ten to one; 1000 is the mean. "
        "The bootstrap resamples whole prompts."
    )
    facts = {
        "judge": result["judge"],
        "prompts": len(result["prompts"]),
        "machine": result["machine"],
    }
    parts = [
        section(
            "Ranking",
            interval_chart(
                "Chance to be preferred", "to a model of Elo 1000; 95 % interval", intervals
            ),
            table(head, rows),
            note=note,
        ),
        section("Answers", table(("prompt", *(s.name for s in ranking)), answer_rows)),
        section("Reproduction", command_block(result["command"]), fact_list(facts)),
    ]
    return page("Elo", f"{len(ranking)} models on {len(result['prompts'])} held-out prompts", parts)


def expected_score(rating: float) -> float:
    """Probability that a player of this rating is preferred to one of the mean rating."""
    return 1 / (1 + 10 ** ((CENTRE - rating) / 400))
