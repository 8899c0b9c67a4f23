"""The local backend: objects in one SQLite file, workloads as process groups on this machine, one daemon that looks after both.

`store` holds the objects, `processes` runs the workloads (a `replica` each, under a `supervisor` process each), `platform` runs
the MLflow server and the vector store in the same way, `daemon` ties them together. Everything that must outlive a crash is a
file below one folder (`home`). No Kubernetes, no MLflow client and no Qdrant client in here.
"""
