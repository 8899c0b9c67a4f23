from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llmops_api.programs import Env
from llmops_services import embedding
from llmops_services.embedding import Embedder, Tokens, model_digest
from llmops_services.program import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(Env.CACHE_DIR, str(tmp_path / "cache"))


@pytest.fixture
def model(tiny_embedding_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_embedding_model, tmp_path / "model"))


@pytest.fixture(scope="module")
def embedder(tiny_embedding_model: Path) -> Embedder:
    return Embedder.load(tiny_embedding_model, query_prefix="query: ", document_prefix="passage: ", device="cpu")


def test_vectors_have_length_one_and_keep_the_order_of_the_texts(embedder: Embedder) -> None:
    texts = ["leave " * size for size in (40, 1, 17, 3)]
    together = embedder.encode_documents(texts, batch_size=2)
    assert together.dtype == np.float32
    assert together.shape == (4, embedder.dimensions)
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    for text, vector in zip(texts, together, strict=True):
        assert np.allclose(embedder.encode_documents([text])[0], vector, atol=1e-5)


def test_prefixes_stand_before_texts_and_nothing_else_does(embedder: Embedder, tiny_embedding_model: Path) -> None:
    bare = Embedder.load(str(tiny_embedding_model), device="cpu")
    assert np.allclose(embedder.encode_queries(["leave"]), bare.encode_queries(["query: leave"]), atol=1e-5)
    assert np.allclose(embedder.encode_documents(["leave"]), bare.encode_documents(["passage: leave"]), atol=1e-5)
    assert embedder.encode_documents([]).shape == (0, bare.dimensions)


def test_tokens_are_counted_as_the_model_counts_them(embedder: Embedder) -> None:
    text = "The service desk answers between 8:00 and 17:00. " * 3
    assert embedder.max_tokens == 128
    ids = embedder._model.tokenizer(text)["input_ids"]
    assert embedder.count_tokens(text) + embedder.tokens.special == len(ids)


def test_what_is_beyond_the_limit_has_no_influence_and_the_limit_is_the_one_that_is_told(embedder: Embedder) -> None:
    words = "leave " * 400
    assert np.allclose(embedder.encode_queries([words + "router"]), embedder.encode_queries([words]), atol=1e-6)


def test_the_digest_is_of_the_contents_and_is_remembered(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = model_digest(model)
    read: list[Path] = []
    real = embedding.file_digest
    monkeypatch.setattr(embedding, "file_digest", lambda path: (read.append(path), real(path))[1])
    assert model_digest(model) == first
    assert read == []
    (model / "README.md").write_text("about the model")
    assert model_digest(model) == first
    (model / "modules.json").write_text((model / "modules.json").read_text() + "\n")
    assert model_digest(model) != first
    assert read == [model / "modules.json"]


def test_the_same_files_elsewhere_have_the_same_digest(model: Path, tiny_embedding_model: Path) -> None:
    assert model_digest(model) == model_digest(tiny_embedding_model)


def test_digest_and_tokens_need_no_torch(model: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from llmops_services.embedding import Tokens, model_digest; "
        f"path = Path({str(model)!r}); model_digest(path); print(Tokens.load(path).count(['leave'])); "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_limit_comes_from_the_tokenizer_and_the_positions_where_nothing_else_is_said(model: Path) -> None:
    (config,) = model.rglob("sentence_bert_config.json")
    said = json.loads(config.read_text())
    said.pop("max_seq_length", None)
    config.write_text(json.dumps(said))
    tokenizer = config.with_name("tokenizer_config.json")
    tokenizer.write_text(json.dumps({**json.loads(tokenizer.read_text()), "model_max_length": 10**30}))
    assert Tokens.load(model).maximum == 512


@pytest.mark.parametrize("missing", ["tokenizer.json", "config.json"])
def test_a_folder_that_is_no_embedding_model_is_refused_with_its_name(model: Path, missing: str) -> None:
    for path in model.rglob(missing):
        path.unlink()
    with pytest.raises(UserError, match=str(model)):
        Embedder.load(model, device="cpu")
