"""Curves in characters."""

from explorer.report.chart import HEIGHT, MARKS, WIDTH, log_chart


def drawn(*curves):
    return log_chart(list(curves), "x[1]", "ms")


def test_points_lie_where_logarithms_put_them():
    lines = drawn(("a", [(1, 1.0), (10, 10.0), (100, 100.0)]))
    canvas = [line[line.index("│" if "│" in line else "┤") + 1 :] for line in lines[:HEIGHT]]
    marks = [(row, line.index(MARKS[0])) for row, line in enumerate(canvas) if MARKS[0] in line]
    assert marks == [(0, WIDTH - 1), (HEIGHT // 2, (WIDTH - 1 + 1) // 2), (HEIGHT - 1, 0)]


def test_axes_and_legend():
    lines = drawn(("a", [(256, 4.3), (4096, 118.0)]), ("b", [(256, 4.4), (4096, 20.0)]))
    text = "\n".join(lines)
    for tick in ("5 ms ┤", "10 ms ┤", "20 ms ┤", "50 ms ┤", "100 ms ┤"):
        assert tick in text
    assert lines[-2].split() == ["256", "4096", "x[1]"]
    assert lines[-1].strip() == f"{MARKS[0]} a   {MARKS[1]} b"
    assert len(lines) == HEIGHT + 3


def test_sizes_that_would_run_into_each_other_are_left_out():
    lines = drawn(("a", [(1000, 1.0), (1001, 2.0), (2000, 3.0)]))
    assert lines[-2].split() == ["1000", "2000", "x[1]"]


def test_a_flat_curve_and_one_place():
    text = "\n".join(drawn(("a", [(1, 5.0), (2, 5.0)])))
    assert "5 ms ┤" in text
    assert text.count(MARKS[0]) == 3, "two points and the legend"
    assert drawn(("a", [(1, 5.0)])) == []
    assert drawn(("a", [])) == []


def test_a_curve_of_which_nothing_is_known_is_in_the_legend_alone():
    assert drawn(("a", [(1, 5.0), (2, 6.0)]), ("b", []))[-1].endswith(f"{MARKS[1]} b")
