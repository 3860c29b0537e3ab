"""ONNX Runtime's own attention fusions, as data and checks. Each names the source file it was read from.

A session fuses by itself (core/optimizer/attention_fusion.cc); `onnxruntime.transformers.optimizer` only when it is run
by hand with a fitting model type (fusion_*.py).
"""

from __future__ import annotations

import onnx_ir as ir

from explorer.attention.ort_walk import Nodes, Rule, Spelling, has_perm, named, readers, scalar_of, stored, vanishes
from explorer.attention.walk import name_of, softmax_axis
from explorer.model import Model

_MAX_UPSTREAM = 10  # how far the DiT fusion looks for the Reshape that splits the heads


def _dit_stop(model: Model, nodes: Nodes) -> str:
    """What stops the DiT fusion once its chain fits: FusionMultiHeadAttentionDiT.fuse, in its order."""
    softmax, scale, qk, pv = (nodes[name] for name in ("Softmax", "scale", "qk", "pv"))
    if softmax.outputs[0].is_graph_output():
        return f"stops at {named(model, softmax)}, whose result is an output of the graph"
    if softmax_axis(model, softmax) not in (-1, 3):
        return f"expects Softmax over the last axis and finds {named(model, softmax)} over another"
    if scalar_of(model, scale) is None:
        return f"expects one factor of {named(model, scale)} to be a constant scalar and finds another value"
    q, v = (_seen(model, value) for value in (qk.inputs[0], pv.inputs[1]))
    v_cast = v.producer() if v is not None and "down" in nodes else None
    traced = v_cast is not None and v_cast.op_type == "Cast"
    v = v_cast.inputs[0] if v_cast is not None and traced else v
    for name, value in (("Q", q), ("V", v)):
        if value is not None and value.dtype is None and not traced and ("up" in nodes or "down" in nodes):
            missing = f"the file does not store that of {name_of(value)!r} (value_info)"
            return f"stops at {named(model, qk if name == 'Q' else pv)}: it needs {name}'s element type, and {missing}"
    for name, value in (("V", v), ("K", _key_source(model, qk))):
        if q is not None and value is not None and None not in (q.dtype, value.dtype) and q.dtype != value.dtype:
            return f"expects Q and {name} of one element type at {named(model, qk)}, and they differ"
    if not any(_heads(model, value) for value in (q, v)) and not any(
        _stored_heads(value) for value in (q, v, nodes["Transpose"].inputs[0])
    ):
        return f"finds no number of heads upstream of {named(model, qk)}"
    for node in (qk, scale, softmax, pv, *(nodes[name] for name in ("up", "down", "Transpose") if name in nodes)):
        if len(found := list(readers(model, DIT, node.outputs[0]))) > 1:
            names = " and ".join(named(model, reader) for reader, _ in found[:2])
            return f"stops at {named(model, node)}, which has more than one reader: {names}"
    return ""


def _seen(model: Model, value: ir.Value | None) -> ir.Value | None:
    """The value that stands here once the Casts that change nothing are gone."""
    source = None if value is None else value.producer()
    return _seen(model, source.inputs[0]) if source is not None and vanishes(model, DIT, source) else value


def _key_source(model: Model, qk: ir.Node) -> ir.Value | None:
    """K as the DiT fusion compares it with Q: before its Transpose, and before a Cast ahead of that."""
    value = _seen(model, qk.inputs[1])
    source = None if value is None else value.producer()
    if source is None or source.op_type != "Transpose" or not has_perm(source, "0132"):
        return None  # it adds a Transpose of its own, whose type is unknown
    cast = source.inputs[0].producer() if source.inputs[0] is not None else None
    return cast.inputs[0] if cast is not None and cast.op_type == "Cast" else source.inputs[0]


