"""YAML as Kubernetes reads and writes it: a date is a string, and `2e-4` is a number, which it is not for PyYAML."""

from __future__ import annotations

import re

import yaml

FLOAT = "tag:yaml.org,2002:float"
NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")


class Loader(yaml.SafeLoader):
    """Reads what kubectl reads, as kubectl reads it."""


class Dumper(yaml.SafeDumper):
    """Quotes every string that kubectl would take for a number."""

    def ignore_aliases(self, data: object) -> bool:
        """The same value twice is written twice."""
        return True


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for kind in (Loader, Dumper):
    kind.add_implicit_resolver(FLOAT, NUMBER, list("-+.0123456789"))
