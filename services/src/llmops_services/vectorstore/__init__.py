"""The embedded vector store: Qdrant's REST API over Qdrant Edge, one process, one folder.

Everything else speaks `qdrant_client` to a URL and cannot tell this store from a Qdrant server; the routes are the ones that the
platform uses, and no others (docs/adr/0002). What lives here: `schema`, `filters`, `queries` and `points` turn REST JSON into Edge's
types and back; `collection` is one collection in one folder, `compaction` rebuilds its index beside it; `aliases` and
`catalog` are the durable names; `app` is the HTTP around them. Nothing here knows about documents, embeddings or indexes.
"""
