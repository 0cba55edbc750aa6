"""The errors of this example: each is one sentence that says what is wrong and what to do next.

ExampleError
├── FileError        a file is missing, damaged, or holds what is never loaded
├── DataError        a data set is missing, truncated or not what it claims to be
├── WeightsError     weights do not fit the model
├── CheckpointError  a run cannot be continued
├── TrainingError    training diverged
└── FusionError      the fused model does not compute what the trained model computes
"""


class ExampleError(Exception):
    """Base of all errors that a user of this example can cause and repair."""


class FileError(ExampleError):
    """A file is missing, damaged, or holds what is never loaded."""


class DataError(ExampleError):
    """A data set is missing, truncated or not what it claims to be."""


class WeightsError(ExampleError):
    """Weights do not fit the model."""


class CheckpointError(ExampleError):
    """A run cannot be continued from its checkpoint."""


class TrainingError(ExampleError):
    """Training diverged."""


class FusionError(ExampleError):
    """The fused model does not compute what the trained model computes."""
