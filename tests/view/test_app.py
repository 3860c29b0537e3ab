"""The app over a stand-in for the workspace, without a browser: what each hand does, and what is then in view."""

import threading

import pytest
import sample_profiles
from fake import HOSTILE, FakeWorkspace

from explorer.errors import BlockError, ModelError, SessionError
from explorer.view import Explorer
from explorer.view import app as app_module


class Post:
    """The widgets' thread: what the work thread posts runs when the test says so."""

    def __init__(self):
        self.waiting = []

    def __call__(self, function):
        self.waiting.append(function)

    def run(self):
        while self.waiting:
            self.waiting.pop(0)()


@pytest.fixture
def post():
    return Post()


def explorer(post, **settings):
    app = Explorer(FakeWorkspace(**settings), post=post)
    return app, app._controls


def settle(app, post):
    app._jobs.join(10)
    post.run()


def test_it_opens_with_the_first_block_selected(post):
    app, c = explorer(post)
    assert [row["cells"][0] for row in c.table.rows] == ["attn0", "attn1"]
    assert c.table.selected == app.workspace.blocks[0].id
    assert "2 heads of 64" in c.details.value
    assert c.fuse.description == "Fuse attn0"
    assert c.undo.disabled
    assert c.undo.tooltip == "Nothing was done yet."
    assert c.export_model.disabled


def test_fuse_changes_graph_counts_and_table_at_once_then_verifies_and_profiles(post):
    app, c = explorer(post)
    c.fuse.click()
    assert c.table.rows[0]["cells"][1] == "✓ fused"
    assert "4 → 2" in c.counts.value
    assert "MultiHeadAttention" in [text for trace in app._graph.widget.data for text in (trace.text or ())]
    assert c.fuse.description == "Unfuse attn0"
    settle(app, post)
    assert app.workspace.log == ["verdict", "profile"]
    assert "Passed" in c.numbers.value
    assert "fused is 2.01× as fast as original" in c.measured.value
    assert len(c.plot.children) == 1
    assert c.progress.layout.visibility == "hidden"


def test_all_blocks_like_the_selected_one_are_fused_in_one_step(post):
    app, c = explorer(post, count=3)
    assert "One of attn0…attn2: 3 identical blocks." in c.details.value
    assert c.fuse_alike.description == "Fuse all 3 like this"
    assert c.fuse_alike.layout.display != "none"
    c.fuse_alike.click()
    assert [row["status"] for row in c.table.rows] == ["fused"] * 3
    settle(app, post)
    c.undo.click()
    assert [row["status"] for row in c.table.rows] == ["fusable"] * 3
    settle(app, post)


def test_there_is_no_button_for_a_family_of_one(post):
    app, c = explorer(post, count=3, other=frozenset({2}))
    assert c.fuse_alike.description == "Fuse all 2 like this"
    app.select("attn2")
    assert c.fuse_alike.layout.display == "none"
    assert "identical" not in c.details.value
    app.select("attn0")
    c.fuse.click()
    assert c.fuse_alike.layout.display == "none", "one is left to fuse"
    settle(app, post)
    app._picked("node:n0_q:MatMul")
    assert c.fuse_alike.layout.display == "none", "no block is selected"


def test_undo_and_redo_bring_results_back_without_running_again(post):
    app, c = explorer(post)
    c.fuse_all.click()
    settle(app, post)
    c.undo.click()
    settle(app, post)
    assert "Nothing is fused yet" in c.numbers.value
    assert c.plot.children == ()
    assert c.table.rows[0]["cells"][1] == "◆ fusable"
    c.redo.click()
    assert "Passed" in c.numbers.value
    settle(app, post)
    assert app.workspace.log == ["verdict", "profile"]


def test_the_chosen_operator_is_the_one_that_is_fused_to(post):
    app, c = explorer(post)
    assert "◆ <b>fastest: mha</b>" in c.details.value
    assert "✕ <b>gqa</b>: expected no soft cap" in c.details.value
    c.target.value = "attention"
    c.fuse.click()
    settle(app, post)
    assert app.workspace.plan.target(app.workspace.blocks[0].id) == "attention"
    assert "It has become the standard one." in c.details.value
    c.target.value = "auto"
    c.fuse_all.click()
    settle(app, post)
    assert app.workspace.plan.target(app.workspace.blocks[1].id) == "mha"


def test_a_new_action_cancels_the_running_one_and_drops_what_it_still_says(post):
    app, c = explorer(post)
    app.workspace.gate = threading.Event()
    c.fuse.click()
    first = app._jobs._thread
    c.fuse_all.click()
    first.join(10)
    app.workspace.gate.set()
    settle(app, post)
    assert app.workspace.verdict is not None
    assert c.doing.value == ""
    assert "Passed" in c.numbers.value


