"""Builds the programs of a cluster from their Go modules, into a folder that outlives the checkout's clusters.

Kubernetes publishes no binaries where a machine may reach nothing but package indexes; its modules are everywhere. Cold, on two
cores, all of it takes ten to twenty-five minutes; Go's build cache makes the next time a matter of seconds.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

CHECKOUT = Path(__file__).parents[3]
KUBERNETES_VERSION = "v1.36.3"
_VERSION_PACKAGE = "k8s.io/component-base/version"


@dataclass(frozen=True)
class Module:
    """A Go module, and the commands in it that are built.

    Modules of one `workspace` are built with the same versions of what they require, which is then compiled once.
    """

    name: str
    path: str
    version: str
    workspace: str
    commands: tuple[str, ...] = ()  # folders in the module, "" for its root
    source: str = ""  # a command of our own made of the module's packages, in place of these
    variables: Mapping[str, str] = field(default_factory=dict)  # set by the linker

    def programs(self) -> list[str]:
        """The names of what is built."""
        return [Path(package).name for package in self.packages()]

    def packages(self) -> list[str]:
        """The import paths of the commands."""
        if self.source:
            return [f"./{self.name}"]
        return [f"{self.path}/{command}".rstrip("/") for command in self.commands]


KUBERNETES = Module(
    "kubernetes",
    "k8s.io/kubernetes",
    KUBERNETES_VERSION,
    "kubernetes",
    tuple(
        f"cmd/{program}"
        for program in (
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
            "kubelet",
            "kube-proxy",
            "kubectl",
        )
    ),
    variables={
        f"{_VERSION_PACKAGE}.gitVersion": KUBERNETES_VERSION,
        f"{_VERSION_PACKAGE}.gitMajor": "1",
        f"{_VERSION_PACKAGE}.gitMinor": KUBERNETES_VERSION.split(".")[1],
    },
)
# v1.5.0 is not in Go's checksum database.
KUBERAY = Module("kuberay", "github.com/ray-project/kuberay/ray-operator", "v1.4.2", "kuberay", ("",))
# Without the plugins that nobody here uses, half of what would be compiled: the clients of all clouds.
_PLUGINS = ("cache", "errors", "forward", "kubernetes", "ready", "reload")
_COREDNS = "github.com/coredns/coredns"
COREDNS = Module(
    "coredns",
    _COREDNS,
    "v1.14.6",
    "kubernetes",
    source="\n".join(
        (
            "package main",
            f'import "{_COREDNS}/coremain"',
            *(f'import _ "{_COREDNS}/plugin/{plugin}"' for plugin in _PLUGINS),
            "func main() { coremain.Run() }\n",
        )
    ),
)
HELM = Module("helm", "helm.sh/helm/v4", "v4.2.4", "kubernetes", ("cmd/helm",))
# CoreDNS and Helm in the last versions that ask for no newer packages of Kubernetes than it has itself: a quarter less to compile.
ALL = (KUBERNETES, COREDNS, HELM, KUBERAY)


def cache() -> Path:
    """Where binaries lie: $LLMOPS_CLUSTER_CACHE, else .cluster in the checkout."""
    return Path(os.environ.get("LLMOPS_CLUSTER_CACHE") or CHECKOUT / ".cluster").resolve()


def binary(program: str) -> Path:
    """The file of a program that `build` has made."""
    return cache() / "bin" / program


def build(*modules: Module) -> None:
    """Build what is missing, or was built from another version, of these modules. One process builds, others wait for it."""
    if all(map(_is_built, modules)):
        return  # whoever builds others is not waited for
    cache().mkdir(parents=True, exist_ok=True)
    with FileLock(cache() / "build.lock"):
        for module in modules:
            if not _is_built(module):
                _build(module)


def module_folder(module: Module) -> Path:
    """The folder of the module's source, downloaded if it is not there."""
    with tempfile.TemporaryDirectory() as outside:
        answer = _go(["mod", "download", "-json", f"{module.path}@{module.version}"], Path(outside))
    return Path(json.loads(answer)["Dir"])


