"""The report of a text run: an HTML page with numbers, curves, and answers before and after."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, TypeGuard

from vla.evaluation.result import EvaluationResult, ResultComparison
from vla.files.reading import read_yaml
from vla.files.writing import write_atomically
from vla.report.charts import Interval, interval_chart
from vla.report.page import Markup, fact_list, grid, number_tiles, page, section, table, to_html
from vla.report.run_sections import (
    Records,
    cost_tile,
    format_points,
    metric_chart,
    nothing_learned_tile,
    rate_curve,
    rates_with_intervals,
    reproduction_section,
    run_summary,
    stage_records,
    stop_reason,
    success_chart,
    time_chart,
)
from vla.text.language_model import LanguageParts, save_language_model
from vla.training.metrics import read_metrics
from vla.training.run import Run
from vla.training.run_folder import RunFolder, read_sessions, to_plain

CURVES: tuple[tuple[str, str, Mapping[str, str]], ...] = (
    ("Reward", "of a completion", {"return_mean": "mean reward"}),
    ("Proxy against gold reward", "", {"proxy": "proxy: the reward model", "gold": "gold"}),
    (
        "Distance from the policy before RL",
        "KL, nats a completion",
        {"kl_trajectory": "KL to the reference"},
    ),
    (
        "Diversity",
        "share",
        {
            "distinct_completions": "distinct completions",
            "distinct_pairs": "distinct pairs of words",
        },
    ),
    ("Length", "tokens of a completion", {"completion_tokens": "tokens"}),
    ("Entropy", "nats a token", {"entropy": "entropy"}),
    ("Clipped", "share of tokens", {"clip_fraction": "clip fraction"}),
    ("Curriculum", "families open", {"open_families": "families"}),
    (
        "Log-probabilities of rollout and update",
        "nats",
        {"logprob_gap_max": "largest difference", "logprob_gap_mean": "mean gap"},
    ),
    (
        "Step size",
        "KL, nats a token",
        {"approx_kl": "to the acting policy", "kl_reference": "to the reference"},
    ),
)
"""Charts over RL iterations: title, unit, {metric: name}. Charts without data are left out."""
MIN_INFORMATIVE = {"open_families": 1.0, "approx_kl": 1e-6, "clip_fraction": 0.0}
"""Curves that never rise above these values are left out: a single family, or rounding errors of
on-policy updates."""
NUM_ANSWERS = 12
DATA_SETTINGS = (
    "name",
    "families",
    "path",
    "num_problems",
    "holdout_fraction",
    "num_evaluation",
    "prompts",
    "sources",
    "weights",
    "comparisons",
    "pairs",
    "rewards",
    "gold",
)
"""Settings of a text run that describe its training and evaluation data."""


@dataclass(frozen=True)
class AnswerPair:
    """Answers to one question before and after training, and their correctness where defined."""

    question: str
    note: str
    before: str
    after: str
    before_right: bool | None
    after_right: bool | None


def write_report(
    folder: RunFolder, title: str, results: Mapping[str, Any], pairs: Sequence[AnswerPair]
) -> None:
    """Write report.html without external files. It shows the first `pairs` side by side."""
    sessions = read_sessions(folder.path) or [{}]
    path = folder.path / "config.yaml"
    settings = read_yaml(path) if path.exists() else {}
    data = {
        name: value for name, value in settings.get("text", {}).items() if name in DATA_SETTINGS
    }
    parts = [
        number_tiles(headline_tiles(results)),
        section(
            "Before and after",
            interval_chart(
                "Share of correct answers", "95 % Wilson interval", rate_intervals(results)
            ),
            result_facts(results),
            note="The same held-out prompts before and after.",
        ),
        section(
            "Over training",
            grid(*training_charts(read_metrics(folder.path), results)),
            note=stop_reason(results),
        ),
        section("The same questions, before and after", answers_table(pairs)),
        section("Time", time_chart(results.get("seconds", {}))),
        section("Data", fact_list(data)),
        reproduction_section(folder.path, settings, sessions, to_plain(dict(results)), {}),
    ]
    write_atomically(folder.path / "report.html", page(title, run_summary(sessions), parts))


def finish_run(
    run: Run,
    title: str,
    results: Mapping[str, object],
    pairs: Sequence[AnswerPair],
    parts: LanguageParts,
) -> dict[str, object]:
    """Write results, report and model; returns the results with the costs of all sessions.

    The model is last: it is the largest, and a full disk then leaves results and report.
    """
    run.results |= results
    run.write_results()
    final = {name: value for name, value in run.results.items() if name != "stages"}
    if run.processes.is_main:
        write_report(run.folder, title, final, pairs)
        save_language_model(parts, run.folder.path / "model")
    return final


def headline_tiles(results: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The main numbers: success or gold reward after and before, change, time and memory."""
    tiles = nothing_learned_tile(results)
    for when in ("after", "before"):
        rate = results.get(when)
        gold = results.get(f"gold {when}")
        if is_rate(rate):
            low, high = (100 * bound for bound in rate.interval)
            under = f"{rate.num_successes} of {rate.n}; 95 % interval {low:.1f} to {high:.1f} %"
            tiles[f"Right {when}, {rate.decoding}"] = (f"{100 * rate.mean:.1f} %", under)
        elif isinstance(gold, EvaluationResult):
            low, high = gold.interval
            tiles[f"Gold reward {when}"] = (
                f"{gold.mean:.3f}",
                f"{low:.3f} to {high:.3f}, n = {gold.n}",
            )
    test = results.get("comparison")
    if isinstance(test, ResultComparison):
        tiles["Gained"] = (
            format_points(test.difference),
            f"points; McNemar exact p = {test.p_value:.2g}",
        )
    if isinstance(results.get("seconds"), Mapping):
        tiles["Time"] = cost_tile(results["seconds"]["total"], results.get("peak_memory_bytes", 0))
    return tiles


