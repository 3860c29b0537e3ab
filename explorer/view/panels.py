"""The panels beside and under the graph, as HTML text. Pure; every piece of model text is escaped on its way in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from explorer.attention.block import Block, Obstacle
from explorer.model.describe import GraphInfo, NodeInfo
from explorer.verify.verdict import Verdict
from explorer.view import theme, words
from explorer.view.text import as_html


def plain(text: str) -> str:
    """A line of text."""
    return as_html(text)


def about(name: str, info: GraphInfo, blocks: int, sentences: Iterable[str]) -> str:
    """The model in a line, and what a user should know about it."""
    found = f"{blocks} attention block{'' if blocks == 1 else 's'}" if blocks else "no attention block was found"
    inputs = ", ".join(f"{tensor} {info.tensors[tensor].type}" for tensor in info.inputs if tensor in info.tensors)
    line = f"<b>{as_html(name)}</b> · {len(info.nodes)} nodes · {found} · inputs: {as_html(inputs or 'none')}"
    return f"<div>{line}</div>{notes(sentences)}"


def unavailable(reasons: Mapping[str, str]) -> str:
    """Why an action cannot be taken, said beside it."""
    return " · ".join(f"<b>{as_html(name)}</b>: {as_html(reason)}" for name, reason in reasons.items())


def nothing_selected(any_blocks: bool) -> str:
    """What to do when nothing is selected."""
    return (
        "<p>Select a block in the graph or in the table.</p>"
        if any_blocks
        else "<p>This model has no attention block.</p>"
    )


def message(text: str, kind: str = "error") -> str:
    """A sentence to notice: `kind` is "error" (read out at once) or "done"."""
    role = "alert" if kind == "error" else "status"
    text = text[:1].upper() + text[1:]
    return f'<div class="explorer-message explorer-{kind}" role="{role}">{as_html(text)}</div>' if text else ""


def notes(sentences: Iterable[str]) -> str:
    """Sentences that qualify what stands above them."""
    items = "".join(f"<li>{as_html(sentence)}</li>" for sentence in sentences if sentence)
    return f'<ul class="explorer-notes">{items}</ul>' if items else ""


def counts(before: Mapping[str, int], after: Mapping[str, int]) -> str:
    """Operator counts before → after, one tile each."""
    tiles = "".join(
        f'<div class="explorer-count{" explorer-changed" if was != now else ""}"><span>{as_html(name)}</span>'
        f"<b>{was} → {now}</b></div>"
        for name, was, now in words.counts(before, after)
    )
    return f'<div class="explorer-counts" role="group" aria-label="Operators before and after">{tiles}</div>'


def block(
    item: Block,
    status: str,
    choices: Sequence[tuple[str, str, Sequence[Obstacle]]],
    obstacles: Sequence[Obstacle],
    place: Sequence[str] = (),
) -> str:
    """What the selected block is, whether it can be fused, why not, and why ORT leaves it.

    `choices` are (target, words, obstacles); `place` is sentences on where it stands and what is like it.
    """
    style = theme.STATUSES[status]
    facts = "".join(f"<li>{as_html(sentence)}</li>" for sentence in (*words.sentences(item), *place))
    parts = [
        f"<h3>{as_html(item.label)} "
        f"<span class='explorer-status explorer-{status}'>{style.symbol} {style.words}</span></h3>",
        f"<ul>{facts}</ul>",
    ]
    if obstacles:
        reasons = "".join(f"<li>{as_html(words.obstacle(reason))}</li>" for reason in obstacles)
        parts.append(f"<h4>Why it cannot be fused</h4><ul>{reasons}</ul>")
    if item.ort_reason:
        parts.append(f"<h4>Why ONNX Runtime leaves it alone</h4><p>{as_html(item.ort_reason)}</p>")
    if choices and status != "fused":
        offers = "".join(_choice(*choice) for choice in choices)
        parts.append(f"<h4>What it can become</h4><ul>{offers}</ul>")
    steps = "".join(f"<li>{as_html(step.text)}</li>" for step in item.evidence)
    if steps:
        parts.append(f"<details><summary>Evidence, step by step</summary><ol>{steps}</ol></details>")
    return "".join(parts)


def _choice(target: str, described: str, obstacles: Sequence[Obstacle]) -> str:
    if obstacles:
        return f"<li>✕ <b>{as_html(target)}</b>: {as_html('; '.join(map(str, obstacles)))}</li>"
    return f"<li>◆ <b>{as_html(target)}</b>: {as_html(described)}</li>"


def node(item: NodeInfo, info: GraphInfo) -> str:
    """A node that belongs to no block: its tensors and attributes."""

    def tensor(name: str) -> str:
        known = info.tensors.get(name)
        return f"<li><code>{as_html(name or '(left out)')}</code> {as_html(known.type if known and name else '')}</li>"

    attributes = "".join(f"<li><code>{as_html(name)}</code> = {as_html(text)}</li>" for name, text in item.attributes)
    parts = [
        f"<h3>{as_html(item.op_type)} <small>{as_html(item.domain)}</small></h3>",
        f"<p><code>{as_html(item.key)}</code></p>",
        f"<h4>Inputs</h4><ul>{''.join(map(tensor, item.inputs))}</ul>" if item.inputs else "",
        f"<h4>Outputs</h4><ul>{''.join(map(tensor, item.outputs))}</ul>",
        f"<h4>Attributes</h4><ul>{attributes}</ul>" if attributes else "",
    ]
    return "".join(parts)


def verdict(result: Verdict | None, labels: Mapping[str, str], nothing: str) -> str:
    """The numbers: the judgement, then the error of each compared tensor; `nothing` is said when there is none."""
    if result is None:
        return f"<p>{as_html(nothing)}</p>"
    kind = "passed" if result.passed else "failed"
    rows = (words.comparison(item, labels) for item in (*result.blocks, *result.outputs))
    about = (
        "An error is the largest difference from the fp64 truth, relative to the truth's largest value.",
        f"Truth end to end: {result.truth}",
        f"Ran on {result.provider}, first with {words.shapes(result.shapes)}",
        *words.cases(result),
    )
    rows_of = table(("compared", "original", "fused", "allowed", "verdict", "worst at"), rows)
    symbol = "✓" if result.passed else "✕"
    judged = f'<p class="explorer-verdict explorer-{kind}">{symbol} {as_html(words.verdict_line(result))}</p>'
    advice = f"<p>{as_html(result.suggestion)}</p>" if result.suggestion else ""
    return f"{judged}{advice}{rows_of}{notes((*about, *result.notes))}"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells under a header."""
    head = "".join(f"<th scope='col'>{as_html(name)}</th>" for name in columns)
    body = "".join(f"<tr>{''.join(f'<td>{as_html(cell)}</td>' for cell in row)}</tr>" for row in rows)
    found = f"<table class='explorer-table'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"<div class='explorer-scroll'>{found}</div>"
