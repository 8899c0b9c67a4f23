"""Specs, and what is wrong with them: the models, the CRDs and the API server are held to the same table."""

from __future__ import annotations

import copy
from typing import Any

Spec = dict[str, Any]

JOB: Spec = {
    "baseModel": {"uri": "pkg://llm/model.gguf"},
    "data": {"train": {"uri": "file:///data/train.jsonl"}},
    "hyperparameters": {"epochs": 1},
    "output": {"model": "assistant"},
}
INDEX: Spec = {
    "sources": [{"name": "docs", "uri": "file:///docs"}],
    "embedding": {"model": {"uri": "hf://org/minilm@main"}},
}
SERVICE: Spec = {"model": {"base": {"uri": "mlflow://assistant@champion"}}}
BASE = {"TrainingJob": JOB, "EmbeddingIndex": INDEX, "RagService": SERVICE}
DROP = object()


def edited(base: Spec, changes: Spec) -> Spec:
    """`base` with values at dotted paths set, or dropped."""
    spec = copy.deepcopy(base)
    for path, value in changes.items():
        *parents, last = path.split(".")
        at = spec
        for parent in parents:
            at = at.setdefault(parent, {})
        if value is DROP:
            del at[last]
        else:
            at[last] = value
    return spec


SOURCE = {"name": "docs", "uri": "file:///docs"}
REF = {"indexRef": {"name": "docs"}}
POD_TEMPLATE: Spec = {
    "metadata": {"labels": {"team": "search"}, "annotations": {"example.com/owner": "search team"}},
    "nodeSelector": {"pool": "gpu"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}},
    "volumes": [{"name": "models", "persistentVolumeClaim": {"claimName": "models", "readOnly": True}}],
    "volumeMounts": [{"name": "models", "mountPath": "/models", "readOnly": True}],
    "env": [
        {"name": "HF_HUB_OFFLINE", "value": "1"},
        {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
    ],
    "serviceAccountName": "trainer",
    "imagePullSecrets": [{"name": "registry"}],
    "priorityClassName": "high",
    "runtimeClassName": "nvidia",
}