def _heads(model: Model, value: ir.Value | None) -> bool:
    """Whether the number of heads is found as in detect_num_heads: the Reshape before the first Transpose 0,2,1,3."""
    for _ in range(_MAX_UPSTREAM):
        node = None if value is None else value.producer()
        if node is None or not node.inputs:
            return False
        value = node.inputs[0]
        if node.op_type == "Transpose" and has_perm(node, "0213"):
            split = None if value is None else value.producer()
            if split is None or split.op_type != "Reshape":
                return False
            concat = None if (shape := split.inputs[1]) is None else shape.producer()
            if concat is not None and concat.op_type == "Concat" and len(concat.inputs) == 4:
                return stored(concat.inputs[2]) and (model.scalar(concat.inputs[2]) or 0) > 0
            sizes = model.constant(shape) if stored(shape) else None
            return sizes is not None and sizes.size == 4 and sizes[2] > 0
    return False


def _stored_heads(value: ir.Value | None) -> bool:
    """Whether the file stores a BNSH shape with a number of heads for `value`."""
    shape = None if value is None else value.shape
    return shape is not None and len(shape) == 4 and isinstance(shape[1], int) and shape[1] > 0


def _bert_stop(model: Model, nodes: Nodes) -> str:
    """What stops FusionAttention once its paths fit: Q, K and V must be projections of what the residual adds."""
    root = nodes["q"].inputs[0]
    for name in ("k", "v"):
        if nodes[name].inputs[0] is not root:
            return f"expects Q, K and V to be projections of one value and finds {named(model, nodes[name])} of another"
    if root is None or sum(use.node.op_type == "MatMul" for use in root.uses()) != 3:
        return f"expects three MatMuls to read what {named(model, nodes['q'])} reads, and finds another number"
    norm = root.producer()
    sources = {root, norm.inputs[0]} if norm is not None and norm.op_type == "LayerNormalization" else {root}
    if not sources & set(nodes["residual"].inputs):
        return f"expects {named(model, nodes['residual'])} to add what Q, K and V are projections of"
    return ""


def _projections(before_q: str = "", before_k: str = "") -> tuple[tuple[str, str, str], ...]:
    """Q, K and V as BERT splits them, with what may stand between the product and the Transpose of Q or K."""
    split = "Reshape@0 Add@0"
    return (
        ("Q", "qk", f"{before_q or 'Transpose@0'} {split} q:MatMul or Div@0 Transpose@0 {split} q:MatMul"),
        ("K", "qk", f"{before_k or 'Transpose@1'} {split} k:MatMul or Transpose@1 Transpose@0 {split} k:MatMul"),
        ("V", "pv", f"Transpose@1 {split} v:MatMul"),
    )


_OUT = "Softmax@0 pv:MatMul@0 Transpose(0213)@0 merge:Reshape@0"
_BERT_OUT = "Softmax@0 pv:MatMul@0 Transpose@0 Reshape@0 MatMul Add residual:Add LayerNormalization|ReduceMean@0"
_NARROW = (
    "Slice@0 Unsqueeze@{} Sub?@0 Squeeze@0 Slice@0 Shape@0 Div@0"  # GPT-2 cuts the mask by the shape of the logits
)

