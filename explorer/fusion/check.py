"""Whether a graph that was written here is valid ONNX, told without its weights."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import onnx_ir as ir

from explorer.model.skeleton import skeleton_of


def new_flaw(written: ir.Model, source: ir.Model) -> str:
    """What ONNX's checker or strict shape inference finds wrong with `written`, in a line; "" if nothing.

    A test that the source itself does not pass is no reason to refuse what was made of it: a session judges both.
    """
    proto = skeleton_of(written)
    for test in (_check, _infer):
        if (found := _failure(test, proto)) and not _failure(test, skeleton_of(source)):
            return found
    return ""


def _check(proto: onnx.ModelProto) -> None:
    onnx.checker.check_model(proto)


def _infer(proto: onnx.ModelProto) -> None:
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)


def _failure(test: Callable[[onnx.ModelProto], None], proto: onnx.ModelProto) -> str:
    try:
        test(proto)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return ""
