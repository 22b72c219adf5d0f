"""The table (in a Markdown page) and the plot (SVG) of the study that methods_study.py makes."""

import math
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Group:
    """A method at a rank: its runs at the best rate, one for each seed."""

    name: str
    rank: int
    runs: list[dict]
    # Whether all rates have been tried at this rank.
    is_compared: bool
    milliseconds: float | None

    @property
    def accuracies(self) -> list[float]:
        """In per cent."""
        return [100 * run["accuracy"] for run in self.runs]


# Accuracies by rate, of each method and rank.
Tried = dict[tuple[str, int], dict[float, float]]


def write(page: Path, groups: list[Group], tried: Tried) -> None:
    """Puts the tables between the marks of a page and the plot beside it, and prints the tables."""
    text = page.read_text() if page.is_file() else ""
    for name, lines in (("table", table(groups)), ("rates", rates_table(tried))):
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            marks = f"{begin.strip()} and {end.strip()}"
            sys.exit(f"{page}: no lines {marks} for a table to go between")
        text = f"{before}{begin}\n{lines}\n{end}{after}"
        print(lines)
    page.write_text(text)
    page.with_name("methods.svg").write_text(plot(groups))


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table whose first two columns are a rank and a name, the others numbers."""
    lines = ["| " + " | ".join(cells) + " |" for cells in [head, *rows]]
    lines.insert(1, "| --- | --- |" + " ---: |" * (len(head) - 2))
    return "\n".join(lines) + "\n"


def table(groups: list[Group]) -> str:
    head = ["rank", "method", "rate", "seeds", "test accuracy", "trained", "ms a step", "file MB"]
    rows = []
    for group in groups:
        values = group.accuracies
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        run = group.runs[0]
        cells = [
            str(group.rank),
            group.name,
            f"{run['rate']:g}" + "*" * (not group.is_compared),
            str(len(values)),
            f"{statistics.fmean(values):.2f}{spread}",
            f"{run['trained']:,}",
            "" if group.milliseconds is None else f"{group.milliseconds:.0f}",
            f"{run['bytes'] / 1e6:.2f}",
        ]
        rows.append(cells)
    text = markdown(head, rows)
    if not all(group.is_compared for group in groups):
        text += "\n\\* not yet compared with the other rates at this rank\n"
    return text


def rates_table(tried: Tried) -> str:
    rates = sorted({rate for found in tried.values() for rate in found})
    head = ["rank", "method", *(f"{rate:g}" for rate in rates)]
    rows = [
        [str(rank), name, *(f"{100 * found[rate]:.2f}" if rate in found else "" for rate in rates)]
        for (name, rank), found in tried.items()
    ]
    return markdown(head, rows)


def plot(groups: list[Group]) -> str:
    """Accuracy against trained parameters, on a logarithmic axis; a point for each seed, a ring for the
    mean. What has learnt nothing is left to the table: beside it the others would look alike."""
    best = max(max(group.accuracies) for group in groups)
    groups = [group for group in groups if statistics.fmean(group.accuracies) > best / 2]
    width, height, left, right, top, bottom = 720, 420, 64, 190, 24, 52
    colours = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e"]
    counts = [group.runs[0]["trained"] for group in groups]
    values = [value for group in groups for value in group.accuracies]
    low, high = math.floor(math.log10(min(counts))), math.ceil(math.log10(max(counts)))
    high = max(high, low + 1)
    floor, ceiling = math.floor(min(values) * 2) / 2, math.ceil(max(values) * 2) / 2
    ceiling = max(ceiling, floor + 0.5)

    def x(count: float) -> float:
        return left + (math.log10(count) - low) / (high - low) * (width - left - right)

    def y(value: float) -> float:
        return top + (ceiling - value) / (ceiling - floor) * (height - top - bottom)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for power in range(low, high + 1):
        at = x(10**power)
        parts.append(
            f'<line x1="{at:.1f}" y1="{top}" x2="{at:.1f}" y2="{height - bottom}" stroke="#ddd"/>'
            f'<text x="{at:.1f}" y="{height - bottom + 18}" text-anchor="middle">{10**power:,}</text>'
        )
    steps = max(1, round((ceiling - floor) / 6 * 2)) / 2
    value = floor
    while value <= ceiling + 1e-9:
        parts.append(
            f'<line x1="{left}" y1="{y(value):.1f}" x2="{width - right}" y2="{y(value):.1f}" '
            f'stroke="#ddd"/><text x="{left - 8}" y="{y(value) + 4:.1f}" '
            f'text-anchor="end">{value:.1f}</text>'
        )
        value += steps
    parts.append(
        f'<text x="{(left + width - right) / 2}" y="{height - 10}" text-anchor="middle">'
        "trained parameters without the head</text>"
        f'<text transform="translate(16 {(top + height - bottom) / 2}) rotate(-90)" '
        'text-anchor="middle">test accuracy, %</text>'
    )
    names = list(dict.fromkeys(group.name for group in groups))
    # Side by side where the counts are about the same.
    shifts = (-6, 6, -6, 6, 0)
    rings = []
    for group in groups:
        shift = shifts[names.index(group.name)]
        mean = y(statistics.fmean(group.accuracies))
        rings.append((x(group.runs[0]["trained"]) + shift, mean))
    for group, (at, mean) in zip(groups, rings):
        place = names.index(group.name)
        colour = colours[place]
        # Names are away from each other: to the right, or to the left and below a ring that is there.
        across, down, anchor = 9, -7, "start"
        if shifts[place] < 0:
            is_crowded = any(0 < at - a < 45 and abs(mean - b) < 16 for a, b in rings)
            across, down, anchor = -10, 22 if is_crowded else 4, "end"
        for accuracy in group.accuracies:
            parts.append(
                f'<circle cx="{at:.1f}" cy="{y(accuracy):.1f}" r="2.5" fill="{colour}"/>'
            )
        parts.append(
            f'<circle cx="{at:.1f}" cy="{mean:.1f}" r="6" fill="none" stroke="{colour}" '
            f'stroke-width="2"/><text x="{at + across:.1f}" y="{mean + down:.1f}" '
            f'text-anchor="{anchor}" fill="{colour}">'
            f"r {group.rank}</text>"
        )
    for place, name in enumerate(names):
        parts.append(
            f'<circle cx="{width - right + 24}" cy="{top + 12 + 20 * place}" r="5" '
            f'fill="{colours[place]}"/><text x="{width - right + 36}" '
            f'y="{top + 16 + 20 * place}">{name}</text>'
        )
    return "\n".join(parts) + "\n</svg>\n"
