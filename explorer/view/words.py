"""Plain words for what the explorer knows. Pure: values → sentences, not escaped (whoever shows them escapes them)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from explorer.attention.block import Block, Obstacle, Operand, layout_name
from explorer.verify.verdict import Comparison, Verdict

COUNTED = ("Cast", "Softmax", "MatMul", "Transpose")
"""The operators whose numbers a fusion is about."""


def number(value: float | int | None) -> str:
    """A short number: 0.125, 100, 1.2e-07; "?" when it is not known."""
    return "?" if value is None else f"{value:.4g}"


def heads(block: Block) -> str:
    """ "2 heads of 64", with the key/value side where it differs."""
    text = f"{number(block.num_heads)} heads of {number(block.head_size)}"
    if block.kv_num_heads not in (None, block.num_heads):
        text += f", {number(block.kv_num_heads)} for keys and values"
    if block.v_head_size not in (None, block.head_size):
        text += f", values of {number(block.v_head_size)}"
    return text


def sentences(block: Block) -> tuple[str, ...]:
    """What a block is, one fact a sentence."""
    said = [f"{heads(block)[0].upper()}{heads(block)[1:]}."]
    if block.fused_as:
        said.append(f"Computed by one operator already: {block.fused_as}.")
    if block.scale is not None:
        said.append(_scale(block))
    if block.factor is not None:
        said.append(f"Logits are multiplied by {block.factor.value}, too.")
    said += _types(block)
    said.append(_mask(block))
    if block.nan_guard:
        said.append("A query that may see no key gets zeros.")
    if block.softcap is not None:
        said.append(f"Logits are capped softly at ±{number(block.softcap)}.")
    if block.key is not None:
        said.append(_key(block.key))
    said += _upstream(block)
    return tuple(said)


def _scale(block: Block) -> str:
    if block.scale == 1:
        return "Logits are not scaled."
    text = f"Logits are scaled by {number(block.scale)}"
    if block.scale and block.head_size and abs(block.scale * block.head_size**0.5 - 1) < 1e-3:
        text += f" = 1/√{block.head_size}"
    order = [node.role for node in block.region if node.role in ("cast", "scale", "softmax")]
    before = order[: order.index("scale")] if "scale" in order else []
    return f"{text}, after a Cast to {block.softmax_dtype}." if "cast" in before and block.softmax_dtype else f"{text}."


def _types(block: Block) -> list[str]:
    casts = len(block.casts)
    widened = block.softmax_dtype and block.dtype and block.softmax_dtype != block.dtype
    where = f"the softmax runs in {block.softmax_dtype}, the data is {block.dtype}" if widened else ""
    if not casts:
        return [f"{where[0].upper()}{where[1:]}."] if where else []
    return [f"{casts} Cast{'s' if casts > 1 else ''} around the softmax{where and ': '}{where}."]


def _mask(block: Block) -> str:
    if block.mask.kind == "none":
        return "No mask."
    terms = ", ".join(dict.fromkeys(f"{term.value} {term.dtype}" for term in block.mask.terms if term.value))
    return f"{block.mask.kind.capitalize()} mask{f': {terms}' if terms else ''}."


def _key(key: Operand) -> str:
    read, source = layout_name(key.views[0].layout), layout_name(key.source.layout)
    if read == source and read.endswith("HS"):
        return f"K arrives already transposed ({read}): no Transpose feeds the product."
    if read == source:
        return f"K is read as {read}."
    return f"K is {source} upstream and reaches the product as {read}."


def _upstream(block: Block) -> list[str]:
    names = {"rope": "rotary embedding (RoPE)", "norm": "normalization"}
    found: dict[str, list[str]] = {}
    for letter, operand in (("Q", block.query), ("K", block.key), ("V", block.value)):
        for trait in operand.traits if operand else ():
            found.setdefault(trait, []).append(letter)
    return [f"{' and '.join(who)}: {names.get(trait, trait)} upstream, kept as it is." for trait, who in found.items()]


def obstacle(item: Obstacle) -> str:
    """Why not, in one sentence that names the place."""
    text = str(item)
    return f"{item.at}: {text}." if item.at else f"{text[:1].upper()}{text[1:]}."


def counts(before: Mapping[str, int], after: Mapping[str, int]) -> tuple[tuple[str, int, int], ...]:
    """(operator, before, after): those a fusion is about, the attention operators that came, and the total."""
    came = [name for name in after if name not in before and after[name]]
    rows = [(name, before.get(name, 0), after.get(name, 0)) for name in (*COUNTED, *came)]
    return (*rows, ("All nodes", sum(before.values()), sum(after.values())))


def verdict_line(verdict: Verdict) -> str:
    """The judgement in one sentence."""
    compared = len(verdict.blocks) + len(verdict.outputs)
    if not compared:
        return "Nothing could be compared."
    if verdict.passed:
        return f"Passed: all {compared} compared tensors are as close to the fp64 truth as allowed."
    failed = sum(not item.passed for item in (*verdict.blocks, *verdict.outputs))
    if not failed:
        return "Failed: the fused model does not run on inputs on which the original does."
    return f"Failed: {failed} of {compared} compared tensors are further from the fp64 truth than allowed."


def cases(verdict: Verdict) -> list[str]:
    """On what inputs the models were compared, and on which they do not run, in sentences."""
    tried = [case.words for case in verdict.cases if not case.refused_by]
    said = [f"Compared on {len(tried)} sets of inputs: {', '.join(tried)}"] if len(tried) > 1 else []
    who = {"original": "the original does not run there", "fused": "the fused model does not run there"}
    return [
        *said,
        *(f"Not compared on {case.words}: {who[case.refused_by]}: {case.refusal}" for case in verdict.cases
          if case.refused_by),
    ]  # fmt: skip


def comparison(item: Comparison, labels: Mapping[str, str]) -> tuple[str, str, str, str, str, str]:
    """A row of the table of numbers: what, error of the original, of the fused, allowed, judgement, worst case."""
    what = f"{labels.get(item.block, item.block)} output" if item.block else f"model output {item.name}"
    original = _error(item.original.relative, item.original.nonfinite)
    fused = _error(item.fused.relative, item.fused.nonfinite)
    return (what, original, fused, f"{item.allowed:.1e}", "✓ pass" if item.passed else "✕ fail", item.case)


def _error(relative: float, nonfinite: int) -> str:
    return f"{relative:.1e}" + (f" ({nonfinite} not finite)" if nonfinite else "")


def shapes(items: Sequence[tuple[str, tuple[int, ...]]]) -> str:
    """Shapes as the shapes field reads them: "x=2x938x100 mask=2x938"."""
    return " ".join(f"{name}={'x'.join(map(str, dims))}" for name, dims in items)
