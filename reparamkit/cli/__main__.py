"""``python -m reparamkit.cli`` is ``reparamkit``."""

from .entry import main

main()
