"""The compiled contracts: read them with ``importlib.resources.files("gradledger.artifacts")``."""
