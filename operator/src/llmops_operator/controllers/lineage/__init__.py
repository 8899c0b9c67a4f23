"""Lineage in MLflow behind a protocol (`port`): its thread (`mlflow`), and what it writes (`writing`). Nothing waits for MLflow."""
