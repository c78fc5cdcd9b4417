"""Charts as SVG inside a page: scalable, in the page's colours, without scripts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

NUM_COLOURS = 6
WIDTH = 520
HEIGHT = 210
LEFT = 46
RIGHT = 10
TOP = 12
BOTTOM = 26


@dataclass(frozen=True)
class Curve:
    """A named curve of points (x, y); `low` and `high` draw a band around it."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True)
class Axis:
    """A linear map of values to pixels."""

    first: float
    last: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.first) / (self.last - self.first)
        return self.start + share * (self.end - self.start)


def tick_values(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten) that cover low to high."""
    span = max(high - low, 1e-12)
    raw = span / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def format_tick(value: float) -> str:
    """A short tick label, thousands as k."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.6g}"


def line_chart(
    title: str,
    unit: str,
    x_label: str,
    curves: Sequence[Curve],
    bounds: tuple[float, float] | None = None,
) -> str:
    """Curves over x with their bands; empty without points.

    `bounds` fixes the y axis.
    """
    drawn = [curve for curve in curves if len(curve.x)]
    if not drawn:
        return ""
    values = [
        v
        for c in drawn
        for part in (c.y, c.low or (), c.high or ())
        for v in part
        if math.isfinite(v)
    ]
    if not values:
        return ""
    xs = [v for c in drawn for v in c.x]
    y_ticks = tick_values(*(bounds or pad_range(min(values), max(values))))
    x_axis = Axis(min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1, LEFT, WIDTH - RIGHT)
    y_axis = Axis(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    parts = [*grid_lines(y_ticks, y_axis), *x_axis_labels(x_axis, x_label)]
    for i, curve in enumerate(drawn):
        parts.append(draw_curve(curve, x_axis, y_axis, f"var(--c{i % NUM_COLOURS})"))
    return frame_figure(
        title, unit, legend([c.name for c in drawn]) if len(drawn) > 1 else "", parts, WIDTH, HEIGHT
    )


def pad_range(low: float, high: float) -> tuple[float, float]:
    """A range that is not empty."""
    if high > low:
        return low, high
    margin = abs(low) / 2 or 0.5
    return low - margin, high + margin


def grid_lines(marks: Sequence[float], y_axis: Axis) -> list[str]:
    """Horizontal grid lines with their values."""
    return [
        f'<line class=rule x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y_axis(v):.1f}" '
        f'y2="{y_axis(v):.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y_axis(v) + 3.5:.1f}" text-anchor="end">{format_tick(v)}</text>'
        for v in marks
    ]


def x_axis_labels(x_axis: Axis, label: str) -> list[str]:
    """Whole numbers along the x axis, and the axis label."""
    inside = [
        v
        for v in tick_values(x_axis.first, x_axis.last, 6)
        if x_axis.first <= v <= x_axis.last and v == round(v)
    ]
    marks = [
        f'<text x="{x_axis(v):.1f}" y="{HEIGHT - BOTTOM + 15}" '
        f'text-anchor="middle">{format_tick(v)}</text>'
        for v in inside
    ]
    return [
        *marks,
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT + 2}" text-anchor="end">{escape(label)}</text>',
    ]


def draw_curve(curve: Curve, x_axis: Axis, y_axis: Axis, colour: str) -> str:
    """A curve with its band; a curve of few points has marks with their values as tooltips.

    One or two points are drawn as marks with bars, because nothing was measured between them.
    """
    good = [i for i, v in enumerate(curve.y) if math.isfinite(v)]
    points = [(x_axis(curve.x[i]), y_axis(curve.y[i])) for i in good]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    few = len(curve.y) <= 2
    band = ""
    line = ""
    if curve.low is not None and curve.high is not None and few:
        ends = [(x_axis(curve.x[i]), y_axis(curve.low[i]), y_axis(curve.high[i])) for i in good]
        bars = " ".join(f"M{x:.1f},{low:.1f}V{high:.1f}" for x, low, high in ends)
        band = f'<path d="{bars}" stroke="{colour}" stroke-width="4" opacity=".3"/>'
    elif curve.low is not None and curve.high is not None:
        there = [f"{x_axis(curve.x[i]):.1f},{y_axis(curve.high[i]):.1f}" for i in good]
        back = [f"{x_axis(curve.x[i]):.1f},{y_axis(curve.low[i]):.1f}" for i in reversed(good)]
        band = f'<polygon points="{" ".join([*there, *back])}" fill="{colour}" opacity=".15"/>'
    if not few:
        line = (
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8" '
            'stroke-linejoin="round"/>'
        )
    radius = 2.6 if len(good) <= 40 else 0
    marks = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius or 5}" '
        f'fill="{colour if radius else "transparent"}">'
        f"<title>{escape(curve.name)}: {curve.y[i]:.4g} at {curve.x[i]:g}</title></circle>"
        for i, (x, y) in zip(good, points, strict=True)
    )
    return band + line + marks


