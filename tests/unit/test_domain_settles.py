"""Whatever the situation, deciding again and again about the same comes to rest: no status that flaps, no event twice.

And two things hold in every situation: what is removed is not also kept running, and names of workloads are the object's own.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from llmops_api.v1alpha1 import (
    EmbeddingIndex,
    EmbeddingIndexStatus,
    RagService,
    RagServiceStatus,
    TrainingJob,
    TrainingJobStatus,
)
from llmops_api.v1alpha1.embedding_index import IndexVersion
from llmops_api.v1alpha1.meta import Attempt, Condition
from llmops_api.v1alpha1.rag_service import IndexInUse, ModelInUse
from llmops_api.v1alpha1.training_job import ModelVersion
from llmops_operator.domain import embedding_index, rag_service, training_job
from llmops_operator.domain.decision import Decision
from llmops_operator.domain.embedding_index import FINALIZER, IndexInput
from llmops_operator.domain.lineage import Recorded, RecordState, RegisteredVersion, Unrecorded, Unresolved
from llmops_operator.domain.rag_service import ServiceInput
from llmops_operator.domain.serving import IndexView, JobView
from llmops_operator.domain.sync_due import SYNC_REQUESTED
from llmops_operator.domain.timing import timestamp
from llmops_operator.domain.training_job import TrainingInput
from llmops_operator.domain.workload import State, WorkloadStatus

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
settled = settings(max_examples=300, deadline=None)
seconds = st.integers(0, 2000)
moments = seconds.map(lambda ago: timestamp(NOW - timedelta(seconds=ago)))
reasons = st.sampled_from(["Completed", "Suspended", "SpecChanged", "Error", "BadData", "DeadlineExceeded"])


@st.composite
def attempts(draw: st.DrawFn) -> tuple[Attempt, ...]:
    """Attempts in order, the last perhaps still open; numbers as the kinds give them do not go down."""
    made: list[Attempt] = []
    for number in range(1, draw(st.integers(0, 5)) + 1):
        begun, ended = sorted((draw(moments), draw(moments)))
        code = draw(st.sampled_from([None, 0, 1, 64, 75, 137]))
        made.append(Attempt(number=number, start_time=begun, end_time=ended, reason=draw(reasons), exit_code=code))
    if made and draw(st.booleans()):
        made[-1] = Attempt(number=made[-1].number, start_time=made[-1].start_time)
    return tuple(made)


def conditions(*types: str) -> st.SearchStrategy[tuple[Condition, ...]]:
    one = st.builds(
        lambda type_, status, generation: Condition(
            type=type_, status=status, reason="Before", observed_generation=generation
        ),
        st.sampled_from(types),
        st.sampled_from(["True", "False", "Unknown"]),
        st.integers(1, 2),
    )
    return st.lists(one, unique_by=lambda made: made.type).map(tuple)


def statuses(results: list[Any], reports: list[Any]) -> st.SearchStrategy[WorkloadStatus]:
    return st.builds(
        lambda state, reason, code, ready, result, report, started, ended: WorkloadStatus(
            state,
            reason=reason,
            message=f"{reason} said" if reason else "",
            exit_code=0 if state is State.SUCCEEDED else code,
            ready_replicas=ready,
            endpoints=("http://one",) * ready,
            result=result,
            report=report,
            started_at=started,
            ended_at=ended,
        ),
        st.sampled_from(State),
        st.sampled_from(["", "Error", "CrashLoopBackOff"]),
        st.sampled_from([1, 64, 75, 137, None]),
        st.integers(0, 1),
        st.sampled_from(results),
        st.sampled_from(reports),
        st.none() | moments,
        st.none() | moments,
    )


records = st.one_of(
    st.just(RecordState()),
    st.just(RecordState(enabled=False)),
    st.sampled_from([Recorded("run", "http://run", "m"), Recorded(None), Unrecorded("refused", "noon")]).map(
        lambda state: RecordState(by_key={"run": state, "end:FAILED": state, "c@d": state, "c2@": state})
    ),
)


def comes_to_rest(decide: Callable[[Any], Decision[Any]], status: Any) -> None:
    """Decide until nothing changes, and check each decision on the way."""
    for _ in range(6):
        decision = decide(status)
        wanted = {workload.name for workload in decision.workloads}
        assert all(name.startswith("thing-") for name in wanted)
        assert len({condition.type for condition in decision.status.conditions}) == len(decision.status.conditions)
        assert decision.requeue_after is None or decision.requeue_after > 0
        if decision.status == status:
            assert decision.events == () or any(event.reason == "CollectionsLeftBehind" for event in decision.events)
            return
        status = decision.status
    raise AssertionError(f"does not come to rest: {status}")


RESULT = {"runId": "r", "experimentId": "1", "steps": 5, "model": {"name": "m", "version": "1"}}
metadata = st.fixed_dictionaries(
    {"name": st.just("thing"), "uid": st.just("u"), "generation": st.just(2)},
    optional={"deletionTimestamp": moments, "finalizers": st.sampled_from([[], [FINALIZER]])},
)


@given(
    attempts(),
    conditions("Succeeded", "Trained", "LineageRecorded"),
    st.dictionaries(st.sampled_from([f"thing-train-{number}" for number in range(1, 7)]), statuses([None, RESULT, {"x": 1}], [None])),
    records,
    metadata,
    st.booleans(),
    st.integers(0, 5),
    st.none() | st.integers(1, 3000),
)  # fmt: skip
@settled
def test_a_training_job(
    tries: Any, known: Any, workloads: Any, state: Any, meta: Any, suspend: bool, limit: int, deadline: int | None
) -> None:
    spec = {
        "baseModel": {"uri": "pkg://a/b"},
        "data": {"train": {"uri": "file:///d"}},
        "hyperparameters": {"epochs": 1},
        "output": {"model": "m"},
        "suspend": suspend,
        "backoffLimit": limit,
        "activeDeadlineSeconds": deadline,
    }
    job = TrainingJob.model_validate({"metadata": meta, "spec": spec})

    def decide(status: TrainingJobStatus) -> Decision[TrainingJobStatus]:
        made = job.model_copy(update={"status": status})
        return training_job.decide(TrainingInput(made, NOW, workloads=workloads, records=state))

    comes_to_rest(decide, TrainingJobStatus(attempts=tries, conditions=known))


VERSION = {"collection": "c", "fingerprint": "f", "digest": "d"}
INDEXED = {"alias": "a", "serving": VERSION}
KEPT_BACK = {"alias": "a", "serving": None, "candidate": VERSION, "gatePassed": False, "gateMessage": "0.1 < 0.8"}


@given(
    attempts(),
    conditions("Synced", "GatePassed", "Serving", "LineageRecorded", "Ready"),
    st.none() | st.sampled_from([IndexVersion.model_validate(VERSION), IndexVersion(collection="c2", fingerprint="g")]),
    st.dictionaries(
        st.sampled_from([f"thing-sync-{number}" for number in range(1, 8)]),
        statuses([None, INDEXED, KEPT_BACK], [None]),
    ),
    records,
    metadata,
    st.fixed_dictionaries(
        {"suspend": st.booleans(), "deletionPolicy": st.sampled_from(["Delete", "Retain"])},
        optional={"refresh": st.fixed_dictionaries({"everySeconds": st.integers(5, 3000)})},
    ),
    st.none() | moments,
    st.sampled_from(["", "Qdrant is away"]),
)
@settled
def test_an_embedding_index(
    tries: Any, known: Any, version: Any, workloads: Any, state: Any, meta: Any, more: Any, asked: str | None, away: str
) -> None:
    spec = {"sources": [{"name": "s", "uri": "file:///d"}], "embedding": {"model": {"uri": "pkg://e/m"}}, **more}
    annotations = {SYNC_REQUESTED: asked} if asked else {}
    index = EmbeddingIndex.model_validate({"metadata": {**meta, "annotations": annotations}, "spec": spec})

    def decide(status: EmbeddingIndexStatus) -> Decision[EmbeddingIndexStatus]:
        made = index.model_copy(update={"status": status})
        return embedding_index.decide(IndexInput(made, NOW, workloads=workloads, records=state, not_dropped=away))

    comes_to_rest(decide, EmbeddingIndexStatus(attempts=tries, conditions=known, version=version))


def job_views() -> st.SearchStrategy[JobView]:
    status = st.builds(
        TrainingJobStatus,
        conditions=conditions("GatePassed", "Succeeded"),
        model=st.none() | st.builds(ModelVersion, name=st.just("m"), version=st.just("3"), adapter=st.booleans()),
        completion_time=st.none() | moments,
    )
    return st.builds(JobView, status, st.booleans(), st.booleans())


def index_views() -> st.SearchStrategy[IndexView]:
    status = st.builds(
        EmbeddingIndexStatus,
        conditions=conditions("Serving", "Ready"),
        version=st.none() | st.just(IndexVersion.model_validate(VERSION)),
    )
    return st.builds(IndexView, status, st.booleans())


MODELS = [
    {"base": {"uri": "pkg://a/b"}},
    {"base": {"uri": "pkg://a/b"}, "adapter": {"trainingJobRef": {"name": "j"}}},
    {"base": {"uri": "pkg://a/b"}, "adapter": {"model": {"name": "m", "alias": "champion"}}},
    {"endpoint": {"urls": ["http://e/v1"], "name": "llama"}},
]
REPORTS = [
    None,
    {"ready": False, "message": "no engine"},
    {"ready": True, "revision": "0123456789", "model": "b", "indexes": {}},
    {"ready": True, "revision": "0123456789", "model": "m-v3", "indexes": {"one": "c"}},
    {"ready": "perhaps"},
]
USED = [
    ModelInUse(name="b"),
    ModelInUse(name="m-v3", version="3", uri="mlflow://m/3", adapter=True),
    ModelInUse(name="m-v2", version="2", uri="mlflow://m/2", adapter=False),
]


@given(
    st.sampled_from(MODELS),
    st.none() | job_views(),
    st.sampled_from(
        [None, RegisteredVersion("m", "3", True), RegisteredVersion("m", "4", False), Unresolved("R", "m")]
    ),
    st.dictionaries(st.sampled_from(["one", "two"]), st.none() | index_views()),
    st.dictionaries(st.sampled_from(["thing-engine", "thing-gateway", "thing-old"]), statuses([None], REPORTS)),
    st.builds(
        RagServiceStatus,
        conditions=conditions("Ready", "LineageRecorded"),
        model=st.none() | st.sampled_from(USED),
        revision=st.none() | st.just("0123456789"),
        indexes=st.sampled_from([(), (IndexInUse(name="one", collection="c"),)]),
        url=st.none() | st.just("http://old"),
    ),
    records,
    metadata,
    st.booleans(),
)
@settled
def test_a_rag_service(
    model: Any, job: Any, found: Any, views: Any, workloads: Any, first: Any, state: Any, meta: Any, suspend: bool
) -> None:
    spec = {"model": model, "indexes": [{"indexRef": {"name": name}} for name in views], "suspend": suspend}
    service = RagService.model_validate({"metadata": meta, "spec": spec})

    def decide(status: RagServiceStatus) -> Decision[RagServiceStatus]:
        made = service.model_copy(update={"status": status})
        decision = rag_service.decide(
            ServiceInput(made, NOW, workloads=workloads, job=job, resolution=found, indexes=views, records=state)
        )
        assert not set(decision.remove) & {workload.name for workload in decision.workloads}
        return decision

    comes_to_rest(decide, first)
