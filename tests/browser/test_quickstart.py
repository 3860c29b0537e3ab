"""The main job with the hands, in a real JupyterLab: open, select, fuse, see it proved and measured, undo, export."""

import json
import re

import onnx
import pytest
from notebook_driver import ARTIFACTS, Notebook
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

LONG = 120_000


def opened(page, lab, theme="JupyterLab Light"):
    notebook = Notebook(page, lab, "notebooks/01_quickstart.ipynb", theme)
    notebook.run_all()
    page.locator(".explorer-graph .js-plotly-plot .textpoint").first.wait_for(timeout=LONG)
    expect(page.get_by_text("passed 4 → 0 Casts")).to_be_attached(timeout=LONG)
    page.get_by_text("The device in one traced run").wait_for(timeout=LONG)  # the last cell: now the kernel is idle
    page.locator(".onnx-explorer").scroll_into_view_if_needed()
    return notebook


def picture(page, name):
    view(page).screenshot(path=ARTIFACTS / f"{name}.png")


def view(page):
    return page.locator(".onnx-explorer")  # what the notebook prints says much of the same


def row(page, label):
    return page.get_by_role("grid", name="Attention blocks").get_by_role("row", name=label)


def test_open_select_fuse_verify_profile_undo_export(page, lab):
    notebook = opened(page, lab)
    expect(row(page, "attn0")).to_have_attribute("aria-selected", "true")

    # The table leads, the graph follows.
    row(page, "attn1").click()
    expect(row(page, "attn1")).to_have_attribute("aria-selected", "true")
    expect(page.get_by_role("button", name="Fuse attn1")).to_be_enabled()
    page.wait_for_function(
        """() => document.querySelector('.explorer-graph .js-plotly-plot')._fullData
                 .find((trace) => trace.name === 'fusable labels').text[1].includes('<b>')"""
    )
    row(page, "attn1").press("ArrowUp")
    expect(row(page, "attn0")).to_have_attribute("aria-selected", "true")
    expect(row(page, "attn0")).to_be_focused()
    row(page, "attn0").press("ArrowDown")
    expect(row(page, "attn1")).to_have_attribute("aria-selected", "true")
    row(page, "attn0").click()
    expect(page.get_by_role("heading", name="attn0")).to_be_visible()
    picture(page, "1-opened")

    # The graph leads, the table follows: first to a node of no block, then to a node of one.
    chosen = page.locator(".explorer-blocks tr[aria-selected=true]")
    notebook.click("Normalization names", "LayerNormalization")
    expect(page.get_by_role("heading", name="LayerNormalization")).to_be_visible()
    expect(chosen).to_have_count(0)
    expect(page.get_by_role("button", name=re.compile("Fuse$"))).to_be_disabled()
    notebook.click("Softmax names", "Softmax")
    expect(chosen).to_have_count(1)
    label = chosen.locator("td").first.inner_text()
    expect(page.get_by_role("heading", name=label)).to_be_visible()
    assert "K arrives already transposed" in page.locator(".onnx-explorer").inner_text()

    # Fuse by clicking; proof and measurement come by themselves.
    page.get_by_role("button", name=f"Fuse {label}").click()
    expect(row(page, label)).to_contain_text("fused")
    expect(page.get_by_role("group", name="Operators before and after")).to_contain_text("4 → 2")
    expect(page.get_by_text("Passed: all")).to_be_visible(timeout=LONG)
    expect(view(page).get_by_text("95 % interval")).to_be_visible(timeout=LONG)
    page.get_by_role("button", name=re.compile("Fuse all$")).click()
    expect(page.get_by_text("Passed: all 3")).to_be_visible(timeout=LONG)
    expect(view(page).get_by_text("95 % interval")).to_be_visible(timeout=LONG)
    page.locator(".onnx-explorer .js-plotly-plot .bars").first.wait_for(timeout=LONG)
    picture(page, "2-fused")

    rows = page.evaluate(
        "() => Math.abs(document.querySelector('.explorer-graph .js-plotly-plot')._fullLayout.yaxis.range"
        ".reduce((a, b) => a - b))"
    )
    assert 20 < rows < 40  # still a readable window, not squeezed and not blown up

    # Undo and redo bring the state and its results back.
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_text("Passed: all 2")).to_be_visible()
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_text("Nothing is fused yet")).to_be_visible()
    expect(page.get_by_role("button", name="Export model")).to_be_disabled()
    page.get_by_role("button", name="Redo").click()
    page.get_by_role("button", name="Redo").click()
    expect(page.get_by_text("Passed: all 3")).to_be_visible()

    # Export: never over an existing file unless told so.
    page.get_by_label("Export to").fill("fused.onnx")
    page.get_by_role("button", name="Export model").click()
    expect(page.get_by_role("status").filter(has_text="Wrote")).to_be_visible()
    page.get_by_role("button", name="Export model").click()
    expect(page.get_by_role("alert")).to_be_visible()
    page.get_by_label("Replace existing file").check()
    page.get_by_role("button", name="Export plan").click()
    expect(page.get_by_role("status").filter(has_text="plan.json")).to_be_visible()
    folder = lab.folder / "notebooks"
    operators = [node.op_type for node in onnx.load(folder / "fused.onnx").graph.node]
    assert operators.count("MultiHeadAttention") == 2
    assert len(json.loads((folder / "fused.plan.json").read_text())["fusions"]) == 2


