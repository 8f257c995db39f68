"""Servers of the same model to compare with, each written as its makers' guides say."""
