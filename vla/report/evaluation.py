"""The page of an evaluation: success with its interval, what changed it, where it fails, and how to
repeat it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from vla.command_names import command_name
from vla.evaluation.result import EvaluationResult, ResultComparison
from vla.report.charts import Interval, interval_chart
from vla.report.page import (
    Markup,
    command_block,
    fact_list,
    number_tiles,
    page,
    section,
    table,
    to_html,
    videos,
)
from vla.report.run_sections import format_points

Results = Sequence[EvaluationResult]
REACHED = 0.5
"""A term of the task is fulfilled above this value."""


def evaluation_page(
    results: Results,
    changes: Sequence[ResultComparison],
    circumstances: Mapping[str, Any],
    films: Mapping[str, Mapping[str, Path]],
    folder: Path,
) -> str:
    """The page of one checkpoint's results, which stand in `folder`; `films` are {condition:
    {caption: file}}. `describe_environment` name checkpoint, starts, machine, commit and command."""
    starts = circumstances["starts"]
    task = starts["scene"].get("task") or starts["scene"].get("id") or starts["scene"]["robot"]
    lead = f"{circumstances['checkpoint']} on {starts['num_starts']} held-out starts of {to_html(task)}"
    parts = [
        number_tiles(headline_tiles(results, circumstances)),
        section(
            "Success by condition",
            interval_chart("Success rate", "95 % Wilson interval", success_intervals(results)),
            note="The same starts under every condition: one thing is changed, the rest stays as it was.",
        ),
        section(
            "What a change costs",
            changes_table(changes),
            note="Paired, start by start: McNemar's exact test, and the bootstrap interval of the difference.",
        ),
        section(
            "How far episodes come",
            reached_table(results),
            note="Share of episodes in which each term of the task was ever fulfilled (above one half).",
        ),
        section("By task", task_table(results)),
        *(
            section(f"Videos: {name}", videos(found), note=viewer_hint(folder))
            for name, found in films.items()
        ),
        reproduction_section(circumstances),
    ]
    return page("Evaluation", lead, parts)


def viewer_hint(folder: Path) -> Markup:
    """Where every episode can be seen."""
    return Markup(
        "The first wins and failures. Every episode, and why the failures failed: "
        f"<code>{command_name('vla-view')} {escape(str(folder))}</code>"
    )


def headline_tiles(
    results: Results, circumstances: Mapping[str, Any]
) -> dict[str, tuple[str, str]]:
    """The numbers that matter."""
    nominal = [result for result in results if result.condition == results[0].condition]
    found = {f"Success, {r.decoding}": (format_rate(r.mean), counts(r)) for r in nominal}
    first = nominal[0]
    steps = first.measure("control_steps")[first.success]
    length = ("–", "no success")
    if len(steps):
        length = (f"{steps.mean():.0f}", "control steps of a success, mean")
    seconds = circumstances["seconds_per_query"]
    asked = (
        f"{1000 * seconds['median']:.0f} ms",
        f"one robot, median of {seconds['num_calls']}; {circumstances['machine']}",
    )
    return {**found, "Length": length, "Time per query": asked}


def format_rate(rate: float) -> str:
    return f"{100 * rate:.1f} %"


def counts(result: EvaluationResult) -> str:
    """n and interval, as they stand under every rate."""
    return f"{result.num_successes} of {result.n}; 95 % interval {format_rate_interval(result)}"


def format_rate_interval(result: EvaluationResult) -> str:
    low, high = result.interval
    return f"{100 * low:.1f} to {100 * high:.1f} %"


def success_intervals(results: Results) -> list[Interval]:
    return [
        Interval(
            result.condition.replace("_", " "),
            result.decoding,
            result.mean,
            *result.interval,
            f"{format_rate(result.mean)}  ({result.num_successes}/{result.n})",
        )
        for result in results
    ]


def changes_table(changes: Sequence[ResultComparison]) -> str:
    return table(
        ("condition", "decoding", "difference", "95 % interval", "gained", "lost", "McNemar p"),
        [
            (
                change.condition.replace("_", " "),
                change.decoding,
                format_difference(change.difference),
                format_difference_interval(change.interval),
                change.gained,
                change.lost,
                f"{change.p_value:.2g}",
            )
            for change in changes
        ],
    )


def format_difference(share: float) -> str:
    """A difference of rates in points."""
    return f"{format_points(share)} points"


def format_difference_interval(interval: Sequence[float]) -> str:
    return f"{100 * interval[0]:+.1f} to {100 * interval[1]:+.1f}"


def reached_table(results: Results) -> str:
    """The share of episodes that reached each reward term, with return and length."""
    own = ("return", "decisions", "control_steps")
    names = [name for name in results[0].measures if name not in own and "/" not in name]
    return table(
        ("condition", "decoding", *names, "mean return", "control steps"),
        [
            (
                result.condition.replace("_", " "),
                result.decoding,
                *(format_rate(float((result.measure(n) > REACHED).mean())) for n in names),
                f"{result.mean_measure('return'):.3f}",
                f"{result.mean_measure('control_steps'):.1f}",
            )
            for result in results
        ],
    )


def task_table(results: Results) -> str:
    """The nominal condition by task."""
    nominal = [result for result in results if result.condition == results[0].condition]
    return table(
        ("task", "decoding", "success", "n", "95 % interval"),
        [
            (task, row.decoding, format_rate(row.mean), row.n, format_rate_interval(row))
            for result in nominal
            for task, row in result.by_group().items()
        ],
    )


def reproduction_section(circumstances: Mapping[str, Any]) -> str:
    """The facts that repeat and support the numbers."""
    starts = circumstances["starts"]
    made = {
        "checkpoint": circumstances["checkpoint"],
        "starts": f"seeds {starts['evaluation'][0]} on, {starts['num_starts']} of them; sha256 {starts['sha256'][:16]}",
        "trained on seeds": f"{starts['train'][0]} to {starts['train'][1]}",
        "chosen by seeds": f"{starts['validation'][0]} to {starts['validation'][1]}",
        "commit": circumstances["commit"] or "not a git checkout",
        "machine": circumstances["machine"],
        "time": circumstances["started"],
    }
    return section(
        "How it was made",
        command_block(circumstances["command"]),
        fact_list(made),
        note="Starts for training, for choosing and for evaluation come from ranges of seeds that share none.",
    )


def comparison_page(
    first: Results,
    second: Results,
    tests: Sequence[ResultComparison],
    first_circumstances: Mapping[str, Any],
    second_circumstances: Mapping[str, Any],
) -> str:
    """Two checkpoints on the same starts."""
    named = [
        (name, result) for name, results in (("A", first), ("B", second)) for result in results
    ]
    order = list(dict.fromkeys(result.condition for _, result in named))
    intervals = [
        Interval(
            result.condition.replace("_", " "),
            name,
            result.mean,
            *result.interval,
            f"{format_rate(result.mean)}  {result.decoding}",
        )
        for name, result in sorted(
            named, key=lambda pair: (order.index(pair[1].condition), pair[1].decoding[:1])
        )
    ]
    best = {
        f"B against A, {test.condition}, {test.decoding}": (
            format_points(test.difference),
            describe_significance(test),
        )
        for test in tests[:4]
    }
    names = {"A": first_circumstances["checkpoint"], "B": second_circumstances["checkpoint"]}
    parts = [
        number_tiles(best),
        section("Success", interval_chart("Success rate", "95 % Wilson interval", intervals)),
        section("B against A, start by start", changes_table(tests)),
        section("Which is which", fact_list(names)),
        reproduction_section(first_circumstances),
    ]
    return page("Comparison", f"{names['A']} and {names['B']} on the same starts", parts)


def describe_significance(test: ResultComparison) -> Markup:
    """A paired test in words."""
    assert test.p_value is not None
    word = "chance explains it" if test.p_value >= 0.05 else "chance does not explain it"
    return Markup(
        f"points; 95 % interval {format_difference_interval(test.interval)}; McNemar p = "
        f"{test.p_value:.2g}: {word}"
    )
