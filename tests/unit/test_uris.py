"""From URIs to files: what resolves, what is refused with which words, and a cache that is filled once."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from llmops_services.program import TryAgain, UserError
from llmops_services.uris import folder_digest, local, local_path
from llmops_services.uris.cache import cached


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMOPS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path / "cache"


def test_a_file_and_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a b.jsonl"
    file.write_text("x", "utf-8")
    assert local_path(f"file://{tmp_path}/a%20b.jsonl") == file
    assert local_path(f"file://{tmp_path}") == tmp_path
    monkeypatch.chdir(tmp_path)
    assert local_path("file://./a b.jsonl") == file


def test_a_file_of_a_package_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "breaks_when_imported"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError", "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert local_path("pkg://breaks_when_imported/data") == package / "data"
    assert local_path("pkg://breaks_when_imported/__init__.py") == package / "__init__.py"


def test_what_lies_on_a_mounted_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "CLAIMS", tmp_path)
    (tmp_path / "docs" / "a b").mkdir(parents=True)
    assert local_path("pvc://docs/a%20b") == tmp_path / "docs" / "a b"
    assert local_path("pvc://docs") == local_path("pvc://docs/") == tmp_path / "docs"


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("model", "is not a URI: write file://"),
        ("file://", "is not a URI"),
        ("ftp://host/x", "ftp:// is not known"),
        ("file:///no/such/file.jsonl", "there is no /no/such/file.jsonl"),
        ("pkg://no_such_package_at_all/x", "no Python package no_such_package_at_all is installed"),
        ("pkg://json/nothing.gguf", "correct the path"),
        ("pkg://json/../os.py", "with no .. in it"),
        ("pvc://no-such-claim/x", "on this machine write file://"),
        ("pvc://claim/../x", "with no .. in it"),
        ("hf://gpt2", "write hf://ORGANISATION/NAME"),
        ("hf://a/b/c", "write hf://ORGANISATION/NAME"),
        ("mlflow://name", "write mlflow://NAME@ALIAS or mlflow://NAME/VERSION"),
        ("mlflow://name/3", "set MLFLOW_TRACKING_URI"),
    ],
)
def test_a_wrong_uri_says_what_to_write(uri: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        local_path(uri)
    assert says in str(caught.value)


def test_a_revision_belongs_to_the_hub_alone() -> None:
    with pytest.raises(UserError, match="revision is only for hf://"):
        local_path("file:///tmp", revision="main")
    with pytest.raises(UserError, match="also says revision v2; keep one"):
        local_path("hf://a/b@v1", revision="v2")


def test_a_model_that_is_not_there_offline_is_the_users_to_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE forbids to fetch it"):
        local_path("hf://no-such-organisation/no-such-model")


def test_mlflow_that_does_not_answer_is_worth_another_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TryAgain, match=r"MLflow at http://127\.0\.0\.1:9 does not answer .*see whether it runs"):
        local_path("mlflow://name@champion")


def test_the_cache_is_filled_once_by_all_who_ask(cache: Path) -> None:
    calls: list[int] = []

    def fill(folder: Path) -> None:
        calls.append(1)
        (folder / "weights").write_text("w", "utf-8")

    threads = [threading.Thread(target=cached, args=("m", fill)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert calls == [1]
    assert (cache / "models" / "m" / "weights").exists()


def test_what_a_killed_program_left_half_done_is_made_anew(cache: Path) -> None:
    (cache / "models" / "m.new").mkdir(parents=True)
    (cache / "models" / "m.new" / "torn").touch()
    with pytest.raises(RuntimeError):
        cached("m", lambda _: (_ for _ in ()).throw(RuntimeError("died")))
    assert not (cache / "models" / "m").exists()
    made = cached("m", lambda folder: (folder / "whole").touch())
    assert [path.name for path in made.iterdir()] == ["whole"]


def test_a_folders_digest_tells_names_and_contents(tmp_path: Path) -> None:
    for name, text in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name / "x").mkdir(parents=True)
        (tmp_path / name / "x" / "f").write_text(text, "utf-8")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_text("1", "utf-8")
    one, same, content, place = (folder_digest(tmp_path / name) for name in "abcd")
    assert one == same
    assert len({one, content, place}) == 3
