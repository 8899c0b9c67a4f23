"""The `llmops` command, with kubectl's verbs, flags and habits.

`app` declares commands and options; each command's work is a module of its own, imported when it is called, because `llmops get`
has to answer at once. Commands read objects from the home's file (`reading`) and write them through the local backend's store;
they need no daemon. Nothing here trains, embeds or answers.
"""

from __future__ import annotations


def main() -> int:
    """Run the command line in `sys.argv`; the exit code: 0, 1 for what could not be done, 2 for what cannot be asked."""
    from llmops_operator.cli.app import execute

    return execute()


def kubectl_plugin() -> int:
    """The same as `kubectl llmops …`."""
    from llmops_operator.cli.app import execute

    return execute(plugin=True)
