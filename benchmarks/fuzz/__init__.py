"""A differential fuzzer of `reparamkit.fuse`: ``python -m benchmarks.fuzz --help``."""
