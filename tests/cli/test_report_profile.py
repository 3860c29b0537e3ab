"""A profile and a comparison of profiles as text."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import sample_profiles as sample
from sample_profiles import FLASH, MATH, measurement, point, profile, sweep

from explorer import report
from explorer.profile import Latency, Profile, compare

HOSTILE = "a\x1b[31m\nb\u202e"


def cells(text: str, row: str) -> list[str]:
    """The cells of the one line that begins with `row`."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"{row}  ")]
    return re.split(r" {2,}", line)[1:]


def with_dispatch(*dispatch):
    first, second = point().measurements
    return profile(replace(point(), measurements=(first, replace(second, dispatch=dispatch))))


class TestOnePoint:
    def test_where_and_on_what(self):
        text = report.profile_text(profile())
        assert text.startswith("On CUDA (NVIDIA H200), ONNX Runtime 1.2.3, CUDA 13.0, driver 580.1\nOn CUDA, as asked.")
        assert "Inputs: x 2×938×100" in text
        assert text.endswith("note: a note")

    def test_the_latency_of_each(self):
        text = report.profile_text(profile())
        before, after = (re.split(r" {2,}", line) for line in text.splitlines() if re.search(r"\d – \d", line))
        assert before == ["original", "12.1 ms", "12.07 – 12.25", "12.4 ms", "4 → 4", "2.00 ms", "31.0 ms", "0.25 s"]
        assert after[:5] == ["fused", "6.05 ms", "6.00 – 6.12", "6.20 ms", "2.01× (2.00 – 2.02)"]
        assert after[5:] == ["0 → 0", "0 ms", "31.0 ms", "0.25 s"]
        assert "fused is 2.01× as fast as original (95 % interval 2.00 to 2.02)." in text

    def test_operators_before_and_after_and_what_is_nobodys(self):
        text = report.profile_text(profile())
        assert cells(text, "Cast") == ["2.00 ms (2)", "–", "−2.00 ms"]
        assert cells(text, "Gelu") == ["0.400 ms (1)", "0.400 ms (1)", "0 ms"]
        assert cells(text, "MultiHeadAttention") == ["–", "0.700 ms (1)", "+0.700 ms"]
        assert cells(text, "not attributed") == ["0.095 ms", "0.012 ms", "−0.083 ms"]
        assert "GPU time of one run by operator" in text

    def test_few_operators_are_shown_and_the_others_summed(self):
        nodes = [sample.node(f"Op{index}", 100.0 - index) for index in range(13)]
        text = report.profile_text(
            profile(replace(point(), measurements=(measurement("original", (1.0,), sample.trace(nodes)),)))
        )
        assert "Op9 " in text
        assert "Op10 " not in text
        assert cells(text, "others") == ["0.267 ms (3)"]

    def test_blocks_by_part(self):
        text = report.profile_text(profile())
        (line,) = [line for line in text.splitlines() if line.startswith("original") and "attn0" in line]
        assert "softmax 2.50 ms, cast 2.00 ms, Q·Kᵀ 2.00 ms, P·V 1.50 ms, scale 1.00 ms" in line
        assert "9.00 ms" in line

    def test_kernels_and_their_warnings(self):
        text = report.profile_text(with_dispatch(FLASH, replace(FLASH, said="MATH", seen="MATH", warning=MATH)))
        assert f"warning: fused, 1 node: {MATH}" in text
        (row,) = [line for line in text.splitlines() if line.startswith("fused") and "CUDNN_FLASH_ATTENTION" in line]
        assert row.split() == ["fused", "MultiHeadAttention", "fp16", "CUDNN_FLASH_ATTENTION", "1"]

    def test_the_device(self):
        text = report.profile_text(profile())
        assert cells(text, "GPU works")[0] == "9.40 ms"
        assert cells(text, "GPU waits in between")[0] == "0.250 ms (2.6 %), at most 0.040 ms"
        assert cells(text, "not attributed to a node") == ["0.095 ms (1.0 %)", "0.012 ms (1.0 %)"]
        assert cells(text, "host to device")[0] == "4 × 0.011 ms, 1.2 MB"
        assert cells(text, "memset")[0] == "2 × 0.002 ms, 4.1 kB"
        assert cells(text, "memory at its peak, with weights")[0] == "340 MB (of 512 MB held)"
        assert cells(text, "nodes by provider")[0] == "CUDA 14, CPU 3 (Gather 3)"
        assert cells(text, "Memcpy nodes") == ["0", "0"]

    def test_whether_launching_sets_the_pace(self):
        text = report.profile_text(profile())
        assert "original: the GPU works for 9.40 ms of 12.1 ms (77 %): bound by the GPU's work." in text
        assert "fused: the GPU works for 1.20 ms of 6.05 ms (20 %): bound by launching from the host" in text

    def test_the_state_of_the_gpu(self):
        states = (sample.gpu(), sample.gpu(sm_clock_mhz=1500, held_back_by=("power cap",), others=("x (pid 3), 1 GB",)))
        text = report.profile_text(profile(replace(point(), gpu=states, steady=False)))
        assert "GPU clock 1980 → 1500 MHz of 1980, 45 °C, 320 W of 700." in text
        assert "held back by: power cap." in text
        assert "Others have this GPU open: x (pid 3), 1 GB." in text
        assert "still getting faster" in text
        assert "still getting faster" not in report.profile_text(profile())

    def test_a_gpu_that_tells_nothing(self):
        silent = replace(
            sample.gpu(), **dict.fromkeys(("sm_clock_mhz", "max_sm_clock_mhz", "temperature_c", "power_w"))
        )
        assert "GPU clock" not in report.profile_text(profile(replace(point(), gpu=(silent, silent))))

    def test_one_model_has_no_ratio_and_no_difference(self):
        alone = replace(point(), measurements=point().measurements[:1])
        text = report.profile_text(profile(alone, variants=(sample.ORIGINAL,)))
        assert "as fast as" not in text
        assert "difference" not in text

    def test_one_that_does_not_run_says_why(self):
        text = report.profile_text(profile(point(before=None)))
        assert "original did not run: out of memory at node /attn/MatMul" in text
        assert "fused" in text
        assert "as fast as" not in text

    def test_the_cpu_in_its_own_words(self):
        text = report.profile_text(sample.on_cpu())
        assert text.startswith("On CPU (Some CPU), ONNX Runtime 1.2.3\n")
        assert "CUDA 13" not in text
        assert "Node time of one run by operator" in text
        for nothing in ("GPU time", "GPU works", "GPU clock", "bound by", "memset", "at its peak"):
            assert nothing not in text

    def test_an_untraced_one_has_latencies_alone(self):
        measured = tuple(replace(item, trace=None, dispatch=()) for item in point().measurements)
        text = report.profile_text(profile(replace(point(), measurements=measured)))
        assert "2.01×" in text
        assert "by operator" not in text
        assert "The device" not in text

    def test_a_cuda_graph_is_told_once(self):
        graph = replace(sample.FUSED, name="fused, CUDA graph", cuda_graph=True)
        third = measurement("fused, CUDA graph", (5.0, 5.0), sample.trace(sample.AFTER))
        both = profile(
            replace(point(), measurements=(*point().measurements, third)),
            variants=(sample.ORIGINAL, sample.FUSED, graph),
        )
        text = report.profile_text(both)
        assert "fused, CUDA graph  5.00 ms" in text
        assert cells(text, "Cast") == ["2.00 ms (2)", "–", "−2.00 ms"], "two traces, not three"

    def test_slower_and_no_difference_are_said(self):
        slower = profile(point(before=(1.0,) * 6, after=(2.0,) * 6))
        assert "fused is slower here: 0.50× the speed of original" in report.profile_text(slower)
        equal = profile(point(before=(1.0, 2.0, 3.0) * 2, after=(1.0, 2.0, 3.0) * 2))
        assert "No measurable difference of fused to original" in report.profile_text(equal)

    def test_few_rounds_say_nothing(self):
        few = profile(point(before=(1.0,) * 4, after=(2.0,) * 4), runs=4)
        text = report.profile_text(few)
        assert "fused: 0.50× the speed of original, but 4 rounds are too few to tell that from chance" in text
        assert "slower" not in text

    def test_unknown_devices(self):
        assert "unknown device" in report.profile_text(profile(environment=()))


