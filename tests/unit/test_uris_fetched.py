"""What is fetched from real servers on this machine: a web server, a git repository over HTTP, and MLflow's artifact paths."""

from __future__ import annotations

import hashlib
import http.server
import io
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llmops_api.artifacts import SERVER_PATH, Tree, TreeFile, artifact_uri, blob_path, tree_path
from llmops_api.programs import token_variable
from llmops_services.program import TryAgain, UserError
from llmops_services.uris import local_path


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files of `root` with an ETag and ranges; `cut` breaks the next answers off after so many bytes; `key` is asked for."""

    root: Path
    asked: list[tuple[str, int]]
    cut: list[int]
    key: str | None

    def do_GET(self) -> None:
        path = self.root / self.path.partition("?")[0].lstrip("/")
        if self.key and self.headers["Authorization"] != self.key:
            return self._end(401)
        if not path.is_file():
            return self._end(404)
        data = path.read_bytes()
        etag = f'"{hashlib.sha256(data).hexdigest()[:8]}"'
        if self.headers["If-None-Match"] == etag:
            return self._end(304)
        begin = 0
        if self.headers["Range"] and self.headers["If-Range"] == etag:
            begin = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        self._note(206 if begin else 200)
        self.send_response(206 if begin else 200)
        self.send_header("ETag", etag)
        self.send_header("Content-Length", str(len(data) - begin))
        self.end_headers()
        body = data[begin:]
        if self.cut:
            self.wfile.write(body[: self.cut.pop(0)])
            self.close_connection = True
            return None
        self.wfile.write(body)
        return None

    def _note(self, status: int) -> None:
        self.asked.append((self.path, status))

    def _end(self, status: int) -> None:
        self._note(status)
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


class Site:
    def __init__(self, root: Path) -> None:
        self.root, self.asked, self.cut = root, [], []
        root.mkdir()
        self.handler = type("Of", (Handler,), {"root": root, "asked": self.asked, "cut": self.cut, "key": None})
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self.handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()

    asked: list[tuple[str, int]]
    cut: list[int]

    def put(self, name: str, data: bytes) -> str:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_bytes(data)
        return f"{self.url}/{name}"

    def statuses(self) -> list[int]:
        return [status for _, status in self.asked]

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join(10)
        self.server.server_close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path / "site")
    yield made
    made.stop()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMOPS_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def packed(name: str, files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    if name.endswith(".zip"):
        with zipfile.ZipFile(buffer, "w") as zipped:
            for path, data in files.items():
                zipped.writestr(path, data)
    else:
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            for path, data in files.items():
                info = tarfile.TarInfo(path)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def test_a_file_is_downloaded_once_and_again_only_when_it_changed(site: Site) -> None:
    uri = site.put("data/train.jsonl", b"one")
    assert local_path(uri).read_bytes() == b"one"
    assert local_path(uri).name == "train.jsonl"
    site.put("data/train.jsonl", b"two")
    assert local_path(uri).read_bytes() == b"two"
    site.put("data/train.jsonl", b"one")
    assert local_path(uri).read_bytes() == b"one"
    assert site.statuses() == [200, 304, 200, 200]


def test_a_pinned_file_is_checked_and_not_asked_for_again(site: Site) -> None:
    uri = site.put("train.jsonl", b"one") + f"#sha256={hashlib.sha256(b'one').hexdigest()}"
    assert local_path(uri).read_bytes() == b"one"
    site.put("train.jsonl", b"two")
    assert local_path(uri).read_bytes() == b"one"
    assert site.statuses() == [200]
    with pytest.raises(UserError, match="the file there has sha256"):
        local_path(uri.replace("#sha256=", "?other#sha256="))


def test_a_download_that_breaks_off_goes_on_where_it_was(site: Site) -> None:
    data = bytes(range(256)) * 1000
    uri = site.put("weights.bin", data)
    site.cut += [100_000, 50_000]
    assert local_path(uri).read_bytes() == data
    assert site.statuses() == [200, 206, 206]


@pytest.mark.parametrize("name", ["docs.tar.gz", "docs.zip"])
def test_an_archive_is_a_folder(site: Site, name: str) -> None:
    uri = site.put(name, packed(name, {"hr/leave.md": b"25 days", "it/vpn.md": b"ask"}))
    folder = local_path(uri)
    assert (folder / "hr" / "leave.md").read_bytes() == b"25 days"
    assert sorted(path.name for path in folder.rglob("*.md")) == ["leave.md", "vpn.md"]
    site.put(name, packed(name, {"it/vpn.md": b"new"}))
    assert [path.name for path in local_path(uri).rglob("*.md")] == ["vpn.md"]


def test_an_archive_cannot_write_elsewhere_or_grow_without_end(site: Site, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be unpacked"):
        local_path(site.put("evil.tar.gz", packed("evil.tar.gz", {"../../evil": b"x"})))
    with pytest.raises(UserError, match="would unpack to"):
        local_path(site.put("bomb.tar.gz", packed("bomb.tar.gz", {"zeros": bytes(200 << 20)})))
    with pytest.raises(UserError, match="cannot be unpacked"):
        local_path(site.put("torn.zip", b"PK nothing"))
    assert not list(tmp_path.rglob("evil"))


def test_a_token_is_sent_and_asked_for(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.handler.key = "Bearer s3cret"
    uri = site.put("x.jsonl", b"x")
    with pytest.raises(UserError, match="name a token that may read it in secretRef"):
        local_path(uri)
    monkeypatch.setenv(token_variable(uri), "s3cret\n")
    assert local_path(uri).read_bytes() == b"x"


def test_what_is_not_there_and_who_does_not_answer(site: Site) -> None:
    with pytest.raises(UserError, match="has no such file"):
        local_path(f"{site.url}/nothing.md")
    with pytest.raises(UserError, match="a token belongs into secretRef"):
        local_path("https://user:password@host/x")
    with pytest.raises(UserError, match="after # only sha256="):
        local_path(f"{site.url}/x#part")
    with pytest.raises(
        TryAgain, match=r"no answer \(ConnectError\): see whether .* may reach 127.0.0.1, or needs HTTPS_PROXY"
    ):
        local_path("http://127.0.0.1:9/x")


def test_programs_that_ask_for_the_same_at_once_get_the_same(site: Site) -> None:
    uri = site.put("notes.tar.gz", packed("notes.tar.gz", {"a.md": b"x" * 100_000}))
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            folders = list(pool.map(local_path, [uri] * 8))
            assert len({*folders}) == 1
            assert (folders[0] / "a.md").stat().st_size == 100_000
    assert site.statuses().count(200) == 1


@pytest.fixture
def repository(tmp_path: Path, site: Site) -> Path:
    work, bare = tmp_path / "work", site.root / "handbook.git"
    work.mkdir()

    def git(*arguments: str) -> str:
        me = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main"]
        return subprocess.run(["git", *me, *arguments], cwd=work, check=True, capture_output=True, text=True).stdout

    git("init", "-q")
    (work / "docs").mkdir()
    for text in ("first", "second"):
        (work / "docs" / "a.md").write_text(text)
        git("add", "-A")
        git("commit", "-q", "-m", text)
        if text == "first":
            git("tag", "-a", "v1", "-m", "one")
    git("clone", "-q", "--bare", str(work), str(bare))
    return bare


@pytest.fixture
def smart_git(repository: Path, tmp_path: Path) -> Iterator[str]:
    """`git http-backend` behind Python's CGI-less server: one request is one run of it."""
    log: list[str] = []

    class Backend(http.server.BaseHTTPRequestHandler):
        def _run(self) -> None:
            path, _, query = self.path.partition("?")
            log.append(self.headers["Authorization"] or "")
            if self.server.key and self.headers["Authorization"] != self.server.key:  # type: ignore[attr-defined]
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="git"')
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            env = {
                "PATH": "/usr/bin:/bin", "GIT_PROJECT_ROOT": str(repository.parent), "GIT_HTTP_EXPORT_ALL": "1",
                "PATH_INFO": path, "QUERY_STRING": query, "REQUEST_METHOD": self.command,
                "CONTENT_TYPE": self.headers["Content-Type"] or "", "CONTENT_LENGTH": str(len(body)),
                "HTTP_CONTENT_ENCODING": self.headers["Content-Encoding"] or "",
                "GIT_PROTOCOL": self.headers["Git-Protocol"] or "",
                "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*",
            }  # fmt: skip
            said = subprocess.run(["git", "http-backend"], input=body, env=env, capture_output=True, check=True).stdout
            head, _, rest = said.partition(b"\r\n\r\n")
            fields = dict(line.split(": ", 1) for line in head.decode().splitlines())
            self.send_response(int(fields.pop("Status", "200").split()[0]))
            for name, value in {**fields, "Content-Length": str(len(rest))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(rest)

        do_GET = _run  # noqa: N815
        do_POST = _run  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Backend)
    server.key = None  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    global _git_server
    _git_server = server
    yield f"git+http://127.0.0.1:{server.server_port}/handbook.git"
    server.shutdown()
    thread.join(10)
    server.server_close()


