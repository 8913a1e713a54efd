"""The chain: names, keys, ABI, transactions, a node's API and the contract's tables."""
