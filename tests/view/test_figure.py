"""Figures as data: what is drawn, in which colour and line, and that nothing of a model is interpreted."""

import json
import re

import plotly.graph_objects as go
import pytest
import sample_profiles
from fake import HOSTILE, FakeWorkspace, graph_info

from explorer.view import theme
from explorer.view.figure import CHANGING, CONFIG, EMPTY, ROWS, Selection, Window, layout, picture, window_at
from explorer.view.profile_figure import COLORS, point_layout, point_traces
from explorer.view.snapshot import scene_of
from explorer.view.sweep_figure import sweep_layout, sweep_traces


def traces(workspace, selection=Selection()):  # noqa: B008
    scene = scene_of(workspace)
    return {trace["name"]: trace for trace in picture(scene, window_at(scene)[0], selection).traces}


def test_every_operator_is_drawn_in_its_category_with_its_name():
    drawn = traces(FakeWorkspace(1))
    assert [text for text in drawn["Cast names"]["text"] if text.strip()] == ["Cast", "Cast"]
    assert [text for text in drawn["Softmax names"]["text"] if text.strip()] == ["Softmax"]
    assert drawn["Cast"]["showlegend"]
    assert not drawn["Attention"]["showlegend"]
    assert drawn["Cast"]["legendgroup"] == drawn["Cast names"]["legendgroup"] == "Cast"


def test_no_mark_has_an_empty_text():
    assert all(text for trace in traces(FakeWorkspace(2)).values() for text in trace.get("text", ()))


def test_the_list_of_traces_never_changes():
    names = [trace["name"] for trace in picture(EMPTY, Window(0, 1)).traces]
    workspace = FakeWorkspace(2)
    assert list(traces(workspace)) == names
    workspace.fuse_all()
    assert list(traces(workspace, Selection(block=workspace.blocks[0].id))) == names


def test_plotly_accepts_every_trace_and_the_layouts():
    workspace = FakeWorkspace(2)
    figure = go.Figure(data=list(traces(workspace).values()), layout=layout(Window(0, ROWS), 0.0))
    assert len(figure.data) == len(traces(workspace))
    swept = sample_profiles.sweep()
    go.Figure(data=list(point_traces(swept, swept.points[0])), layout=point_layout(swept, swept.points[0]))
    go.Figure(data=list(sweep_traces(swept)), layout=sweep_layout(swept))


def test_statuses_differ_in_symbol_line_and_colour():
    workspace = FakeWorkspace(3, blocked=frozenset({2}))
    workspace.fuse(workspace.blocks[0].id)
    drawn = traces(workspace)
    styles = [drawn[f"{style.symbol} {style.words}"] for style in theme.STATUSES.values()]
    assert all(trace["showlegend"] and trace["x"] for trace in styles)
    assert len({trace["line"]["dash"] for trace in styles}) == len({trace["line"]["color"] for trace in styles}) == 3
    labels = [drawn[f"{status} labels"]["text"] for status in ("fused", "fusable", "blocked")]
    assert labels == [["✓ attn0"], ["◆ attn1"], ["✕ attn2"]]


def test_the_selected_block_is_outlined_and_its_roles_are_named():
    workspace = FakeWorkspace(2)
    assert traces(workspace)["selected"]["x"] == []
    drawn = traces(workspace, Selection(block=workspace.blocks[0].id))
    assert drawn["selected"]["x"]
    assert drawn["roles"]["text"] == [f"<i>{role}</i>" for role in ("Q·Kᵀ", "cast", "scale", "softmax", "cast", "P·V")]
    assert drawn["fusable labels"]["text"] == ["<b>◆ attn0</b>", "◆ attn1"]


def test_each_mark_that_answers_clicks_has_an_item():
    scene = scene_of(FakeWorkspace(2))
    drawn = picture(scene, window_at(scene)[0])
    for trace in drawn.traces:
        if trace["name"] in drawn.targets:
            assert len(drawn.targets[trace["name"]]) == len(trace["x"]) == len(trace["hovertext"])


def test_a_fused_block_is_drawn_as_one_operator():
    workspace = FakeWorkspace(1)
    workspace.fuse_all()
    drawn = traces(workspace, Selection(block=workspace.blocks[0].id))
    assert drawn["Cast"]["x"] == []
    assert drawn["Attention names"]["text"][0] == "MultiHeadAttention"
    assert drawn["roles"]["text"] == ["<i>fused attention</i>"]


def test_hover_says_operator_tensors_and_attributes():
    hover = traces(FakeWorkspace(1))["Softmax names"]["hovertext"][0]
    assert "<b>Softmax</b>" in hover
    assert "n0_soft:Softmax" in hover
    assert "axis = -1" in hover


def test_only_names_near_the_window_are_marks():
    scene = scene_of(FakeWorkspace(40))
    marks = sum(len(trace["x"]) for trace in picture(scene, Window(0, ROWS)).traces if trace["name"].endswith("names"))
    assert 0 < marks < 3 * len(scene.boxes) / 3
    assert not any(trace["x"] for trace in picture(scene, Window(0, 400)).traces if trace["name"].endswith("names"))


def test_nothing_from_a_model_is_interpreted():
    workspace = FakeWorkspace(2, name=HOSTILE)
    shown = json.dumps(list(traces(workspace, Selection(block=workspace.blocks[0].id)).values()), ensure_ascii=False)
    tags = set(re.findall(r"</?\w+", shown))
    assert tags <= {"<b", "</b", "<i", "</i", "<br"}
    assert "&lt;img" in shown
    assert "$" not in shown
    assert "\u202e" not in shown
    assert all(
        trace.get("hovertemplate") is None and trace.get("texttemplate") is None for trace in traces(workspace).values()
    )


def test_no_upload_button_and_scroll_zoom():
    assert CONFIG["showSendToCloud"] is False
    assert CONFIG["displaylogo"] is False
    assert CONFIG["scrollZoom"] is True
    assert "showlegend" in CHANGING


def luminance(color):
    channels = [int(color[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(a, b):
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("color", [*theme.CATEGORIES.values(), *(style.color for style in theme.STATUSES.values())])
def test_colours_reach_aa_in_both_themes(color):
    assert contrast(color, theme.LABEL) >= 4.5
    assert contrast(color, theme.LIGHT) >= 3
    assert contrast(color, theme.DARK) >= 3


@pytest.mark.parametrize("color", [theme.EDGE, theme.SELECTION, *COLORS])
def test_lines_stand_out_in_both_themes(color):
    assert contrast(color, theme.LIGHT) >= 3
    assert contrast(color, theme.DARK) >= 3


def test_the_scene_knows_where_a_node_belongs():
    workspace = FakeWorkspace(1)
    scene = scene_of(workspace)
    assert scene.region_of("n0_soft:Softmax").id == workspace.blocks[0].id
    assert scene.region_of("n0_q:MatMul") is None
    assert scene.box("nowhere") is None
    assert graph_info(1).name == "tiny"
