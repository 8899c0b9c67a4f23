"""What vLLM prints: passed on, and read for what it ended by."""

from __future__ import annotations

import asyncio
import re
import sys
from collections import deque

_BEFORE = re.compile(
    r"(?:\x1b\[[0-9;]*m)*(?:\([\w-]+ pid=\d+\)(?:\x1b\[[0-9;]*m)* )?(?:[A-Z]+ \d\d-\d\d \d\d:\d\d:\d\d \[\S+\] )?"
)
"""What vLLM puts before a line: the process, and for its log the level, time and place."""
_ENDED_BY = re.compile(r"(?:\w+\.)*\w*(?:Error|Exception): .|\S+: error: .")
"""The last line of a traceback, or argparse's. `raise X(...)` is not one."""
_GOES_ON = re.compile(r"validation errors? for \w+$")
"""pydantic tells what is wrong on the line after."""
_KEPT_LINES = 600
"""A start that fails prints some 200 lines, most of them tracebacks of processes that failed for want of the first one."""
_LONGEST = 400


class Output:
    """The newest lines of a stream that goes on to standard error."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)

    async def pass_on(self, stream: asyncio.StreamReader) -> None:
        """Returns at the end of the stream. A line that is longer than the stream's limit is left out."""
        while True:
            try:
                line = await stream.readline()
            except ValueError:
                continue
            if not line:
                return
            sys.stderr.buffer.write(line)
            sys.stderr.buffer.flush()
            self._lines.append(_BEFORE.sub("", line.decode(errors="replace"), count=1).rstrip())

    def cause(self) -> str | None:
        """The first exception among the newest lines, as its traceback ends; those after it follow from it. None if there is none."""
        lines = list(self._lines)
        for line, after in zip(lines, [*lines[1:], ""], strict=True):
            if _ENDED_BY.match(line):
                return (f"{line}: {after.strip()}" if _GOES_ON.search(line) else line)[:_LONGEST]
        return None
