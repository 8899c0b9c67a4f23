"""Container images without a registry: a root file system packed into an archive that containerd, Docker and kind load."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from harness import binaries, debian

PAUSE = "localhost/llmops-test/pause:1"
COREDNS = f"localhost/llmops-test/coredns:{binaries.COREDNS.version}"
KUBERAY = f"localhost/llmops-test/kuberay-operator:{binaries.KUBERAY.version}"
TOOLCHAIN = "localhost/llmops-test/toolchain:1"
# The user that pods under the restricted level run as.
USER = 10001


def archive(name: str) -> Path:
    """The archive of one of the images above, packed if it is not there."""
    fill, entrypoint = _CONTENTS[name]
    path = binaries.cache() / "images" / f"{name.rsplit('/', 1)[1].replace(':', '-')}.tar"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as root:
            fill(Path(root))
            pack(name, Path(root), path, entrypoint)
    return path


def pack(name: str, root: Path, path: Path, entrypoint: Sequence[str]) -> None:
    """Pack the folder `root` as the image `name` into the archive `path`, all files owned by root."""
    aside = path.with_suffix(".new")
    with tempfile.TemporaryFile() as layer:
        with tarfile.open(fileobj=layer, mode="w") as files:
            files.add(root, ".", filter=_owned_by_root)
        size = layer.tell()
        layer.seek(0)
        digest = hashlib.file_digest(layer, "sha256").hexdigest()
        settings = {"Entrypoint": list(entrypoint), "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"], "WorkingDir": "/"}
        config = json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": settings,
                "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
            }
        ).encode()
        config_name = hashlib.sha256(config).hexdigest() + ".json"
        manifest = json.dumps([{"Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"]}]).encode()
        layer.seek(0)
        with tarfile.open(aside, "w") as whole:
            for member, data in ((config_name, config), ("manifest.json", manifest)):
                whole.addfile(_member(member, len(data)), io.BytesIO(data))
            whole.addfile(_member("layer.tar", size), layer)
    aside.rename(path)


def _member(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    return info


def _owned_by_root(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = "root"
    if info.name == ".":
        info.mode = 0o755
    return info


def _copy_binary(program: str) -> Callable[[Path], None]:
    def fill(root: Path) -> None:
        shutil.copy(binaries.binary(program), root / program)

    return fill


def _fill_pause(root: Path) -> None:
    debian.require({"busybox-static": "busybox"})
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, root / "sleep")


def _fill_toolchain(root: Path) -> None:
    """Nothing but what cannot be mounted: the links into /usr, and the machine's /etc as far as programs look into it."""
    for name in ("bin", "lib", "lib64", "sbin"):
        (root / name).symlink_to(f"usr/{name}")
    for name in ("usr", "proc", "sys", "dev", "run", "mnt", "home", "var"):
        (root / name).mkdir()
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    etc = root / "etc"
    etc.mkdir()
    (etc / "passwd").write_text(f"root:x:0:0::/:/bin/sh\nllmops:x:{USER}:{USER}::/tmp:/bin/sh\n")
    (etc / "group").write_text(f"root:x:0:\nllmops:x:{USER}:\n")
    (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n")
    for name in ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "ssl/certs/ca-certificates.crt"):
        source = Path("/etc") / name
        (etc / name).parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, etc / name, symlinks=True)
        elif source.exists():
            shutil.copy(source, etc / name)


_CONTENTS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    PAUSE: (_fill_pause, ["/sleep", "1000000000"]),
    COREDNS: (_copy_binary("coredns"), ["/coredns"]),
    KUBERAY: (_copy_binary("ray-operator"), ["/ray-operator"]),
    TOOLCHAIN: (_fill_toolchain, ["/bin/sh"]),
}
