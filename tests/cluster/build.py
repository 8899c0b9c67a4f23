"""Build the programs of the test cluster: python tests/cluster/build.py"""

from harness import binaries

if __name__ == "__main__":
    binaries.build(*binaries.ALL)
