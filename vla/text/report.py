"""The report of a text run: one HTML page with the numbers, the curves, and what the model said before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from vla.evaluate.plots import plot_curves
from vla.train.metrics import read_metrics
from vla.train.run_folder import RunFolder

CURVES: tuple[tuple[str, Mapping[str, str], str], ...] = (
    (
        "success",
        {"success": "sampled, training problems", "validation_success": "greedy, held-out problems"},
        "success",
    ),
    ("reward", {"return_mean": "mean reward"}, "reward"),
    ("gold", {"proxy": "proxy: the reward model", "gold": "gold"}, "reward"),
    ("proxy_against_kl", {"kl_trajectory": "KL to the reference"}, "nats a completion"),
    (
        "diversity",
        {"distinct_completions": "distinct completions", "distinct_pairs": "distinct pairs of words"},
        "share",
    ),
    ("length", {"completion_tokens": "tokens of a completion"}, "tokens"),
    ("entropy", {"entropy": "entropy"}, "nats a token"),
    ("gap", {"logprob_gap_max": "largest gap", "logprob_gap_mean": "mean gap"}, "nats"),
    ("kl", {"approx_kl": "to the acting policy", "kl_reference": "to the reference"}, "nats a token"),
)
"""Pictures of RL: file name, {metric: label}, unit; those whose metrics are not there are left out."""
NUM_SHOWN = 12
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#2b2f36;max-width:62rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;margin:1rem 0}td,th{border-bottom:1px solid #d5d9de;padding:.3rem .7rem;text-align:left;
vertical-align:top}td.said{white-space:pre-wrap;font-family:ui-monospace,monospace;font-size:13px}
img{max-width:49%;margin:.2rem 0}.yes{color:#3a8f5c}.no{color:#a8485e}
"""


def write_report(folder: RunFolder, title: str, results: Mapping[str, Any], pairs: Sequence[Pair]) -> None:
    """Write report.html and its pictures. `results` values are shown as they print, the first pairs side by side."""
    pictures = draw_curves(folder, read_metrics(folder.path, "rl"))
    sections = [f"<h1>{escape(title)}</h1>", numbers_table(results)]
    sections += [f'<img src="plots/{name}.png" alt="{name}">' for name in pictures]
    if pairs:
        sections += ["<h2>The same questions, before and after</h2>", samples_table(pairs)]
    head = f"<!doctype html><meta charset=utf-8><title>{escape(title)}</title><style>{STYLE}</style>"
    (folder.path / "report.html").write_text(head + "\n".join(sections) + "\n")


def draw_curves(folder: RunFolder, records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Draw the pictures there are metrics for; their names."""
    drawn = []
    for name, metrics, unit in CURVES:
        present = {key: label for key, label in metrics.items() if any(r.get(key) is not None for r in records)}
        if present and len(records) > 1:
            folder.plots.mkdir(parents=True, exist_ok=True)
            plot_curves(folder.plots / f"{name}.png", records, present, name.capitalize(), "iteration", unit)
            drawn.append(name)
    return drawn


def numbers_table(results: Mapping[str, Any]) -> str:
    """A table of {name: value}; values that are tables themselves are shown in lines."""
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{show(value)}</td></tr>" for name, value in results.items())
    return f"<table>{rows}</table>"


def show(value: Any) -> str:
    """A value as HTML."""
    if isinstance(value, Mapping):
        return "<br>".join(f"{escape(str(key))}: {show(item)}" for key, item in value.items()) or "none"
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
        f"<tr><td>{escape(pair.question)}</td><td>{escape(pair.note)}</td>"
        f"{said(pair.before, pair.before_right)}{said(pair.after, pair.after_right)}</tr>"
        for pair in pairs[:NUM_SHOWN]
    )
    return f"<table><tr><th>question</th><th></th><th>before</th><th>after</th></tr>{rows}</table>"


def said(text: str, right: bool | None) -> str:
    """A table cell with what was said."""
    mark = "" if right is None else f'<span class="{"yes" if right else "no"}">{"right" if right else "wrong"}</span> '
    return f'<td class="said">{mark}{escape(text)}</td>'
