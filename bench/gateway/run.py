"""Measures the gateway against what peers do on a machine like this one, and prints a Markdown table.

    python bench/gateway/run.py                       # all lines, about ten minutes on two cores
    python bench/gateway/run.py --quick               # less of everything: whether it works, not how fast it is
    python bench/gateway/run.py --only sustained --only streams   # single lines

Load generator, stub engine and gateway share the machine's cores, and so they did when the peers were measured: vLLM
production-stack's router (one Python process, no retrieval) and KAITO's RAG engine, both as their projects ship them. Lines with
retrieval run the real indexer, vector store and embedding model (MiniLM); only the engine is a stub, whose timing is known.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
import forwarding
import load
import searching
from machine import Quiet, machine
from measuring import Bench, Row, note

LINES: dict[str, Callable[[Bench], Row]] = {
    "added-ttft": forwarding.added_ttft,
    "sustained": forwarding.sustained,
    "streams": forwarding.streams,
    "dead-engine": forwarding.dead_engine,
    "hanging-engine": forwarding.hanging_engine,
    "retrieve": searching.retrieve,
    "chat-added": searching.chat_added,
    "chat-burst": searching.chat_burst,
    "while-indexing": searching.while_indexing,
    "stream-with-retrieval": searching.stream_with_retrieval,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=LINES, help="this line alone; repeatable")
    parser.add_argument("--quick", action="store_true", help="less of everything")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the processes are ended then, too
    load.more_files()
    rows: list[Row] = []
    shares: list[float] = []
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as folder, ExitStack() as processes:
        bench = Bench(Path(folder), processes, quick=arguments.quick)
        for name in arguments.only or LINES:
            note(name)
            quiet = Quiet()
            rows.append(LINES[name](bench))
            shares.append(quiet.others())
            note(f"  {rows[-1].ours}; others took {shares[-1]:.0%} of the machine")
    print(f"Measured on {machine()}; other processes took {min(shares):.0%} to {max(shares):.0%} of the machine.\n")
    print("| | vLLM production-stack's router | KAITO's RAG engine | aim | ours | ahead |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        print(row.markdown())
    return 0 if all(row.good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
