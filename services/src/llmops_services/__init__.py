"""The data plane of llmops: programs that train, index, serve and answer. None of them knows Kubernetes or the control plane.

`training`, `indexing`, `engine`, `gateway` and `vectorstore` are programs, started as `python -m llmops_services.NAME CONFIG`;
the modules beside them are what the programs share.
"""
