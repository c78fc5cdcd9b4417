"""The table of results of every kind of policy, as text and JSON."""

import json
from pathlib import Path
from typing import Any

Values = dict[str, Any]
"""A mapping of results.json or of a row of the table."""
RATE = ("mean", "n", "interval_95")
DECODINGS = ("greedy", "sampled")
EVALUATION_STAGES = ("evaluation_before", "evaluation_after")


def read_results(folder: Path) -> Values:
    """The results that a run has written so far."""
    path = folder / "results.json"
    values: Values = json.loads(path.read_text()) if path.exists() else {}
    return values


def policy_row(policy: str, folders: dict[str, Path]) -> Values:
    """Rates before and after RL by decoding, seconds, and queries a second; null for a missing
    run."""
    results = {algorithm: read_results(folder) for algorithm, folder in folders.items()}
    first = next(
        (each for each in results.values() if "evaluation_before" in each.get("stages", {})), None
    )
    numbers: Values = {
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
            for each in results.values()
            for stage in EVALUATION_STAGES
        ]
        numbers["queries_per_second"] = next((speed for speed in speeds if speed), None)
    for algorithm, each in results.items():
        after = each.get("stages", {}).get("evaluation_after")
        numbers[algorithm] = {} if after is None else evaluation_rates(after)
        numbers[f"{algorithm}_seconds"] = None if after is None else each["seconds"].get("rl")
    return numbers


def queries_per_second(results: Values, stage: str) -> float | None:
    """Decisions a second of a run's greedy evaluation; None where the run has none of its own."""
    evaluation = results.get("stages", {}).get(stage)
    seconds = results.get("seconds", {}).get(f"{stage}/greedy")
    if not evaluation or not seconds:
        return None
    greedy = evaluation["greedy"]
    return float(greedy["measures"]["decisions"] * greedy["n"] / seconds)


def evaluation_rates(evaluation: Values) -> Values:
    """The rates of an evaluation by decoding."""
    return {
        how: {name: evaluation[how][name] for name in RATE}
        for how in DECODINGS
        if how in evaluation
    }


def write_table(folder: Path, rows: list[Values], algorithms: list[str]) -> str:
    """Write table.json and table.txt, a line for each policy and decoding; returns the text."""
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
        decodings = [how for how in DECODINGS if how in each["sft"]] or list(DECODINGS[:1])
        for how in decodings:
            rates = [format_rate(each[name].get(how)) for name in ("sft", *algorithms)]
            lines.append(
                [each["policy"], how, *rates, *(times if how == decodings[0] else [""] * 3)]
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


def format_rate(rate: Values | None) -> str:
    if rate is None:
        return "-"
    low, high = rate["interval_95"]
    return f"{100 * rate['mean']:.1f} % [{100 * low:.1f}, {100 * high:.1f}] n={rate['n']}"


def format_whole(number: float | None) -> str:
    return "-" if number is None else f"{number:.0f}"