def _is_built(module: Module) -> bool:
    files = [binary(program) for program in module.programs()]
    if not all(file.exists() for file in files):
        return False
    if not shutil.which("go"):
        return True
    # The binary itself says of which version it is: no stamp can lie.
    said = subprocess.run(["go", "version", "-m", *files], capture_output=True, text=True, check=True).stdout
    return said.count(f"\t{module.path}\t{module.version}\t") == len(files)


def _build(module: Module) -> None:
    if not shutil.which("go"):
        raise RuntimeError(
            f"{module.name} {module.version} has to be built, and there is no Go on this machine: install Go 1.24 or newer."
        )
    started = time.monotonic()
    folder = _workspace(module.workspace)
    (cache() / "bin").mkdir(exist_ok=True)
    flags = " ".join(["-s", "-w", *(f"-X {name}={value}" for name, value in module.variables.items())])
    _go_build(module, ["-ldflags", flags, "-o", f"{cache()}/bin/", *module.packages()], folder)
    print(f"{module.name} {module.version}: built in {time.monotonic() - started:.0f} s", flush=True)


def _workspace(name: str) -> Path:
    """A Go module that requires all modules of a workspace."""
    modules = [module for module in ALL if module.workspace == name]
    folder = cache() / "gomod" / "-".join(f"{module.name}-{module.version}" for module in modules)
    if folder.exists():
        return folder
    print(f"{folder.name}: fetching its modules", flush=True)
    aside = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    _go(["mod", "init", f"llmops.test/{name}"], aside)
    for module in modules:
        _replace_staging_modules(module, aside)
        if module.source:
            (aside / module.name).mkdir()
            (aside / module.name / "main.go").write_text(module.source)
            _go(["get", f"{module.path}@{module.version}"], aside)
        else:
            _go(["get", "-tool", *(f"{package}@{module.version}" for package in module.packages())], aside)
    aside.rename(folder)
    return folder


def _replace_staging_modules(module: Module, folder: Path) -> None:
    """Name published modules where k8s.io/kubernetes names folders of its own repository, which no other module can do."""
    if module is not KUBERNETES:
        return
    answer = json.loads(_go(["mod", "download", "-json", f"{module.path}@{module.version}"], folder))
    described = json.loads(_go(["mod", "edit", "-json", answer["GoMod"]], folder))
    version = "v0." + module.version.removeprefix("v1.")
    for replacement in described["Replace"]:
        name = replacement["Old"]["Path"]
        if name.startswith("k8s.io/"):
            _go(["mod", "edit", f"-replace={name}={name}@{version}"], folder)


def _environment() -> dict[str, str]:
    return {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=mod -buildvcs=false"}


def _go(arguments: list[str], folder: Path) -> str:
    done = subprocess.run(
        ["go", *arguments], cwd=folder, env=_environment(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"go {' '.join(arguments)} failed:\n{done.stdout[-1000:]}{done.stderr[-3000:]}")
    return done.stdout


def _go_build(module: Module, arguments: list[str], folder: Path) -> None:
    """Run `go build`, and say every quarter of a minute how far it is."""
    total = len(_go(["list", "-deps", *module.packages()], folder).splitlines())
    compiled, said, lines = 0, time.monotonic(), []
    with subprocess.Popen(
        ["go", "build", "-v", *arguments], cwd=folder, env=_environment(), stderr=subprocess.PIPE, text=True
    ) as building:
        assert building.stderr is not None
        for line in building.stderr:
            lines.append(line)
            compiled += 1
            if time.monotonic() - said > 15:
                said = time.monotonic()
                print(f"{module.name} {module.version}: {compiled} of {total} packages compiled", flush=True)
    if building.returncode:
        raise RuntimeError(f"go build of {module.name} failed:\n{''.join(lines[-40:])}")
