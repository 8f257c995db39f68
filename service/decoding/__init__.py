"""Decoding of untrusted images in processes of their own, which can be killed."""
