"""`python -m llmops_services.indexing CONFIG.json`."""

from __future__ import annotations

from llmops_services.indexing.program import main
from llmops_services.program import run_program

if __name__ == "__main__":
    run_program(main)
