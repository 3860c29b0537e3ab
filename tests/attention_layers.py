"""A layer of attention as ONNX text, for networks of several."""

from __future__ import annotations

ATTENTION = """
    qs{i} = Reshape(q{i}, split)
    ks{i} = Reshape(k{i}, split)
    vs{i} = Reshape(h{i}, split)
    qt{i} = Transpose<perm = [0, 2, 1, 3]>(qs{i})
    kt{i} = Transpose<perm = [0, 2, 3, 1]>(ks{i})
    vt{i} = Transpose<perm = [0, 2, 1, 3]>(vs{i})
    x{i} = MatMul(qt{i}, kt{i})
    l{i} = Mul(x{i}, scale{i})
    m{i} = {masked}
    p{i} = Softmax<axis = -1>(m{i})
    o{i} = MatMul(p{i}, vt{i})
    ot{i} = Transpose<perm = [0, 2, 1, 3]>(o{i})
    y{i} = Reshape(ot{i}, merge)
"""
"""From q{i}, k{i} and h{i} in BSD to y{i} in BSD; `split` and `merge` are the shapes in between, `scale{i}` the scale,
and `{masked}` what becomes of the logits l{i}."""
