"""The report of a robot run: one page, made from the files of the run's folder at any time."""

from __future__ import annotations

from html import escape
from itertools import pairwise
from pathlib import Path

from vla.command_names import command_name
from vla.evaluation.result import stage_result
from vla.evaluation.starts import StartManifest
from vla.files.reading import (
    JsonMapping,
    JsonObject,
    read_optional_json,
    read_yaml,
    validating_file,
)
from vla.files.writing import write_atomically
from vla.report.charts import Curve, Interval, interval_chart, line_chart
from vla.report.page import Markup, fact_list, grid, number_tiles, page, section, table, videos
from vla.report.run_sections import (
    Records,
    cost_tile,
    format_counts,
    format_points,
    format_rate,
    interval_row,
    metric_chart,
    metric_curve,
    nothing_learned_tile,
    rate_curve,
    reproduction_section,
    run_summary,
    stage_records,
    stop_reason,
    success_chart,
    time_chart,
)
from vla.training.metrics import read_metrics
from vla.training.run_folder import RunFolder, read_sessions

CURVES: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("Return", "a trajectory", {"return_mean": "return"}),
    ("Entropy", "nats a draw", {"entropy": "entropy"}),
    (
        "Step size",
        "KL, nats a draw",
        {"approx_kl": "to the acting policy", "kl_reference": "to the reference"},
    ),
    ("Trust region", "KL, nats a decision", {"step_kl": "of a step"}),
    ("Clipped", "share of draws", {"clip_fraction": "clip fraction"}),
    ("Ratios", "after over before", {"ratio_max": "largest", "ratio_min": "smallest"}),
    (
        "Critic",
        "",
        {
            "explained_variance": "explained variance",
            "critic_explained_variance": "of the branching critic",
        },
    ),
    ("Gradient", "norm before clipping", {"grad_norm": "mean", "grad_norm_max": "largest"}),
    ("Log-probabilities of rollout and update", "nats", {"logprob_gap_max": "largest difference"}),
)
"""Curves over RL iterations: title, unit, {metric: name}; missing metrics are left out."""
REACHED = "reached_"
"""Prefix of the metrics with the fraction of trajectories that ever fulfilled a term."""


def write_report(folder: Path) -> Path:
    """Write `report.html` into the folder of a run, finished or not.

    Raises DamagedFile where config.yaml, results.json or metrics.jsonl is damaged.
    """
    path = folder / "report.html"
    with validating_file(
        f"{folder} (config.yaml, results.json, metrics.jsonl)", "restore the file that is damaged"
    ):
        text = report_page(folder)
    write_atomically(path, text)
    return path


def report_page(folder: Path) -> str:
    """The report as one HTML document."""
    results = RunFolder(folder).read_results()
    config = read_yaml(folder / "config.yaml")
    sessions = read_sessions(folder) or [{}]
    stages = results.get("stages", {})
    records = read_metrics(folder)
    parts = [
        number_tiles(headline_tiles(results)),
        section(
            "Before and after",
            interval_chart(
                "Success on held-out starts", "95 % Wilson interval", success_intervals(stages)
            ),
            comparison_table(results),
            note=evaluation_note(stages),
        ),
        section(
            "Reinforcement learning",
            *rl_charts(stage_records(records, "rl"), config),
            note=stop_reason(results),
        ),
        section("Supervised fine-tuning", grid(*sft_charts(stage_records(records, "sft")))),
        section(
            "Question answering",
            answer_table(stages),
            note="One held-out question a scene, the same at every evaluation.",
        ),
        section(
            "Text co-training",
            perplexity_table(stages),
            note="Perplexity of held-out texts; lower is better.",
        ),
        section("Grounding", grid(*grounding_charts(records))),
        section(
            "Videos",
            videos(find_films(folder)),
            note=Markup(
                "The first successes and failures. All episodes with the policy's numbers: "
                f"<code>{command_name('vla-view')} {escape(str(folder))}</code>"
            ),
        ),
        section("Time", time_chart(results.get("seconds", {}))),
        section("Data", fact_list(data_facts(folder, stages))),
        reproduction_section(
            folder, config, sessions, results, {"starts": describe_starts(folder)}
        ),
    ]
    over = "finished" if "evaluation_after" in stages else "not finished"
    return page(report_title(config), run_summary(sessions, over), parts)


