"""The report of a robot run: one page made from what stands in its folder, so that it can be made anew at any time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from vla.evaluate.success import SuccessRate
from vla.report.charts import Curve, Interval, interval_chart, line_chart, share_chart
from vla.report.page import Markup, command, facts, folded, grid, page, section, table, tiles, videos
from vla.train.checkpoint import write_atomically
from vla.train.metrics import read_metrics

Records = Sequence[Mapping[str, Any]]
CURVES: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("Return", "a trajectory", {"return_mean": "return"}),
    ("Entropy", "nats a draw", {"entropy": "entropy"}),
    ("Step size", "KL, nats a draw", {"approx_kl": "to the acting policy", "kl_reference": "to the reference"}),
    ("Trust region", "KL, nats a decision", {"step_kl": "of a step"}),
    ("Clipped", "share of draws", {"clip_fraction": "clip fraction"}),
    ("Ratios", "after over before", {"ratio_max": "largest", "ratio_min": "smallest"}),
    (
        "Critic",
        "",
        {"explained_variance": "explained variance", "critic_explained_variance": "of the critic of branches"},
    ),
    ("Gradient", "norm before clipping", {"grad_norm": "mean", "grad_norm_max": "largest"}),
    ("Acting against scoring", "nats", {"logprob_gap_max": "largest gap"}),
)
"""Curves over RL iterations: title, unit, {metric: name}; those whose metrics are not there are left out."""
REACHED = "reached_"
"""What the share of trajectories is logged under that ever fulfilled a term of the task."""


def write_report(folder: Path) -> Path:
    """Write `report.html` into the folder of a run, finished or not."""
    path = folder / "report.html"
    write_atomically(path, report_page(folder))
    return path


def report_page(folder: Path) -> str:
    """The whole page."""
    results, config = read_json(folder / "results.json", {}), yaml.safe_load((folder / "config.yaml").read_text())
    sessions = read_json(folder / "run.json", [{}])
    stages, records = results.get("stages", {}), read_metrics(folder)
    parts = [
        tiles(headline(results)),
        section("Before and after", interval_chart("Success on held-out starts", "95 % Wilson interval", ends(stages)),
                comparisons(results), note="The same starts before and after RL, none of them seen in training."),
        section("Reinforcement learning", *rl_charts(of_stage(records, "rl"), config)),
        section("Supervised fine-tuning", grid(*sft_charts(of_stage(records, "sft")))),
        section("Grounding", grid(*grounding_charts(records))),
        section("What it looks like", videos(films(folder)),
                note=Markup("The first wins and failures. Episodes in step with what the policy thought: "
                            f"<code>python scripts/view_rollouts.py {escape(str(folder))}</code>")),
        section("Where the time went", time_chart(results.get("seconds", {}))),
        section("Data", facts(data_card(folder, stages))),
        how_it_was_made(folder, config, sessions, results),
    ]  # fmt: skip
    return page(title_of(config), lead_of(sessions, results), parts)


def read_json(path: Path, otherwise: Any) -> Any:
    return json.loads(path.read_text()) if path.exists() else otherwise


def of_stage(records: Records, stage: str) -> Records:
    return [record for record in records if record["stage"] == stage]


def title_of(config: Mapping[str, Any]) -> str:
    task = config["sim"].get("task") or config["sim"]["id"]
    tasks = task if isinstance(task, str) else ", ".join(task)
    return f"{tasks.replace('_', ' ')}: {config['policy']['name']} policy, {config['algorithm']['name']}"


def lead_of(sessions: Records, results: Mapping[str, Any]) -> str:
    """When, where, and whether it is over."""
    over = "finished" if "evaluation_after" in results.get("stages", {}) else "not finished"
    last = sessions[-1]
    return ", ".join(str(part) for part in (last.get("started", ""), last.get("machine", ""), over) if part)


def headline(results: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The numbers that matter."""
    found: dict[str, tuple[str, str]] = {}
    for when in ("after", "before"):
        greedy = results.get("stages", {}).get(f"evaluation_{when}", {}).get("greedy")
        if greedy:
            found[f"Success {when} RL, greedy"] = (f"{100 * greedy['rate']:.1f} %", counts(greedy))
    test = results.get("comparison", {}).get("greedy")
    if test:
        p = f"McNemar exact p = {test['mcnemar_exact_p']:.2g}"
        found["Gained by RL"] = (f"{100 * test['difference']:+.1f} points", p)
    seconds = results.get("seconds", {}).get("total")
    if seconds:
        memory = results.get("peak_memory_bytes", 0) / 2**30
        found["Time"] = (f"{seconds / 60:.0f} min", f"peak memory {memory:.1f} GiB")
    size = results.get("model", {}).get("num_parameters")
    if size:
        found["Model"] = (f"{size / 1e6:.1f} M", f"parameters; {results['model']['num_draws']} draws a decision")
    return dict(list(found.items())[:5])


