"""Sections that all run reports share: metric curves, rates with intervals, time, reproduction."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from vla.evaluation.result import EvaluationResult
from vla.files.reading import JsonMapping
from vla.files.secrets import mask_nested, mask_secrets
from vla.report.charts import Curve, Interval, line_chart, time_share_chart
from vla.report.page import Markup, command_block, fact_list, folded_section, section
from vla.statistics import SuccessRate

Records = Sequence[JsonMapping]


def stage_records(records: Records, stage: str) -> Records:
    return [record for record in records if record.get("stage") == stage]


def run_summary(sessions: Records, *more: str) -> str:
    """Date and machine of the last session, with further facts."""
    last = sessions[-1]
    started = str(last.get("started", ""))[:16].replace("T", " ")
    return ", ".join(str(part) for part in (started, last.get("machine", ""), *more) if part)


def format_duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def cost_tile(seconds: float, peak_memory_bytes: float) -> tuple[str, str]:
    """Time and memory as a tile."""
    return format_duration(seconds), f"peak memory {peak_memory_bytes / 2**30:.1f} GiB"


def nothing_learned_tile(results: JsonMapping) -> dict[str, tuple[str, str]]:
    """A tile for runs in which no optimizer step of RL changed the policy; empty otherwise."""
    reason = results.get("rl", {}).get("nothing_learned")
    return {} if reason is None else {"RL": ("nothing was learned", reason.partition(": ")[2])}


def stop_reason(results: JsonMapping) -> str:
    """The reason for which RL ended."""
    return results.get("rl", {}).get("text", "")


def format_rate(rate: float) -> str:
    """A rate in percent."""
    return f"{100 * rate:.1f} %"


def format_rate_interval(result: EvaluationResult) -> str:
    """The 95 % interval of a rate in percent."""
    low, high = result.interval
    return f"{100 * low:.1f} to {100 * high:.1f} %"


def format_counts(result: EvaluationResult) -> str:
    """Successes, starts and interval of a rate."""
    return f"{result.num_successes} of {result.n}; 95 % interval {format_rate_interval(result)}"


def interval_row(
    name: str, group: str, result: EvaluationResult, text: str | None = None
) -> Interval:
    """The row of an interval chart for a success rate; `text` defaults to rate and counts."""
    low, high = result.interval
    if text is None:
        text = f"{format_rate(result.mean)}  ({result.num_successes}/{result.n})"
    return Interval(name, group, result.mean, low, high, text)


def format_points(difference: float) -> str:
    """A difference of rates in percentage points."""
    return f"{100 * difference:+.1f}"


def metric_curve(name: str, records: Records, key: str) -> Curve:
    logged = [r for r in records if r.get(key) is not None]
    return Curve(name, [r["step"] for r in logged], [r[key] for r in logged])


def metric_chart(
    records: Records, title: str, unit: str, names: Mapping[str, str], x_label: str = "iteration"
) -> str:
    """A chart of the metrics that were logged."""
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
    """A curve of rates at positions along x, with their intervals."""
    low, high = ([rate.interval[side] for _, rate in rates] for side in (0, 1))
    return Curve(name, [step for step, _ in rates], [rate.rate for _, rate in rates], low, high)


def success_chart(curves: Sequence[Curve]) -> str:
    """Success over iterations; the axis ends at a round bound above all intervals."""
    top = max((v for c in curves for v in (c.high or ())), default=1.0)
    bound = next(bound for bound in (0.1, 0.2, 0.5, 1.0) if top <= bound + 1e-9)
    return line_chart("Success", "with 95 % Wilson intervals", "iteration", curves, (0.0, bound))


def time_chart(seconds: Mapping[str, float]) -> str:
    """A bar for each stage, divided into its parts."""
    stages = {name: value for name, value in seconds.items() if "/" not in name and name != "total"}
    parts = {
        stage: {
            path.split("/")[1]: v for path, v in seconds.items() if path.rpartition("/")[0] == stage
        }
        for stage in stages
    }
    return time_share_chart("Time by stage", stages, parts)


def without_items(values: object) -> object:
    """Results without the items of their evaluations, for a readable page."""
    if isinstance(values, Mapping):
        return {name: without_items(value) for name, value in values.items() if name != "items"}
    return [without_items(value) for value in values] if isinstance(values, list) else values


def reproduction_section(
    folder: Path,
    settings: JsonMapping,
    sessions: Records,
    results: JsonMapping,
    more: JsonMapping,
) -> str:
    """The facts that reproduce the run: command, commit, machine, libraries and settings; `more`
    adds facts."""
    last = sessions[-1]
    suffix = ", with uncommitted changes" if last.get("uncommitted_changes") else ""
    commit = f"{last.get('commit')}{suffix}"
    facts = {
        "commit": commit,
        "machine": last.get("machine"),
        "libraries": ", ".join(
            f"{name} {version}" for name, version in last.get("libraries", {}).items()
        ),
        "sessions": len(sessions),
        **more,
        "folder": folder,
    }
    all_settings = Markup(
        command_block(yaml.safe_dump(mask_nested(settings), sort_keys=False, width=110))
    )
    return section(
        "Reproduction",
        command_block(mask_secrets(str(last.get("command", "")))),
        fact_list({k: v for k, v in facts.items() if v}),
        folded_section("All settings", all_settings) if settings else "",
        folded_section(
            "All results",
            command_block(mask_secrets(json.dumps(without_items(results), indent=1))),
        )
        if results
        else "",
        note="The command repeats the run; the settings below are the resolved ones.",
    )