def report_title(config: JsonMapping) -> str:
    task = config["sim"].get("task") or config["sim"].get("id") or config["sim"]["simulator"]
    tasks = task if isinstance(task, str) else ", ".join(task)
    return (
        f"{tasks.replace('_', ' ')}: {config['policy']['name']} policy, "
        f"{config['algorithm']['name']}"
    )


def headline_tiles(results: JsonMapping) -> dict[str, tuple[str, str]]:
    """The tiles at the top: success rates, gain by RL, time, model size."""
    tiles = nothing_learned_tile(results)
    stages = results.get("stages", {})
    for when in ("after", "before"):
        greedy = stage_result(stages, when, "greedy")
        if greedy is not None:
            suffix = "" if "left_out" in stages.get("evaluation_after", {}) else f" {when} RL"
            tiles[f"Success{suffix}, greedy"] = (format_rate(greedy.mean), format_counts(greedy))
    test = results.get("comparison", {}).get("greedy")
    if test:
        tiles["Gained by RL"] = (
            format_points(test["difference"]),
            f"points; McNemar exact p = {test['mcnemar_exact_p']:.2g}",
        )
    seconds = results.get("seconds", {}).get("total")
    if seconds:
        tiles["Time"] = cost_tile(seconds, results.get("peak_memory_bytes", 0))
    model = results.get("model", {})
    if model.get("num_parameters"):
        adapter = model.get("num_adapter_parameters")
        trained = f", of which RL trains an adapter of {adapter / 1e6:.2f} M" if adapter else ""
        tiles["Model"] = (
            f"{model['num_parameters'] / 1e6:.1f} M",
            f"parameters{trained}; {model['num_draws']} draws a decision",
        )
    return dict(list(tiles.items())[:5])


def success_intervals(stages: JsonMapping) -> list[Interval]:
    """Success before and after, by decoding."""
    return [
        interval_row(f"{when} RL", decoding, result)
        for when in ("before", "after")
        for decoding in ("greedy", "sampled")
        if (result := stage_result(stages, when, decoding)) is not None
    ]


def evaluation_note(stages: JsonMapping) -> str:
    """The note about the starts of the evaluations."""
    left_out = stages.get("evaluation_after", {}).get("left_out")
    if left_out:
        return f"Evaluated once, on held-out starts: {left_out}."
    return "The same held-out starts before and after RL."


def comparison_table(results: JsonMapping) -> str:
    rows = [(decoding, test["text"]) for decoding, test in results.get("comparison", {}).items()]
    return table(("decoding", "after against before"), rows)


def answer_table(stages: JsonMapping) -> str:
    """The fraction of questions that the model answers correctly, before and after training."""
    evaluations = [
        values
        for name, values in stages.items()
        if name.startswith("answers_") and "text" in values
    ]
    rows = [
        (evaluation["when"], evaluation["text"], evaluation.get("against_before", ""))
        for evaluation in evaluations
    ]
    return table(("", "correct", "change from before SFT"), rows)


def perplexity_table(stages: JsonMapping) -> str:
    """The perplexity of every text source, before and after training."""
    evaluations = [values for name, values in stages.items() if name.startswith("texts_")]
    sources = list(evaluations[0]["perplexity"]) if evaluations else []
    rows = [
        (evaluation["when"], *(evaluation["text"][source] for source in sources))
        for evaluation in evaluations
    ]
    return table(("", *sources), rows)


