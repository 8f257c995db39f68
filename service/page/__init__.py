"""The page that tries the model in a browser."""