def test_the_user_can_cancel(post):
    app, c = explorer(post)
    app.workspace.gate = threading.Event()
    c.fuse.click()
    assert not c.cancel.disabled
    assert c.progress.layout.visibility == "visible"
    c.cancel.click()
    settle(app, post)
    assert c.doing.value == "Cancelled"
    assert c.cancel.disabled
    assert c.numbers.value == "<p>Not compared yet: press Verify.</p>"
    assert c.measured.value == "<p>Not measured yet: press Profile.</p>"
    c.verify.click()
    app.workspace.gate.set()
    settle(app, post)
    assert "Passed" in c.numbers.value


def test_progress_is_shown_and_escaped(post):
    app, c = explorer(post)
    c.fuse.click()
    app._jobs.join(10)
    seen = []
    c.doing.observe(lambda change: seen.append(change["new"]), "value")
    post.run()
    assert any("&lt;img" in text for text in seen)
    assert not any("<img" in text for text in seen)


def test_a_failure_is_a_sentence_in_its_panel(post):
    app, c = explorer(post)
    app.workspace.failure = SessionError(f"expected a model that loads, found {HOSTILE}")
    c.fuse.click()
    settle(app, post)
    assert "Expected a model that loads" in c.numbers.value
    assert "<img" not in c.numbers.value
    assert 'role="alert"' in c.measured.value
    app.workspace.failure = None
    c.verify.click()
    settle(app, post)
    assert "alert" not in c.numbers.value


def test_table_and_graph_and_details_follow_each_other(post):
    app, c = explorer(post)
    first, second = (item.id for item in app.workspace.blocks)
    c.table.selected = second
    assert "attn1" in c.details.value
    app._picked(f"block:{first}")
    assert c.table.selected == first
    app._picked("node:n1_soft:Softmax")
    assert c.table.selected == second
    app._picked("node:n0_q:MatMul")
    assert c.table.selected == ""
    assert "n0_q:MatMul" in c.details.value
    assert c.fuse.disabled
    assert c.fuse.tooltip == "Select a block first."
    app.select("attn0")
    assert c.table.selected == first
    with pytest.raises(BlockError):
        app.select("attn9")


def test_a_click_in_the_graph_selects_and_an_empty_click_does_not(post):
    app, c = explorer(post)

    class Points:
        def __init__(self, inds):
            self.point_inds = inds

    trace = next(trace for trace in app._graph.widget.data if trace.name == "Softmax names")
    second = app.workspace.blocks[1].id
    index = app._graph._targets["Softmax names"].index("node:n1_soft:Softmax")
    app._graph._clicked(trace, Points([]), None)
    assert c.table.selected != second
    app._graph._clicked(trace, Points([index]), None)
    assert c.table.selected == second


def test_a_blocked_block_says_why(post):
    _, c = explorer(post, blocked=frozenset({0}))
    assert c.fuse.disabled
    assert "a rank of 5" in c.fuse.tooltip
    assert "a rank of 5" in c.hint.value
    assert "Why it cannot be fused" in c.details.value


def test_export_writes_says_where_and_never_replaces_silently(post, tmp_path):
    app, c = explorer(post)
    c.fuse.click()
    c.export_path.value = str(tmp_path / "out.onnx")
    c.export_model.click()
    assert "Wrote" in c.message.value
    c.export_plan.click()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.onnx", "out.plan.json"]
    c.export_model.click()
    assert "tick Replace existing file" in c.message.value
    c.replace.value = True
    c.export_model.click()
    assert "Wrote" in c.message.value
    settle(app, post)


def test_a_model_that_cannot_be_opened_leaves_the_view_usable(post, monkeypatch):
    def opener(path):
        if "broken" in path:
            raise ModelError(f"expected an ONNX model, found {HOSTILE}")
        return FakeWorkspace(1)

    monkeypatch.setattr(app_module, "open_workspace", opener)
    app = Explorer("broken.onnx", post=post)
    c = app._controls
    assert "Expected an ONNX model" in c.message.value
    assert "<img" not in c.message.value
    assert c.fuse.disabled
    with pytest.raises(ModelError):
        app.workspace  # noqa: B018
    c.path.value = "good.onnx"
    c.open.click()
    assert c.message.value == ""
    assert len(c.table.rows) == 1
    c.path.value = "broken too"
    c.open.click()
    assert "Expected an ONNX model" in c.message.value
    assert len(c.table.rows) == 1


