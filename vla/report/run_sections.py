"""What the report of any run is made of: curves over its records, rates with intervals, where the
time went, and what it takes to repeat it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vla.files.secrets import mask_nested, mask_secrets
from vla.report.charts import Curve, line_chart, time_share_chart
from vla.report.page import Markup, command_block, fact_list, folded_section, section
from vla.statistics import SuccessRate

Records = Sequence[Mapping[str, Any]]


def stage_records(records: Records, stage: str) -> Records:
    return [record for record in records if record.get("stage") == stage]


def run_summary(sessions: Records, *more: str) -> str:
    """When and where it ran."""
    last = sessions[-1]
    started = str(last.get("started", ""))[:16].replace("T", " ")
    return ", ".join(str(part) for part in (started, last.get("machine", ""), *more) if part)


def format_duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def cost_tile(seconds: float, peak_memory_bytes: float) -> tuple[str, str]:
    """Time and memory as a tile."""
    return format_duration(seconds), f"peak memory {peak_memory_bytes / 2**30:.1f} GiB"


def nothing_learned_tile(results: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """A tile that says so where no optimizer step of RL moved the policy."""
    told = results.get("rl", {}).get("nothing_learned")
    return {} if told is None else {"RL": ("nothing was learned", told.partition(": ")[2])}


def stop_reason(results: Mapping[str, Any]) -> str:
    """What ended the iterations of RL."""
    return results.get("rl", {}).get("text", "")


def format_points(difference: float) -> str:
    """A difference of rates, in points."""
    return f"{100 * difference:+.1f}"


def metric_curve(name: str, records: Records, key: str) -> Curve:
    there = [r for r in records if r.get(key) is not None]
    return Curve(name, [r["step"] for r in there], [r[key] for r in there])


def metric_chart(
    records: Records, title: str, unit: str, names: Mapping[str, str], x_label: str = "iteration"
) -> str:
    """A chart of those metrics that are there."""
    return line_chart(
        title, unit, x_label, [metric_curve(label, records, key) for key, label in names.items()]
    )


def rate_curve(name: str, records: Records, key: str, sizes: Sequence[int]) -> Curve:
    """Rates over iterations with their intervals; `sizes` are the numbers of starts."""
    return rates_with_intervals(
        name,
        [
            (r["step"], SuccessRate(round(r[key] * n), n, None))
            for r, n in zip(records, sizes, strict=True)
            if r.get(key) is not None
        ],
    )


def rates_with_intervals(name: str, rates: Sequence[tuple[float, SuccessRate]]) -> Curve:
    """Rates at places along x, each with its interval."""
    low, high = ([rate.interval[side] for _, rate in rates] for side in (0, 1))
    return Curve(name, [step for step, _ in rates], [rate.rate for _, rate in rates], low, high)


def success_chart(curves: Sequence[Curve]) -> str:
    """Success over iterations; the axis ends at a round bound above all intervals, so that no curve
    is a flat line."""
    top = max((v for c in curves for v in (c.high or ())), default=1.0)
    bound = next(bound for bound in (0.1, 0.2, 0.5, 1.0) if top <= bound + 1e-9)
    return line_chart("Success", "with 95 % Wilson intervals", "iteration", curves, (0.0, bound))


def time_chart(seconds: Mapping[str, float]) -> str:
    """A bar for each stage, cut into its parts."""
    stages = {name: value for name, value in seconds.items() if "/" not in name and name != "total"}
    parts = {
        stage: {
            path.split("/")[1]: v for path, v in seconds.items() if path.rpartition("/")[0] == stage
        }
        for stage in stages
    }
    return time_share_chart("Time by stage", stages, parts)


def without_items(values: Any) -> Any:
    """Results without what evaluations hold of every item: a page shows the summaries."""
    if isinstance(values, Mapping):
        return {name: without_items(value) for name, value in values.items() if name != "items"}
    return [without_items(value) for value in values] if isinstance(values, list) else values


def reproduction_section(
    folder: Path,
    settings: Mapping[str, Any],
    sessions: Records,
    results: Mapping[str, Any],
    more: Mapping[str, Any],
) -> str:
    """What it takes to repeat the run: command, commit, machine, libraries, every setting; `more`
    facts of its kind."""
    last = sessions[-1]
    commit = f"{last.get('commit')}{', with uncommitted changes' if last.get('uncommitted_changes') else ''}"
    made = {
        "commit": commit,
        "machine": last.get("machine"),
        "libraries": ", ".join(
            f"{name} {version}" for name, version in last.get("libraries", {}).items()
        ),
        "sessions": len(sessions),
        **more,
        "folder": folder,
    }
    every = Markup(command_block(yaml.safe_dump(mask_nested(settings), sort_keys=False, width=110)))
    return section(
        "How it was made",
        command_block(mask_secrets(str(last.get("command", "")))),
        fact_list({k: v for k, v in made.items() if v}),
        folded_section("Every setting", every) if settings else "",
        folded_section(
            "Every result",
            command_block(mask_secrets(json.dumps(without_items(results), indent=1))),
        )
        if results
        else "",
        note="The command repeats the run; the settings below are those it resolved to.",
    )
