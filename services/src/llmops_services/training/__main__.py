"""`python -m llmops_services.training CONFIG.json`."""

from llmops_services.program import run_program
from llmops_services.training.job import main

if __name__ == "__main__":
    run_program(main)