VALID: list[tuple[str, str, Spec]] = [
    ("TrainingJob", "the least of a TrainingJob", {}),
    ("TrainingJob", "full tuning", {"tuning": {"full": {}}}),
    ("TrainingJob", "dropout below one", {"tuning": {"lora": {"dropout": "0.05"}}}),
    ("TrainingJob", "steps instead of epochs", {"hyperparameters": {"maxSteps": 25, "learningRate": "1e-5", "warmupRatio": "0"}}),
    ("TrainingJob", "a gate with a general set", {"evaluation": {"domain": {"uri": "file:///e"}, "general": {"uri": "file:///g"},
        "gate": {"metric": "TokenF1", "minImprovement": "-0.1", "maxGeneralRegression": "0.2"}}}),
    ("TrainingJob", "a gate without a general set", {"evaluation": {"domain": {"uri": "file:///e"}, "gate": {}}}),
    ("TrainingJob", "an alias that begins with v", {"output.aliasOnPass": "vital"}),
    ("TrainingJob", "no alias", {"output.aliasOnPass": ""}),
    ("TrainingJob", "a relative file", {"data.train.uri": "file://./train.jsonl"}),
    ("TrainingJob", "resources", {"compute": {"workers": 2, "resources": {"cpu": "500m", "memory": "2Gi"}}}),
    ("TrainingJob", "GPUs of one kind", {"compute": {"gpus": {"count": 2, "product": "NVIDIA-H100-80GB-HBM3"}}}),
    ("TrainingJob", "a pod template", {"podTemplate": POD_TEMPLATE}),
    ("TrainingJob", "weights on a claim", {"baseModel.uri": "pvc://models/qwen/7b"}),
    ("TrainingJob", "a token for data", {"data.train": {"uri": "https://host/train.jsonl", "secretRef": {"name": "s", "key": "token"}}}),
    ("TrainingJob", "data of a repository", {"data.train.uri": "git+https://host/org/data@v1#train.jsonl"}),
    ("TrainingJob", "data of an S3 store", {"data.train": {"uri": "s3://data-sets/2026/train.jsonl", "secretRef": {"name": "store"}}}),
    ("EmbeddingIndex", "a whole bucket", {"sources": [{"name": "docs", "uri": "s3://documents"}]}),
    ("RagService", "weights of an S3 store", {"model.base.uri": "s3://weights/assistant/"}),
    ("TrainingJob", "what was pushed", {"data.train.uri": f"artifact://{'0' * 64}/train.jsonl"}),
    ("EmbeddingIndex", "the least of an EmbeddingIndex", {}),
    ("EmbeddingIndex", "a token for the hub", {"embedding.model": {"uri": "hf://org/m", "secretRef": {"name": "hub"}}}),
    ("EmbeddingIndex", "documents on a claim", {"sources": [{"name": "docs", "uri": "pvc://documents/"}], "podTemplate": POD_TEMPLATE}),
    ("EmbeddingIndex", "overlap of half", {"chunking": {"maxTokens": 64, "overlapTokens": 32}}),
    ("EmbeddingIndex", "a gate of one", {"evaluation": {"questions": {"uri": "file:///q"}, "gate": {"recallAt5": "1"}}}),
    ("EmbeddingIndex", "a GPU for each of two workers", {"compute": {"workers": 2, "gpus": {}}}),
    ("EmbeddingIndex", "two sources", {"sources": [SOURCE, {**SOURCE, "name": "more", "metadata": {"area": "hr"}}]}),
    ("EmbeddingIndex", "refresh", {"refresh": {"everySeconds": 60}, "deletionPolicy": "Retain"}),
    ("RagService", "the least of a RagService", {}),
    ("RagService", "an adapter of a job", {"model.adapter": {"trainingJobRef": {"name": "assistant"}}}),
    ("RagService", "an adapter by alias", {"model.adapter": {"model": {"name": "assistant", "alias": "champion"}}}),
    ("RagService", "an adapter by version", {"model.adapter": {"model": {"name": "assistant", "version": "3"}}}),
    ("RagService", "an endpoint with a key", {"model": {"endpoint": {"urls": ["http://engine:8000/v1"], "name": "m", "secretRef": {"name": "key"}}}}),
    ("RagService", "all memory of the GPU", {"engine": {"gpuMemoryUtilization": "1.0", "extraArgs": ["--enable-prefix-caching"]}}),
    ("RagService", "two indexes", {"indexes": [REF, {"indexRef": {"name": "more"}, "description": "more"}]}),
    ("RagService", "as many candidates as sources", {"retrieval": {"topK": 5, "candidates": 5, "minScore": "-0.5"}}),
    ("RagService", "a template of its own", {"prompt": {"template": "{question} {sources}"}}),
    ("RagService", "a model over two GPUs", {"compute": {"gpus": {"count": 2}, "resources": {"memory": "64Gi"}},
        "engine": {"tensorParallelSize": 2}, "podTemplate": POD_TEMPLATE}),
]  # fmt: skip

