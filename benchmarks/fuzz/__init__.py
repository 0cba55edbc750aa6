"""A differential fuzzer of `reparamkit.fuse`: ``python -m benchmarks.fuzz --help``."""

from . import blocks as blocks  # what these draw is put into the catalogue
from . import spellings as spellings
