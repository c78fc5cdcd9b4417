"""What runs of every kind of policy came to, as text and JSON."""

import json
from pathlib import Path
from typing import Any

RATE = ("mean", "n", "interval_95")
DECODINGS = ("greedy", "sampled")
EVALUATION_STAGES = ("evaluation_before", "evaluation_after")


def read_results(folder: Path) -> dict[str, Any]:
    """What a run has written so far."""
    path = folder / "results.json"
    return json.loads(path.read_text()) if path.exists() else {}


def policy_row(policy: str, folders: dict[str, Path]) -> dict[str, Any]:
    """Rates before and after RL by decoding, seconds, and queries a second; null where a run is not
    there yet."""
    found = {algorithm: read_results(folder) for algorithm, folder in folders.items()}
    first = next(
        (each for each in found.values() if "evaluation_before" in each.get("stages", {})), None
    )
    numbers: dict[str, Any] = {
        "policy": policy,
        "sft": {},
        "sft_seconds": None,
        "queries_per_second": None,
    }
    if first is not None:
        numbers["sft"] = evaluation_rates(first["stages"]["evaluation_before"])
        numbers["sft_seconds"] = first["seconds"].get("sft")
        speeds = [
            queries_per_second(each, stage)
            for each in found.values()
            for stage in EVALUATION_STAGES
        ]
        numbers["queries_per_second"] = next((speed for speed in speeds if speed), None)
    for algorithm, each in found.items():
        after = each.get("stages", {}).get("evaluation_after")
        numbers[algorithm] = {} if after is None else evaluation_rates(after)
        numbers[f"{algorithm}_seconds"] = None if after is None else each["seconds"].get("rl")
    return numbers


def queries_per_second(found: dict[str, Any], stage: str) -> float | None:
    """Decisions a second of a run's greedy evaluation; None where it took it over from another run,
    or has none."""
    judged, seconds = (
        found.get("stages", {}).get(stage),
        found.get("seconds", {}).get(f"{stage}/greedy"),
    )
    return (
        judged["greedy"]["measures"]["decisions"] * judged["greedy"]["n"] / seconds
        if judged and seconds
        else None
    )


def evaluation_rates(evaluation: dict[str, Any]) -> dict[str, Any]:
    """What an evaluation found, by decoding."""
    return {
        how: {name: evaluation[how][name] for name in RATE}
        for how in DECODINGS
        if how in evaluation
    }


def write_table(folder: Path, rows: list[dict[str, Any]], algorithms: list[str]) -> str:
    """Write table.json and table.txt, a line for each policy and decoding; the text."""
    (folder / "table.json").write_text(json.dumps(rows, indent=1) + "\n")
    heads = [
        "policy",
        "decisions",
        "SFT",
        *(f"after {a}" for a in algorithms),
        "SFT s",
        "RL s",
        "queries/s",
    ]
    lines = [heads]
    for each in rows:
        spent = "/".join(format_whole(each[f"{a}_seconds"]) for a in algorithms)
        times = [format_whole(each["sft_seconds"]), spent, format_whole(each["queries_per_second"])]
        there = [how for how in DECODINGS if how in each["sft"]] or DECODINGS[:1]
        for how in there:
            told_rates = [format_rate(each[name].get(how)) for name in ("sft", *algorithms)]
            lines.append(
                [each["policy"], how, *told_rates, *(times if how == there[0] else [""] * 3)]
            )
    widths = [max(len(line[i]) for line in lines) + 2 for i in range(len(heads))]
    text = (
        "\n".join(
            "".join(f"{cell:<{w}}" for cell, w in zip(line, widths)).rstrip() for line in lines
        )
        + "\n"
    )
    (folder / "table.txt").write_text(text)
    return text


def format_rate(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    low, high = found["interval_95"]
    return f"{100 * found['mean']:.1f} % [{100 * low:.1f}, {100 * high:.1f}] n={found['n']}"


def format_whole(number: float | None) -> str:
    return "-" if number is None else f"{number:.0f}"
