"""Collections for the tests that run on the embedded store and on the server that QDRANT_URL names (if any)."""

from __future__ import annotations

import os

from qdrant_client import models

SERVER = os.environ.get("QDRANT_URL")
DIMENSIONS = 16
DENSE = models.VectorParams(size=DIMENSIONS, distance=models.Distance.COSINE)
SPARSE = models.SparseVectorParams(modifier=models.Modifier.IDF)
