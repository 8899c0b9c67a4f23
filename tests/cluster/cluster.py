"""A Kubernetes on this machine, by hand: python tests/cluster/cluster.py build|up|down (up and down as root)."""

import argparse

from harness import binaries
from harness.single_node import SingleNode


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description="A Kubernetes on this machine.")
    parser.add_argument(
        "what",
        choices=["build", "up", "down"],
        help="build the programs; start a cluster, print its kubeconfig; end it",
    )
    what = parser.parse_args().what
    node = SingleNode()
    if what == "build":
        binaries.build(*binaries.ALL)
    elif what == "down":
        node.down()
    else:
        if not node.is_kept():
            node.up(kept=True)
        print(node.kubeconfig)


if __name__ == "__main__":
    main()
