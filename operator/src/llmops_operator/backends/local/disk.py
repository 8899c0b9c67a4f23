"""Whether there is room left where everything is kept."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

ROOM_FOR_ANYTHING = 1 << 20
"""With fewer bytes free a disk counts as full."""

FREE_SOME = "no space left on the disk; free some, it goes on by itself"


def is_full(folder: Path) -> bool:
    """Whether the disk of a folder is as good as full."""
    return shutil.disk_usage(folder).free < ROOM_FOR_ANYTHING


def says_full(error: BaseException) -> bool:
    """Whether an error is that of a full disk, or of a quota that is used up."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