def test_wrong_shapes_are_answered_in_place(post):
    app, c = explorer(post)
    c.fuse.click()
    settle(app, post)
    c.shapes.value = "x=2xa"
    c.profile.click()
    assert "NAME=" in c.message.value


def test_a_model_without_attention(post):
    app, c = explorer(post, count=0)
    assert c.table.rows == []
    assert "no attention block" in c.details.value
    assert c.fuse_all.tooltip == "This model has no attention block."
    app.close()


def test_panning_brings_the_names_along(post):
    app, _ = explorer(post, count=12)
    widget = app._graph.widget
    before = list(widget.data[[trace.name for trace in widget.data].index("Softmax names")].y)
    widget.layout.yaxis.range = [110, 82]
    after = list(widget.data[[trace.name for trace in widget.data].index("Softmax names")].y)
    assert min(after) > min(before)


def test_the_selected_block_stays_where_it_was_when_the_graph_changes(post):
    app, c = explorer(post, count=4)
    app.select("attn3")
    block = app.workspace.blocks[3].id
    offset = app._graph._scene.halo(block).y0 - app._graph._window.top
    c.fuse_all.click()
    assert app._graph._scene.halo(block).y0 - app._graph._window.top == pytest.approx(offset)
    settle(app, post)


def test_a_profile_over_several_inputs_shows_all_and_one_in_detail(post):
    app, c = explorer(post, measured=sample_profiles.sweep())
    c.shapes.value = "x=2x256..1024x100"
    c.cuda_graph.value = True
    c.profile.click()
    settle(app, post)
    (asked,) = app.workspace.settings
    assert [dict(shapes)["x"] for shapes in asked["shapes"]] == [(2, 256, 100), (2, 512, 100), (2, 1024, 100)]
    assert asked["cuda_graph"] is True
    assert c.point.layout.display is None
    assert [name for name, _ in c.point.options] == ["x 2×256×100", "x 2×512×100", "x 2×1024×100"]
    assert c.point.value == 2, "the last one"
    assert "is 2.00× as fast" in c.measured.value
    over, last = c.plot.children
    assert over.layout.xaxis.type == "log"
    c.point.value = 0
    assert "slower here: 0.50×" in c.measured.value
    assert c.plot.children[0] is over
    assert c.plot.children[1] is not last
    c.point.value = 2
    assert c.plot.children == (over, last)


def test_a_profile_of_one_input_needs_no_choice(post):
    app, c = explorer(post)
    c.profile.click()
    settle(app, post)
    assert c.point.layout.display == "none"
    assert len(c.plot.children) == 1


def test_the_model_is_verified_on_the_first_of_several_inputs(post):
    app, c = explorer(post)
    c.shapes.value = "x=2x256..512x100"
    c.fuse.click()
    settle(app, post)
    checked, measured = app.workspace.settings
    assert checked["shapes"] == {"x": (2, 256, 100)}
    assert len(measured["shapes"]) == 2


def test_tune_shows_what_was_tried_and_what_fastest_means_now(post):
    app, c = explorer(post)
    assert c.tuning.layout.display == "none"
    assert "the fastest for" in c.details.value
    c.tune.click()
    settle(app, post)
    assert app.workspace.log == ["tuning"]
    assert c.tuning.layout.display is None
    assert "Best: 1 block as mha/bsd" in c.tuned.value
    assert "measured for" in c.details.value


def test_tuning_can_be_cancelled_and_fails_in_its_place(post):
    app, c = explorer(post)
    app.workspace.gate = threading.Event()
    c.tune.click()
    assert not c.cancel.disabled
    c.cancel.click()
    settle(app, post)
    assert c.doing.value == "Cancelled"
    assert c.tuning.layout.display == "none"
    app.workspace.gate = None
    app.workspace.failure = SessionError(f"expected a model that loads, found {HOSTILE}")
    c.tune.click()
    settle(app, post)
    assert "Expected a model that loads" in c.tuned.value
    assert "<img" not in c.tuned.value
    assert c.tuning.layout.display is None


def test_one_tunes_for_one_size(post):
    app, c = explorer(post)
    c.shapes.value = "x=2x256..1024x100"
    c.tune.click()
    assert "one set of input shapes" in c.message.value
    assert app.workspace.log == []


def test_a_model_whose_blocks_cannot_be_fused_cannot_be_tuned(post):
    _, c = explorer(post, blocked=frozenset({0, 1}))
    assert c.tune.disabled
    assert c.tune.tooltip == "There is no block that can be fused."
