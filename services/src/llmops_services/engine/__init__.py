"""The inference engine: vLLM with the base model, and the adapters that its service wants loaded, kept loaded.

`command` says how vLLM is started, `adapters` keeps its adapters what `config/adapters.json` asks for, `__main__` runs both.
"""
