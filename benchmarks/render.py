"""Renders the results of all benchmarks into docs/performance.md, with plots.

    python benchmarks/render.py

Each benchmark writes its results to docs/performance with --save, and says there how it measured.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from measuring import RESULTS

matplotlib.use("Agg")

PAGE = RESULTS.with_suffix(".md")
INTRODUCTION = """# Performance

What the benchmarks measured: generation, codecs and training steps against other libraries, and what stored tokens and
the start of a command take. Contenders take turns, so that a busy machine slows all of them. A ratio is the time of
another library divided by that of Partita, as the median over the turns: 2 means that Partita takes half of the time.
It can differ from the ratio of the times in a table, which are medians of their own. Times hold for the named machine
only. This page is written by `python benchmarks/render.py` from the files in `docs/performance`, which the scripts in
`benchmarks` write.
"""
UNITS = {"milliseconds": "ms", "gibibytes": "GiB", "mebibytes": "MiB"}


def title(heading: str) -> str:
    """Return a heading of a table for the name of a column."""
    return UNITS.get(heading, heading.replace("_", " "))


def cell(column: str, value: Any) -> str:
    """Return a number with three digits, or a share in percent."""
    if isinstance(value, float):
        if column.endswith("share"):
            return f"{value:.0%}"
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    if isinstance(value, int) and value >= 10000:
        return f"{value:,}"
    return "" if value is None else str(value)


def table(rows: list[dict[str, Any]]) -> str:
    """Return rows as a table, whose columns are the keys of all rows in the order of their first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    constant = [c for c in columns if len(rows) > 1 and len({str(row.get(c)) for row in rows}) == 1]
    columns = [c for c in columns if c not in constant]
    lines = ["| " + " | ".join(map(title, columns)) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell(c, row.get(c)) for c in columns) + " |" for row in rows]
    fixed = ", ".join(f"{title(c)} {cell(c, rows[0][c])}" for c in constant)
    return "\n".join(lines) + (f"\n\nIn all rows: {fixed}." if fixed else "")


def plot(path: Path, rows: list[dict[str, Any]], across: str, up: str, lines: str) -> None:
    """Draw one line per value of a column."""
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for name in dict.fromkeys(row[lines] for row in rows):
        own = [row for row in rows if row[lines] == name]
        axes.plot([row[across] for row in own], [row[up] for row in own], marker="o", label=str(name))
    axes.set(xlabel=title(across), ylabel=title(up), xlim=(0, None), ylim=(0, None))
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def results() -> list[tuple[Path, dict[str, Any]]]:
    """Return the results of all benchmarks, with their files."""
    return [(path, json.loads(path.read_text())) for path in sorted(RESULTS.glob("*.json"))]


def page() -> str:
    """Return the page."""
    parts = [INTRODUCTION]
    explained: set[str] = set()
    for path, result in results():
        heading, *about = result["about"].strip().split("\n\n")
        if heading not in explained:
            explained.add(heading)
            parts.append(f"## {heading.rstrip('.')}\n")
            parts += [f"{paragraph}\n" for paragraph in about if not paragraph.startswith("    ")]
        where = result["gpu"] or result["processor"]
        threads = f"{result['threads']} thread" + "s" * (result["threads"] > 1)
        facts = f"{where}, {threads}, torch {result['torch']}, commit {result['commit']}"
        if "bandwidth" in result:
            facts += f"; the memory reads {result['bandwidth'] / 1e9:.3g} GB/s"
        parts.append(f"    {result['command']}\n\nMeasured on {facts}.\n")
        parts.append(table(result["rows"]) + "\n")
        if "plot" in result:
            parts.append(f"![{heading}]({path.parent.name}/{path.stem}.png)\n")
    return "\n".join(parts)


def main() -> None:
    for path, result in results():
        if "plot" in result:
            plot(path.with_suffix(".png"), result["rows"], *result["plot"])
    PAGE.write_text(page())
    print(PAGE)


if __name__ == "__main__":
    main()
