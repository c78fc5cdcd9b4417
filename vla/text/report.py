"""The report of a text run: one HTML page with the numbers, the curves, and what the model said before and after."""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import yaml

from vla.evaluate.plots import plot_curves, plot_success, plot_time
from vla.evaluate.success import SuccessRate
from vla.report.page import command, facts, folded, grid, page, section
from vla.report.robot import read_json
from vla.train.checkpoint import write_atomically
from vla.train.metrics import read_metrics
from vla.train.run_folder import RunFolder
from vla.train.timing import Timer, peak_memory_bytes

CURVES: tuple[tuple[str, str, Mapping[str, str], str], ...] = (
    ("reward", "Reward", {"return_mean": "mean reward"}, "reward"),
    ("gold", "Proxy against gold reward", {"proxy": "proxy: the reward model", "gold": "gold"}, "reward"),
    ("drift", "Distance from the policy before RL", {"kl_trajectory": "KL to the reference"}, "nats a completion"),
    (
        "diversity",
        "Diversity",
        {"distinct_completions": "distinct completions", "distinct_pairs": "distinct pairs of words"},
        "share",
    ),
    ("length", "Length", {"completion_tokens": "tokens of a completion"}, "tokens"),
    ("entropy", "Entropy", {"entropy": "entropy"}, "nats a token"),
    ("families", "Curriculum", {"open_families": "families open"}, "families"),
    ("gap", "Acting against scoring", {"logprob_gap_max": "largest gap", "logprob_gap_mean": "mean gap"}, "nats"),
    (
        "kl",
        "Step size",
        {"approx_kl": "KL to the acting policy", "kl_reference": "KL to the reference"},
        "nats a token",
    ),
)
"""Pictures of RL: file name, title, {metric: label}, unit; those whose metrics are not there are left out."""
LEAST = {"open_families": 1.0, "approx_kl": 1e-6}
"""A metric that never passes this says nothing: one family all along, or rounding where every update is on-policy."""
NUM_SHOWN = 12
OF_THE_DATA = (
    "name", "families", "path", "num_problems", "holdout_fraction", "num_evaluation", "prompts", "sources", "weights",
    "comparisons", "pairs", "rewards", "gold",
)  # fmt: skip
"""The settings of a text run that say what it learned from and was judged on."""


def write_report(folder: RunFolder, title: str, results: Mapping[str, Any], pairs: Sequence[Pair]) -> None:
    """Write report.html, complete in itself, and its pictures. The first `pairs` are shown side by side."""
    pictures = draw_curves(folder, read_metrics(folder.path), results)
    sessions = read_json(folder.path / "run.json", [{}])
    parts = [
        section("Results", numbers_table(results)),
        section("Over training", grid(*(image(folder, name) for name in pictures))),
        section("The same questions, before and after", samples_table(pairs) if pairs else ""),
        how_it_was_made(folder, sessions),
    ]
    lead = ", ".join(str(part) for part in (sessions[-1].get("started"), sessions[-1].get("machine")) if part)
    write_atomically(folder.path / "report.html", page(title, lead, parts))


def how_it_was_made(folder: RunFolder, sessions: Sequence[Mapping[str, Any]]) -> str:
    """What it takes to repeat the run: command, commit, libraries, data and every setting."""
    last, path = sessions[-1], folder.path / "config.yaml"
    settings = yaml.safe_load(path.read_text()) if path.exists() else {}
    data = {name: value for name, value in settings.get("text", {}).items() if name in OF_THE_DATA}
    commit = f"{last.get('commit')}{', with uncommitted changes' if last.get('uncommitted_changes') else ''}"
    libraries = ", ".join(f"{name} {version}" for name, version in last.get("libraries", {}).items())
    made = {"commit": commit, "libraries": libraries, "data": data, "folder": folder.path}
    every = folded("Every setting", command(yaml.safe_dump(settings, sort_keys=False, width=110))) if settings else ""
    shown = facts({name: value for name, value in made.items() if value})
    return section("How it was made", command(last.get("command", "")), shown, every)


def spent(timer: Timer) -> dict[str, Any]:
    """What a run has cost so far: wall seconds by stage, CPU seconds of this process, the peak of its memory."""
    return {"seconds": timer.seconds(), "cpu_seconds": time.process_time(), "peak_memory_bytes": peak_memory_bytes()}


def image(folder: RunFolder, name: str) -> str:
    """A picture inside the page, so that the page can be sent around."""
    content = base64.b64encode((folder.plots / f"{name}.png").read_bytes()).decode()
    return f'<figure class="picture"><img alt="{escape(name)}" src="data:image/png;base64,{content}"></figure>'


