"""Turns what a terminal shows into an SVG picture: `tmux capture-pane -e -p | python docs/pictures/from_terminal.py TITLE > run.svg`."""

import sys

from rich.console import Console
from rich.text import Text

# rich's own form of the picture loads a font from another server; this one names fonts that readers have.
FORM = """\
<svg class="rich-terminal" xml:space="preserve" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: {char_height}px; line-height: {line_height}px; }}
.{unique_id}-title {{ font-size: 18px; font-family: sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" /></clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""

shown = [Text.from_ansi(line) for line in sys.stdin.read().rstrip("\n").split("\n")]
with open("/dev/null", "w") as nowhere:
    console = Console(record=True, width=max(line.cell_len for line in shown) + 1, file=nowhere, force_terminal=True)
    for line in shown:
        console.print(line, soft_wrap=True)
print(console.export_svg(title=sys.argv[1], code_format=FORM, unique_id="terminal"))
