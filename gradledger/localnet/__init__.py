"""A real Antelope node and a real Kubo on this machine, on loopback alone."""
