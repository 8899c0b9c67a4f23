"""A real Kubernetes for the tests of this folder, made on the machine that runs them.

What lives here starts, feeds and ends clusters, and knows nothing of llmops: the tests beside it see a kubeconfig. It needs no
registry: Kubernetes is built from its Go modules, and images are packed from folders.
"""