def counts(rate: Mapping[str, Any]) -> str:
    low, high = rate["wilson_95"]
    return f"{rate['successes']} of {rate['num_starts']}; 95 % interval {100 * low:.1f} to {100 * high:.1f} %"


def ends(stages: Mapping[str, Any]) -> list[Interval]:
    """Success before and after, by decoding."""
    return [
        Interval(f"{when} RL", decoding, rate["rate"], *rate["wilson_95"],
                 f"{100 * rate['rate']:.1f} %  ({rate['successes']}/{rate['num_starts']})")
        for when in ("before", "after")
        for decoding in ("greedy", "sampled")
        if (rate := stages.get(f"evaluation_{when}", {}).get(decoding))
    ]  # fmt: skip


def comparisons(results: Mapping[str, Any]) -> str:
    rows = [(decoding, test["text"]) for decoding, test in results.get("comparison", {}).items()]
    return table(("decoding", "after against before"), rows)


def rl_charts(records: Records, config: Mapping[str, Any]) -> list[str]:
    """Success with its interval first, then how far trajectories come, then the health of the updates."""
    if not records:
        return []
    steps = [r["step"] for r in records]
    sizes = [round(r.get("num_episodes", r.get("num_trajectories", 1))) for r in records]
    quick = config["evaluation"]["num_quick_starts"]
    curves = [
        rate_curve("training starts, sampled", records, "success", sizes),
        rate_curve("training starts, greedy", records, "greedy_success", sizes),
        rate_curve("validation starts, greedy", records, "validation_success", [quick] * len(records)),
    ]
    success = line_chart("Success", "with 95 % Wilson intervals", "iteration", curves, (0.0, highest(curves)))
    reached = sorted({name for r in records for name in r if name.startswith(REACHED)})
    terms = [curve(name.removeprefix(REACHED), records, name) for name in reached]
    stages = line_chart("How far trajectories come", "share that fulfilled a term", "iteration", terms, (0.0, 1.0))
    lengths = [r["control_steps"] / n if "control_steps" in r else float("nan") for r, n in zip(records, sizes)]
    length = line_chart("Length", "control steps a trajectory", "iteration", [Curve("length", steps, lengths)])
    return [grid(success, stages, *(chart(records, *which) for which in CURVES), length, throughput(records))]


def highest(curves: Sequence[Curve]) -> float:
    """A round bound above all intervals: a curve that stays low is not drawn as a flat line."""
    top = max((v for c in curves for v in (c.high or ())), default=1.0)
    return next(bound for bound in (0.1, 0.2, 0.5, 1.0) if top <= bound + 1e-9)


def rate_curve(name: str, records: Records, key: str, sizes: Sequence[int]) -> Curve:
    """Rates over iterations with their intervals; `sizes` are the numbers of starts."""
    rates = [
        (r["step"], SuccessRate(round(r[key] * n), n, None))
        for r, n in zip(records, sizes, strict=True)
        if r.get(key) is not None
    ]
    low, high = ([rate.interval[side] for _, rate in rates] for side in (0, 1))
    return Curve(name, [step for step, _ in rates], [rate.rate for _, rate in rates], low, high)


def curve(name: str, records: Records, key: str) -> Curve:
    there = [r for r in records if r.get(key) is not None]
    return Curve(name, [r["step"] for r in there], [r[key] for r in there])


def chart(records: Records, title: str, unit: str, names: Mapping[str, str], x_label: str = "iteration") -> str:
    """A chart of those metrics that are there."""
    return line_chart(title, unit, x_label, [curve(label, records, key) for key, label in names.items()])


