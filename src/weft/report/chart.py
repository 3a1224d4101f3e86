"""Charts as inline SVG; colours, type and themes come from the page's style sheet.

Every chart is `WIDTH` user units wide and scales with its column. Series colours are the classes `c0` to
`c7`. The style sheet sizes text, up to `TYPE` units on a narrow screen; every margin leaves room for that.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from weft.report.number import number
from weft.report.versus import Gain

WIDTH = 460
TYPE = 15
COLOURS = 8
_CHARACTER = 0.56 * TYPE


class Line(NamedTuple):
    """One curve. `label` is written at its end, "" for none; `name` is said where the reader points at it."""

    name: str
    label: str
    colour: int
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False


class Strip(NamedTuple):
    """One method's figure of every client, with two of its summaries."""

    label: str
    colour: int
    values: Sequence[float]
    mean: float
    worst: float


class Bar(NamedTuple):
    """One stacked bar; `parts` holds (name, value) and `text` is its total in words."""

    label: str
    parts: Sequence[tuple[str, float]]
    text: str


def nice(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers at equal distances that enclose [low, high]."""
    span = high - low
    if not math.isfinite(span) or span <= abs(high) * 1e-9:
        low, high = (low - 0.5, high + 0.5) if math.isfinite(low + high) else (0.0, 1.0)
        span = high - low
    raw = span / count
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * i for i in range(first, last + 1)]


def decades(low: float, high: float) -> list[float]:
    """The powers of ten that enclose [low, high], 0 < low."""
    return [10.0**k for k in range(math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9) + 1)]


def lines(
    key: str,
    title: str,
    series: Sequence[Line],
    *,
    y_label: str,
    percent: bool,
    x_label: str = "round",
    logarithmic: bool = False,
) -> Markup:
    """Curves over one axis, named at their ends; what is not finite leaves a gap, outliers are cut off.

    Where both axes are `logarithmic`, values must be above 0, and nothing is cut off.
    """
    points = [[(x, y) for x, y in zip(s.x, s.y, strict=True) if math.isfinite(y)] for s in series]
    ys = np.array([y for line in points for _, y in line] or [0.0, 1.0])
    xs = [x for line in points for x, _ in line] or [0.0, 1.0]
    usual = float(np.quantile(ys, 0.97))
    cut = not percent and not logarithmic and ys.max() > 4 * usual > 0
    ticks = decades if logarithmic else nice
    y_ticks = ticks(max(0.0, float(ys.min())) if percent else float(ys.min()), usual * 1.1 if cut else float(ys.max()))
    x_ticks = [t for t in ticks(min(xs), max(xs)) if min(xs) <= t <= max(xs) and t == round(t)] or [min(xs)]
    room = max((min(len(s.label), 18) for s in series), default=0) * _CHARACTER
    left, right, top, bottom = 46.0, WIDTH - 14 - room, 34.0, 262.0
    scale = _powers if logarithmic else _scale
    across = scale(min(xs), max(max(xs), min(xs) + 1), left + 6, right)
    down = scale(y_ticks[0], y_ticks[-1], bottom, top)
    body = [_text(0, 14, f"{y_label}{' (largest values cut off)' if cut else ''}", "axis")]
    for tick in y_ticks:
        body += [
            _rule(left, down(tick), right, down(tick), "grid"),
            _text(left - 8, down(tick) + 4, _tick(tick, percent), "tick end"),
        ]
    for tick in x_ticks:
        body.append(_text(across(tick), bottom + 20, f"{tick:g}", "tick mid"))
    body.append(_text(right, bottom + 40, x_label, "axis end"))
    ends = []
    for s, line in zip(series, points, strict=True):
        if not line:
            continue
        path, gap = "", True
        for x, y in zip(s.x, s.y, strict=True):
            if math.isfinite(y):
                path += f"{'M' if gap else 'L'}{_n(across(x))} {_n(min(bottom, max(top, down(y))))}"
            gap = not math.isfinite(y)
        style = f"line c{s.colour % COLOURS}{' dashed' if s.dashed else ''}"
        said = f"{s.name}: {number(line[-1][1], '%' if percent else '')} at {x_label} {line[-1][0]:g}"
        body.append(Markup('<path class="{}" d="{}"><title>{}</title></path>').format(style, path, said))
        x, y = across(line[-1][0]), min(bottom, max(top, down(line[-1][1])))
        body.append(_dot(x, y, 3.2, f"fill c{s.colour % COLOURS}", said))
        if s.label:
            ends.append((y, x, s))
    ends.sort(key=lambda e: e[:2])
    for (y, x, s), at in zip(ends, _apart([y for y, _, _ in ends], TYPE + 1.0, top, bottom), strict=True):
        if x < right - 1:
            body.append(_rule(x + 5, y, right + 6, at, f"leader c{s.colour % COLOURS}"))
        body.append(_text(right + 9, at + 4, _short(s.label, 18), f"name c{s.colour % COLOURS}"))
    return _svg(key, title, "; ".join(s.name for s in series), bottom + 46, body)


def gains(key: str, title: str, rows: Sequence[Gain], *, before: str, after: str) -> Markup:
    """One row per client, from its figure under `before` (ring) to `after` (disc); largest gain on top."""
    rows = sorted(rows, key=lambda g: (g.before - g.after, g.client))
    ends = [v for g in rows for v in (g.before, g.after)]
    ticks = nice(min(ends), max(ends), 4)
    left, right, top, pitch = 46.0, WIDTH - 140.0, 44.0, 20.0
    bottom = top + pitch * len(rows)
    across = _scale(ticks[0], ticks[-1], left + 8, right - 8)
    most = max(g.size for g in rows) or 1
    body = [
        _text(0, 14, "client", "axis"),
        _text((left + right) / 2, 14, "accuracy, %", "axis mid"),
        _text(right + 52, 14, "gain", "axis end"),
        _text(WIDTH, 14, "examples", "axis end"),
    ]
    for tick in ticks:
        body += [
            _rule(across(tick), top - 6, across(tick), bottom, "grid"),
            _text(across(tick), 34, _tick(tick, True), "tick mid"),
        ]
    for i, g in enumerate(rows):
        y = top + pitch * (i + 0.5)
        gain = g.after - g.before
        tone = "same" if abs(gain) < 5e-4 else "up" if gain > 0 else "down"
        figures = f"{before} {number(g.before, '%')}, {after} {number(g.after, '%')}"
        said = f"client {g.client}: {figures}; {g.size} training examples"
        body += [
            _text(left - 10, y + 4.5, str(g.client), "tick end"),
            _rule(across(g.before), y, across(g.after), y, f"span {tone}"),
            _dot(across(g.before), y, 4, "ring", said),
            _dot(across(g.after), y, 4.6, f"fill {tone}", said),
            _text(right + 52, y + 4.5, number(gain, "points"), f"gain end {tone}"),
            _bar(right + 66, y - 4, max(1.5, (WIDTH - right - 66) * g.size / most), 8, "size", said),
        ]
    return _svg(key, title, f"{after} against {before}, one row per client", bottom + 8, body)


def gain_by_size(key: str, title: str, rows: Sequence[Gain]) -> Markup:
    """The gain of each client against its number of training examples (logarithmic); for many clients."""
    left, right, top, bottom = 46.0, WIDTH - 10.0, 34.0, 262.0
    gain = [g.after - g.before for g in rows]
    ticks = nice(min(0.0, *gain), max(0.0, *gain))
    sizes = [math.log10(max(g.size, 1)) for g in rows]
    across = _scale(min(sizes) - 0.05, max(sizes) + 0.05, left + 8, right - 8)
    down = _scale(ticks[0], ticks[-1], bottom, top)
    body = [
        _text(0, 14, "gain in accuracy, percentage points", "axis"),
        _text(right, bottom + 40, "training examples of the client", "axis end"),
    ]
    for tick in ticks:
        body.append(_rule(left, down(tick), right, down(tick), "zero" if abs(tick) < 1e-12 else "grid"))
        body.append(_text(left - 8, down(tick) + 4, _tick(tick, True), "tick end"))
    decades = range(math.floor(min(sizes)), math.ceil(max(sizes)) + 1)
    for value in sorted(m * 10**d for d in decades for m in (1, 2, 5)):
        if min(sizes) - 0.05 <= math.log10(value) <= max(sizes) + 0.05:
            body.append(_text(across(math.log10(value)), bottom + 20, f"{value:,}", "tick mid"))
    for g, size, up in zip(rows, sizes, gain, strict=True):
        tone = "same" if abs(up) < 5e-4 else "up" if up > 0 else "down"
        body.append(
            _dot(
                across(size),
                down(up),
                3,
                f"fill faint {tone}",
                f"client {g.client}: {number(up, 'points')}, {g.size} examples",
            )
        )
    return _svg(key, title, "One dot per client", bottom + 46, body)


def strips(key: str, title: str, rows: Sequence[Strip], *, x_label: str) -> Markup:
    """How one figure is spread over clients, a row per method: dots for few clients, bars for many."""
    values = [v for row in rows for v in row.values]
    ticks = nice(max(0.0, min(values)), min(1.0, max(values)), 5)
    left, right, height, deep = 8.0, WIDTH - 14.0, 96.0, 46.0
    across = _scale(ticks[0], ticks[-1], left + 6, right - 6)
    bins = 48
    bottom = height * len(rows) - 4
    body = []
    for tick in ticks:
        body += [
            _rule(across(tick), 28, across(tick), bottom, "grid"),
            _text(across(tick), bottom + 20, _tick(tick, True), "tick mid"),
        ]
    body.append(_text(right, bottom + 40, x_label, "axis end"))
    width = (across(ticks[-1]) - across(ticks[0])) / bins
    for i, row in enumerate(rows):
        floor = height * (i + 1) - 14
        place = np.clip(((np.asarray(row.values) - ticks[0]) / (ticks[-1] - ticks[0]) * bins).astype(int), 0, bins - 1)
        counts = np.bincount(place, minlength=bins)
        tone = f"fill c{row.colour % COLOURS}"
        body.append(_text(left, floor - 64, _short(row.label, 40), f"name c{row.colour % COLOURS}"))
        body.append(_rule(left, floor, right, floor, "zero"))
        for b in map(int, np.flatnonzero(counts)):
            x, n = across(ticks[0]) + width * (b + 0.5), int(counts[b])
            if len(row.values) <= 60 and counts.max() <= 14:
                step = min(width * 0.88, deep / int(counts.max()))
                body += [_dot(x, floor - 5 - step * j, width * 0.42, tone) for j in range(n)]
            else:
                tall = max(1.0, deep * n / int(counts.max()))
                body.append(_bar(x - width * 0.42, floor - tall, width * 0.84, tall, tone, f"{n} clients"))
        for value, name in ((row.mean, "mean"), (row.worst, "worst tenth")):
            if math.isfinite(value) and ticks[0] <= value <= ticks[-1]:
                x = across(value)
                body.append(
                    Markup('<path class="mark{}" d="M{} {}l5 8h-10z"><title>{}</title></path>').format(
                        "" if name == "mean" else " hollow",
                        _n(x),
                        _n(floor + 2),
                        f"{row.label}, {name} of clients: {number(value, '%')}",
                    )
                )
    return _svg(key, title, "One row per method, every client counted once", bottom + 46, body)


def matrix(key: str, title: str, counts: np.ndarray, names: Sequence[int], *, groups: Sequence[str]) -> Markup:
    """Clients by classes: the area of a dot (few classes) or the depth of a cell is the number of examples.

    Args:
        counts: [clients, classes], training examples.
        names: [clients], the id of each row.
        groups: [classes], what each column is.
    """
    clients, classes = counts.shape
    left, right, top, pitch = 46.0, WIDTH - 96.0, 44.0, 20.0
    wide = (right - left) / classes
    most, size = max(int(counts.max()), 1), counts.sum(1)
    body = [
        _text(0, 14, "client", "axis"),
        _text((left + right) / 2, 14, "class", "axis mid"),
        _text(WIDTH, 14, "examples", "axis end"),
    ]
    every = max(1, math.ceil(max(map(len, groups)) * _CHARACTER * 1.25 / wide))
    body += [_text(left + wide * (c + 0.5), 34, groups[c], "tick mid") for c in range(0, classes, every)]
    dots = wide >= 11
    for i in range(clients):
        y = top + pitch * (i + 0.5)
        body.append(_text(left - 10, y + 4.5, str(names[i]), "tick end"))
        if i % 2 == 0:
            body.append(_bar(left, y - pitch / 2, right - left, pitch, "stripe"))
        for c in map(int, np.flatnonzero(counts[i])):
            n = int(counts[i, c])
            if dots:
                said = f"client {names[i]}, class {groups[c]}: {n} training examples"
                radius = max(1.0, math.sqrt(n / most) * min(wide, pitch) * 0.48)
                body.append(_dot(left + wide * (c + 0.5), y, radius, "count", said))
        reach = max(1.0, (WIDTH - right - 58) * int(size[i]) / max(int(size.max()), 1))
        body += [
            _bar(right + 8, y - 4, reach, 8, "size"),
            _text(WIDTH, y + 4.5, number(int(size[i]), "count"), "tick end"),
        ]
    if not dots:
        depth = np.ceil(6 * np.sqrt(counts / most)).astype(int)
        across = _n(wide * 0.96)
        for level in range(1, 7):
            cells = "".join(
                f"M{_n(left + wide * c)} {_n(top + pitch * i + 1.5)}h{across}v{_n(pitch - 3)}h-{across}z"
                for i, c in np.argwhere(depth == level)
            )
            body.append(Markup('<path class="count depth{}" d="{}"/>').format(level, cells))
    return _svg(key, title, f"{clients} clients by {classes} classes", top + pitch * clients + 8, body)


def bars(key: str, title: str, rows: Sequence[Bar]) -> Markup:
    """Stacked horizontal bars from zero, each with its name and its total above it."""
    most = max((sum(v for _, v in row.parts) for row in rows), default=0) or 1.0
    body = []
    for i, row in enumerate(rows):
        y, x = 48.0 * i, 0.0
        body += [
            _text(0, y + 14, _short(row.label, 30), "value"),
            _text(WIDTH, y + 14, row.text, "value end"),
            _bar(0, y + 22, WIDTH, 12, "stripe"),
        ]
        for j, (name, value) in enumerate(row.parts):
            if value > 0:
                wide = max(1.5, WIDTH * value / most)
                body.append(_bar(x, y + 22, wide, 12, f"part{j}", f"{row.label}, {name}"))
                x += wide
    return _svg(key, title, "; ".join(f"{row.label}: {row.text}" for row in rows), 48.0 * len(rows), body)


def image(chart: Markup) -> str:
    """A chart as a file of its own, with the style sheet of the report in it."""
    style = resources.files("weft.report").joinpath("style.css").read_text()
    own = "svg { background: var(--card); font-family: system-ui, sans-serif; }"
    tag, body = str(chart).split(">", 1)
    margin = re.sub(
        r'viewBox="0 0 (\S+) (\S+)"',
        lambda m: f'viewBox="-12 -12 {float(m[1]) + 24:g} {float(m[2]) + 24:g}" xmlns="http://www.w3.org/2000/svg"',
        tag,
    )
    return f"{margin}><style>\n{style}{own}\n</style>{body}\n"


def _svg(key: str, title: str, about: str, height: float, body: Iterable[Markup]) -> Markup:
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-labelledby="{key}-t {key}-d">'
        '<title id="{key}-t">{}</title><desc id="{key}-d">{}</desc>{}</svg>'
    ).format(WIDTH, _n(height), title, about, Markup("").join(body), key=key)


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _powers(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    linear = _scale(math.log10(low), math.log10(high), start, end)
    return lambda value: linear(math.log10(value))


def _apart(places: Sequence[float], gap: float, top: float, bottom: float) -> list[float]:
    """Places in rising order moved apart to at least `gap`, kept within [top, bottom] where they fit."""
    moved: list[float] = []
    for place in sorted(places):
        moved.append(max(place, moved[-1] + gap) if moved else max(place, top))
    limit = bottom
    for i in range(len(moved) - 1, -1, -1):
        moved[i] = min(moved[i], limit)
        limit = moved[i] - gap
    return moved


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _tick(value: float, percent: bool) -> str:
    shown = 100 * value if percent else value
    return (f"{shown:.4g}" if abs(shown) < 1e4 else f"{shown:,.0f}").replace("-", "−") if value else "0"


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _text(x: float, y: float, text: str, style: str) -> Markup:
    return Markup('<text x="{}" y="{}" class="{}">{}</text>').format(_n(x), _n(y), style, text)


def _rule(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    return Markup('<path class="{}" d="M{} {}L{} {}"/>').format(style, _n(x1), _n(y1), _n(x2), _n(y2))


def _dot(x: float, y: float, radius: float, style: str, said: str = "") -> Markup:
    shape = Markup('<circle class="{}" cx="{}" cy="{}" r="{}"').format(style, _n(x), _n(y), _n(radius))
    return shape + (Markup("><title>{}</title></circle>").format(said) if said else Markup("/>"))


def _bar(x: float, y: float, wide: float, tall: float, style: str, said: str = "") -> Markup:
    shape = Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}"').format(
        style, _n(x), _n(y), _n(wide), _n(tall)
    )
    return shape + (Markup("><title>{}</title></rect>").format(said) if said else Markup("/>"))