@dataclass(frozen=True)
class Interval:
    """A rate with its interval, in a row of its own; `group` selects the colour, `text` is at the
    right."""

    name: str
    group: str
    rate: float
    low: float
    high: float
    text: str


def interval_chart(title: str, unit: str, rows: Sequence[Interval]) -> str:
    """Rates as dots with intervals on an axis from 0 to 100 %, a row for each name and group."""
    if not rows:
        return ""
    groups = list(dict.fromkeys(row.group for row in rows))
    left = 168
    right = 200
    step = 24
    width = 900
    height = 24 + step * len(rows)
    axis = Axis(0.0, 1.0, left, width - right)
    parts = [
        f'<line class=rule x1="{axis(v):.1f}" x2="{axis(v):.1f}" y1="4" y2="{height - 18}"/>'
        f'<text x="{axis(v):.1f}" y="{height - 4}" text-anchor="middle">{100 * v:g} %</text>'
        for v in (0, 0.25, 0.5, 0.75, 1)
    ]
    before = None
    for i, row in enumerate(rows):
        y = 16 + step * i
        colour = f"var(--c{groups.index(row.group) % NUM_COLOURS})"
        name = (
            ""
            if row.name == before
            else f'<text class=name x="0" y="{y + 4}">{escape(row.name)}</text>'
        )
        before = row.name
        parts.append(
            f'{name}<line x1="{axis(row.low):.1f}" x2="{axis(row.high):.1f}" y1="{y}" y2="{y}" '
            f'stroke="{colour}" '
            'stroke-width="5" stroke-linecap="round" opacity=".3"/><circle '
            f'cx="{axis(row.rate):.1f}" cy="{y}" r="5" '
            f'fill="{colour}"/><text x="{width - right + 22}" y="{y + 4}">{escape(row.text)}</text>'
        )
    return frame_figure(
        title, unit, legend(groups) if len(groups) > 1 else "", parts, width, height, full=True
    )


def time_share_chart(
    title: str, seconds: Mapping[str, float], parts: Mapping[str, Mapping[str, float]]
) -> str:
    """Durations: a bar for each stage, divided into its parts.

    Stages under 0.5 % of the total are left out.
    """
    total = max(sum(seconds.values()), 1e-9)
    rows = [(name, value) for name, value in seconds.items() if value >= 0.005 * total]
    if not rows:
        return ""
    left = 168
    right = 130
    step = 30
    width = 900
    axis = Axis(0.0, max(value for _, value in rows), left, width - right)
    drawn_rows = []
    height = 8 + step * len(rows)
    for i, (name, value) in enumerate(rows):
        y = 4 + step * i
        at = 0.0
        drawn_rows.append(
            f'<text class=name x="0" y="{y + 15}">{escape(name.replace("_", " "))}</text>'
        )
        for j, (part, size) in enumerate((parts.get(name) or {"": value}).items()):
            colour = "var(--line)" if part == "other" else f"var(--c{j % NUM_COLOURS})"
            wide = axis(at + size) - axis(at)
            drawn_rows.append(
                f'<rect x="{axis(at):.1f}" y="{y}" width="{max(wide - 1, 0.5):.1f}" height="20" '
                f'rx="3" fill="{colour}">'
                f"<title>{escape(part or name)}: {size:.1f} s</title></rect>"
            )
            if part and wide > 7.2 * len(part):
                ink = "var(--soft)" if part == "other" else "var(--card)"
                middle = axis(at) + wide / 2
                drawn_rows.append(
                    f'<text x="{middle:.1f}" y="{y + 14}" text-anchor="middle" style="fill:{ink}">'
                    f"{escape(part.replace('_', ' '))}</text>"
                )
            at += size
        label = f"{value:.1f} s, {100 * value / total:.0f} %"
        drawn_rows.append(f'<text x="{axis(value) + 8:.1f}" y="{y + 14}">{label}</text>')
    return frame_figure(title, f"{total:.0f} s in all", "", drawn_rows, width, height, full=True)


def legend(names: Sequence[str]) -> str:
    """The colours and their names."""
    marks = [
        f'<span><i style="background:var(--c{i % NUM_COLOURS})"></i>{escape(n)}</span>'
        for i, n in enumerate(names)
    ]
    return f"<div class=legend>{''.join(marks)}</div>"


def frame_figure(
    title: str,
    unit: str,
    key: str,
    parts: Sequence[str],
    width: int,
    height: int,
    full: bool = False,
) -> str:
    """A figure with its caption."""
    classes = "chart full" if full else "chart"
    return (
        "<figure "
        f'class="{classes}"><figcaption>{escape(title)}<small>{escape(unit)}</small>'
        f"</figcaption>{key}"
        f'<svg viewBox="0 0 {width} {height + 6}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg>'
        "</figure>"
    )
