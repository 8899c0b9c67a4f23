"""PodTemplate: what the pods of an object have beside what llmops gives them. Names and meanings are those of Kubernetes.

Where Kubernetes' own schema is large (volumes, affinity) only what is looked at here is typed, and the API server checks the rest when
the pods are made. There is no field for the image, the command or its arguments: what runs is llmops' own.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from llmops_api.v1alpha1.meta import Model, Rule

Label = Annotated[str, Field(max_length=63, pattern=r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$")]
ObjectName = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$")]


class _Open(Model):
    """Takes fields that are not named here, and passes them on as they are."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="allow", frozen=True)


class PodMetadata(Model):
    """Labels and annotations of the pods, beside those of llmops."""

    labels: Annotated[dict[str, Label], Field(max_length=64)] = {}  # noqa: RUF012 - pydantic copies it
    """Put on each pod."""
    annotations: Annotated[dict[str, Annotated[str, Field(max_length=16384)]], Field(max_length=64)] = {}  # noqa: RUF012
    """Put on each pod."""

    rules: ClassVar = (
        Rule("!has(self.labels) || self.labels.all(key, !key.startsWith('llmops.dev/') && !key.startsWith('app.kubernetes.io/'))",
             "labels that begin with llmops.dev/ or app.kubernetes.io/ are set by llmops: write another label",
             lambda self: not any(key.startswith(("llmops.dev/", "app.kubernetes.io/")) for key in self.labels)),
        Rule("!has(self.annotations) || self.annotations.all(key, !key.startsWith('llmops.dev/'))",
             "annotations that begin with llmops.dev/ are set by llmops: write another annotation",
             lambda self: not any(key.startswith("llmops.dev/") for key in self.annotations)),
    )  # fmt: skip


class Toleration(Model):
    """A taint that the pods tolerate."""

    key: Annotated[str, Field(max_length=317)] | None = None
    """The taint's key; all where it is not set."""
    operator: Annotated[str, Field(max_length=16)] | None = None
    """Exists or Equal."""
    value: Label | None = None
    """The taint's value, with Equal."""
    effect: Annotated[str, Field(max_length=32)] | None = None
    """NoSchedule, PreferNoSchedule or NoExecute; all where it is not set."""
    toleration_seconds: int | None = None
    """For how long, with NoExecute."""


class PodVolume(_Open):
    """A volume of the pods: `name` and one of Kubernetes' kinds of volumes."""

    name: Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
    """What mounts call it."""

    rules: ClassVar = (
        Rule("!self.name.startsWith('llmops-')", "volumes whose names begin with llmops- are made by llmops: write another name",
             lambda self: not self.name.startswith("llmops-")),
    )  # fmt: skip


class VolumeMount(_Open):
    """Where a volume is mounted in the containers."""

    name: Annotated[str, Field(min_length=1, max_length=63)]
    """The volume's."""
    mount_path: Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^/.*$")]
    """Where it lies in the container."""


class EnvVar(_Open):
    """An environment variable of the containers: `value`, or `valueFrom` as in Kubernetes."""

    name: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z][-._a-zA-Z0-9]*$")]
    """Its name."""
    value: Annotated[str, Field(max_length=32768)] | None = None
    """Its value."""

    rules: ClassVar = (
        Rule("!self.name.startsWith('LLMOPS_')", "variables whose names begin with LLMOPS_ are set by llmops: remove it from env",
             lambda self: not self.name.startswith("LLMOPS_")),
    )  # fmt: skip


class PullSecret(Model):
    """A Secret of the same namespace with the credentials of a registry."""

    name: ObjectName
    """The Secret's name."""


class PodTemplate(Model):
    """What the pods of this object have beside what llmops gives them. `volumeMounts` and `env` go to every container.
    On a laptop, where there are no pods, nothing of it is read.
    """

    metadata: PodMetadata = PodMetadata()
    node_selector: Annotated[dict[str, Label], Field(max_length=64)] = {}  # noqa: RUF012
    """Labels that a node has to have."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=64)] = ()
    """Taints that do not keep the pods away."""
    affinity: dict[str, Any] = {}  # noqa: RUF012
    """As in Kubernetes."""
    volumes: Annotated[tuple[PodVolume, ...], Field(max_length=64)] = ()
    """Beside those of llmops."""
    volume_mounts: Annotated[tuple[VolumeMount, ...], Field(max_length=64)] = ()
    """Where they lie."""
    env: Annotated[tuple[EnvVar, ...], Field(max_length=64)] = ()
    """Beside the variables of llmops."""
    service_account_name: ObjectName | None = None
    """The namespace's `default` where it is not set; its token is never mounted."""
    image_pull_secrets: Annotated[tuple[PullSecret, ...], Field(max_length=16)] = ()
    """Beside those of the installation."""
    priority_class_name: ObjectName | None = None
    """Who may push out whom."""
    runtime_class_name: ObjectName | None = None
    """Which container runtime, for example nvidia."""

    def manifest(self) -> dict[str, Any]:
        """What was written of it, as it was written."""
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True)
