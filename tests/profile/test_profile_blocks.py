from __future__ import annotations

from recorded_runs import graph

from explorer.profile.blocks import Membership
from explorer.profile.values import Region

REGIONS = [
    Region("one", (("qk", "qk"), ("softmax", "softmax"), ("pv", "pv")), ("s", "p", "y")),
    Region("two", (("fused", ""),), ("z",)),
]


def blocks(*nodes, constants=("w",), outputs=("z",)):
    found = graph(*nodes, constants=constants, outputs=outputs)
    membership = Membership(found, REGIONS)
    return {node.name: membership.of(node.name) for node in found.nodes if membership.of(node.name)[0]}


def test_by_name_and_else_by_what_it_computes():
    found = blocks(("proj", "x w", "q"), ("qk", "q k", "s"), ("MatMulScale_7", "s w", "p"), ("pv", "p v", "y"))
    assert found == {"qk": ("one", "qk"), "MatMulScale_7": ("one", ""), "pv": ("one", "pv")}


def test_what_lies_between_nodes_of_one_block_is_its():
    """A Cast and a copy that ONNX Runtime put in, one behind the other, and what reads the shape of a value."""
    found = blocks(
        ("qk", "q k", "s"),
        ("Cast", "s", "a"),
        ("Memcpy", "a", "b"),
        ("softmax", "b w", "p"),
        ("Shape", "s", "n"),
        ("Gather", "n w", "m"),
        ("pv", "p v m", "y"),
    )
    assert {name for name, (block, role) in found.items() if block == "one" and not role} == {
        "Cast",
        "Memcpy",
        "Shape",
        "Gather",
    }


def test_what_lies_between_blocks_or_feeds_one_alone_is_not():
    found = blocks(
        ("table", "w", "t"),  # computed from what is stored
        ("in", "x", "q"),
        ("qk", "q t", "s"),
        ("pv", "s v", "y"),
        ("between", "y", "u"),
        ("fused", "u", "z"),
        ("unread", "s", "d"),
    )
    assert set(found) == {"qk", "pv", "fused"}


def test_what_also_goes_outside_is_not():
    inside = [("qk", "q k", "s"), ("Cast", "s", "a"), ("pv", "a v", "y")]
    assert "Cast" in blocks(*inside)
    assert "Cast" not in blocks(*inside, outputs=("a",))
    assert "Cast" not in blocks(*inside, ("other", "a", "z"))
    assert "Cast" not in blocks(("qk", "q k", "s"), ("Cast", "s given", "a"), ("pv", "a v", "y"))


def test_without_regions_nothing_belongs_anywhere():
    found = graph(("a", "x", "y"), outputs=("y",))
    assert Membership(found, ()).of("a") == ("", "")
    assert Membership(found, [Region("one", (("", "qk"),), ("",))]).of("") == ("", "")