class TestSeveralPoints:
    def test_a_table_a_chart_and_the_crossover(self):
        text = report.profile_text(sweep())
        assert cells(text, "256")[:2] == ["4.00 ms", "8.00 ms (0.50×)"]
        assert cells(text, "1024")[:2] == ["40.0 ms", "20.0 ms (2.00×)"]
        assert "● original   ○ fused" in text
        assert "fused is faster than original from x[1] ≈ 512 on." in text

    def test_only_the_last_in_detail_unless_asked(self):
        text = report.profile_text(sweep())
        assert text.count("Inputs: ") == 1
        assert "Inputs: x 2×1024×100" in text
        assert "--all tells as much of the other 2 sets of inputs." in text
        every = report.profile_text(sweep(), every_point=True)
        assert every.count("Inputs: ") == 3
        assert "--all" not in every

    def test_always_faster(self):
        text = report.profile_text(profile(point(256), point(512)))
        assert "fused is faster than original at every x[1] measured." in text

    def test_what_cannot_be_measured_is_not_claimed(self):
        equal = (1.0, 2.0, 3.0)
        text = report.profile_text(profile(point(256, equal, equal), point(512, equal, equal)))
        assert "No measurable difference of fused to original at any x[1] measured." in text
        text = report.profile_text(profile(point(256, equal, equal), point(512)))
        assert "fused is faster than original wherever a difference can be measured." in text

    def test_one_that_is_out_of_memory_at_a_length(self):
        text = report.profile_text(profile(point(256), point(512, before=None)))
        assert "did not run" in cells(text, "512")
        assert "original did not run: out of memory" in text

    def test_inputs_that_vary_in_no_one_way(self):
        other = replace(point(), shapes=(("x", (4, 256, 100)),))
        text = report.profile_text(profile(point(512), other))
        assert cells(text, "x 4×256×100")
        assert "└" not in text


