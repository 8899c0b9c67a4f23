"""What was made from what, read from MLflow: the graph behind `llmops lineage`.

`graph` is plain data, `nodes` makes nodes of what MLflow says, `reader` walks from one thing in either direction. Nothing here
writes to MLflow.
"""
