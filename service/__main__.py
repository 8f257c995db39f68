"""`python -m service ...`: BentoML's command line, with SIGHUP passed on to the workers.

BentoML's supervisor would start a new worker at SIGHUP and end the old one, whether or not the new one can serve.
"""

from functools import partial

import bentoml.serving
from bentoml_cli.cli import cli

bentoml.serving.create_watcher = partial(bentoml.serving.create_watcher, send_hup=True)

if __name__ == "__main__":
    cli(prog_name="bentoml")
