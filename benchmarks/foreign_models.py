"""Somebody else's models, really: networks of torchvision and timm through `ducat evaluate`, none changed for it.

    pip install timm        # in an environment of its own: see docs/dependencies.md
    python benchmarks/foreign_models.py --max-examples 100 --suite quick

Prints a table; each report and card go to a temporary folder and are thrown away.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

NETS = ("torchvision_resnet", "torchvision_resnet_on_digits", "timm_convnext", "timm_vit_on_digits")
HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("nets", nargs="*", default=NETS, metavar="NET", help=", ".join(NETS))
    parser.add_argument("--max-examples", default="100")
    parser.add_argument("--eps", default="8/255")
    parser.add_argument("--suite", default="quick")
    given = parser.parse_args()
    asked = ["--dataset", "digits", "--eps", given.eps, "--suite", given.suite]
    asked += ["--max-examples", given.max_examples, "--import-from", str(HERE), "--json"]
    print(f"| network | clean | worst case at {given.eps} | sanity checks that failed | seconds |")
    print("|---|---|---|---|---|")
    for net in given.nets:
        command = [sys.executable, "-m", "ducat_serve", "evaluate", f"foreign_nets:{net}", *asked]
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            print(f"| {net} | exit code {done.returncode}: {done.stderr.strip()[-300:]} | | | |")
            continue
        report = json.loads(done.stdout)
        failed = ", ".join(check["name"] for check in report["sanity"] if not check["passed"]) or "none"
        if not report["sanity"]:
            failed = "not run: too few images right"
        print(
            f"| {net} | {report['clean_accuracy']:.1%} | {report['worst_case_accuracy']:.1%} | {failed} | "
            f"{report['seconds']:.0f} |"
        )


if __name__ == "__main__":
    main()
