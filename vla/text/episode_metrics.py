"""Metrics of the text episodes of an iteration, and the log of samples."""

from __future__ import annotations

from collections.abc import Sequence

from vla.text.environment import TextEpisode
from vla.training.run import Run


def episode_metrics(episodes: Sequence[TextEpisode]) -> dict[str, float]:
    """Means over episodes: reward parts, completion length, shares not truncated and distinct."""
    count = len(episodes)
    distinct = {(episode.problem.question, episode.transcript) for episode in episodes}
    metrics = {
        "completion_tokens": sum(episode.sample.num_tokens for episode in episodes) / count,
        "finished": sum(episode.sample.finished for episode in episodes) / count,
        "distinct_completions": len(distinct) / count,
    }
    for name in episodes[0].parts:
        values = [episode.parts[name] for episode in episodes]
        scored = [value for value in values if value == value]  # NaN is unscorable
        metrics[f"reward/{name}"] = sum(scored) / len(scored) if scored else float("nan")
    return metrics


def append_samples(run: Run, iteration: int, episodes: Sequence[TextEpisode]) -> None:
    """Append episodes to samples.jsonl of the run folder."""
    rows = [
        {
            "iteration": iteration,
            "question": episode.problem.question,
            "said": episode.transcript,
            "answer": episode.problem.answer,
            "reward": None if episode.reward != episode.reward else episode.reward,
        }
        for episode in episodes
    ]
    run.append_lines("samples.jsonl", rows)