ATTENTION = Rule(  # attention_fusion.cc, attention_fusion_helper.h: node versions of old opsets only
    "AttentionFusion",
    (
        Spelling(
            f"Div@0 mask:Add@0 {_OUT} MatMul@0 Add@0 Add@0",
            (*_projections(), ("the mask", "mask", "Mul@1 Sub@0 Cast?@1 Unsqueeze Unsqueeze@0")),
            max_opset=12,
        ),
        Spelling(f"Where@2 {_OUT} MatMul@0 Add@0 Add@0", _projections(before_q="Div@0 Transpose@0"), 13),
        Spelling(
            f"Div@0 Where@1 Add?@0 {_OUT} Reshape@0 Gemm@0 Reshape@0 Add@1",
            (("Q", "qk", "Transpose(0213)@0 Reshape@0 Split@0"), ("V", "pv", "Transpose(0213)@1 Reshape@0 Split@0")),
            max_opset=12,
        ),
        Spelling(f"{_OUT} MatMul|Gemm|Reshape@0", (("Q", "qk", "Mul@0 Squeeze Transpose@0 Split@0"),)),
    ),
    skips=frozenset(("Identity", "Dropout")),
)
DIT = Rule(  # fusion_mha_dit.py
    "the DiT fusion",
    (Spelling(f"up:Cast?@0 scale:Mul Softmax@0 down:Cast?@0 {_OUT.removeprefix('Softmax@0 ')}"),),
    model_type="mmdit",
    check=_dit_stop,
    whole=True,
)
_MMDIT = Rule(  # fusion_mha_mmdit.py
    "the MMDiT fusion",
    (
        Spelling(
            f"{_OUT}",
            (
                ("Q", "qk", "Mul@0 Sqrt@1 Div@0 Sqrt@1 Cast@0 Slice@0 Shape@0"),
                ("K", "qk", "mul_k:Mul@1 Transpose(0132)@0"),
                ("the scale of K", "mul_k", "Sqrt@1 Div@0"),
                ("V", "pv", "Transpose(0213)@1 or Concat@1 Transpose(0213)@0"),
            ),
        ),
    ),
    model_type="mmdit",
)
_BERT = Rule(  # fusion_attention.py
    "the BERT fusion",
    (
        Spelling(
            f"Div|Mul mask:Add@0 {_BERT_OUT}",
            (*_projections(), ("the mask", "mask", "Mul Sub@0 Cast?@1 Unsqueeze Unsqueeze@0")),
        ),
        Spelling(f"Div@0 {_BERT_OUT}", _projections()),
        Spelling(
            f"mask:Where@2 {_BERT_OUT}",
            (*_projections(before_q="Div@0 Transpose@0"), ("the mask", "mask", "Cast?@0 Expand@0 Reshape@0 Equal@0")),
        ),
        Spelling(
            f"mask:Add {_BERT_OUT}",
            (
                *_projections("Mul@0 Transpose@0", "Mul@1 Transpose@0"),
                ("the mask", "mask", "Where Cast@0 Sub@0 Cast?@1 Expand Unsqueeze@0 Unsqueeze@0"),
            ),
        ),
    ),
    model_type="bert",
    skips=frozenset(("Identity",)),
    check=_bert_stop,
    whole=True,
)
_GPT = Rule(  # fusion_gpt_attention_no_past.py
    "the GPT-2 fusion",
    tuple(
        Spelling(
            f"Div@0 {masked} Softmax@0 pv:MatMul@0 Transpose@0 Reshape@0 Reshape@0 Gemm@0 Reshape@0 Add",
            (
                ("the mask", "mask", mask),
                *((name, at, f"Transpose@{i} Reshape@0 Split@0") for name, at, i in (("Q", "qk", 0), ("K", "qk", 1))),
                ("V", "pv", "Transpose@1 Reshape@0 Split@0 Reshape@0 Gemm@0 Reshape@0"),
            ),
        )
        for masked, mask in (
            ("mask:Where@1", f"Cast?@0 Slice@0 {_NARROW.format(1)}"),
            ("Mul@0 mask:Sub@0", f"Mul@1 Sub@0 Slice@1 {_NARROW.format(1)}"),
            ("mask:Mul@0 Add@0", f"Slice@1 {_NARROW.format(2)}"),
        )
    ),
    model_type="gpt2",
    skips=frozenset(("Identity",)),
)
_BART = Rule(  # fusion_bart_attention.py
    "the BART fusion",
    (
        Spelling(
            f"mask:Add?@0 Softmax@0 Where?@2 {_BERT_OUT.removeprefix('Softmax@0 ')}",
            (
                ("Q", "qk", "Transpose@0 Reshape@0 Mul@0 Add@0 MatMul@1 or Mul@0 Transpose@0 Reshape@0 Add@0 MatMul"),
                ("K", "qk", "Transpose@1 Reshape@0 MatMul@0 or Mul@1 Transpose@0 Reshape@0 MatMul@0"),
                ("V", "pv", "Transpose@1 Reshape@0 Add@0 MatMul or Concat@1 Transpose@1 Reshape@0 Add@0 MatMul"),
            ),
        ),
    ),
    model_type="bart",
    skips=frozenset(("Identity",)),
)
OFFLINE = (DIT, _MMDIT, _BERT, _GPT, _BART)
