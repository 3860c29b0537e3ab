"""Why an attention node ran with a slower kernel than the fastest: the conditions of ONNX Runtime's CUDA kernels. Pure.

They are those of onnxruntime 1.31: cuDNN's flash attention first (MultiHeadAttention and GroupQueryAttention, from
compute capability 9.0 on), then Flash, then the memory-efficient kernel, and MATH where none of them runs. Only those
are here that sources or measurements make certain; where none of them explains what ran, that is said.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from explorer.profile.ort_graph import OrtNode
from explorer.profile.trace import NodeTime

CUDNN, FLASH, EFFICIENT, MATH = "CUDNN_FLASH_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH"
"""ONNX Runtime's words for the kernels, the fastest first."""

_WORDS = {CUDNN: "cuDNN flash", FLASH: "Flash", EFFICIENT: "memory-efficient", MATH: "MATH"}
_BITS = {FLASH: 1, EFFICIENT: 2, CUDNN: 8, MATH: 16}
"""Of the CUDA provider's option sdpa_kernel."""
_LADDERS = {"Attention": (FLASH, EFFICIENT)}
_LADDER = (CUDNN, FLASH, EFFICIENT)
_UNKNOWN = "of a condition that is not known here"
_LONG = 256  # queries or keys from which on the memory-efficient kernel is taken for float32

# Inputs by their place. com.microsoft.Attention, which takes the projections' weights, is another operator.
_PADDING_MASK = {"MultiHeadAttention": 4, "com.microsoft.Attention": 3}
_BIAS = {"MultiHeadAttention": 5, "Attention": 3, "GroupQueryAttention": 10, "com.microsoft.Attention": 5}
_PAST_KEY = {"MultiHeadAttention": 6, "Attention": 4, "GroupQueryAttention": 3}
_SINK = {"GroupQueryAttention": 11}


@dataclass(frozen=True, slots=True)
class Conditions:
    """What the choice of a kernel depends on; a size is None where it is not known.

    operator      with its domain if that decides which operator it is: "com.microsoft.Attention"
    head_size     of queries and keys; value_head_size of values
    batch         how many sequences
    queries, keys how many of each, those of the past included
    padding_mask  dimensions of its key_padding_mask or mask_index; None without one
    bias          whether it has an attention_bias or, for Attention, a mask
    softcap       whether it caps its scores
    local_window  whether a query sees only the nearest keys
    sink          whether its softmax is smooth or has a sink
    shared_heads  whether several heads of queries share one of keys
    capability    compute capability of the device; None if not known
    """

    operator: str
    dtype: str
    head_size: int | None
    value_head_size: int | None
    batch: int | None
    queries: int | None
    keys: int | None
    padding_mask: tuple[int, ...] | None
    bias: bool
    softcap: bool
    local_window: bool
    sink: bool
    shared_heads: bool
    sdpa_kernel: int
    capability: float | None


def conditions(
    node: NodeTime, in_graph: OrtNode | None, dtype: str, sdpa_kernel: int, compute_capability: str
) -> Conditions:
    """What is known of a traced node, whose inputs and attributes `in_graph` tells, if it was found there."""
    operator = node.op_type
    numbers = dict(in_graph.attributes) if in_graph is not None else {}
    attributes = {name: int(number) for name, number in numbers.items()}
    if in_graph is not None and in_graph.domain == "com.microsoft" and operator == "Attention":
        operator = "com.microsoft.Attention"
    tensors = _tensors(node, in_graph)
    heads = attributes.get("num_heads") or attributes.get("q_num_heads")
    key_heads = attributes.get("kv_num_heads") or heads
    query, key, value = (tensors.get(at, ()) for at in range(3))
    if operator == "GroupQueryAttention" and not key and heads and key_heads:
        queries, head_size = _sizes(query, heads + 2 * key_heads)  # keys and values are packed into the queries
    elif operator == "com.microsoft.Attention":
        queries, head_size = _sizes(query, None)[0], None
    else:
        queries, head_size = _sizes(query, heads)
    keys, _ = _sizes(key, key_heads) if key else (queries, None)
    past = tensors.get(_PAST_KEY.get(operator, -1), ())
    if keys is not None and len(past) == 4:
        keys += past[2]
    return Conditions(
        operator=operator,
        dtype=dtype,
        head_size=head_size,
        value_head_size=_sizes(value, key_heads)[1] if value and head_size is not None else head_size,
        batch=query[0] if query else None,
        queries=queries,
        keys=keys,
        padding_mask=tensors.get(_PADDING_MASK.get(operator, -1)),
        bias=_BIAS.get(operator, -1) in tensors,
        softcap=numbers.get("softcap", 0.0) > 0,
        local_window=attributes.get("local_window_size", -1) != -1,
        sink=attributes.get("smooth_softmax") == 1 or _SINK.get(operator, -1) in tensors,
        shared_heads=heads != key_heads or (len(query) == len(key) == 4 and query[1] != key[1]),
        sdpa_kernel=sdpa_kernel,
        capability=float(compute_capability) if re.fullmatch(r"\d+\.\d+", compute_capability) else None,
    )


