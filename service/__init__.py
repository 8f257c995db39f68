"""The HTTP service: BentoML around a bounded in-process batcher. Imports no torch."""
