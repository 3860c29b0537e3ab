"""Which axes are batch, which are heads: decided by what the graph merges with the head size, then named."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from explorer.attention.block import Layout

_BATCH, _HEADS, _ROWS, _KEYS = "BWXYZ", "NMLIJ", "SUA", "TPC"


@dataclass(frozen=True, slots=True)
class Roles:
    """The letters of a block by role, each in the order of the query."""

    batch: str
    heads: str
    kv_heads: str
    rows: str
    keys: str


def assign(
    query: Sequence[Layout], output: Sequence[Layout], key: Sequence[Layout], value: Sequence[Layout],
    head: str, v_head: str, keys: str,
) -> Roles:  # fmt: skip
    """Roles of the letters in these layouts: views of the operands and of the result, nearest to the products first.

    `head` and `v_head` are the letters of the head sizes, `keys` those of the key positions.
    """
    shared = "".join(axis for axis in "".join(key[0]) if axis not in head + keys)
    outer = [axis for axis in "".join(query[0]) if axis not in head]
    outer = [*(axis for axis in shared if axis not in outer), *outer]
    only_query = [axis for axis in outer if axis not in shared]
    views = (query, output, (*key, *value))
    evidence = next((found for layouts in views if (found := _merged(layouts, head + v_head))), "")
    if evidence:
        # a key that is repeated shows only a part of the heads: what was split off the same axis of Q belongs to them
        repeated = [axis for axis in "".join(key[0]) if axis not in "".join(key[-1])]
        for group in query[0]:
            if set(group) & set(evidence):
                evidence += "".join(axis for axis in group if axis in repeated and axis not in evidence)
        # of rows and heads merged with the head size, the one next to it is the head
        own = [axis for axis in evidence if axis in only_query]
        extra = own[:-1] or (own if len(evidence) > 1 else []) if len(own) == len(only_query) else []
        found = "".join(axis for axis in evidence if axis not in extra)
        found += _joined(query, "".join(axis for axis in found if axis in shared), only_query)
        heads = [axis for axis in outer if axis in found]
    else:
        # nothing is merged: the last of several batch axes, and query axes that the key has not, but for the positions
        last = _last_of_several(shared, (*query, *output))
        own_axes = [group for group in query[0] if set(group) & set(only_query)]
        joined = _joined(query, last, only_query) or "".join(own_axes[:-1])
        heads = [axis for axis in outer if axis in last or (axis in joined and axis in only_query)]
    kept = "".join((*key[-1], *value[-1]))
    return Roles(
        batch="".join(axis for axis in outer if axis in shared and axis not in heads),
        heads="".join(heads),
        kv_heads="".join(axis for axis in heads if axis in kept),
        rows="".join(axis for axis in only_query if axis not in heads),
        keys=keys,
    )


def _joined(query: Sequence[Layout], heads: str, only_query: Sequence[str]) -> str:
    """Letters of the query alone that once lay on one axis behind heads of the key: they are heads, too.

    Unless nothing would be left for the positions.
    """
    groups = [group for layout in query for group in layout if group and group[0] in heads]
    found = {axis for group in groups for axis in group if axis in only_query}
    return "" if len(found) == len(only_query) else "".join(sorted(found))


def _last_of_several(shared: str, layouts: Sequence[Layout]) -> str:
    """The last of several axes on which the letters in `shared` lie, in the first layout that has several of them."""
    for layout in layouts:
        groups = [group for group in layout if set(group) & set(shared)]
        if len(groups) > 1:
            return groups[-1]
    return shared[1:][-1:]


def _merged(layouts: Iterable[Layout], head: str) -> str:
    """The letters merged with the head size, where most are."""
    groups = [
        "".join(x for x in group if x not in head) for layout in layouts for group in layout if set(group) & set(head)
    ]
    return max(groups, key=len, default="")


def names(roles: Roles, head: str, v_head: str) -> dict[str, str]:
    """The field's letter for each letter of a block (see `block`)."""
    renamed: dict[str, str] = {head: "H", v_head: "V"}
    grouped = len(roles.heads) > 1
    groups, repeats = iter("GMLI"), iter("RQOD")
    for axis in roles.heads:
        renamed[axis] = next(groups if axis in roles.kv_heads else repeats) if grouped else "N"
    for letters, pool in ((roles.batch, _BATCH), (roles.rows, _ROWS), (roles.keys, _KEYS)):
        renamed |= dict(zip(letters, pool, strict=False))
    return renamed