def fallback(kernel: str, asked: Conditions) -> str:
    """Sentences that say what is lost by having run with `kernel`, and why a faster one was not taken; "" if nothing.

    In float32 the memory-efficient kernel is the fastest, so it is no fallback there.
    """
    if kernel == MATH:
        cost = "MATH ran, which writes all scores to memory"
        lost = _LOST_SOFTMAX if asked.operator == "MultiHeadAttention" and asked.dtype in _SHORT else ""
    elif kernel == EFFICIENT and asked.dtype != "fp32":
        cost, lost = "The memory-efficient kernel ran, which is slower than flash", ""
    else:
        return ""
    return f"{cost}{_why(kernel, asked)}.{lost.format(dtype=_SHORT.get(asked.dtype, ''))}"


_SHORT = {"fp16": "float16", "bf16": "bfloat16"}
_LOST_SOFTMAX = " It rounds them to {dtype} before the softmax, which is then no longer one of float32 scores."


def _why(kernel: str, asked: Conditions) -> str:
    """The reasons, as clauses; each with the kernels that it rules out unless that is all of them."""
    ladder = _LADDERS.get(asked.operator, _LADDER)
    better = ladder[: ladder.index(kernel)] if kernel in ladder else ladder
    reasons: dict[str, list[str]] = {}
    for ruled_out in better:
        reason = next((why for kernels, why in _obstacles(asked) if ruled_out in kernels), _UNKNOWN)
        reasons.setdefault(reason, []).append(_WORDS[ruled_out])
    if len(reasons) == 1:
        return f", because {next(iter(reasons))}"
    return ": " + "; ".join(f"not {' or '.join(kernels)}, because {reason}" for reason, kernels in reasons.items())


def _obstacles(asked: Conditions) -> Iterator[tuple[tuple[str, ...], str]]:
    """(kernels, why they do not run under these conditions)."""
    fast, flash = (CUDNN, FLASH, EFFICIENT), (CUDNN, FLASH)
    if asked.sdpa_kernel:
        allowed = [kernel for kernel, bit in _BITS.items() if asked.sdpa_kernel & bit]
        words = " and ".join(_WORDS[kernel] for kernel in allowed) or "others"
        why = f"sdpa_kernel={asked.sdpa_kernel} allows only {words}"
        if asked.operator == "Attention" and CUDNN in allowed:
            why += ", and in onnxruntime 1.31 Attention has no path to cuDNN"
        yield tuple(kernel for kernel in fast if kernel not in allowed), why
    yield from _obstacles_by_padding_mask(asked)
    if asked.head_size is not None and asked.head_size % 8:
        yield fast, f"its head size {asked.head_size} is no multiple of 8"
    if asked.head_size is not None and asked.head_size > 256:
        yield flash, f"its head size {asked.head_size} is above 256"
    yield from _obstacles_by_type(asked)
    if asked.capability is not None and asked.capability < 8:
        yield flash, f"the device's compute capability {asked.capability} is below 8.0"
    if asked.capability is not None and asked.capability < 9 and not asked.sdpa_kernel:
        yield (CUDNN,), f"the device's compute capability {asked.capability} is below 9.0"
    if asked.softcap:
        yield (CUDNN,), "it caps its scores"
    if asked.local_window:
        yield (CUDNN,), "it has a local window"
    if asked.sink:
        yield (CUDNN,), "its softmax is smooth or has a sink"
    if asked.bias:
        yield from _obstacles_by_bias(asked)
    if asked.head_size != asked.value_head_size:
        yield (FLASH,), f"its values have another head size ({asked.value_head_size}) than its keys ({asked.head_size})"


