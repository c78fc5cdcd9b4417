"""An evaluation as a page: success with its interval, what changed it, where it fails, and how to
repeat it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from vla.command_names import command_name
from vla.report.charts import Interval, interval_chart
from vla.report.page import Markup, command, facts, page, section, show, table, tiles, videos
from vla.report.run import points


def evaluation_page(
    result: Mapping[str, Any], films: Mapping[str, Mapping[str, Path]], folder: Path
) -> str:
    """The page of one checkpoint's results (`vla.evaluate.summary`), which stand in `folder`;
    `films` are {condition: {caption: file}}.
    """
    starts = result["starts"]
    task = starts["scene"].get("task") or starts["scene"]["id"]
    lead = f"{result['checkpoint']} on {starts['num_starts']} held-out starts of {show(task)}"
    parts = [
        tiles(headline(result)),
        section(
            "Success by condition",
            interval_chart("Success rate", "95 % Wilson interval", rows(result)),
            note="The same starts under every condition: one thing is changed, the rest stays as it was.",
        ),
        section(
            "What a change costs",
            changes_table(result["changes"]),
            note="Paired, start by start: McNemar's exact test, and the bootstrap interval of the difference.",
        ),
        section(
            "How far episodes come",
            reached_table(result["conditions"]),
            note="Share of episodes in which each term of the task was ever fulfilled (above one half).",
        ),
        section("By task", task_table(result["tasks"])),
        *(
            section(f"Videos: {name}", videos(found), note=look_closer(folder))
            for name, found in films.items()
        ),
        how_it_was_made(result),
    ]
    return page("Evaluation", lead, parts)


def look_closer(folder: Path) -> Markup:
    """Where every episode can be seen."""
    return Markup(
        "The first wins and failures. Every episode, and why the failures failed: "
        f"<code>{command_name('vla-view')} {escape(str(folder))}</code>"
    )


def headline(result: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The numbers that matter."""
    nominal = [
        row
        for row in result["conditions"]
        if row["condition"] == result["conditions"][0]["condition"]
    ]
    found = {f"Success, {row['decoding']}": (percent(row["rate"]), counts(row)) for row in nominal}
    first = nominal[0]
    steps = first["mean_control_steps_of_successes"]
    length = (
        ("–", "no success")
        if steps is None
        else (f"{steps:.0f}", "control steps of a success, mean")
    )
    seconds = result["seconds_per_query"]
    asked = (
        f"{1000 * seconds['median']:.0f} ms",
        f"one robot, median of {seconds['num_calls']}; {result['machine']}",
    )
    return {**found, "Length": length, "Time per query": asked}


def percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"


def counts(row: Mapping[str, Any]) -> str:
    """n and interval, as they stand under every rate."""
    low, high = row["wilson_95"]
    return f"{row['successes']} of {row['num_starts']}; 95 % interval {100 * low:.1f} to {100 * high:.1f} %"


def bounds(row: Mapping[str, Any]) -> str:
    low, high = row["wilson_95"]
    return f"{100 * low:.1f} to {100 * high:.1f} %"


def rows(result: Mapping[str, Any]) -> list[Interval]:
    return [
        Interval(
            row["condition"].replace("_", " "),
            row["decoding"],
            row["rate"],
            *row["wilson_95"],
            f"{percent(row['rate'])}  ({row['successes']}/{row['num_starts']})",
        )
        for row in result["conditions"]
    ]


def changes_table(changes: Sequence[Mapping[str, Any]]) -> str:
    return table(
        ("condition", "decoding", "difference", "95 % interval", "gained", "lost", "McNemar p"),
        [
            (
                c["condition"].replace("_", " "),
                c["decoding"],
                signed(c["difference"]),
                span(c["bootstrap_95"]),
                c["gained"],
                c["lost"],
                f"{c['mcnemar_exact_p']:.2g}",
            )
            for c in changes
        ],
    )


def signed(share: float) -> str:
    """A difference of rates in points."""
    return f"{points(share)} points"


def span(interval: Sequence[float]) -> str:
    return f"{100 * interval[0]:+.1f} to {100 * interval[1]:+.1f}"


def reached_table(conditions: Sequence[Mapping[str, Any]]) -> str:
    names = list(conditions[0]["reached"])
    return table(
        ("condition", "decoding", *names, "mean return", "control steps"),
        [
            (
                c["condition"].replace("_", " "),
                c["decoding"],
                *(percent(c["reached"][n]) for n in names),
                f"{c['mean_return']:.3f}",
                f"{c['mean_control_steps']:.1f}",
            )
            for c in conditions
        ],
    )


def task_table(tasks: Sequence[Mapping[str, Any]]) -> str:
    return table(
        ("task", "decoding", "success", "n", "95 % interval"),
        [(t["task"], t["decoding"], percent(t["rate"]), t["num_starts"], bounds(t)) for t in tasks],
    )


def how_it_was_made(result: Mapping[str, Any]) -> str:
    """What it takes to repeat the numbers, and why they can be believed."""
    starts = result["starts"]
    made = {
        "checkpoint": result["checkpoint"],
        "starts": f"seeds {starts['evaluation'][0]} on, {starts['num_starts']} of them; sha256 {starts['sha256'][:16]}",
        "trained on seeds": f"{starts['train'][0]} to {starts['train'][1]}",
        "chosen by seeds": f"{starts['validation'][0]} to {starts['validation'][1]}",
        "commit": result["commit"] or "not a git checkout",
        "machine": result["machine"],
        "time": result["started"],
    }
    return section(
        "How it was made",
        command(result["command"]),
        facts(made),
        note="Starts for training, for choosing and for judging come from ranges of seeds that share none.",
    )


def comparison_page(
    first: Mapping[str, Any], second: Mapping[str, Any], tests: Sequence[Mapping[str, Any]]
) -> str:
    """Two checkpoints on the same starts."""
    named = [
        (name, row)
        for name, result in (("A", first), ("B", second))
        for row in result["conditions"]
    ]
    order = list(dict.fromkeys(row["condition"] for _, row in named))
    shown = [
        Interval(
            row["condition"].replace("_", " "),
            name,
            row["rate"],
            *row["wilson_95"],
            f"{percent(row['rate'])}  {row['decoding']}",
        )
        for name, row in sorted(
            named, key=lambda pair: (order.index(pair[1]["condition"]), pair[1]["decoding"][:1])
        )
    ]
    best = {
        f"B against A, {t['condition']}, {t['decoding']}": (
            points(t["difference"]),
            significance(t),
        )
        for t in tests
    }
    parts = [
        tiles(dict(list(best.items())[:4])),
        section("Success", interval_chart("Success rate", "95 % Wilson interval", shown)),
        section("B against A, start by start", changes_table(tests)),
        section("Which is which", facts({"A": first["checkpoint"], "B": second["checkpoint"]})),
        how_it_was_made(first),
    ]
    return page(
        "Comparison", f"{first['checkpoint']} and {second['checkpoint']} on the same starts", parts
    )


def significance(test: Mapping[str, Any]) -> Markup:
    """What a paired test says, in words."""
    p = test["mcnemar_exact_p"]
    word = "chance explains it" if p >= 0.05 else "chance does not explain it"
    return Markup(
        f"points; 95 % interval {span(test['bootstrap_95'])}; McNemar p = {p:.2g}: {word}"
    )