class TestComparison:
    def test_what_changed(self):
        first, second = point().measurements
        slower = replace(second, latency=Latency((7.0, 7.1, 7.2, 7.0)))
        now = profile(replace(point(), measurements=(first, slower)), environment=(("onnxruntime", "9.9"),))
        text = report.comparison_text(compare(profile(), now))
        assert "9.9" in text
        (row,) = [line for line in text.splitlines() if line.startswith("fused") and "7.05 ms" in line]
        assert "6.05 ms" in row
        json.dumps(report.comparison_document(compare(profile(), now)), allow_nan=False)

    def test_operators_that_changed_and_no_others(self):
        first, second = point().measurements
        nodes = (sample.node("MultiHeadAttention", 300.0), sample.node("Gelu", 401.0))
        faster = replace(second, trace=sample.trace(nodes), dispatch=(replace(FLASH, seen="MATH"),))
        text = report.comparison_text(compare(profile(), profile(replace(point(), measurements=(first, faster)))))
        rows = [re.split(r" {2,}", line) for line in text.splitlines() if line.startswith("fused")]
        assert ["fused", "x 2×938×100", "MultiHeadAttention", "0.700 ms", "0.300 ms", "−0.400 ms"] in rows
        assert ["fused", "x 2×938×100", "mha", "CUDNN_FLASH_ATTENTION", "MATH"] in rows
        assert "Gelu" not in text, "a thousandth of the time"
        assert "under the same conditions" in text

    def test_what_only_one_of_them_has(self):
        text = report.comparison_text(compare(profile(point(256), point(512)), profile(point(512), point(1024))))
        assert "Only before: original on x 2×256×100" in text
        assert "Only now: fused on x 2×1024×100" in text


@pytest.mark.parametrize("several", [False, True])
def test_no_name_makes_a_line_of_its_own(several):
    variants = tuple(replace(item, name=f"{item.name}{HOSTILE}") for item in (sample.ORIGINAL, sample.FUSED))

    def hostile(length: int):
        at = point(length)
        measured = tuple(
            replace(item, variant=of.name, refusal=HOSTILE, trace=sample.trace([sample.node(HOSTILE, 1.0, HOSTILE)]))
            for item, of in zip(at.measurements, variants, strict=True)
        )
        bad = replace(FLASH, operator=HOSTILE, dtype=HOSTILE, seen=HOSTILE, warning=HOSTILE)
        first, second = measured
        state = sample.gpu(others=(HOSTILE,))
        return replace(
            at, shapes=((HOSTILE, (2, length)),), gpu=(state,), measurements=(first, replace(second, dispatch=(bad,)))
        )

    points = tuple(map(hostile, (256, 512) if several else (256,)))
    bad = profile(
        *points, variants=variants, environment=(("gpu", HOSTILE),), labels=(("b0", HOSTILE),), notes=(HOSTILE,)
    )
    text = report.profile_text(bad)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert not any(line.startswith("b") for line in text.splitlines())
    assert isinstance(bad, Profile)
