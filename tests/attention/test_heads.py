"""Which letters are batch, heads and positions, told by what the graph merges with the head size."""

from __future__ import annotations

from explorer.attention.heads import assign, names


def roles(query, output, key=None, value=None, keys="t"):
    """Roles of one-letter axes; h is the head size, v that of the value."""
    key = key or [tuple(group.replace("s", "t") for group in query[0])]
    value = value or [tuple(group.replace("h", "v") for group in key[0])]
    return assign(query, output, key, value, "h", "v", keys)


def test_what_is_merged_with_the_head_size_is_the_heads():
    found = roles([("b", "n", "s", "h"), ("b", "s", "nh")], [("b", "n", "s", "v")])
    assert (found.batch, found.heads, found.rows) == ("b", "n", "s")
    found = roles([("n", "b", "s", "h"), ("s", "b", "nh")], [("n", "b", "s", "v")])
    assert (found.batch, found.heads) == ("b", "n")
    found = roles([("b", "n", "s", "h")], [("b", "n", "s", "v"), ("b", "s", "nv")])
    assert (found.batch, found.heads) == ("b", "n")


def test_without_a_merge_the_last_of_several_batch_axes_is_the_heads():
    found = roles([("b", "n", "s", "h")], [("b", "n", "s", "v")])
    assert (found.batch, found.heads, found.rows) == ("b", "n", "s")


def test_heads_that_are_split_upstream_of_the_key_alone_stay_together():
    """Repeated key heads split the one axis that the product has for heads."""
    found = roles(
        [("b", "gr", "s", "h")], [("b", "gr", "s", "v")],
        key=[("b", "gr", "t", "h"), ("b", "g", "", "t", "h")], value=[("b", "gr", "t", "v"), ("b", "g", "", "t", "v")],
    )  # fmt: skip
    assert (found.batch, found.heads, found.kv_heads, found.rows) == ("b", "gr", "g", "s")


def test_a_single_axis_that_is_split_is_batch_and_heads():
    found = roles([("bn", "s", "h"), ("b", "n", "s", "h")], [("bn", "s", "v")])
    assert (found.batch, found.heads) == ("b", "n")


def test_one_batch_axis_alone_is_the_batch_of_a_single_head():
    found = roles([("b", "s", "h")], [("b", "s", "v")])
    assert (found.batch, found.heads, found.rows) == ("b", "", "s")


def test_heads_that_the_key_does_not_have_are_repeated():
    found = roles(
        [("b", "g", "r", "s", "h"), ("b", "s", "grh")], [("b", "g", "r", "s", "v")],
        key=[("b", "g", "r", "t", "h"), ("b", "g", "", "t", "h"), ("b", "t", "gh")],
        value=[("b", "g", "r", "t", "v"), ("b", "t", "gv")],
    )  # fmt: skip
    assert (found.batch, found.heads, found.kv_heads) == ("b", "gr", "g")
    assert names(found, "h", "v") == {"b": "B", "g": "G", "r": "R", "s": "S", "t": "T", "h": "H", "v": "V"}


def test_one_key_head_for_all_read_without_an_axis_of_its_own():
    found = roles(
        [("b", "n", "s", "h"), ("b", "s", "nh")], [("b", "n", "s", "v")],
        key=[("b", "t", "h")], value=[("b", "t", "v")],
    )  # fmt: skip
    assert (found.batch, found.heads, found.kv_heads, found.rows) == ("b", "n", "", "s")


def test_rows_and_heads_on_one_axis_are_told_apart_by_their_order():
    """[B, S·N, H] as some multi-query models write it: the letter next to the head size is the heads."""
    found = roles(
        [("b", "sn", "h"), ("b", "s", "nh")], [("b", "sn", "v"), ("b", "s", "nv")],
        key=[("b", "t", "h")], value=[("b", "t", "v")],
    )  # fmt: skip
    assert (found.batch, found.heads, found.kv_heads, found.rows) == ("b", "n", "", "s")


def test_query_heads_that_lay_on_one_axis_with_those_of_the_key_are_heads():
    found = roles(
        [("b", "s", "g", "r", "h"), ("b", "s", "gr", "h")], [("b", "g", "r", "s", "v")],
        key=[("b", "g", "t", "h")], value=[("b", "g", "t", "v")],
    )  # fmt: skip
    assert (found.batch, found.heads, found.kv_heads, found.rows) == ("b", "gr", "g", "s")
