"""What is served: loading, swapping and batching. Knows no request."""
