"""Convolutions, pooling and resizing."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from explorer.model import ratios
from explorer.model.dims import Dim, add, ceil_divide, floor_divide, multiply, subtract
from explorer.model.ratios import Ratio
from explorer.model.shapes.call import Call, Rules, Shapes, UnknownError, axis_of

INT32, INT64 = ir.DataType.INT32, ir.DataType.INT64


def _windows(call: Call, space: Sequence[Dim], kernel: Sequence[Dim], *, ceil: bool = False) -> list[Dim]:
    """How many windows of `kernel` fit along each axis of `space`."""
    count = len(space)
    strides = call.attribute("strides") or [1] * count
    dilations = call.attribute("dilations") or [1] * count
    auto = call.attribute("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        return [ceil_divide(dim, stride) for dim, stride in zip(space, strides, strict=True)]
    pads = call.attribute("pads") or [0] * (2 * count)
    pads = [0] * (2 * count) if auto == "VALID" else pads
    result = []
    for axis, dim in enumerate(space):
        reach = add(multiply(dilations[axis], subtract(kernel[axis], 1)), 1)
        room = subtract(add(dim, pads[axis] + pads[axis + count]), reach)
        windows = add((ceil_divide if ceil else floor_divide)(room, strides[axis]), 1)
        if ceil and strides[axis] > 1:
            # The last window must begin inside the input or its front padding.
            if not isinstance(dim, int) or not isinstance(windows, int):
                raise UnknownError
            windows -= (windows - 1) * strides[axis] >= dim + pads[axis]
        result.append(windows)
    return result


def _conv(call: Call, weight_at: int = 1) -> Shapes:
    batch, _, *space = call.shape(0)
    weight = call.shape(weight_at)
    kernel = call.attribute("kernel_shape") or weight[2:]
    return [(batch, weight[0], *_windows(call, space, kernel))]


def _nhwc_conv(call: Call) -> Shapes:
    batch, *space, _ = call.shape(0)
    weight = call.shape(1)
    return [(batch, *_windows(call, space, call.attribute("kernel_shape")), weight[0])]


def _quantised_conv(call: Call) -> Shapes:
    return _conv(call, weight_at=3)


def _conv_transpose(call: Call) -> Shapes:
    batch, _, *space = call.shape(0)
    weight = call.shape(1)
    count = len(space)
    channels = multiply(weight[1], call.attribute("group", 1))
    wanted = call.attribute("output_shape")
    if wanted:
        return [(batch, channels, *wanted[-count:])]
    strides = call.attribute("strides") or [1] * count
    if call.attribute("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER"):
        return [(batch, channels, *(multiply(dim, stride) for dim, stride in zip(space, strides, strict=True)))]
    kernel = call.attribute("kernel_shape") or weight[2:]
    dilations = call.attribute("dilations") or [1] * count
    pads = call.attribute("pads") or [0] * (2 * count)
    extra = call.attribute("output_padding") or [0] * count
    dims = []
    for axis, dim in enumerate(space):
        steps = multiply(strides[axis], subtract(dim, 1))
        reach = add(multiply(dilations[axis], subtract(kernel[axis], 1)), 1)
        dims.append(add(add(steps, reach), extra[axis] - pads[axis] - pads[axis + count]))
    return [(batch, channels, *dims)]


def _pool(call: Call) -> Shapes:
    batch, channels, *space = call.shape(0)
    windows = _windows(call, space, call.attribute("kernel_shape"), ceil=bool(call.attribute("ceil_mode", 0)))
    return [(batch, channels, *windows)] * 2


def _global_pool(call: Call) -> Shapes:
    batch, channels, *space = call.shape(0)
    return [(batch, channels, *(1 for _ in space))]


def _resize(call: Call) -> Shapes:
    """Resize (scales, sizes since opset 11) and Upsample (scales)."""
    x = call.shape(0)
    early = call.node.op_type == "Upsample" or call.opset < 11
    scales = call.attribute("scales") or call.elements(1 if early else 2)
    sizes = None if early else call.elements(3)
    axes = call.attribute("axes")
    axes = range(len(x)) if axes is None else [axis_of(axis, len(x)) for axis in axes]
    if call.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise UnknownError
    dims: list[Dim] = list(x)
    for at, axis in enumerate(axes):
        if sizes:
            dims[axis] = call.fresh(axis) if sizes[at] is None else sizes[at]
        else:
            size = None if not scales else _scaled(x[axis], scales[at])
            dims[axis] = call.fresh(axis) if size is None else size
    return [tuple(dims)]


def _scaled(dim: Dim, scale: float | Ratio | None) -> Dim | None:
    if scale is None:
        return None
    if isinstance(dim, int) and isinstance(scale, float):
        return int(dim * scale)
    size = ratios.multiply(Ratio(dim), scale)
    return None if size is None else ratios.floor(size).numerator


def _grid_sample(call: Call) -> Shapes:
    return [call.shape(0)[:2] + call.shape(1)[1:-1]]


def _roi_align(call: Call) -> Shapes:
    size = (call.attribute("output_height", 1), call.attribute("output_width", 1))
    return [(call.shape(1)[0], call.shape(0)[1], *size)]


RULES: Rules = {
    "Conv": ((0,), _conv),
    "ConvInteger": ((INT32,), _conv),
    "QLinearConv": ((7,), _quantised_conv),
    "ConvTranspose": ((0,), _conv_transpose),
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), ((0, INT64), _pool)),
    **dict.fromkeys(("GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool"), ((0,), _global_pool)),
    **dict.fromkeys(("Resize", "Upsample"), ((0,), _resize)),
    "GridSample": ((0,), _grid_sample),
    "RoiAlign": ((0,), _roi_align),
}

MICROSOFT_RULES: Rules = {
    "FusedConv": ((0,), _conv),
    "NhwcConv": ((0,), _nhwc_conv),
    "NhwcFusedConv": ((0,), _nhwc_conv),
    "GridSample": ((0,), _grid_sample),
}