def _obstacles_by_padding_mask(asked: Conditions) -> Iterator[tuple[tuple[str, ...], str]]:
    """cuDNN takes the sequences' lengths (B numbers), the memory-efficient kernel their starts, too (3·B + 2)."""
    mask, batch = asked.padding_mask, asked.batch
    if mask is None:
        return
    name = "key_padding_mask" if asked.operator == "MultiHeadAttention" else "mask_index"
    if len(mask) > 1:
        why = f"it has a {len(mask)}-D {name}, which neither flash nor the memory-efficient kernel takes"
        yield (CUDNN, FLASH, EFFICIENT), f"{why}; as attention_bias the mask can run faster"
    yield (FLASH,), f"it has a {name}"
    if len(mask) == 1 and batch is not None:
        if mask[0] != batch:
            yield (CUDNN,), f"its {name} has shape [{mask[0]}], not [{batch}] (lengths)"
        if mask[0] != 3 * batch + 2:
            yield (EFFICIENT,), f"its {name} has shape [{mask[0]}], not [{3 * batch + 2}] (lengths and starts)"


def _obstacles_by_type(asked: Conditions) -> Iterator[tuple[tuple[str, ...], str]]:
    if asked.dtype != "fp32":
        return
    if asked.operator == "Attention" and asked.shared_heads:
        yield (EFFICIENT,), "it shares key heads, which in float32 only MATH can"
    short = asked.queries is not None and asked.keys is not None and max(asked.queries, asked.keys) < _LONG
    if short and not asked.sdpa_kernel and asked.operator == "MultiHeadAttention":
        yield (
            (EFFICIENT,),
            f"in float32 it needs {_LONG} queries or keys (here {asked.queries} and {asked.keys})",
        )
    yield (CUDNN, FLASH), "it computes in float32, and they take float16 and bfloat16"


def _obstacles_by_bias(asked: Conditions) -> Iterator[tuple[tuple[str, ...], str]]:
    """The memory-efficient kernel is asked for aligned keys by Attention, for aligned queries by the others."""
    if asked.operator == "GroupQueryAttention":
        yield (CUDNN, FLASH, EFFICIENT), "it has an attention_bias, which only MATH takes"
    if asked.operator == "Attention":
        name, has, size, what, step = "mask", "a mask", asked.keys, "keys", 4
    else:
        name, has, size, what = "attention_bias", "an attention_bias", asked.queries, "queries"
        step = 16 if asked.dtype == "fp32" else 8
    if size is not None and size % step:
        yield (EFFICIENT,), f"its {name} is for {size} {what}, no multiple of {step}"
    yield (FLASH,), f"it has {has}"


def _tensors(node: NodeTime, in_graph: OrtNode | None) -> dict[int, tuple[int, ...]]:
    """The dimensions of the node's inputs by their place. Those left out have none, in the trace not even a gap."""
    places = range(len(node.inputs)) if in_graph is None else [at for at, name in enumerate(in_graph.inputs) if name]
    if len(places) != len(node.inputs):
        return {}
    return {at: _dims(tensor) for at, tensor in zip(places, node.inputs, strict=True)}


def _dims(tensor: str) -> tuple[int, ...]:
    """ "float16[2,256,1024]" as (2, 256, 1024)."""
    return tuple(map(int, re.findall(r"\d+", tensor.partition("[")[2])))


def _sizes(dims: tuple[int, ...], heads: int | None) -> tuple[int | None, int | None]:
    """(sequence length, head size) of queries, keys or values: [B,S,N·H], [B,N,S,H], or packed [B,S,N,3,H]."""
    if len(dims) == 3:
        return dims[1], dims[2] // heads if heads else None
    if len(dims) == 4:
        return dims[2], dims[3]
    return (dims[1], dims[4]) if len(dims) == 5 else (None, None)