def draw_curves(folder: RunFolder, records: Sequence[Mapping[str, Any]], results: Mapping[str, Any]) -> list[str]:
    """Draw the pictures there are numbers for; their names."""
    drawn = []

    def draw(name: str, title: str, rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, str], unit: str) -> None:
        largest = {key: max((r[key] for r in rows if r.get(key) is not None), default=0.0) for key in metrics}
        present = {key: label for key, label in metrics.items() if any(r.get(key) is not None for r in rows)}
        present = {key: label for key, label in present.items() if largest[key] > LEAST.get(key, -math.inf)}
        if present and len(rows) > 1:
            folder.plots.mkdir(parents=True, exist_ok=True)
            step = "iteration" if name in {curve[0] for curve in CURVES} else "step"
            plot_curves(folder.plots / f"{name}.png", rows, present, title, step, unit)
            drawn.append(name)

    rl = [record for record in records if record.get("stage") == "rl"]
    if draw_success(folder, rl, results):
        drawn.append("success")
    same = all(r.get("return_mean") == r.get("success") for r in rl)  # the reward is success: one picture says it all
    for name, title, metrics, unit in CURVES:
        if not (name == "reward" and same):
            draw(name, title, rl, metrics, unit)
    for stage in dict.fromkeys(record.get("stage") for record in records if "loss" in record):
        rows = [record for record in records if record.get("stage") == stage]
        if stage != "rl":
            draw(f"loss_{str(stage).replace(' ', '_')}", f"Loss: {stage}", rows, {"loss": "training loss"}, "loss")
    if isinstance(results.get("seconds"), Mapping):
        plot_time(folder.plots / "time.png", results["seconds"], "Where the time went")
        drawn.append("time")
    return drawn


def draw_success(folder: RunFolder, rl: Sequence[Mapping[str, Any]], results: Mapping[str, Any]) -> bool:
    """Success over training: sampled, on what is trained; greedy, before and after on held-out problems."""
    ends = [results.get("before"), results.get("after")]
    sampled = [(float(r["step"]), _rate(r, "success", "episodes", 1.0)) for r in rl if "episodes" in r]
    validation = [
        (float(r["step"]), _rate(r, "validation_success", "validation_starts", None))
        for r in rl
        if r.get("validation_success") is not None
    ]
    if not all(isinstance(end, SuccessRate) for end in ends) or len(sampled) < 2:
        return False
    curves = {"sampled, training problems": sampled, "greedy, validation": validation}
    curves["greedy, held-out, before and after"] = list(zip((0.0, sampled[-1][0]), ends, strict=True))
    folder.plots.mkdir(parents=True, exist_ok=True)
    shown = {name: points for name, points in curves.items() if points}
    plot_success(folder.plots / "success.png", shown, "Success", "iteration")
    return True


def _rate(record: Mapping[str, Any], share: str, count: str, temperature: float | None) -> SuccessRate:
    number = round(record[count])
    return SuccessRate(round(record[share] * number), number, temperature)


def numbers_table(results: Mapping[str, Any]) -> str:
    """A table of {name: value}; values that are tables themselves are shown in lines, the time as a picture."""
    rows = "".join(
        f"<tr><th>{escape(name.removesuffix('_bytes').replace('_', ' '))}</th><td>{show(value, name)}</td></tr>"
        for name, value in results.items()
        if name != "seconds"
    )
    return f"<table>{rows}</table>"


def show(value: Any, name: str = "") -> str:
    """A value as HTML."""
    if isinstance(value, Mapping):
        if set(value) == {"before", "after"}:
            return f"{show(value['before'])} before, {show(value['after'])} after"
        return "<br>".join(f"{escape(str(key))}: {show(item)}" for key, item in value.items()) or "none"
    if name.endswith("_bytes"):
        return f"{value / 2**30:.2f} GiB"
    if isinstance(value, float):
        return f"{value:.4g}"
    return escape(str(value))


@dataclass(frozen=True)
class Pair:
    """What was said to one question before and after; whether it was right, where that means something."""

    question: str
    note: str
    before: str
    after: str
    before_right: bool | None
    after_right: bool | None


def samples_table(pairs: Sequence[Pair]) -> str:
    """Answers side by side."""
    rows = "".join(
        f"<tr><td>{escape(pair.question)}<br><small>{escape(pair.note)}</small></td>"
        f"{said(pair.before, pair.before_right)}{said(pair.after, pair.after_right)}</tr>"
        for pair in pairs[:NUM_SHOWN]
    )
    return f'<table><tr class="head"><th>question</th><th>before</th><th>after</th></tr>{rows}</table>'


def said(text: str, right: bool | None) -> str:
    """A table cell with what was said."""
    mark = "" if right is None else f'<span class="{"yes" if right else "no"}">{"right" if right else "wrong"}</span> '
    return f'<td class="said">{mark}{escape(text)}</td>'
