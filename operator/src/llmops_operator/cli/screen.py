"""How work that goes on is shown: a live table on a terminal, a line for each change anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from llmops_operator.cli.kinds import BY_KIND
from llmops_operator.cli.standing import Standing, State, standing
from llmops_operator.cli.tables import dig, phase

PERCENT_A_LINE = 10
"""Without a terminal a line is written whenever so much more is done."""


def make_console() -> Console:
    """The console for stdout: colours and control codes only on a terminal, whatever the environment says."""
    return Console() if sys.stdout.isatty() else Console(force_terminal=False, no_color=True, width=10_000)


@dataclass(frozen=True)
class Row:
    """An object, what it is doing, how far that is (0 to 100) and how many seconds it may still take."""

    name: str
    state: State
    doing: str
    percent: int | None = None
    seconds_left: int | None = None


def row_of(item: Mapping[str, Any], where: Standing | None = None) -> Row:
    """An object as a row; `where` is where it stands, if that has been found out already."""
    where = where or standing(item)
    name = f"{BY_KIND[item['kind']].singular}/{item['metadata']['name']}"
    progress = dig(item, "status", "progress")
    if where.state is State.DONE:
        return Row(name, where.state, where.sentence, 100)
    if where.state is State.FAILED or not progress:
        return Row(name, where.state, where.sentence or _waiting(item))
    doing = progress.get("doing") or phase(item).lower()
    if progress.get("total"):
        doing += f", {progress.get('step', 0)} of {progress['total']}"
    if progress.get("loss"):
        doing += f", loss {progress['loss']}"
    return Row(name, where.state, doing, progress.get("percent", 0), progress.get("secondsLeft"))


def _waiting(item: Mapping[str, Any]) -> str:
    done = BY_KIND[item["kind"]].done
    found = next((c for c in dig(item, "status", "conditions") or () if c["type"] == done), None)
    return (found and (found.get("message") or found.get("reason"))) or "waits for the controller"


def length(seconds: int | None) -> str:
    """A length of time as people say it: 45 s, 3 min 20 s, 2 h 5 min."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds} s"
    minutes, rest = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


class Screen(Protocol):
    """Somewhere to show rows that change, and notes that stay."""

    def show(self, rows: Sequence[Row]) -> None:
        """Show how things are now."""

    def note(self, text: str) -> None:
        """Say something once."""

    def close(self) -> None:
        """Leave what is shown as it is."""


class LineScreen:
    """A line for each object whose work, state or tenth of the way has changed."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[Any, ...]] = {}

    def show(self, rows: Sequence[Row]) -> None:
        """Print what has changed."""
        for row in rows:
            tenth = None if row.percent is None else row.percent // PERCENT_A_LINE
            what = row.doing.partition(",")[0] if tenth is not None else row.doing
            if self._said.get(row.name) != (row.state, what, tenth):
                self._said[row.name] = (row.state, what, tenth)
                self.note(f"{row.name}: {_sentence(row)}")

    def note(self, text: str) -> None:
        """Print a line with the time of day."""
        print(f"{datetime.now():%H:%M:%S}  {' '.join(text.split())}", flush=True)

    def close(self) -> None:
        """Lines stay anyway."""


def _sentence(row: Row) -> str:
    if row.state is State.DONE:
        return f"done. {row.doing}"
    if row.state is State.FAILED:
        return f"failed: {row.doing}"
    percent = "" if row.percent is None else f", {row.percent} %"
    left = "" if row.seconds_left is None else f", {length(row.seconds_left)} left"
    return f"{row.doing}{percent}{left}"


class TableScreen:
    """A table that is drawn anew in its place."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, refresh_per_second=4)
        self._live.start()

    def show(self, rows: Sequence[Row]) -> None:
        """Draw the rows."""
        self._live.update(_table(rows))

    def note(self, text: str) -> None:
        """Print above the table."""
        self._live.console.print(Text(text))

    def close(self) -> None:
        """Draw for the last time."""
        self._live.stop()


def _table(rows: Sequence[Row]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("OBJECT", "DOING", "PROGRESS", "", "LEFT"):
        table.add_column(heading, no_wrap=heading != "DOING", justify="right" if heading in ("", "LEFT") else "left")
    for row in rows:
        style = {State.DONE: "green", State.FAILED: "red"}.get(row.state, "")
        bar = ProgressBar(100, row.percent, width=16) if row.percent is not None else ""
        percent = "" if row.percent is None else f"{row.percent} %"
        table.add_row(row.name, Text(row.doing, style=style), bar, percent, length(row.seconds_left))
    return table


def make_screen(console: Console) -> Screen:
    """The screen that suits where the output goes."""
    return TableScreen(console) if console.is_terminal and not console.is_dumb_terminal else LineScreen()
