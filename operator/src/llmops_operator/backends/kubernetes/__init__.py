"""The Kubernetes backend: objects are custom resources, workloads are Jobs, RayJobs, Deployments and Services; one operator process.

The store: `watching` has kopf tell of every change of the custom resources, `cache` keeps them, `store` writes statuses, finalizers
and (`events`) events. The operator: `operator` ties everything together, `leadership` lets one replica at a time act, `metrics`
answers Prometheus and the kubelet, `config` is the one file it is configured by. The workloads: `backend`, with manifests made in
`rendering`, pure. Only here are kopf and the Kubernetes client known. No MLflow client and no Qdrant client in here.
"""
