"""Versions of an index: built beside, gated, swapped in, updated in place, retired. Against the embedded vector store."""

from __future__ import annotations

from collections.abc import Callable

from index_program import Index, counts, prose, questions

from llmops_api.names import COLLECTION_METADATA
from llmops_services import vectors
from llmops_services.vectors import metadata_of


def test_another_fingerprint_is_built_beside_and_swapped_in_when_its_gate_passes(index: Index) -> None:
    index.write(**{f"d{number}": prose(number, 3) for number in range(8)})
    asked = [(f"Document {number}", f"hr/d{number}.md") for number in range(8)]
    first = index.sync(evaluation=questions(index, asked, gate="0.5"))
    assert first.gate_passed is True
    assert first.serving is not None
    old = first.serving.collection

    # nobody finds a document that is not there: the gate keeps the new version from being served
    wrong = index.sync(
        chunking={"maxTokens": 48, "overlapTokens": 8},
        evaluation=questions(index, [("Document 1", "hr/gone.md")], gate="0.5"),
    )
    assert wrong.gate_passed is False
    assert "below the 0.5" in wrong.gate_message
    assert wrong.serving == first.serving
    assert wrong.candidate is not None
    assert wrong.candidate.evaluation is not None
    assert wrong.candidate.evaluation.recall_at5 == "0.0000"
    assert index.collections() == {old, wrong.candidate.collection}
    assert vectors.alias_target(index.client.get_aliases(), index.alias) == old

    right = index.sync(evaluation=questions(index, asked, gate="0.5"))
    assert right.gate_passed is True
    assert right.candidate is None
    assert right.counts.embedded == 0  # what the candidate held is what is now served
    assert right.serving is not None
    assert right.serving.collection == wrong.candidate.collection

    back = index.sync(chunking={"maxTokens": 64, "overlapTokens": 8})
    assert back.serving is not None
    assert (back.serving.collection, back.counts.embedded) == (old, 0)


def test_a_served_version_is_updated_in_place_and_says_when_it_no_longer_passes(index: Index) -> None:
    index.write(a=prose(1, 3), b=prose(2, 3))
    first = index.sync(evaluation=questions(index, [("Document 1", "hr/a.md"), ("Document 2", "hr/b.md")], gate="0.9"))
    assert first.gate_passed is True
    index.write(b=None)
    after = index.sync()
    assert after.gate_passed is False
    assert "updated in place" in after.gate_message
    assert after.serving is not None
    assert after.serving.documents == 1
    assert after.candidate is None


def test_old_versions_are_dropped_but_never_the_served_one_nor_another_objects(
    index: Index, make_index: Callable[..., Index]
) -> None:
    neighbour = make_index("-2")
    neighbour.write(a=prose(1))
    neighbour.sync()
    index.write(a=prose(1))
    made = []
    for size in (40, 48, 56, 64):
        result = index.sync(chunking={"maxTokens": size, "overlapTokens": 0}, retainVersions=2)
        assert result.serving is not None
        made.append(result.serving.collection)
        metadata = metadata_of(index.client.get_collection(made[-1]))
        assert metadata is not None
        # the clock of the metadata counts seconds: make them differ
        moved = metadata.model_copy(update={"created_at": f"2026-01-01T00:00:{size}Z"})
        index.client.update_collection(made[-1], metadata={COLLECTION_METADATA: moved.dump()})
    assert index.collections() == set(made[-2:])
    assert len(neighbour.collections()) == 1


def test_what_another_object_of_the_same_name_left_is_taken_over(index: Index) -> None:
    index.write(a=prose(1))
    index.sync()
    index.uid = "another-uid"
    result = index.sync()
    assert counts(result) == {"unchanged": 1}
    assert result.serving is not None
    metadata = metadata_of(index.client.get_collection(result.serving.collection))
    assert metadata is not None
    assert metadata.uid == index.uid
