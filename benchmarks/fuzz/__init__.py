"""A differential fuzzer of `reparamkit.fuse`: ``python -m benchmarks.fuzz --help``."""

from . import blocks as blocks  # what it draws is put into the catalogue
