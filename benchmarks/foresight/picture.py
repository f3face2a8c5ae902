"""``python -m benchmarks.foresight.picture TRACE.csv > docs/foresight.svg``: how a budget is spent.

With and without a risk, and by one who knows every cost beforehand: share of the budget over time.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.foresight.__main__ import SHARE
from benchmarks.foresight.lengths import as_calls, of_trace
from benchmarks.foresight.simulate import Ceilings, Foreseen, Ran, Rule, simulate
from scheduler.foresight import PRESETS

WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 62, 28, 46, 52
KEY = 430  # where lines are named
SURFACE, INK, QUIET, GRID = "#fcfcfb", "#1f1f1e", "#6f6e69", "#e4e3df"
STYLES = {  # of a line: its colour, its width, its dashes
    "knowing every cost": ("#8a8983", 2, "2 4"),
    "risk none": ("#c2571a", 2, ""),
    "risk default": ("#2a6fdb", 2, ""),
}


def main() -> None:
    """Print the picture."""
    path = Path(sys.argv[1])
    calls = as_calls(of_trace(path, 1))
    limit = round(SHARE * sum(call.cost for call in calls))
    runs = {
        "knowing every cost": simulate(calls, limit, Rule()),
        "risk default": simulate(calls, limit, Foreseen(PRESETS["default"])),
        "risk none": simulate(calls, limit, Ceilings()),
    }
    print(draw(path.stem, limit, runs))


def draw(name: str, limit: int, runs: dict[str, Ran]) -> str:
    """The picture as SVG."""
    end_s = 1.08 * max(ran.at_95_ms for ran in runs.values()) / 1000
    step_s = next(step for step in (1, 2, 5, 10, 20, 30, 60, 120, 300) if end_s / step <= 8)

    def x(at_s: float) -> float:
        return LEFT + at_s / end_s * (WIDTH - LEFT - RIGHT)

    def y(share: float) -> float:
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        f' font-family="system-ui, sans-serif" font-size="13">',
        f"<title>How long a budget takes to be spent, by risk ({name})</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="{SURFACE}"/>',
        f'<text x="{LEFT}" y="24" fill="{INK}" font-size="15" font-weight="600">'
        "The same budget, the same 256 places</text>",
    ]
    parts += [
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(share):.1f}" y2="{y(share):.1f}"'
        f' stroke="{GRID}"/><text x="{LEFT - 8}" y="{y(share) + 4:.1f}" fill="{QUIET}"'
        f' text-anchor="end">{share:.0%}</text>'
        for share in (0, 0.25, 0.5, 0.75, 1)
    ]
    parts += [
        f'<text x="{x(at_s):.1f}" y="{HEIGHT - BOTTOM + 20}" fill="{QUIET}"'
        f' text-anchor="middle">{at_s}</text>'
        for at_s in range(0, int(end_s) + 1, step_s)
    ]
    parts.append(
        f'<text x="{LEFT}" y="{HEIGHT - 12}" fill="{QUIET}">seconds; share of the budget that is'
        f" spent, lengths of answers: {name}</text>"
    )
    for label, ran in runs.items():
        colour, width, dashes = STYLES[label]
        points = [(x(0), y(0))]
        for at_ms, spent in ran.spent:
            if at_ms <= 1000 * end_s:
                point = (x(at_ms / 1000), y(spent / limit))
                if point[0] - points[-1][0] > 0.7 or at_ms == ran.spent[-1][0]:
                    points.append(point)
        line = " ".join(f"{left:.1f},{top:.1f}" for left, top in points)
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="{width}"'
            f' stroke-linejoin="round" stroke-dasharray="{dashes}"/>'
        )
    for row, (label, ran) in enumerate(runs.items()):
        colour, width, dashes = STYLES[label]
        at_s, top = ran.at_95_ms / 1000, y(0.42) + 26 * row
        parts.append(
            f'<circle cx="{x(at_s):.1f}" cy="{y(0.95):.1f}" r="4" fill="{colour}"'
            f' stroke="{SURFACE}" stroke-width="2"/>'
            f'<line x1="{KEY}" x2="{KEY + 26}" y1="{top:.1f}" y2="{top:.1f}" stroke="{colour}"'
            f' stroke-width="{width}" stroke-dasharray="{dashes}"/>'
            f'<text x="{KEY + 36}" y="{top + 4:.1f}" fill="{INK}">{label}: 95 % after'
            f" {at_s:.0f} s</text>"
        )
    return "\n".join((*parts, "</svg>"))


if __name__ == "__main__":
    main()
