"""The panels of a profile and a tuning, and their plots, as data."""

import re
from dataclasses import replace

import pytest
import sample_profiles as sample
from fake import HOSTILE
from sample_profiles import FLASH, MATH, measurement, point, profile, sweep
from sample_tunings import tuning

from explorer.view import measured
from explorer.view.profile_figure import OTHERS, UNATTRIBUTED, WIDTH, point_layout, point_traces
from explorer.view.sweep_figure import sweep_layout, sweep_traces


def shown(found):
    return measured.profile(found, found.points[-1], "")


def text_of(html):
    return re.sub(r"<[^>]*>", " ", html)


class TestProfilePanel:
    def test_how_fast_and_under_what_conditions(self):
        html = shown(profile())
        assert "fused is 2.01× as fast as original (95 % interval 2.00 to 2.02)." in html
        for fact in ("12.07 – 12.25", "31.0 ms", "0.25 s", "4 → 4", "GPU clock 1980 → 1755 MHz", "On CUDA, as asked."):
            assert fact in html

    def test_where_the_time_goes(self):
        text = text_of(shown(profile()))
        for fact in ("GPU time of one run by operator", "softmax 2.50 ms", "CUDNN_FLASH_ATTENTION", "not attributed"):
            assert fact in text
        assert "bound by launching from the host" in text
        assert "340 MB (of 512 MB held)" in text

    def test_a_warning_of_a_kernel_is_seen(self):
        first, second = point().measurements
        bad = replace(second, dispatch=(replace(FLASH, seen="MATH", warning=MATH),))
        html = shown(profile(replace(point(), measurements=(first, bad))))
        assert f'<p class="explorer-warning">⚠ fused, 1 node: {MATH}</p>' in html

    def test_several_points(self):
        html = shown(sweep())
        assert "fused is faster than original from x[1] ≈ 512 on." in html
        assert "Median latency over inputs" in html
        first = measured.profile(sweep(), sweep().points[0], "")
        assert "fused is slower here: 0.50×" in first

    def test_one_model(self):
        alone = replace(point(), measurements=point().measurements[:1])
        assert "there is no ratio" in shown(profile(alone, variants=(sample.ORIGINAL,)))

    def test_one_that_does_not_run(self):
        assert "original did not run: out of memory" in shown(profile(point(before=None)))

    def test_none_at_all(self):
        assert measured.profile(None, None, "not <yet>") == "<p>not &lt;yet&gt;</p>"

    def test_a_point_is_named_by_its_shapes(self):
        assert measured.point_name(point()) == "x 2×938×100"
        assert "\u202e" not in measured.point_name(replace(point(), shapes=((HOSTILE, (1,)),)))


class TestTuningPanel:
    def test_what_was_tried_and_what_wins(self):
        html = measured.tuning(tuning())
        assert '<p class="explorer-verdict">Best: 1 block as mha/bsd: 1.00 ms' in html
        assert "attention/bnsh: it computes something else" in html
        assert "attn0, one cut out: 2 heads of 64" in html

    def test_none(self):
        assert measured.tuning(None) == ""


