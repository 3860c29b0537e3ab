"""Write a model so that the file is either complete or not there, and nothing is replaced unasked."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

from explorer.errors import ExportError
from explorer.model.causes import first_cause

# protobuf cannot hold more in one message
_MAX_PROTO_BYTES = 2**31 - 1


def serialize(model: ir.Model) -> bytes:
    """The model as the bytes of an .onnx file; tensors that live in external files are referred to, not read.

    The same model gives the same bytes. ExportError if its inline weights exceed the 2 GB that one file can hold, or
    what its source says of a node is no text.
    """
    inline = sum(
        tensor.nbytes
        for graph in model.graphs()
        for value in graph.initializers.values()
        if (tensor := value.const_value) is not None and not isinstance(tensor, ir.ExternalTensor)
    )
    if inline > _MAX_PROTO_BYTES:
        raise ExportError(
            f"expected at most 2 GB in one ONNX file, found {inline / 1e9:.1f} GB of weights: "
            "store the weights of the source as external data and open that"
        )
    try:
        proto: onnx.ModelProto = ir.to_proto(model)
    except ir.serde.SerdeError as error:
        raise ExportError(
            f"expected a graph that can be written, found: {first_cause(error)}: the source is damaged"
        ) from None
    return bytes(proto.SerializeToString(deterministic=True))


def has_external_data(model: ir.Model) -> bool:
    """True if any weight lives in a file of its own beside the model."""
    return any(_external(model))


def data_folder(model: ir.Model) -> Path | None:
    """The folder of the files that hold weights of `model`, None if it has none: where a session must look for them.

    It need not be the folder of the model's path, which may be a link.
    """
    return next((Path(tensor.base_dir) for tensor in _external(model)), None)


def _external(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        yield from _external_in(graph)


def _external_in(graph: ir.Graph) -> Iterator[ir.ExternalTensor]:
    for value in graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            yield value.const_value
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                yield attribute.value
            elif attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
                yield from _external_in(attribute.as_graph())


def external_files(model: ir.Model) -> set[Path]:
    """The files beside the model that hold its weights."""
    return {Path(tensor.base_dir, tensor.location) for tensor in _external(model)}


def same_file(one: Path, other: Path) -> bool:
    """True if both paths name one existing file, whatever links lead there."""
    try:
        return one.samefile(other)
    except (OSError, ValueError):
        return False


def save(model: ir.Model, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write `model` to `path` in one step and return the path.

    A model that refers to external data must stay in the folder that holds the data: ExportError otherwise, as well as
    for an existing file (unless `overwrite`), a missing folder or one that cannot be written.
    """
    path = Path(path)
    for tensor in _external(model):
        if Path(tensor.base_dir).resolve() != path.resolve().parent:
            raise ExportError(
                f"expected to write beside the model's external data in {tensor.base_dir}, found {path.parent}: "
                f"choose a file in that folder, so that {tensor.location!r} is found when the model is loaded"
            )
    if any(same_file(path, file) for file in external_files(model)):
        raise ExportError(
            f"expected another file than {path}, which holds the model's own weights: choose another name"
        )
    return write_atomically(serialize(model), path, overwrite=overwrite)


def write_atomically(data: bytes, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write `data` to `path` so that nobody ever sees half a file; ExportError in words if that cannot be."""
    path = Path(path)
    check_writable(path, overwrite=overwrite)
    try:
        descriptor, scratch = tempfile.mkstemp(dir=path.parent, prefix=".explorer.", suffix=".part")
    except OSError as error:
        raise ExportError(f"expected a writable folder {path.parent}, found: {error.strerror or error}") from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(scratch).chmod(0o666 & ~_umask())  # mkstemp keeps the file to its owner
        if overwrite:
            Path(scratch).replace(path)
        else:
            _publish_new(Path(scratch), path)
    except OSError as error:
        raise ExportError(f"expected room and permission to write {path}, found: {error.strerror or error}") from None
    finally:
        Path(scratch).unlink(missing_ok=True)
    return path


def check_writable(path: Path, *, overwrite: bool) -> None:
    """ExportError if `path` is a folder, no possible name, or an existing file that is not to be replaced."""
    try:
        path.lstat()
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ExportError(f"expected a file name that can be written, found {str(path)!r}: {reason}") from None
    if path.is_dir():
        raise ExportError(f"expected a file name, found the folder {path}: add a name")
    if not overwrite:
        raise ExportError(f"expected a new file, found that {path} exists: choose another name or ask to replace it")


def _publish_new(scratch: Path, path: Path) -> None:
    """Give `scratch` its final name, refusing a file that appeared meanwhile where the file system can tell."""
    try:
        path.hardlink_to(scratch)
    except FileExistsError:
        raise ExportError(f"expected a new file, found that {path} appeared meanwhile: choose another name") from None
    except OSError:  # a file system without hard links
        scratch.replace(path)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
