"""What the mouse reads over a box: operator, name, tensors with type and shape, attributes. Escaped for plotly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from explorer.model.describe import NodeInfo, TensorInfo
from explorer.view.graph import Item
from explorer.view.text import as_plot, middle

_NAME = 56
_VALUE = 64
_MOST = 8


def hover(item: Item, nodes: Mapping[str, NodeInfo], tensors: Mapping[str, TensorInfo]) -> str:
    """Hover text of an item: a few lines of the HTML subset that plotly reads."""
    if item.kind == "node":
        return _node(nodes[item.key], tensors)
    title = {"input": "Graph input", "output": "Graph output", "port": "Tensor with many readers"}[item.kind]
    lines = [f"<b>{title}</b>", _tensor(item.tensor, tensors)]
    if item.kind == "port" and (known := tensors.get(item.tensor)) is not None:
        origin = nodes.get(known.producer or "")
        came = f"{as_plot(origin.op_type)} {_name(origin.key)}" if origin else known.kind
        lines += [f"from {came}, to {len(known.consumers)} nodes", "<i>click: go to where it comes from</i>"]
    return "<br>".join(lines)


def _node(node: NodeInfo, tensors: Mapping[str, TensorInfo]) -> str:
    domain = f"  {as_plot(node.domain)}" if node.domain not in ("", "ai.onnx") else ""
    lines = [f"<b>{as_plot(node.op_type)}</b>{domain}", _name(node.key)]
    lines += _part("inputs", [_tensor(name, tensors) for name in node.inputs])
    lines += _part("outputs", [_tensor(name, tensors) for name in node.outputs])
    lines += _part(
        "attributes", [f"{as_plot(name)} = {as_plot(middle(text, _VALUE))}" for name, text in node.attributes]
    )
    return "<br>".join(lines)


def _part(title: str, lines: Sequence[str]) -> list[str]:
    if not lines:
        return []
    more = [f"… and {len(lines) - _MOST} more"] if len(lines) > _MOST else []
    return [f"<i>{title}</i>", *(f"  {line}" for line in [*lines[:_MOST], *more])]


def _tensor(name: str, tensors: Mapping[str, TensorInfo]) -> str:
    if not name:
        return "(left out)"
    known = tensors.get(name)
    if known is None:
        return _name(name)
    weight = " weight" if known.kind == "initializer" else ""
    return f"{_name(name)}  <b>{as_plot(middle(known.type, _VALUE))}</b>{weight}"


def _name(text: str) -> str:
    return as_plot(middle(text, _NAME))
