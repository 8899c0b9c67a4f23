"""Which place a command line is about: the options say it, else what is there."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path

from llmops_operator.cli.faults import CommandError
from llmops_operator.cli.places import Place

HOME = Path(".llmops")


class Where:
    """The options that every command has. `asked` is the namespace as typed, None when it was not.

    Without --home, --context and --kubeconfig it is the home in this folder if there is one, else the cluster of the kubeconfig's
    current context if there is one, else the home that will be made here.
    """

    def __init__(
        self,
        closing: ExitStack,
        home: Path | None,
        asked: str | None,
        context: str | None,
        kubeconfig: Path | None,
        *,
        plugin: bool,
        warn: Callable[[str], None],
    ) -> None:
        self.asked, self._context, self._kubeconfig, self._warn = asked, context, kubeconfig, warn
        self._closing = closing
        self._in_cluster = bool(context or kubeconfig) or (plugin and home is None)
        if home is not None and self._in_cluster:
            raise CommandError(
                "--home is a folder of this machine, --context and --kubeconfig are a cluster: leave out one"
            )
        self._open = home is None and not self._in_cluster and not HOME.is_dir()
        self._named = home is not None
        self._home = (home or HOME).expanduser()

    @cached_property
    def place(self) -> Place:
        """Where to look. Raises `CommandError`."""
        if self._in_cluster or self._current():
            return self._cluster()
        from llmops_operator.cli.laptop import Laptop

        return Laptop(self._home)

    @property
    def namespace(self) -> str:
        """The namespace that is meant."""
        return self.asked or self.place.namespace

    def for_a_cluster(self) -> Place:
        """Where files go that a cluster is to read: not to what happens to run on this machine, unless --home says so."""
        if self._named or os.environ.get("MLFLOW_TRACKING_URI"):
            from llmops_operator.cli.laptop import Laptop

            return Laptop(self._home)
        return self._cluster()

    def own_home(self, instead: str | None = None) -> Path:
        """The folder of this machine, for what is done only here. Raises `CommandError` in a cluster.

        What only a laptop has (`instead` is None) is about this machine unless a cluster is named; else `instead` is the command
        for a cluster.
        """
        if self._in_cluster:
            raise CommandError(
                "this is for this machine; in a cluster the operator does it: leave out --context and --kubeconfig"
                if instead is None
                else f"in a cluster kubectl does it: {instead} (llmops push, first, where manifests say file://)"
            )
        if instead is not None and (current := self._current()):
            raise CommandError(
                f'there is no {HOME} here, and the kubeconfig has the context "{current}". '
                f"For this machine write --home {HOME}; for the cluster: {instead}"
            )
        return self._home

    def _cluster(self) -> Place:
        from llmops_operator.cli.cluster import InCluster

        made = InCluster(self._kubeconfig, self._context)
        self._closing.callback(made.close)
        return made

    def _current(self) -> str | None:
        """The cluster that is meant because nothing says otherwise."""
        if not self._open:
            return None
        from llmops_operator.backends.kubernetes.access import current_context, kubeconfig_files

        current = current_context(files) if (files := kubeconfig_files()) else None
        if current:
            self._warn(f'note: context "{current}" of the kubeconfig, because there is no {HOME} here')
        return current
