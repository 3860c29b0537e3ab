"""Whole networks, against each other: see `__main__`."""
