"""The trainer: checks the data, trains on Ray Train with TRL and PEFT, evaluates before and after, registers in MLflow.

`python -m llmops_services.training config/training.json` runs three kinds of processes. The driver (`job`) checks, starts Ray,
follows the journal and talks to MLflow; it never holds the model. The workers (`worker`) hold it, and write what happens to
a journal in the state folder (`journal`), so that nothing outside can slow the training down. What is done is kept in the state
folder (`state`): an attempt goes on where the one before was killed.
"""