def test_dark_narrow_and_a_model_that_cannot_be_opened(page, lab):
    opened(page, lab, "JupyterLab Dark")
    page.get_by_role("button", name=re.compile("Fuse all$")).click()
    expect(page.get_by_text("Passed: all")).to_be_visible(timeout=LONG)
    expect(view(page).get_by_text("95 % interval")).to_be_visible(timeout=LONG)
    page.locator(".onnx-explorer .js-plotly-plot .bars").first.wait_for(timeout=LONG)
    picture(page, "3-dark")
    page.set_viewport_size({"width": 900, "height": 3000})
    picture(page, "4-narrow")
    (lab.folder / "notebooks" / "broken.onnx").write_bytes(b"not a model")
    page.get_by_label("Model", exact=True).fill("broken.onnx")
    page.get_by_role("button", name="Open").click()
    expect(page.get_by_role("alert")).to_be_visible()
    picture(page, "5-broken")
    page.get_by_label("Model", exact=True).fill("../sample_models/bert_fp32.onnx")
    page.get_by_role("button", name="Open").click()
    expect(page.get_by_text("bert_fp32.onnx ·")).to_be_visible()
    picture(page, "6-bert")


def test_profile_over_lengths_then_tune(page, lab):
    page.set_viewport_size({"width": 1400, "height": 4200})
    opened(page, lab)
    page.get_by_role("button", name=re.compile("Fuse all$")).click()
    expect(view(page).get_by_text("95 % interval")).to_be_visible(timeout=LONG)
    page.get_by_label("Runs").fill("3")
    page.get_by_label("Runs").press("Tab")
    page.get_by_label("Input shapes").fill("x=2x16..64x100")
    page.get_by_role("button", name="Profile").click()
    expect(view(page).get_by_text("Median latency over inputs")).to_be_visible(timeout=LONG)
    # The graph, all lengths, one of them
    expect(page.locator(".onnx-explorer .js-plotly-plot")).to_have_count(3, timeout=LONG)
    expect(page.get_by_text("x 2×64×100, time 2×8", exact=False).last).to_be_visible()
    page.get_by_label("In detail").select_option("x 2×16×100, time 2×8")
    expect(page.locator(".explorer-notes", has_text="x 2×16×100, time 2×8")).to_be_visible()
    page.locator("details summary", has_text="Time by operator").click()
    expect(page.get_by_role("cell", name="not attributed to a node")).to_be_visible()
    picture(page, "7-lengths")

    # One size to tune for; what is tried can be stopped.
    page.get_by_role("button", name="Tune").click()
    expect(page.get_by_role("alert").filter(has_text="one set of input shapes")).to_be_visible()
    page.get_by_label("Input shapes").fill("x=2x32x100")
    page.get_by_role("button", name="Tune").click()
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("Cancelled")).to_be_visible(timeout=LONG)
    page.get_by_role("button", name="Tune").click()
    expect(page.get_by_role("heading", name="The whole model")).to_be_visible(timeout=LONG)
    expect(page.get_by_role("heading", name=re.compile("attn0…attn1, one cut out"))).to_be_visible()
    picture(page, "8-tuned")
