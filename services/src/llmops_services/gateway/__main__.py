"""Run as `python -m llmops_services.gateway CONFIG.json`."""

from __future__ import annotations

from llmops_services.gateway.server import serve
from llmops_services.program import run_program


def main(path: str) -> None:
    """Serve until SIGTERM."""
    serve(path)


if __name__ == "__main__":
    run_program(main)