class TestPointFigure:
    def test_latency_of_each_run(self):
        before, after = [trace for trace in point_traces(profile(), point()) if trace["type"] == "box"]
        assert (before["name"], before["y"]) == ("original", [12.0, 12.2, 12.1, 12.4] * 2)
        assert after["y"] == [6.0, 6.1, 6.0, 6.2] * 2
        assert before["marker"]["color"] != after["marker"]["color"]

    def test_time_by_operator_before_and_after(self):
        before, after = [trace for trace in point_traces(profile(), point()) if trace["type"] == "bar"]
        times = dict(zip(before["y"], before["x"], strict=True))
        assert times["MatMul"] == pytest.approx(3.5)
        assert times["MultiHeadAttention"] == 0
        assert before["y"] == after["y"]
        assert dict(zip(after["y"], after["x"], strict=True))["MultiHeadAttention"] == pytest.approx(0.7)
        assert times[UNATTRIBUTED] > 0

    def test_the_operators_that_take_longest_and_the_rest_as_one(self):
        nodes = [sample.node(f"Op{index}", 100.0 - index) for index in range(13)]
        at = replace(point(), measurements=(measurement("original", (1.0,), sample.trace(nodes, unattributed_us=0.0)),))
        (bars,) = [trace for trace in point_traces(profile(at), at) if trace["type"] == "bar"]
        assert bars["y"] == [*(f"Op{index}" for index in range(10)), OTHERS]
        assert bars["x"][-1] == pytest.approx(0.267)
        assert bars["hovertext"][-1].endswith("3 operators")

    def test_latency_alone_where_nothing_was_traced(self):
        at = replace(point(), measurements=tuple(replace(item, trace=None) for item in point().measurements))
        assert {trace["type"] for trace in point_traces(profile(at), at)} == {"box"}
        layout = point_layout(profile(at), at)
        assert layout["xaxis"]["domain"] == [0, 1]
        assert layout["xaxis2"]["visible"] is False

    def test_one_that_does_not_run_has_no_box(self):
        at = point(before=None)
        assert [trace["name"] for trace in point_traces(profile(at), at)] == ["fused", "fused"]

    def test_the_width_is_fixed_and_the_time_is_named(self):
        assert point_layout(profile(), point())["width"] == WIDTH
        assert point_layout(profile(), point())["xaxis2"]["title"]["text"] == "GPU time in one run, ms"
        cpu = sample.on_cpu()
        assert point_layout(cpu, cpu.points[0])["xaxis2"]["title"]["text"] == "node time in one run, ms"


class TestSweepFigure:
    def test_a_curve_for_each_with_its_middle_half(self):
        before, after, crossing = sweep_traces(sweep())
        assert (before["x"], before["y"]) == ([256, 512, 1024], [4.0, 10.0, 40.0])
        assert after["y"] == [8.0, 10.0, 20.0]
        assert before["error_y"]["array"] == [0, 0, 0]
        assert crossing["x"] == pytest.approx([512, 512])
        assert crossing["y"] == [4.0, 40.0]

    def test_axes_are_logarithmic_with_a_tick_for_each_size(self):
        layout = sweep_layout(sweep())
        assert (layout["xaxis"]["type"], layout["yaxis"]["type"], layout["width"]) == ("log", "log", WIDTH)
        assert layout["xaxis"]["tickvals"] == [256, 512, 1024]

    def test_a_length_at_which_it_does_not_run_is_left_out(self):
        before, after = sweep_traces(profile(point(256), point(512, before=None)))
        assert before["x"] == [256]
        assert after["x"] == [256, 512]

    def test_curves_that_cross_within_the_noise_have_no_line(self):
        noisy = profile(point(256, (1.0, 2.0, 3.1), (1.0, 2.1, 3.0)), point(512, (1.0, 2.1, 3.0), (1.0, 2.0, 3.1)))
        assert len(sweep_traces(noisy)) == 2
        assert "No measurable difference" in shown(noisy)

    def test_none_where_nothing_varies(self):
        assert sweep_traces(profile()) == ()


def test_no_name_is_read_as_markup():
    variants = tuple(replace(item, name=f"{item.name}{HOSTILE}") for item in (sample.ORIGINAL, sample.FUSED))
    points = []
    for length in (256, 512):
        at = point(length)
        kernel = replace(FLASH, operator=HOSTILE, dtype=HOSTILE, seen=HOSTILE, warning=HOSTILE)
        timed = sample.trace([sample.node(HOSTILE, 1.0, HOSTILE)], note=HOSTILE)
        found = tuple(
            replace(item, variant=of.name, trace=timed, dispatch=(kernel,), refusal=HOSTILE)
            for item, of in zip(at.measurements, variants, strict=True)
        )
        state = sample.gpu(others=(HOSTILE,))
        points.append(replace(at, shapes=((HOSTILE, (2, length)),), gpu=(state,), measurements=found))
    bad = profile(*points, variants=variants, labels=(("b0", HOSTILE),), environment=(("gpu", HOSTILE),))
    bad = replace(bad, notes=(HOSTILE,), provider_note=HOSTILE)
    for html in (shown(bad), measured.tuning(tuning(notes=(HOSTILE,), environment=(("gpu", HOSTILE),)))):
        assert "<img" not in html
        assert "\u202e" not in html
        assert "&lt;img" in html
    drawn = repr((point_traces(bad, bad.points[0]), sweep_traces(bad), sweep_layout(bad)))
    assert "<img" not in drawn
    assert "$x$" not in drawn
    assert "&lt;img" in drawn
