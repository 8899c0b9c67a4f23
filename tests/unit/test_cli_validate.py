"""`llmops validate` says what is wrong, in which line of which file, and what to write instead."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from llmops_api.v1alpha1.embedding_index import Chunking
from llmops_operator.cli.app import execute
from llmops_operator.cli.data_files import check_data
from llmops_operator.cli.manifests import read_manifests, with_absolute_files
from llmops_services.embedding import Tokens
from llmops_services.indexing.chunking import Chunker
from llmops_services.program import UserError

JOB = """\
apiVersion: llmops.dev/v1alpha1
kind: TrainingJob
metadata:
  name: assistant
spec:
  baseModel: {uri: hf://organisation/model}
  data:
    train: {uri: file://./train.jsonl}
  hyperparameters: {maxSteps: 4}
  output: {model: assistant}
"""
INDEX = """\
apiVersion: llmops.dev/v1alpha1
kind: EmbeddingIndex
metadata: {name: handbook}
spec:
  sources:
    - name: hr
      uri: file://./documents
  embedding:
    model: {uri: hf://organisation/embedder}
"""
EXAMPLE = '{"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train.jsonl").write_text(EXAMPLE * 3)
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "leave.md").write_text("# Leave\n")
    return tmp_path


def errors(folder: Path, text: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    file = folder / "manifest.yaml"
    file.write_text(text)
    code = execute(["validate", "-f", str(file)])
    out, err = capsys.readouterr()
    lines = [line.removeprefix(f"error: {folder}/") for line in err.splitlines()]
    assert code == (1 if lines else 0), (code, out, err)
    return lines


def test_what_is_right_is_said_to_be_valid(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "all.yaml").write_text(f"{JOB}---\n{INDEX}")
    assert execute(["validate", "-f", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "trainingjob.llmops.dev/assistant is valid",
        "embeddingindex.llmops.dev/handbook is valid",
    ]


def test_what_is_for_a_cluster_only_is_said_and_no_fault(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compute = "  compute: {gpus: {count: 2}}\n  podTemplate: {nodeSelector: {pool: gpu}}\n"
    (folder / "job.yaml").write_text(JOB + compute)
    notes = [
        "note: FOLDER/job.yaml:12: spec.podTemplate: read in a cluster only: on a laptop there are no pods",
        "note: FOLDER/job.yaml:11: spec.compute.gpus: reserved in a cluster only: on a laptop programs use the GPUs that they find",
    ]
    for command in (["validate"], ["apply", "--home", str(folder / "home")]):
        assert execute([*command, "-f", str(folder / "job.yaml")]) == 0
        said = capsys.readouterr().err.splitlines()
        assert said[:2] == [note.replace("FOLDER", str(folder)) for note in notes]


FAULTS = {
    "a field that looks like another": (
        (JOB, "maxSteps: 4", "maxStep: 4"),
        "manifest.yaml:9: spec.hyperparameters.maxStep: unknown field: did you mean maxSteps?",
    ),
    "a field in snake case, which the models would take": (
        (JOB, "maxSteps: 4", "max_steps: 4"),
        "manifest.yaml:9: spec.hyperparameters.max_steps: unknown field: did you mean maxSteps?",
    ),
    "a field in the wrong place": (
        (JOB, "  output:", "  rank: 8\n  output:"),
        "manifest.yaml:10: spec.rank: unknown field: it belongs to spec.tuning.lora.rank",
    ),
    "a slip in the metadata": (
        (JOB, "  name: assistant", "  name: assistant\n  lables: {a: b}"),
        "manifest.yaml:5: metadata.lables: unknown field: did you mean labels?",
    ),
    "a number without quotes": (
        (JOB, "maxSteps: 4", "maxSteps: 4, warmupRatio: 0.1"),
        'manifest.yaml:9: spec.hyperparameters.warmupRatio: expected a string, found 0.1: write it in quotes, "0.1"',
    ),
    "a number in quotes": (
        (JOB, "maxSteps: 4", 'maxSteps: "4"'),
        'manifest.yaml:9: spec.hyperparameters.maxSteps: expected a whole number, found the string "4": write it without quotes',
    ),
    "a mapping for a list": (
        (INDEX, "    - name: hr\n      uri", "      name: hr\n      uri"),
        'manifest.yaml:5: spec.sources: expected a list, found a mapping: begin each entry with "- "',
    ),
    "two ways of tuning": (
        (JOB, "  output:", "  tuning: {lora: {}, full: {}}\n  output:"),
        "manifest.yaml:10: spec.tuning: tuning takes exactly one of lora and full: keep one and remove the other",
    ),
    "a field that is missing": (
        (JOB, "  output: {model: assistant}", "  output: {}"),
        "manifest.yaml:10: spec.output.model: is missing: write model: …",
    ),
    "a path for a URI": (
        (JOB, "file://./train.jsonl", "train.jsonl"),
        'manifest.yaml:8: spec.data.train.uri: "train.jsonl" is not of the right form: write file://./train.jsonl',
    ),
    "a word that is not one of the choices": (
        (INDEX, "  embedding:", "  chunking: {strategy: markdown}\n  embedding:"),
        'manifest.yaml:8: spec.chunking.strategy: "markdown" is unknown: did you mean Markdown?',
    ),
    "a number that is too large": (
        (INDEX, "  embedding:", "  retainVersions: 101\n  embedding:"),
        "manifest.yaml:8: spec.retainVersions: 101 is too large: write 100 or less",
    ),
    "an empty list": (
        (INDEX, "    - name: hr\n      uri: file://./documents\n", "    []\n"),
        "manifest.yaml:5: spec.sources: is empty: write a list of entries with uri, secretRef, name, include, exclude, metadata",
    ),
    "a field in the second entry of a list": (
        (INDEX, "  embedding:", "    - {name: it, uri: file://./documents, includes: [a]}\n  embedding:"),
        "manifest.yaml:8: spec.sources[1].includes: unknown field: did you mean include?",
    ),
    "a kind that does not exist": (
        (INDEX, "kind: EmbeddingIndex", "kind: EmbedingIndex"),
        'manifest.yaml:2: kind: "EmbedingIndex" is unknown: did you mean EmbeddingIndex?',
    ),
    "another API version": (
        (INDEX, "llmops.dev/v1alpha1", "llmops.dev/v1"),
        'manifest.yaml:1: apiVersion: "llmops.dev/v1" is unknown here: write llmops.dev/v1alpha1',
    ),
    "a key that stands twice": (
        (INDEX, "  embedding:", "  suspend: true\n  suspend: false\n  embedding:"),
        "manifest.yaml:9: spec.suspend: stands here twice (first in line 8): remove one of them",
    ),
    "text that is no YAML": (
        (INDEX, "  sources:", "  sources: ["),
        "manifest.yaml:6: this is not YAML: while parsing a flow node, expected the node content, but found '-'",
    ),
    "a file that is not there": (
        (JOB, "train.jsonl", "tarin.jsonl"),
        "manifest.yaml:8: spec.data.train.uri: there is no FOLDER/tarin.jsonl: put it there, or write the path of one that is",
    ),
    "a package that is not installed": (
        (JOB, "file://./train.jsonl", "pkg://no_such_module/train.jsonl"),
        "manifest.yaml:8: spec.data.train.uri: there is no Python package no_such_module here: "
        "install the distribution that holds it, or write another URI",
    ),
    "an index without documents": (
        (INDEX, "uri: file://./documents", "uri: file://./documents\n      include: ['*.rst']"),
        "manifest.yaml:7: spec.sources[0].uri: FOLDER/documents holds no file that matches *.rst: "
        "add documents, or widen include",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "expected"), FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_is_shown_with_its_place_and_what_to_write(
    change: tuple[str, str, str], expected: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, old, new = change
    assert old in text
    assert errors(folder, text.replace(old, new), capsys) == [expected.replace("FOLDER", str(folder))]


@pytest.mark.parametrize("command", [["validate", "-f"], ["apply", "-f"], ["run"]], ids=lambda command: command[0])
def test_chunks_that_the_model_does_not_read_whole_are_refused_before_anything_starts(
    command: list[str], folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMOPS_HOME", str(folder / "home"))
    model = folder / "model"
    (model / "0_Transformer").mkdir(parents=True)
    (model / "modules.json").write_text('[{"idx": 0, "path": "0_Transformer"}]')
    (model / "0_Transformer" / "sentence_bert_config.json").write_text('{"max_seq_length": 128}')
    (model / "config.json").write_text('{"max_position_embeddings": 64}')  # not what the transformer's own folder says
    text = INDEX.replace("hf://organisation/embedder", "file://./model")
    (folder / "index.yaml").write_text(text + "  chunking: {maxTokens: 129}\n")
    assert execute([*command, str(folder)]) == 1
    sentence = (
        f"chunking.maxTokens is 129, but file://{model} reads only 128 tokens of a text (special tokens included): what is beyond "
        "them would never be found. Write maxTokens: 128 or less, or take a model that reads more"
    )
    assert capsys.readouterr().err == f"error: {folder}/index.yaml:10: spec.chunking.maxTokens: {sentence}\n"
    assert not (folder / "home").exists()
    tokens = Tokens(Tokenizer(WordLevel()), special=2, maximum=128)
    with pytest.raises(UserError) as caught:  # the program says the same
        Chunker(tokens, Chunking(max_tokens=129), "", f"file://{model}")
    assert str(caught.value) == sentence


def test_chunks_as_long_as_the_model_reads_are_right(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "model").mkdir()
    config = folder / "model" / "config.json"
    text = INDEX.replace("hf://organisation/embedder", "file://./model")
    for positions, fault in ((512, False), (256, False), (255, True)):  # 256 is what is cut where nothing is said
        config.write_text(f'{{"max_position_embeddings": {positions}}}')
        assert bool(errors(folder, text, capsys)) is fault
    config.unlink()
    assert errors(folder, text, capsys) == []  # nothing is known: the program finds out


def test_all_faults_of_all_objects_are_shown_at_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = JOB.replace("maxSteps: 4", "maxStep: 4") + "---\n" + INDEX.replace("name: handbook", "name: Handbook")
    found = errors(folder, text, capsys)
    assert [line.split(": ")[:2] for line in found] == [
        ["manifest.yaml:9", "spec.hyperparameters.maxStep"],
        ["manifest.yaml:14", "metadata.name"],
    ]


def test_two_objects_of_one_name_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = errors(folder, f"{INDEX}---\n{INDEX}", capsys)
    assert found.startswith("manifest.yaml:13: metadata.name: there are two objects EmbeddingIndex/handbook")
    assert "manifest.yaml:3" in found


LINES = {
    "no JSON": (EXAMPLE * 16 + "{oops}\n", 17, "this is not JSON (Expecting property name"),
    "a message without a role": (EXAMPLE + '{"messages": [{"content": "x"}]}\n', 2, "messages[0] has no role"),
    "a role that nobody has": (
        '{"messages": [{"role": "bot", "content": "x"}]}\n',
        1,
        'messages[0].role "bot" is unknown',
    ),
    "an empty content": ('{"messages": [{"role": "user", "content": ""}]}\n', 1, "messages[0].content is missing"),
    "nothing to learn": (
        '{"messages": [{"role": "user", "content": "x"}]}\n',
        1,
        "the last message is not the assistant's",
    ),
    "a system message in the middle": (
        '{"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}]}\n',
        1,
        "messages[1] is a system",
    ),
    "brackets within brackets": ("[" * 100_000, 1, "this is nested too deeply: write one flat JSON object a line"),
    "a number of thousands of digits": ("1" * 10_000, 1, "this is not JSON (Exceeds the limit"),
    "half a character": (
        '{"messages": [{"role": "system", "content": "\\ud800"}, {"role": "assistant", "content": "x"}]}\n',
        1,
        "messages[0].content is not Unicode text ('\\ud800' is half a character): correct it",
    ),
    "a list": ("[]\n", 1, "this is not a JSON object"),
    "prompts where messages belong": ('{"prompt": "a", "completion": "b"}\n', 1, "messages is missing"),
}


@pytest.mark.parametrize(("data", "line", "expected"), LINES.values(), ids=LINES.keys())
def test_a_line_of_data_is_pointed_at(
    data: str, line: int, expected: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "train.jsonl").write_text(data)
    (found,) = errors(folder, JOB, capsys)
    assert found.startswith(f"train.jsonl:{line}: ")
    assert expected in found


def test_data_that_is_not_utf_8_is_pointed_at(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "train.jsonl").write_bytes(EXAMPLE.encode() + '{"messages": "é"}'.encode("latin-1"))
    assert errors(folder, JOB, capsys) == ["train.jsonl:2: this is not UTF-8 text: save the file as UTF-8"]


def test_an_empty_data_file_is_the_fault_of_the_line_that_names_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "train.jsonl").write_text("\n\n")
    (found,) = errors(folder, JOB, capsys)
    assert found.startswith("manifest.yaml:8: spec.data.train.uri: ")
    assert "is empty" in found


@pytest.mark.parametrize("uri", ["file://./data", "file://./data/leave.md"])
def test_what_may_not_be_read_is_the_fault_of_the_line_that_names_it(own_folder: Path, uri: str) -> None:
    data = own_folder / "data"
    data.mkdir()
    (data / "leave.md").write_text("# Leave\n")
    data.chmod(0o400)  # it may be listed, but not entered
    (own_folder / "index.yaml").write_text(INDEX.replace("file://./documents", uri))
    (document,) = read_manifests([str(own_folder / "index.yaml")])
    (fault,) = check_data(with_absolute_files(document))
    assert str(fault) == (
        f"{own_folder}/index.yaml:7: spec.sources[0].uri: {data}/leave.md cannot be read: Permission denied"
    )


def test_a_file_full_of_mistakes_is_not_read_to_its_end(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "train.jsonl").write_text("oops\n" * 5000)
    assert len(errors(folder, JOB, capsys)) == 10


def test_questions_have_to_name_what_answers_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "questions.jsonl").write_text(
        '{"question": "A?", "documents": [{"path": "hr/leave.md"}]}\n'
        '{"question": "B?", "answerable": false}\n'
        '{"question": "C?"}\n'
        '{"question": "\\ud800?", "documents": [{"path": "hr/leave.md"}]}\n'
    )
    text = INDEX + "  evaluation:\n    questions: {uri: file://./questions.jsonl}\n"
    missing, half = errors(folder, text, capsys)
    assert missing.startswith("questions.jsonl:3: documents is missing")
    assert half.startswith("questions.jsonl:4: question is not Unicode text")


def test_half_a_character_in_a_pair_is_pointed_at(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "train.jsonl").write_text('{"prompt": "a", "completion": "\\udfff"}\n')
    text = JOB.replace("train: {uri:", "format: PromptCompletion\n    train: {uri:")
    assert errors(folder, text, capsys) == [
        "train.jsonl:1: completion is not Unicode text ('\\udfff' is half a character): correct it"
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "the file is empty"),
        (b"---\n---\n", "the file is empty"),
        (b"kind: \xff\n", "manifest.yaml:1: this is not UTF-8"),
        (b"- 1\n", "manifest.yaml:1: this is not an object: begin with apiVersion: llmops.dev/v1alpha1"),
    ],
)
def test_a_file_that_is_no_manifest_is_refused(
    content: bytes, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "manifest.yaml").write_bytes(content)
    assert execute(["validate", "-f", str(tmp_path / "manifest.yaml")]) == 1
    assert expected in capsys.readouterr().err


def test_only_the_yaml_files_at_the_top_of_a_folder_are_manifests(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "documents" / "front.yaml").write_text("title: a document\n")
    assert execute(["validate", "-f", str(folder)]) == 1
    assert "the folder holds no manifest" in capsys.readouterr().err
    (folder / "index.yml").write_text(INDEX)
    assert execute(["validate", "-f", str(folder)]) == 0


def test_standard_input_is_read_and_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(INDEX.replace("uri:", "url:").encode())))
    assert execute(["validate", "-f", "-"]) == 1
    assert "error: stdin:7: spec.sources[0].url: unknown field: did you mean uri?" in capsys.readouterr().err


def test_lines_count_within_a_list_of_objects(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    item = textwrap.indent(INDEX.replace("metadata: {name: handbook}", "metadata: {nam: handbook}"), "    ")
    text = "apiVersion: v1\nkind: List\nitems:\n  -\n" + item
    assert errors(folder, text, capsys)[0].startswith(
        "manifest.yaml:7: metadata.nam: unknown field: did you mean name?"
    )


def test_a_manifest_and_a_command_that_disagree_on_the_namespace_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "index.yaml").write_text(INDEX.replace("{name: handbook}", "{name: handbook, namespace: hr}"))
    assert execute(["validate", "-n", "it", "-f", str(folder / "index.yaml")]) == 1
    assert 'metadata.namespace: is "hr", but the command says -n it' in capsys.readouterr().err
