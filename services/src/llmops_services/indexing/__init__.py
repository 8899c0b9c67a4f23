"""The indexing program: makes the collections of an EmbeddingIndex what its spec and its sources ask for.

`python -m llmops_services.indexing config/indexing.json`. Documents flow through it once, in windows: `documents` reads them,
`sync` compares them with what the collection holds, `chunking` (with `markdown`) cuts those that differ, `embed` computes their
vectors here or on Ray, and `collection` writes them while the next window is embedded. `evaluation` measures, `versions` knows
the collections behind one alias, and `program` puts these in order. Nothing is remembered outside of the vector store: what is
there says what is still to do, so that a run that was killed is simply run again.
"""
