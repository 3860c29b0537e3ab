"""Which rule belongs to which operator."""

from __future__ import annotations

from collections.abc import Mapping

from explorer.model.shapes import attention, elementwise, products, rearrange, select, windows
from explorer.model.shapes.call import Rule

_ONNX = {
    **elementwise.RULES,
    **rearrange.RULES,
    **select.RULES,
    **products.RULES,
    **windows.RULES,
    **attention.RULES,
}
_MICROSOFT = {
    **elementwise.MICROSOFT_RULES,
    **products.MICROSOFT_RULES,
    **windows.MICROSOFT_RULES,
    **attention.MICROSOFT_RULES,
}

RULES: Mapping[str, Mapping[str, Rule]] = {"": _ONNX, "ai.onnx": _ONNX, "com.microsoft": _MICROSOFT}
"""Rules by domain and op type."""
