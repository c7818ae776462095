"""Curves as SVG, drawn here: they take the colours of a light or a dark page and need nothing beside them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

Point = tuple[float, float]

WIDTH, HEIGHT = 640, 320  # of the chart without its legend, units of the picture
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 34, 46  # between its edges and the axes
ROW = 18  # height of a line of the legend
COLOURS, DASHES = 8, 3
POINTS_MARKED = 60  # a line of so few points shows each
BUCKETS = 400  # a longer line than 4 times this is drawn by the extremes of so many stretches
LONGEST = 88  # characters of a name in the legend

LIGHT = ["#2563c9", "#c9480e", "#12805c", "#9333a8", "#a87400", "#0b7f8f", "#c22545", "#5b6270"]
DARK = ["#7fb0ff", "#ff9a62", "#4fd1a1", "#d79bf0", "#e8bd4d", "#56cfe0", "#ff8fa3", "#b4bcc9"]


def palette(ink: str, soft: str, grid: str, paper: str, colours: Sequence[str]) -> str:
    """CSS variables of one scheme."""
    names = {"ink": ink, "soft": soft, "grid": grid, "paper": paper}
    names |= {f"c{number}": colour for number, colour in enumerate(colours)}
    return "".join(f"--{name}:{colour};" for name, colour in names.items())


STYLE = f"""
:root {{ {palette("#1b1f27", "#5f6775", "#e3e6eb", "#ffffff", LIGHT)} color-scheme: light dark }}
@media (prefers-color-scheme: dark) {{ :root {{ {palette("#e8eaee", "#a3abb8", "#343a45", "#15181d", DARK)} }} }}
.chart {{ font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif }}
.chart text {{ fill: var(--ink) }} .chart .tick {{ fill: var(--soft) }}
.chart .title {{ font-size: 14px; font-weight: 600 }}
.chart .paper {{ fill: var(--paper) }} .chart .grid {{ stroke: var(--grid) }} .chart .axis {{ stroke: var(--soft) }}
.chart .line {{ fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round }}
.chart .band {{ opacity: .18 }}
.chart .published {{ fill: var(--soft); stroke: var(--soft); opacity: .35 }}
{" ".join(f".chart .s{n} {{ stroke: var(--c{n}) }} .chart .f{n} {{ fill: var(--c{n}) }}" for n in range(COLOURS))}
.chart .d1 {{ stroke-dasharray: 7 4 }} .chart .d2 {{ stroke-dasharray: 1.5 4 }}
""".strip()


@dataclass(frozen=True)
class Line:
    """A curve by rising x; `band` holds (x, low, high) around it. `number` chooses its colour, then its dashes."""

    name: str
    number: int
    points: Sequence[Point]
    band: Sequence[tuple[float, float, float]] = ()


@dataclass(frozen=True)
class Level:
    """What was published: a horizontal stripe from `low` to `high`, a line if they are the same."""

    name: str
    low: float
    high: float


@dataclass(frozen=True)
class Axis:
    """From values to units of the picture."""

    low: float
    high: float
    start: float
    end: float
    ticks: list[float]

    def at(self, value: float) -> float:
        """Where a value lies."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def axis(low: float, high: float, start: float, end: float, count: int) -> Axis:
    """An axis over about `count` round steps that hold low..high."""
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-9):
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    rough = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = unit * next(factor for factor in (1, 2, 5, 10) if factor * unit >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = max(0, -math.floor(math.log10(step)))
    ticks = [round(number * step, digits) for number in range(first, last + 1)]
    return Axis(ticks[0], ticks[-1], start, end, ticks)


def ended(axis: Axis, high: float) -> Axis:
    """The same axis, ending at `high` though that is no round step."""
    return replace(axis, high=high, ticks=[tick for tick in axis.ticks if tick <= high * (1 + 1e-9)])


def thinned(points: Sequence[Point]) -> list[Point]:
    """The first, least, greatest and last of each of BUCKETS stretches: what can be seen of a long line."""
    if len(points) <= 4 * BUCKETS:
        return list(points)
    kept: list[Point] = []
    for bucket in range(BUCKETS):
        part = points[bucket * len(points) // BUCKETS : (bucket + 1) * len(points) // BUCKETS]
        ends = (part[0], min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1]), part[-1])
        kept += sorted(set(ends))
    return kept


