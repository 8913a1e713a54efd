"""Record and reward federated learning on an Antelope chain: what all the parties share."""

__version__ = "0.1.0"
