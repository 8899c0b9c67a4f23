"""TrainingJobs: gather, decide."""

from __future__ import annotations

from functools import partial

from llmops_api.v1alpha1 import TrainingJob, TrainingJobStatus
from llmops_operator.controllers.gathering import Look, as_written
from llmops_operator.domain.decision import Decision, owner_of
from llmops_operator.domain.training_job import KIND, TrainingInput, decide


def look(job: TrainingJob, at: Look) -> Decision[TrainingJobStatus]:
    """What is to be done about a TrainingJob."""
    return decide(
        TrainingInput(
            job=job,
            now=at.now,
            manifest=partial(as_written, at.manifest),
            workloads=at.sources.backend.observe(owner_of(KIND, job.metadata)),
            records=at.sources.lineage.states(job.metadata.uid),
            timing=at.sources.timing,
            run_url=at.sources.lineage.run_url,
        )
    )
