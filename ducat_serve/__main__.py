"""`python -m ducat_serve` is `ducat`."""

from ducat_serve.cli.main import main

main()
