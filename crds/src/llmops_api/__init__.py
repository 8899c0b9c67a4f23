"""The API of llmops: the custom resources, and what the control plane and the data plane say to each other.

`v1alpha1` holds the three custom resources; the CRDs in `crds/*.yaml` are generated from it. `programs` holds the config
file that each data-plane program reads and the result that it leaves. This package depends on pydantic alone.
"""