def rl_charts(records: Records, config: JsonMapping) -> list[str]:
    """Success with its interval, terms reached, and the diagnostics of the updates."""
    if not records:
        return []
    steps = [r["step"] for r in records]
    sizes = [round(r.get("num_episodes", r.get("num_trajectories", 1))) for r in records]
    quick = config["evaluation"]["num_validation_starts"]
    curves = [
        rate_curve("training starts, sampled", records, "success", sizes),
        rate_curve("training starts, greedy", records, "greedy_success", sizes),
        rate_curve(
            "validation starts, greedy", records, "validation_success", [quick] * len(records)
        ),
    ]
    reached = dict.fromkeys(name for r in records for name in r if name.startswith(REACHED))
    terms = [metric_curve(name.removeprefix(REACHED), records, name) for name in reached]
    stages = line_chart("Terms reached", "fraction of trajectories", "iteration", terms, (0.0, 1.0))
    lengths = [
        r["control_steps"] / n if "control_steps" in r else float("nan")
        for r, n in zip(records, sizes)
    ]
    length = line_chart(
        "Length",
        "control steps of a trajectory, mean",
        "iteration",
        [Curve("length", steps, lengths)],
    )
    return [
        grid(
            success_chart(curves),
            stages,
            *(metric_chart(records, title, unit, names) for title, unit, names in CURVES),
            length,
            throughput_chart(records),
        )
    ]


def throughput_chart(records: Records) -> str:
    """Control steps a second of each iteration, with updates and evaluations."""
    rates = [
        (current["step"], current["control_steps"] / (current["seconds"] - previous["seconds"]))
        for previous, current in pairwise(records)
        if current.get("control_steps") and current.get("seconds", 0) > previous.get("seconds", 0)
    ]
    curve = Curve("throughput", [step for step, _ in rates], [rate for _, rate in rates])
    return line_chart(
        "Throughput",
        "control steps a second, updates and evaluations included",
        "iteration",
        [curve],
    )


def sft_charts(records: Records) -> list[str]:
    losses = {"action_loss": "training", "held_out_loss": "held-out demonstrations"}
    return [
        metric_chart(records, "Action loss", "a draw", losses, "step"),
        metric_chart(records, "Gradient", "norm before clipping", {"grad_norm": "norm"}, "step"),
    ]


def grounding_charts(records: Records) -> list[str]:
    """The losses of grounding, by part."""
    parts = dict.fromkeys(r["stage"] for r in records if r["stage"].startswith("grounding"))
    return [
        metric_chart(
            stage_records(records, part),
            part.replace("_", " ").capitalize(),
            "",
            {"loss": "loss"},
            "step",
        )
        for part in parts
    ]


def find_films(folder: Path) -> dict[str, Path]:
    """The videos of a run, {caption: file}: before RL first, successes first."""
    order = {"before": 0, "after": 1, "win": 0, "failure": 1}
    by_order = {}
    for path in (folder / "videos").glob("*.mp4"):
        when, _, rest = path.stem.partition("-")
        verdict, _, seed = rest.partition("-")
        by_order[(order.get(when, 2), order.get(verdict, 2), seed)] = (
            f"{when} RL, {'success' if verdict == 'win' else verdict}, start {seed}",
            path,
        )
    return dict(by_order[key] for key in sorted(by_order))


def data_facts(folder: Path, stages: JsonMapping) -> JsonObject:
    """The facts about the demonstrations."""
    meta = folder / "demonstrations" / "meta"
    info, source = (read_optional_json(meta / name, {}) for name in ("info.json", "source.json"))
    stage = stages.get("demonstrations", {})
    facts = {
        "episodes": info.get("total_episodes", stage.get("num_episodes")),
        "marked as failures": stage.get("num_failures"),
        "frames": info.get("total_frames", stage.get("num_frames")),
        "rate": f"{info['fps']} a second" if "fps" in info else None,
        "cameras": [
            name.removeprefix("observation.images.")
            for name in info.get("features", {})
            if "images" in name
        ],
        "source": source or None,
        "format": f"LeRobotDataset {info['codebase_version']}"
        if "codebase_version" in info
        else None,
        "folder": folder / "demonstrations" if info else None,
        "notes": stage.get("notes"),
    }
    return {name: value for name, value in facts.items() if value}


def describe_starts(folder: Path) -> str | None:
    """The seed ranges of the run's starts, with the manifest's hash."""
    if not (folder / "starts.json").exists():
        return None
    starts = StartManifest.load(folder / "starts.json").to_dict()
    return (
        f"sha256 {starts['sha256'][:16]}; train {starts['train']}, validation "
        f"{starts['validation']}, "
        f"evaluation {starts['evaluation']}"
    )
