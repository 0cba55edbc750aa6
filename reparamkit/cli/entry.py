"""The console script: starts the command line, or says what to install.

typer and rich are in the extra ``cli``; the package itself never imports this folder.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import sys

from .failures import missing


def main() -> None:
    """Run ``reparamkit`` with the arguments of the process, and exit."""
    for name in ("typer", "rich"):
        if importlib.util.find_spec(name) is None:
            failure = missing(name, "cli")
            print(f"reparamkit: {failure}", file=sys.stderr)
            sys.exit(int(failure.code))
    # A path that the terminal cannot show is no reason to end.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(int(importlib.import_module(".app", __package__).run(sys.argv[1:])))