def throughput(records: Records) -> str:
    """Control steps a second of each iteration, everything counted."""
    pairs = [
        (two["step"], two["control_steps"] / (two["seconds"] - one["seconds"]))
        for one, two in pairwise(records)
        if two.get("control_steps") and two.get("seconds", 0) > one.get("seconds", 0)
    ]
    found = Curve("throughput", [step for step, _ in pairs], [rate for _, rate in pairs])
    return line_chart("Throughput", "control steps a second, updates and evaluations counted", "iteration", [found])


def sft_charts(records: Records) -> list[str]:
    losses = {"action_loss": "training", "held_out_loss": "held-out demonstrations"}
    return [
        chart(records, "Action loss", "a draw", losses, "step"),
        chart(records, "Gradient", "norm before clipping", {"grad_norm": "norm"}, "step"),
    ]


def grounding_charts(records: Records) -> list[str]:
    """What was learned by answering questions, by part."""
    parts = dict.fromkeys(r["stage"] for r in records if r["stage"].startswith("grounding"))
    return [
        chart(of_stage(records, part), part.replace("_", " ").capitalize(), "", {"loss": "loss"}, "step")
        for part in parts
    ]


def films(folder: Path) -> dict[str, Path]:
    """{caption: file}, before RL first, wins first."""
    order = {"before": 0, "after": 1, "win": 0, "failure": 1}
    found = {}
    for path in (folder / "videos").glob("*.mp4"):
        when, _, rest = path.stem.partition("-")
        verdict, _, seed = rest.partition("-")
        found[(order.get(when, 2), order.get(verdict, 2), seed)] = (f"{when} RL, {verdict}, start {seed}", path)
    return dict(found[key] for key in sorted(found))


def time_chart(seconds: Mapping[str, float]) -> str:
    """A bar for each stage, cut into its parts."""
    stages = {name: value for name, value in seconds.items() if "/" not in name and name != "total"}
    parts = {
        stage: {path.split("/")[1]: v for path, v in seconds.items() if path.rpartition("/")[0] == stage}
        for stage in stages
    }
    return share_chart("Time by stage", stages, parts)


def data_card(folder: Path, stages: Mapping[str, Any]) -> dict[str, Any]:
    """What the policy learned from."""
    meta = folder / "demonstrations" / "meta"
    info, source = read_json(meta / "info.json", {}), read_json(meta / "source.json", {})
    known = stages.get("demonstrations", {})
    card = {
        "episodes": info.get("total_episodes", known.get("num_episodes")),
        "frames": info.get("total_frames", known.get("num_frames")),
        "rate": f"{info['fps']} a second" if "fps" in info else None,
        "cameras": [name.removeprefix("observation.images.") for name in info.get("features", {}) if "images" in name],
        "made by": source or None,
        "format": f"LeRobotDataset {info['codebase_version']}" if "codebase_version" in info else None,
        "stands in": folder / "demonstrations" if info else None,
    }
    return {name: value for name, value in card.items() if value}


def how_it_was_made(folder: Path, config: Mapping[str, Any], sessions: Records, results: Mapping[str, Any]) -> str:
    """What it takes to repeat the run."""
    last, starts = sessions[-1], read_json(folder / "starts.json", {})
    commit = f"{last.get('commit')}{', with uncommitted changes' if last.get('uncommitted_changes') else ''}"
    made = {
        "commit": commit,
        "machine": last.get("machine"),
        "libraries": ", ".join(f"{name} {version}" for name, version in last.get("libraries", {}).items()),
        "sessions": len(sessions),
        "starts": f"sha256 {starts['sha256'][:16]}; train {starts['train']}, validation {starts['validation']}, "
        f"evaluation {starts['evaluation']}" if starts else None,
        "folder": folder,
    }  # fmt: skip
    settings = Markup(command(yaml.safe_dump(dict(config), sort_keys=False, width=110)))
    return section(
        "How it was made", command(last.get("command", "")), facts(made), folded("Every setting", settings),
        folded("Every result", command(json.dumps(results, indent=1))),
        note="The command repeats the run; the settings below are those it resolved to.",
    )  # fmt: skip