INVALID: list[tuple[str, str, Spec, str]] = [
    ("TrainingJob", "an unknown field", {"epochs": 3}, "epochs"),
    ("TrainingJob", "an unknown field deep inside", {"tuning": {"lora": {"r": 8}}}, "r"),
    ("TrainingJob", "no output", {"output": DROP}, "output"),
    ("TrainingJob", "a wrong type", {"hyperparameters": {"epochs": "many"}}, "epochs"),
    ("TrainingJob", "an unknown method", {"method": "DPO"}, "method"),
    ("TrainingJob", "a scheme that nothing reads", {"data.train.uri": "ftp://host/file"}, "uri"),
    ("TrainingJob", "a number where a decimal string belongs", {"hyperparameters": {"epochs": 1, "learningRate": 0.1}}, "learningRate"),
    ("TrainingJob", "both lora and full", {"tuning": {"lora": {}, "full": {}}}, "exactly one of lora and full"),
    ("TrainingJob", "neither lora nor full", {"tuning": {}}, "exactly one of lora and full"),
    ("TrainingJob", "dropout of one", {"tuning": {"lora": {"dropout": "1"}}}, "dropout is a share"),
    ("TrainingJob", "epochs and maxSteps", {"hyperparameters": {"epochs": 1, "maxSteps": 1}}, "exactly one of epochs and maxSteps"),
    ("TrainingJob", "neither epochs nor maxSteps", {"hyperparameters": {}}, "exactly one of epochs and maxSteps"),
    ("TrainingJob", "a learning rate of zero", {"hyperparameters": {"epochs": 1, "learningRate": "0"}}, "learningRate must be above 0"),
    ("TrainingJob", "warm-up over everything", {"hyperparameters": {"epochs": 1, "warmupRatio": "1"}}, "warmupRatio is a share"),
    ("TrainingJob", "a bound on a general set that is not there",
     {"evaluation": {"domain": {"uri": "file:///e"}, "gate": {"maxGeneralRegression": "0"}}}, "needs evaluation.general"),
    ("TrainingJob", "the alias latest", {"output.aliasOnPass": "latest"}, "may not be latest"),
    ("TrainingJob", "an alias like a version", {"output.aliasOnPass": "v12"}, "may not be latest"),
    ("TrainingJob", "no worker", {"compute": {"workers": 0}}, "workers"),
    ("TrainingJob", "no GPU at all", {"compute": {"gpus": {"count": 0}}}, "count"),
    ("TrainingJob", "a product that is no label", {"compute": {"gpus": {"product": "H100 (80 GB)"}}}, "product"),
    ("TrainingJob", "a command in the pod template", {"podTemplate": {"command": ["sh"]}}, "command"),
    ("TrainingJob", "an image in the pod template", {"podTemplate": {"image": "mine"}}, "image"),
    ("TrainingJob", "a label of llmops", {"podTemplate": {"metadata": {"labels": {"llmops.dev/kind": "x"}}}}, "write another label"),
    ("TrainingJob", "an annotation of llmops", {"podTemplate": {"metadata": {"annotations": {"llmops.dev/x": "x"}}}}, "write another annotation"),
    ("TrainingJob", "a volume of llmops", {"podTemplate": {"volumes": [{"name": "llmops-tmp", "emptyDir": {}}]}}, "write another name"),
    ("TrainingJob", "a volume without a name", {"podTemplate": {"volumes": [{"emptyDir": {}}]}}, "name"),
    ("TrainingJob", "a relative mount", {"podTemplate": {"volumeMounts": [{"name": "data", "mountPath": "data"}]}}, "mountPath"),
    ("TrainingJob", "a variable of llmops", {"podTemplate": {"env": [{"name": "LLMOPS_PORT", "value": "1"}]}}, "remove it from env"),
    ("TrainingJob", "a claim without a name", {"data.train.uri": "pvc:///train.jsonl"}, "uri"),
    ("TrainingJob", "a bucket without a name", {"data.train.uri": "s3:///train.jsonl"}, "uri"),
    ("TrainingJob", "a token for a claim", {"data.train": {"uri": "pvc://c/x", "secretRef": {"name": "s"}}}, "secretRef is a token for"),
    ("TrainingJob", "a password in an address", {"data.train.uri": "https://me:secret@host/x"}, "uri"),
    ("TrainingJob", "a tree that is none", {"data.train.uri": "artifact://abc/train.jsonl"}, "uri"),
    ("EmbeddingIndex", "no source", {"sources": []}, "sources"),
    ("EmbeddingIndex", "more overlap than half", {"chunking": {"maxTokens": 64, "overlapTokens": 33}}, "at most half of maxTokens"),
    ("EmbeddingIndex", "a recall above one", {"evaluation": {"questions": {"uri": "file:///q"}, "gate": {"recallAt5": "1.01"}}}, "is a share"),
    ("EmbeddingIndex", "two sources of one name", {"sources": [SOURCE, SOURCE]}, "give each source a name of its own"),
    ("EmbeddingIndex", "a source without a name", {"sources": [{"uri": "file:///docs"}]}, "name"),
    ("EmbeddingIndex", "two GPUs for one worker", {"compute": {"gpus": {"count": 2}}}, "raise compute.workers instead"),
    ("EmbeddingIndex", "a source with a bad name", {"sources": [{**SOURCE, "name": "My Docs"}]}, "name"),
    ("RagService", "no model", {"model": DROP}, "model"),
    ("RagService", "neither base nor endpoint", {"model": {}}, "exactly one of base and endpoint"),
    ("RagService", "base and endpoint", {"model.endpoint": {"urls": ["http://e/v1"], "name": "m"}}, "exactly one of base and endpoint"),
    ("RagService", "an adapter of an endpoint", {"model": {"endpoint": {"urls": ["http://e/v1"], "name": "m"},
        "adapter": {"trainingJobRef": {"name": "j"}}}}, "model.adapter needs model.base"),
    ("RagService", "an adapter from nowhere", {"model.adapter": {}}, "exactly one of trainingJobRef and model"),
    ("RagService", "an adapter from two places", {"model.adapter": {"trainingJobRef": {"name": "j"}, "model": {"name": "m", "version": "1"}}},
     "exactly one of trainingJobRef and model"),
    ("RagService", "alias and version", {"model.adapter": {"model": {"name": "m", "alias": "a", "version": "1"}}}, "exactly one of alias and version"),
    ("RagService", "neither alias nor version", {"model.adapter": {"model": {"name": "m"}}}, "exactly one of alias and version"),
    ("RagService", "no memory of the GPU", {"engine": {"gpuMemoryUtilization": "0"}}, "gpuMemoryUtilization is a share"),
    ("RagService", "more than the GPU", {"engine": {"gpuMemoryUtilization": "1.1"}}, "gpuMemoryUtilization is a share"),
    ("RagService", "an option that is ours", {"engine": {"extraArgs": ["--port=80"]}}, "extraArgs repeats an option"),
    ("RagService", "an option that is ours, split", {"engine": {"extraArgs": ["--dtype", "half"]}}, "extraArgs repeats an option"),
    ("RagService", "an index twice", {"indexes": [REF, REF]}, "name the same EmbeddingIndex"),
    ("RagService", "more sources than candidates", {"retrieval": {"topK": 6, "candidates": 5}}, "topK may not be above candidates"),
    ("RagService", "a template without the question", {"prompt": {"template": "{sources}"}}, "must hold both"),
    ("RagService", "a model over more GPUs than a replica has", {"compute": {"gpus": {}}, "engine": {"tensorParallelSize": 2}},
     "above compute.gpus.count"),
    ("RagService", "workers of an engine", {"compute": {"workers": 2}}, "workers"),
    ("RagService", "a url that is none", {"model": {"endpoint": {"urls": ["engine:8000"], "name": "m"}}}, "urls"),
]  # fmt: skip

VALID_NAMES = ["x", "0", "7b-chat", "a-0", "a--b", "a" * 63, "-".join("a" * 32)]
INVALID_NAMES = ["my.job", "a.b", "a" * 64, "a" * 100, "0" * 253]
"""These would be names of other objects."""

EDITS: list[tuple[str, Spec, str | None]] = [
    ("suspend", {"suspend": True}, None),
    ("nothing", {}, None),
    ("a default said", {"backoffLimit": 3}, None),
    ("another data set", {"data.train.uri": "file:///other.jsonl"}, "data"),
    ("a field that comes", {"activeDeadlineSeconds": 5}, "activeDeadlineSeconds"),
    ("GPUs that come", {"compute": {"gpus": {}}}, "compute"),
    ("a pod template that comes", {"podTemplate": {"nodeSelector": {"pool": "gpu"}}}, "podTemplate"),
    ("an object that comes", {"evaluation": {"domain": {"uri": "file:///e"}}}, "evaluation"),
    ("two fields", {"backoffLimit": 1, "output.model": "other"}, "output, backoffLimit"),
]
