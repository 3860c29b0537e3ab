"""Every error that a user of the explorer can cause or meet, one class for each thing that can go wrong.

    ExplorerError
    ├── ModelError        the file is not a usable ONNX model (missing, truncated, empty, ill-typed, external data lost)
    ├── BlockError        no such block, or the block cannot be fused
    ├── PlanError         the plan is not readable, or does not fit this model
    ├── InputError        inputs or shapes given do not fit the model
    ├── ExportError       the result cannot be written there
    ├── SessionError      ONNX Runtime refuses to load or run the model, or the provider asked for is not there
    └── WorkerError       the worker process failed
        ├── WorkerDied    it ended by itself (a crash, a kill, out of memory)
        ├── WorkerTimeout it took longer than its limit and was stopped
        └── Cancelled     the user stopped it

`str(error)` is one sentence that says what was expected, what was found and what to do. It may quote names from a
model: whoever shows it escapes it.
"""

from __future__ import annotations


class ExplorerError(Exception):
    """Base of all errors that are answered with a sentence instead of a traceback."""


class ModelError(ExplorerError):
    """The file is not a usable ONNX model."""


class BlockError(ExplorerError):
    """No such attention block, or it cannot be fused."""


class PlanError(ExplorerError):
    """A fusion plan cannot be read or does not fit the model."""


class InputError(ExplorerError):
    """Inputs or shapes that were given do not fit the model."""


class ExportError(ExplorerError):
    """A result cannot be written where it was asked for."""


class SessionError(ExplorerError):
    """ONNX Runtime refuses the model, or the execution provider asked for is not available."""


class WorkerError(ExplorerError):
    """The worker process that runs sessions failed."""


class WorkerDied(WorkerError):
    """The worker process ended by itself; the message carries its last words."""


class WorkerTimeout(WorkerError):
    """The worker process took longer than its time limit and was stopped."""


class Cancelled(WorkerError):
    """The user stopped the work."""
