"""Objects of an S3 store, read from moto's server: the protocol of S3 over HTTP in this process, with real listings, ETags, and, where a test
asks for it, signatures that are checked. It is not AWS: what only AWS does (regions, roles of machines) is not looked at here.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from moto.server import ThreadedMotoServer

from llmops_api.programs import token_variable
from llmops_services.program import TryAgain, UserError
from llmops_services.uris import local_path

URI = "s3://handbook/policies"


class Store:
    """A bucket, and the requests that were made for objects."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client: Any = boto3.client(
            "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test"
        )
        self.client.create_bucket(Bucket="handbook")

    def put(self, key: str, text: str) -> None:
        self.client.put_object(Bucket="handbook", Key=key, Body=text.encode())

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket="handbook", Key=key)

    def ask_who(self) -> tuple[str, str]:
        """From now on only who is known may read; the credentials of somebody who is."""
        keys = {"region_name": "us-east-1", "aws_access_key_id": "test", "aws_secret_access_key": "test"}
        iam: Any = boto3.client("iam", endpoint_url=self.url, **keys)
        iam.create_user(UserName="reader")
        everything = '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:*","Resource":"*"}]}'
        iam.put_user_policy(UserName="reader", PolicyName="read", PolicyDocument=everything)
        key = iam.create_access_key(UserName="reader")["AccessKey"]
        self.post("reset-auth", "0")
        return key["AccessKeyId"], key["SecretAccessKey"]

    def post(self, what: str, text: str = "") -> None:
        httpx.post(f"{self.url}/moto-api/{what}", content=text).raise_for_status()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def store(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LLMOPS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    made = Store(server)
    yield made
    made.post("reset-auth", "inf")
    made.post("reset")


def contents(folder: Path) -> dict[str, str]:
    return {str(one.relative_to(folder)): one.read_text() for one in folder.rglob("*") if one.is_file()}


def read(caplog: pytest.LogCaptureFixture, uri: str = URI) -> tuple[Path, str]:
    """What is there, and how many objects were read for it."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "llmops_services"):
        folder = local_path(uri)
    return folder, " ".join(record.message.rpartition(": ")[2] for record in caplog.records)


def test_a_key_is_a_file_and_what_lies_below_one_is_a_folder(store: Store) -> None:
    store.put("policies/leave.md", "Leave")
    store.put("policies/it/vpn.md.gz", "not unpacked")
    store.put("policies-old/leave.md", "not this")
    store.client.put_object(Bucket="handbook", Key="policies/empty/")
    assert local_path("s3://handbook/policies/leave.md").read_text() == "Leave"
    assert local_path("s3://handbook/policies/leave.md").name == "leave.md"
    assert contents(local_path(URI)) == {"leave.md": "Leave", "it/vpn.md.gz": "not unpacked"}
    assert local_path(f"{URI}/") == local_path(URI)
    assert "policies-old/leave.md" in contents(local_path("s3://handbook"))


def test_only_what_has_changed_is_read_again(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a", "b", "c"):
        store.put(f"policies/{name}.md", name)
    first, said = read(caplog)
    assert said == "read 3 of 3 objects"
    assert read(caplog) == (first, "")
    store.put("policies/b.md", "B")
    store.delete("policies/c.md")
    second, said = read(caplog)
    assert said == "read 1 of 2 objects"
    assert contents(second) == {"a.md": "a", "b.md": "B"}
    assert contents(first) == {"a.md": "a", "b.md": "b", "c.md": "c"}  # who reads it goes on reading the same


def test_an_emptied_cache_is_filled_again(store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store.put("policies/a.md", "a")
    folder, _ = read(caplog)
    (folder / "a.md").unlink()
    folder.rmdir()
    assert read(caplog) == (folder, "read 1 of 1 objects")


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("s3://handbook/nothing", "nothing is there; correct the key"),
        ("s3://handbuch/policies", "no such bucket or key"),
        ("s3://handbook/bad", "'/x.md' cannot be the name of a file"),
        ("s3://handbook/both", "'x' cannot be the name of a file"),
    ],
)
def test_what_is_not_there_is_the_users_mistake(store: Store, uri: str, says: str) -> None:
    for key in ("bad//x.md", "both/x", "both/x/y.md"):
        store.put(key, "")
    with pytest.raises(UserError, match=says):
        local_path(uri)


def test_only_who_may_reads(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("policies/a.md", "a")
    name, secret = store.ask_who()
    with pytest.raises(UserError, match="AWS_ACCESS_KEY_ID") as refused:
        local_path(URI)
    assert refused.value.reason == "AccessDenied"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", name)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    with pytest.raises(UserError, match="AWS_ACCESS_KEY_ID"):
        local_path(URI)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    assert contents(local_path(URI)) == {"a.md": "a"}


def test_a_secret_ref_goes_before_the_environment(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("policies/a.md", "a")
    name, secret = store.ask_who()
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    keys = f"aws_access_key_id = {name}\naws_secret_access_key = {secret}\n"
    monkeypatch.setenv(token_variable(URI), f"[default]\n{keys}endpoint_url = {store.url}\n")
    assert contents(local_path(URI)) == {"a.md": "a"}
    for wrong in (keys, "[default]\naws_access_key_id = a\n", secret):
        monkeypatch.setenv(token_variable(URI), wrong)
        with pytest.raises(UserError, match="AWS credentials file") as refused:
            local_path(URI)
        assert secret not in str(refused.value)


def test_a_store_that_does_not_answer_is_asked_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    with pytest.raises(TryAgain, match="does not answer"):
        local_path(URI)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "minio:9000")
    with pytest.raises(UserError, match="write AWS_ENDPOINT_URL_S3 like https://"):
        local_path(URI)
