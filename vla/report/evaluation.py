"""The pages of an evaluation and of a comparison: success rates, conditions, tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from vla.command_names import command_name
from vla.evaluation.result import EvaluationResult, ResultComparison
from vla.files.reading import JsonMapping
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
from vla.report.run_sections import (
    format_counts,
    format_points,
    format_rate,
    format_rate_interval,
    interval_row,
)

Results = Sequence[EvaluationResult]
REACHED = 0.5
"""Value above which a term of the task counts as fulfilled."""


def evaluation_page(
    results: Results,
    changes: Sequence[ResultComparison],
    circumstances: JsonMapping,
    films: Mapping[str, Mapping[str, Path]],
    folder: Path,
) -> str:
    """The page of one checkpoint's results in `folder`.

    `films` are {condition: {caption: file}}. `circumstances` hold checkpoint, starts, machine,
    commit and command.
    """
    starts = circumstances["starts"]
    task = starts["scene"].get("task") or starts["scene"].get("id") or starts["scene"]["robot"]
    lead = (
        f"{circumstances['checkpoint']} on {starts['num_starts']} held-out starts of "
        f"{to_html(task)}"
    )
    parts = [
        number_tiles(headline_tiles(results, circumstances)),
        section(
            "Success by condition",
            interval_chart("Success rate", "95 % Wilson interval", success_intervals(results)),
            note="The same starts under every condition; each condition changes one thing.",
        ),
        section(
            "Effect of each condition",
            changes_table(changes),
            note=(
                "Paired, start by start: McNemar's exact test, and the bootstrap interval of the "
                "difference."
            ),
        ),
        section(
            "Terms reached",
            reached_table(results),
            note="Fraction of episodes that ever fulfilled each term of the task (above 0.5).",
        ),
        section("By task", task_table(results)),
        *(
            section(f"Videos: {name}", videos(paths), note=viewer_hint(folder))
            for name, paths in films.items()
        ),
        reproduction_section(circumstances),
    ]
    return page("Evaluation", lead, parts)


def viewer_hint(folder: Path) -> Markup:
    """The command that shows every episode."""
    return Markup(
        "The first successes and failures. All episodes, with the reasons of failures: "
        f"<code>{command_name('vla-view')} {escape(str(folder))}</code>"
    )


def headline_tiles(results: Results, circumstances: JsonMapping) -> dict[str, tuple[str, str]]:
    """The tiles at the top: success rates, episode length, time per query."""
    nominal = [result for result in results if result.condition == results[0].condition]
    rates = {f"Success, {r.decoding}": (format_rate(r.mean), format_counts(r)) for r in nominal}
    first = nominal[0]
    steps = first.measure("control_steps")[first.success]
    length = ("–", "no success")
    if len(steps):
        length = (f"{steps.mean():.0f}", "control steps of a success, mean")
    seconds = circumstances["seconds_per_query"]
    latency = (
        f"{1000 * seconds['median']:.0f} ms",
        f"one robot, median of {seconds['num_calls']}; {circumstances['machine']}",
    )
    return {**rates, "Length": length, "Time per query": latency}


def success_intervals(results: Results) -> list[Interval]:
    """Success by condition and decoding."""
    return [
        interval_row(result.condition.replace("_", " "), result.decoding, result)
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
    """A difference of rates in percentage points."""
    return f"{format_points(share)} points"


def format_difference_interval(interval: Sequence[float]) -> str:
    return f"{100 * interval[0]:+.1f} to {100 * interval[1]:+.1f}"


def reached_table(results: Results) -> str:
    """The fraction of episodes that reached each reward term, with return and length."""
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
    """Success by task, unperturbed."""
    nominal = [result for result in results if result.condition == results[0].condition]
    return table(
        ("task", "decoding", "success", "n", "95 % interval"),
        [
            (task, row.decoding, format_rate(row.mean), row.n, format_rate_interval(row))
            for result in nominal
            for task, row in result.by_group().items()
        ],
    )


def reproduction_section(circumstances: JsonMapping) -> str:
    """The command and the facts that reproduce the numbers."""
    starts = circumstances["starts"]
    facts = {
        "checkpoint": circumstances["checkpoint"],
        "starts": (
            f"seeds {starts['evaluation'][0]} on, {starts['num_starts']} of them; sha256 "
            f"{starts['sha256'][:16]}"
        ),
        "training seeds": f"{starts['train'][0]} to {starts['train'][1]}",
        "validation seeds": f"{starts['validation'][0]} to {starts['validation'][1]}",
        "commit": circumstances["commit"] or "not a git checkout",
        "machine": circumstances["machine"],
        "time": circumstances["started"],
    }
    return section(
        "Reproduction",
        command_block(circumstances["command"]),
        fact_list(facts),
        note="Training, validation and evaluation starts come from disjoint ranges of seeds.",
    )


def comparison_page(
    first: Results,
    second: Results,
    tests: Sequence[ResultComparison],
    first_circumstances: JsonMapping,
    second_circumstances: JsonMapping,
) -> str:
    """The page of two checkpoints on the same starts."""
    named = [
        (name, result) for name, results in (("A", first), ("B", second)) for result in results
    ]
    order = list(dict.fromkeys(result.condition for _, result in named))
    intervals = [
        interval_row(
            result.condition.replace("_", " "),
            name,
            result,
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
        section("Checkpoints", fact_list(names)),
        reproduction_section(first_circumstances),
    ]
    return page("Comparison", f"{names['A']} and {names['B']} on the same starts", parts)


def describe_significance(test: ResultComparison) -> Markup:
    """The result of a paired test in words."""
    assert test.p_value is not None
    word = "not significant" if test.p_value >= 0.05 else "significant at 5 %"
    return Markup(
        f"points; 95 % interval {format_difference_interval(test.interval)}; McNemar p = "
        f"{test.p_value:.2g}: {word}"
    )
