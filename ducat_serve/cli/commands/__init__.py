"""One file per command of `ducat`, imported only when it runs."""
