"""Several processes: starting them, dealing out batches, reducing what they found."""
