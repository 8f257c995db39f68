"""Attacks on classifiers: perturbation balls and the searches inside them."""
