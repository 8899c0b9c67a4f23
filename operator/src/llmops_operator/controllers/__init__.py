"""Gather, decide, act: one loop for all kinds over one work queue, and lineage in MLflow behind a protocol."""
