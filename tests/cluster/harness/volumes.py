"""PersistentVolumes without a provisioner: a pool of folders of the node, and the node's own Python for heavy pods."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from harness.binaries import CHECKOUT
from harness.kubectl import Kubectl, Manifest

POOL_SIZE = 60
_POOL = {"llmops-test": "pool"}
_TOOLCHAIN = "llmops-test-toolchain"  # a label; its value is the namespace that mounts it


def make_pool(kubectl: Kubectl, folder: Path) -> None:
    """Volumes that satisfy any claim without a storage class, of any access mode; anybody may write into them.

    The node does not apply fsGroup to a hostPath, so the folders are open to all users.
    """
    names = [f"pool-{number:02d}" for number in range(POOL_SIZE)]
    for name in names:
        _empty(folder / name)
    kubectl.apply(*(_volume(name, folder / name, labels=_POOL) for name in names))


def recycle(kubectl: Kubectl, namespace: str) -> None:
    """Make volumes whose claims are gone usable again, and remove those that showed the toolchain to this namespace."""
    released = [
        volume
        for volume in kubectl.get("pv", "-l", "llmops-test=pool")["items"]
        if volume["status"]["phase"] in ("Released", "Failed")
    ]
    if released:
        kubectl("delete", "pv", "--wait", *(volume["metadata"]["name"] for volume in released))
        for volume in released:
            _empty(Path(volume["spec"]["hostPath"]["path"]))
        kubectl.apply(
            *(_volume(v["metadata"]["name"], Path(v["spec"]["hostPath"]["path"]), labels=_POOL) for v in released)
        )
    kubectl("delete", "pv", "-l", f"{_TOOLCHAIN}={namespace}", "--wait=false")


def mount_toolchain(kubectl: Kubectl, namespace: str) -> dict[str, Any]:
    """Show this machine's /usr, Python and checkout, read-only, to the namespace's pods.

    The answer is a `podTemplate` fragment (volumes, volumeMounts, env) for pods of the toolchain image: with it,
    `toolchain_python()` is a Python that has torch, vLLM, Ray and this checkout. Call it once per namespace.
    """
    folders = {"usr": Path("/usr"), "python": Path(sys.base_prefix), "checkout": CHECKOUT}
    if folders["python"].is_relative_to("/usr"):
        del folders["python"]
    claims: list[Manifest] = []
    volumes = []
    for name, folder in folders.items():
        volume, claim = f"toolchain-{namespace}-{name}", f"toolchain-{name}"
        reference = {"namespace": namespace, "name": claim}
        volumes.append(_volume(volume, folder, labels={_TOOLCHAIN: namespace}, claim=reference))
        claims.append(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": reference,
                "spec": {
                    "accessModes": ["ReadOnlyMany"],
                    "storageClassName": "",
                    "volumeName": volume,
                    "resources": {"requests": {"storage": "1Gi"}},
                },
            }
        )
    kubectl.apply(*volumes, *claims)
    return {
        "volumes": [
            {"name": f"toolchain-{name}", "persistentVolumeClaim": {"claimName": f"toolchain-{name}", "readOnly": True}}
            for name in folders
        ],
        "volumeMounts": [
            {"name": f"toolchain-{name}", "mountPath": str(folder), "readOnly": True}
            for name, folder in folders.items()
        ],
        "env": [
            {"name": "PATH", "value": f"{CHECKOUT}/.venv/bin:/usr/local/bin:/usr/bin:/bin"},
            {"name": "HOME", "value": "/tmp"},
            {"name": "PYTHONDONTWRITEBYTECODE", "value": "1"},
            {"name": "PYTHONUNBUFFERED", "value": "1"},
        ],
    }


def toolchain_python() -> str:
    """The path of the Python that `mount_toolchain` shows to pods."""
    return f"{CHECKOUT}/.venv/bin/python"


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    folder.chmod(0o777)


def _volume(name: str, folder: Path, *, labels: dict[str, str], claim: dict[str, str] | None = None) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "capacity": {"storage": "100Gi"},
        "accessModes": ["ReadWriteOnce", "ReadWriteMany", "ReadOnlyMany"],
        "persistentVolumeReclaimPolicy": "Retain",
        "hostPath": {"path": str(folder), "type": "Directory"},
    }
    if claim:
        spec["claimRef"] = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", **claim}
    return {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name, "labels": labels}, "spec": spec}