_git_server: http.server.ThreadingHTTPServer


def test_a_branch_a_tag_and_a_commit_of_a_repository(smart_git: str, repository: Path) -> None:
    assert local_path(f"{smart_git}@main#docs/a.md").read_text() == "second"
    assert local_path(f"{smart_git}@v1#docs/a.md").read_text() == "first"
    assert (local_path(smart_git) / "docs" / "a.md").read_text() == "second"
    commit = subprocess.run(
        ["git", "-C", str(repository), "rev-parse", "v1^{commit}"], check=True, capture_output=True, text=True
    ).stdout.strip()
    folder = local_path(f"{smart_git}@{commit}#docs")
    assert (folder / "a.md").read_text() == "first"
    assert commit[:16] in str(folder)
    assert not list(folder.parent.glob(".git"))


@pytest.mark.parametrize(
    ("rest", "says"),
    [
        ("@nowhere", "no branch or tag nowhere"),
        ("@main#docs/b.md", "correct the path"),
        ("@main#../x", "with no .. in it"),
        ("@--upload-pack=x", "write git\\+https://host/repository@ref#path"),
    ],
)
def test_what_a_repository_does_not_have(smart_git: str, rest: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        local_path(smart_git + rest)


def test_a_repository_that_needs_a_token(smart_git: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _git_server.key = "Basic eC1hY2Nlc3MtdG9rZW46czNjcmV0"  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="secretRef"):
        local_path(f"{smart_git}@main")
    monkeypatch.setenv(token_variable(f"{smart_git}@main"), "s3cret")
    assert local_path(f"{smart_git}@main").is_dir()


def test_a_repository_that_is_not_there(site: Site) -> None:
    with pytest.raises(UserError, match="no such repository"):
        local_path(f"git+{site.url}/none.git")
    with pytest.raises(TryAgain):
        local_path("git+http://127.0.0.1:9/none.git")


def test_what_was_pushed_comes_back_and_is_checked(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", site.url)
    files = {"documents/a b.md": b"a", "documents/c/d.md": b"d", "other.md": b"o"}
    tree = Tree.of(
        TreeFile(path=path, sha256=hashlib.sha256(data).hexdigest(), size=len(data)) for path, data in files.items()
    )
    root = SERVER_PATH.lstrip("/")
    for data in files.values():
        site.put(f"{root}/{blob_path(hashlib.sha256(data).hexdigest())}", data)
    digest = hashlib.sha256(tree.to_bytes()).hexdigest()
    site.put(f"{root}/{tree_path(digest)}", tree.to_bytes())
    folder = local_path(artifact_uri(digest, "documents"))
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.md")} == {"a b.md", "c/d.md"}
    assert local_path(artifact_uri(digest, "documents/a b.md")).read_bytes() == b"a"
    asked = len(site.asked)
    local_path(artifact_uri(digest, "documents"))
    assert len(site.asked) == asked
    with pytest.raises(UserError, match="nothing called documents/b was pushed"):
        local_path(artifact_uri(digest, "documents/b"))
    site.put(f"{root}/{blob_path(hashlib.sha256(b'o').hexdigest())}", b"damaged")
    with pytest.raises(TryAgain, match="is not what was pushed"):
        local_path(artifact_uri(digest, "other.md"))
    with pytest.raises(UserError, match="run `llmops push` again"):
        local_path(artifact_uri("0" * 64, "x"))