def rate_intervals(results: Mapping[str, object]) -> list[Interval]:
    """Success rates before and after: of all problems, then of each family."""
    pairs: dict[str, Mapping[str, object]] = {
        "all problems": {when: results.get(when) for when in ("before", "after")}
    }
    pairs |= {name: value for name, value in results.items() if is_rate_pair(value)}
    return [
        Interval(
            name.removeprefix("family "),
            when,
            rate.mean,
            rate.interval[0],
            rate.interval[1],
            f"{100 * rate.mean:.1f} %  ({rate.num_successes}/{rate.n})",
        )
        for name, pair in pairs.items()
        for when, rate in pair.items()
        if is_rate(rate)
    ]


def is_rate(value: object) -> TypeGuard[EvaluationResult]:
    """True for an evaluation result of successes."""
    return isinstance(value, EvaluationResult) and value.metric == "success"


def is_rate_pair(value: object) -> TypeGuard[Mapping[str, object]]:
    """True for success rates before and after."""
    return isinstance(value, Mapping) and any(map(is_rate, value.values()))


def result_facts(results: Mapping[str, object]) -> str:
    """The results as {name: value} in two columns, without those that have a chart."""
    facts = {name: value for name, value in results.items() if name not in ("seconds", "rl")}
    return fact_list(
        {
            name.removesuffix("_bytes").replace("_", " "): format_value(value, name)
            for name, value in facts.items()
        }
    )


def format_value(value: object, name: str = "") -> object:
    """A value for the report: before and after in one line, bytes as GiB."""
    if isinstance(value, Mapping) and set(value) == {"before", "after"}:
        return Markup(f"{to_html(value['before'])} before, {to_html(value['after'])} after")
    if name.endswith("_bytes") and isinstance(value, int | float):
        return f"{value / 2**30:.2f} GiB"
    return value


def training_charts(records: Records, results: Mapping[str, object]) -> list[str]:
    """Charts of the metrics with at least two points, success first, losses last."""
    rl = stage_records(records, "rl")
    # where the reward is success, one chart shows both
    reward_is_success = all(r.get("return_mean") == r.get("success") for r in rl)
    drawn = [success_over_training(rl, results)]
    for title, unit, names in CURVES:
        informative = {key: name for key, name in names.items() if is_informative(rl, key)}
        if informative and not (title == "Reward" and reward_is_success):
            drawn.append(metric_chart(rl, title, unit, informative))
    for stage in dict.fromkeys(str(record.get("stage")) for record in records if "loss" in record):
        rows = stage_records(records, stage)
        if stage != "rl" and len(rows) > 1:
            drawn.append(
                metric_chart(
                    rows, f"Loss: {stage.replace('_', ' ')}", "", {"loss": "training loss"}, "step"
                )
            )
    return [svg for svg in drawn if svg]


def is_informative(records: Records, key: str) -> bool:
    """True for a metric with two points or more, one of them above `MIN_INFORMATIVE`."""
    values = [record[key] for record in records if record.get(key) is not None]
    return len(values) > 1 and max(values) > MIN_INFORMATIVE.get(key, -math.inf)


def success_over_training(rl: Records, results: Mapping[str, object]) -> str:
    """Success over training: sampled on training problems, greedy on the others."""
    records = [r for r in rl if "episodes" in r]
    ends = [results.get("before"), results.get("after")]
    rates = [end for end in ends if is_rate(end)]
    if len(records) < 2 or len(rates) < 2:
        return ""
    validated = [r for r in rl if r.get("validation_success") is not None]
    sizes = [round(r["validation_starts"]) for r in validated]
    return success_chart(
        [
            rate_curve(
                "training problems, sampled",
                records,
                "success",
                [round(r["episodes"]) for r in records],
            ),
            rate_curve("validation, greedy", validated, "validation_success", sizes),
            rates_with_intervals(
                "held-out, greedy, before and after",
                [
                    (step, rate.success_rate)
                    for step, rate in zip((0.0, records[-1]["step"]), rates, strict=True)
                ],
            ),
        ]
    )


def answers_table(pairs: Sequence[AnswerPair]) -> str:
    """A table of answers before and after."""
    rows = [
        (
            Markup(f"{escape(pair.question)}<br><small>{escape(pair.note)}</small>"),
            answer_cell(pair.before, pair.before_right),
            answer_cell(pair.after, pair.after_right),
        )
        for pair in pairs[:NUM_ANSWERS]
    ]
    return table(("question", "before", "after"), rows, "said")


def answer_cell(text: str, right: bool | None) -> Markup:
    """An answer with a mark of its correctness."""
    mark = (
        ""
        if right is None
        else f'<span class="{"yes" if right else "no"}">{"right" if right else "wrong"}</span> '
    )
    return Markup(f"{mark}{escape(text)}")
