"""Fitting the switch of a two-tower model on val images."""
