"""Builds the vector index of a copy of a shard, in a process of its own.

Edge holds Python's interpreter lock for the whole of `optimize` (seconds to minutes), which would stop every collection and
`/healthz` with it. So the store copies the shard, has this program optimize the copy, and swaps it in.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from pathlib import Path

import orjson
import qdrant_edge as edge

from .schema import CollectionSchema, edge_config

_TIMEOUT_S = 3600.0
_PR_SET_PDEATHSIG = 1


async def optimize_copy(shard: Path, description: Path) -> None:
    """Optimize the shard in the folder `shard` of the collection described by the file `description`.

    Raises RuntimeError with the program's last words when it fails; a cancelled call ends the program.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, str(shard), str(description), stderr=asyncio.subprocess.PIPE
    )
    try:
        _, words = await asyncio.wait_for(process.communicate(), _TIMEOUT_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise RuntimeError(f"optimizer ended with {process.returncode}: {words.decode(errors='replace')[-2000:]}")


def _main(shard: Path, description: Path) -> None:
    if sys.platform == "linux":  # an orphan would go on for minutes on a copy that nobody waits for
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.nice(10)
    schema = CollectionSchema.model_validate(orjson.loads(description.read_bytes())["schema"])
    opened = edge.EdgeShard.load(str(shard), edge_config(schema))
    opened.optimize()
    opened.close()


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]))
