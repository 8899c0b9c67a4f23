"""How good a model answers: loss, perplexity and token F1 on held-out conversations, and the gate that decides on them.

`scores` and `gate` are pure; `measure` runs a model and is the only module here that imports torch, when it is called.
"""
