"""Gather, decide, act: one module a kind, the work queue between them, and lineage in MLflow behind a protocol."""
