"""Whether a device computes what it should and how fast: the items of `ducat doctor --gpu`, each a small check.

Every check runs on a CPU too, so tests run the same code that a machine with a GPU will.
"""