def chart(title: str, x_label: str, y_label: str, lines: Sequence[Line], level: Level | None = None) -> str:
    """An <svg> with a legend below; empty if there is no point at all."""
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    ys += [y for line in lines for _, low, high in line.band for y in (low, high)]
    ys += [level.low, level.high] if level else []
    across = ended(axis(0.0, max(xs), LEFT, WIDTH - RIGHT, 8), max(xs))
    up = axis(min(ys), max(ys), HEIGHT - BOTTOM, TOP, 5)
    parts = [*frame(title, x_label, y_label, across, up), *stripe(level, across, up)]
    parts += [drawn for line in lines for drawn in band(line, across, up)]
    parts += [drawn for line in lines for drawn in stroke(line, across, up)]
    parts += told(lines, level)
    height = HEIGHT + (len(lines) + (level is not None)) * ROW + 8
    said = escape(f"{title}: {', '.join(line.name for line in lines)}")
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {WIDTH} {height}" role="img"'
    return "\n".join(
        [f'{head} aria-label="{said}">', f'<rect class="paper" width="{WIDTH}" height="{height}"/>', *parts, "</svg>"]
    )


def standing_alone(svg: str) -> str:
    """The chart as a file of its own, with its colours in it."""
    width, height = re.findall(r'viewBox="0 0 (\d+) (\d+)"', svg)[0]
    return svg.replace(">", f' width="{width}" height="{height}">\n<style>{STYLE}</style>', 1) + "\n"


def text(x: float, y: float, content: str, kind: str = "", anchor: str = "start", more: str = "") -> str:
    """A <text>, escaped."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}"{more}>{escape(content)}</text>'


def frame(title: str, x_label: str, y_label: str, across: Axis, up: Axis) -> list[str]:
    """Title, grid, axes and their labels."""
    parts = [text(LEFT, 20, title, "title")]
    for tick in up.ticks:
        y = up.at(tick)
        parts.append(f'<path class="grid" d="M{across.start} {y:.1f}H{across.end}"/>')
        parts.append(text(LEFT - 8, y + 4, f"{tick:,g}", "tick", "end"))
    for tick in across.ticks:
        parts.append(f'<path class="axis" d="M{across.at(tick):.1f} {up.start}v4"/>')
        parts.append(text(across.at(tick), up.start + 18, f"{tick:,g}", "tick", "middle"))
    middle = (up.start + up.end) / 2
    turned = f' transform="rotate(-90 14 {middle:.1f})"'
    parts.append(f'<path class="axis" d="M{across.start} {up.start}H{across.end}"/>')
    parts.append(text((across.start + across.end) / 2, up.start + 36, x_label, "", "middle"))
    parts.append(text(14, middle, y_label, "", "middle", turned))
    return parts


def path(points: Sequence[Point], across: Axis, up: Axis) -> str:
    """The d= of a <path> through these."""
    return "M" + "L".join(f"{across.at(x):.1f} {up.at(y):.1f}" for x, y in points)


def stripe(level: Level | None, across: Axis, up: Axis) -> list[str]:
    """The published range."""
    if level is None:
        return []
    low, high = up.at(level.low), up.at(level.high)
    return [
        f'<rect class="published" x="{across.start}" y="{high:.1f}" width="{across.end - across.start}" '
        f'height="{max(low - high, 0.5):.1f}"/>'
    ]


def band(line: Line, across: Axis, up: Axis) -> list[str]:
    """The area between the low and the high of a line."""
    if not any(high > low for _, low, high in line.band):
        return []
    there = thinned([(x, high) for x, _, high in line.band])
    back = thinned([(x, low) for x, low, _ in line.band])[::-1]
    return [f'<path class="band f{line.number % COLOURS}" d="{path([*there, *back], across, up)}Z"/>']


def stroke(line: Line, across: Axis, up: Axis) -> list[str]:
    """The line itself, with a dot at each point if these are few."""
    colour, dash = line.number % COLOURS, line.number // COLOURS % DASHES
    hover = f"<title>{escape(line.name)}</title>"
    points = thinned(line.points)
    parts = [f'<path class="line s{colour} d{dash}" d="{path(points, across, up)}">{hover}</path>']
    if len(points) <= POINTS_MARKED:
        parts += [
            f'<circle class="f{colour}" cx="{across.at(x):.1f}" cy="{up.at(y):.1f}" r="2.4">'
            f"<title>{escape(line.name)}: {x:.4g}, {y:.4g}</title></circle>"
            for x, y in points
        ]
    return parts


def told(lines: Sequence[Line], level: Level | None) -> list[str]:
    """The legend, a row each."""
    parts, y = [], HEIGHT + 4.0
    for line in lines:
        colour, dash = line.number % COLOURS, line.number // COLOURS % DASHES
        parts.append(f'<path class="line s{colour} d{dash}" d="M{LEFT} {y:.1f}h26"/>')
        parts.append(text(LEFT + 34, y + 4, shortened(line.name)))
        y += ROW
    if level:
        parts.append(f'<rect class="published" x="{LEFT}" y="{y - 3:.1f}" width="26" height="6"/>')
        parts.append(text(LEFT + 34, y + 4, shortened(level.name)))
    return parts


def shortened(name: str) -> str:
    """A name that fits into the picture."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
