"""Measure the deployed function: clean accuracy, and accuracy under attacks that know the fold."""
