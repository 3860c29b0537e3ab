"""A tuning as text."""

from __future__ import annotations

import re
from dataclasses import replace

from sample_tunings import FAST, SLOW, WRONG, trial, tuning

from explorer import report
from explorer.fusion import Plan
from explorer.profile import Ratio


def rows(text: str, name: str) -> list[list[str]]:
    return [re.split(r" {2,}", line) for line in text.splitlines() if line.startswith(f"{name}  ")]


def test_what_wins_and_where_it_was_measured():
    text = report.tuning_text(tuning())
    assert text.startswith("Best: 1 block as mha/bsd: 1.00 ms, 4.00× as fast as unfused")
    assert "Measured on NVIDIA H200, ONNX Runtime 1.2.3, x 2×938×100; 6 timed rounds in turns." in text
    assert text.endswith("note: a note")
    assert "on the CPU" not in text


def test_every_trial_the_fastest_first():
    text = report.tuning_text(tuning())
    (row,) = rows(text, "mha/bsd")
    assert row[:6] == ["mha/bsd", "mha/bsd", "any, cudnn", "CUDNN_FLASH_ATTENTION", "1.00 ms", "1.00 – 1.08"]
    assert row[-2:] == ["0.800 ms", "2"]
    (refused,) = rows(text, "attention/bnsh")
    assert "4.00 ms, refused" in refused
    assert f"attention/bnsh: {WRONG}" in text
    assert "attn0, one cut out: 2 heads of 64" in text
    assert text.index("\nmha/bsd ") < text.index("\nattention/bnsh ")
    assert len(rows(text, "unfused")) == 2


def test_one_that_was_not_measured():
    text = report.tuning_text(
        replace(tuning(), trials=(trial("unfused", SLOW), trial("all", None, "mha", refusal="no")))
    )
    assert "not measured, refused" in rows(text, "all")[0]
    assert "all: no" in text


def test_when_nothing_is_faster():
    kept = tuning(plan=Plan("0"), trials=(trial("unfused", FAST), trial("all", SLOW, "mha/bsd")))
    assert report.tuning_text(kept).startswith("Nothing is faster here than the model as it is.")


def test_what_is_within_the_noise_is_not_called_faster():
    trials = (trial("unfused", (1.0, 2.0, 3.0)), trial("all", (1.0, 2.0, 3.0), "mha/bsd"))
    same = replace(trials[1], ratio=Ratio(1.0, 0.5, 2.0))
    text = report.tuning_text(tuning(trials=(trials[0], same)))
    assert "1.00× as fast as unfused (0.50 to 2.00), no measurable difference." in text


def test_a_session_option_that_helps():
    assert "session option sdpa_kernel=1 (flash)" in report.tuning_text(tuning(sdpa_kernel=1))


def test_a_tuning_of_the_cpu_is_not_for_cuda():
    text = report.tuning_text(tuning(provider="cpu", environment=(("cpu", "Some CPU"),)))
    assert "Measured on Some CPU" in text
    assert "only where it is to be the fastest on the CPU" in text


def test_no_name_makes_a_line_of_its_own():
    bad = "x\n\x1b[31m"
    text = report.tuning_text(tuning(shapes=((bad, (1,)),), notes=(bad,), environment=(("gpu", bad),)))
    assert "\x1b" not in text
    assert "\n\\x1b" not in text
