"""What a run leaves on disk: folder, state, metrics, curves, data set."""
