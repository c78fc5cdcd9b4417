"""Plots of a run as PNG files: success with intervals, losses, and seconds by stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla.statistics import SuccessRate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes

COLOURS = ("#2f6fb0", "#d9822b", "#3a8f5c", "#a8485e", "#7a5ea8", "#5b6770")
INK = "#2b2f36"
PALE = "#d5d9de"
STYLE: dict[str, object] = {
    "font.size": 10,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa1a9",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": PALE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.dpi": 130,
}


@contextmanager
def plot_figure(path: Path, width: float, height: float) -> Iterator[Axes]:
    """Axes of a figure of `width` x `height` inches, which is saved when the block ends."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):  # type: ignore[arg-type]
        canvas = Figure(figsize=(width, height), layout="constrained")
        yield canvas.subplots()
        path.parent.mkdir(parents=True, exist_ok=True)
        canvas.savefig(path)


def plot_success(
    path: Path,
    curves: Mapping[str, Sequence[tuple[float, SuccessRate]]],
    title: str,
    x_label: str,
    target: float | None = None,
) -> None:
    """Plot success rates by curve, with 95 % Wilson intervals and a dashed line at `target`.

    Curves of one or two points (before, after) have error bars, longer ones a band.
    """
    from matplotlib.ticker import MaxNLocator

    with plot_figure(path, 7.0, 4.0) as axes:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for colour, (name, points) in zip(COLOURS, curves.items(), strict=False):
            x = [at for at, _ in points]
            rate = [100 * success.rate for _, success in points]
            low, high = ([100 * success.interval[side] for _, success in points] for side in (0, 1))
            sizes = sorted({success.num_starts for _, success in points})
            extremes = dict.fromkeys((sizes[0], sizes[-1]))
            label = f"{name} (n = {' to '.join(map(str, extremes))})"
            if len(points) > 2:
                axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
                axes.plot(
                    x, rate, color=colour, linewidth=2, marker="o", markersize=3.5, label=label
                )
            else:
                bars = [[r - b for r, b in zip(rate, low)], [b - r for r, b in zip(rate, high)]]
                axes.errorbar(
                    x,
                    rate,
                    bars,
                    color=colour,
                    fmt="D",
                    markersize=6,
                    capsize=4,
                    linewidth=1.6,
                    label=label,
                )
        if target is not None:
            axes.axhline(100 * target, color=INK, linewidth=1, linestyle=(0, (4, 3)))
            axes.annotate(
                f"target {100 * target:g} %",
                (0, 100 * target),
                (4, 3),
                fontsize=8.5,
                va="bottom",
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
            )
        axes.set(title=title, xlabel=x_label, ylabel="success, %", ylim=(-2, 104))
        axes.legend(loc="lower right")


def plot_curves(
    path: Path,
    records: Sequence[Mapping[str, Any]],
    names: Mapping[str, str],
    title: str,
    x_label: str,
    y_label: str,
) -> None:
    """Plot metrics over steps, one line for each {key: label}; records without the key are
    skipped."""
    with plot_figure(path, 7.0, 4.0) as axes:
        for colour, (key, label) in zip(COLOURS, names.items(), strict=False):
            points = [
                (record["step"], record[key]) for record in records if record.get(key) is not None
            ]
            if not points:
                continue
            sparse = 2 * len(points) < len(records)
            axes.plot(
                *zip(*points),
                color=colour,
                linewidth=1.6,
                marker="o" if sparse else None,
                ms=3.5,
                label=label,
            )
        axes.set(title=title, xlabel=x_label, ylabel=y_label)
        if axes.has_data():
            axes.legend(loc="best")


def plot_time(path: Path, seconds: Mapping[str, float], title: str) -> None:
    """Plot seconds (`vla.training.timing.Timer.seconds`): a bar for each stage, split into
    parts."""
    total = seconds["total"]
    digits = 0 if total >= 100 else 1
    stages = {name: value for name, value in seconds.items() if "/" not in name and name != "total"}
    shown = {name: value for name, value in stages.items() if value >= 0.005 * total}
    with plot_figure(path, 7.0, 1.3 + 0.52 * len(shown)) as axes:
        for row, (stage, value) in enumerate(shown.items()):
            draw_parts(axes, row, timing_parts(stage, seconds) or {"": value}, total)
            axes.text(
                value + 0.008 * total,
                row,
                f"{value:.{digits}f} s  ({100 * value / total:.0f} %)",
                va="center",
                fontsize=9,
            )
        axes.set_yticks(range(len(shown)), [name.replace("_", " ") for name in shown])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set(
            title=f"{title}: {total:.{digits}f} s",
            xlabel="seconds",
            xlim=(0, 1.2 * max(shown.values(), default=1.0)),
        )


def timing_parts(stage: str, seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds of the parts one level below a stage."""
    prefix = f"{stage}/"
    return {
        name.removeprefix(prefix): value
        for name, value in seconds.items()
        if name.startswith(prefix) and "/" not in name.removeprefix(prefix)
    }


def draw_parts(axes: Axes, row: int, parts: Mapping[str, float], total: float) -> None:
    """Draw one horizontal bar of parts; a part has a label where it fits, "other" is pale."""
    left = 0.0
    for i, (name, value) in enumerate(parts.items()):
        colour = PALE if name == "other" else COLOURS[i % len(COLOURS)]
        axes.barh(
            row, value, left=left, height=0.62, color=colour, edgecolor="white", linewidth=0.8
        )
        if value > 0.016 * total * len(name) and name:
            ink = INK if name == "other" else "white"
            axes.text(
                left + value / 2,
                row,
                name.replace("_", " "),
                ha="center",
                va="center",
                fontsize=8,
                color=ink,
            )
        left += value
