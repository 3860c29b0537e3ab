"""Names in a model are written by strangers: shown, never obeyed."""

from __future__ import annotations

import io
import json
import re
import sys

import pytest
from cli_models import blocked, no_attention, renamed

from explorer.terminal import Progress, plain

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
ESCAPES = [
    "\x1b[2J\x1b[31mred\x1b]0;title\x07",
    "\r\x1b[A",
    "\x9b31m",
    "\x08\x08\x08\x7f",
    "a\x0bb\x0cc",
]
BIDI = "\u202e\u2066\u2028"


class TestEscapes:
    @pytest.mark.parametrize("name", ESCAPES, ids=ascii)
    @pytest.mark.parametrize("part", ["Softmax", "MatMul"])
    def test_of_nodes_in_a_scan(self, run, write, name, part):
        for proto in (renamed(part, name), renamed(part, name, blocked())):
            outcome = run("scan", write(proto))
            assert outcome.status == 0
            assert not CONTROL.search(outcome.out + outcome.err)

    @pytest.mark.parametrize("name", ESCAPES, ids=ascii)
    def test_of_tensors_in_a_fuse(self, run, write, tmp_path, name):
        outcome = run("fuse", write(renamed("v", name)), "-o", tmp_path / "o.onnx")
        assert outcome.status in (0, 1)
        assert not CONTROL.search(outcome.out + outcome.err)

    @pytest.mark.parametrize("name", ESCAPES, ids=ascii)
    def test_in_errors(self, run, write, tmp_path, name):
        proto = no_attention()
        proto.graph.node[0].input[0] = name
        sentence = run("scan", write(proto)).sentence
        assert not CONTROL.search(sentence)
        sentence = run("fuse", write(), "-o", tmp_path / "o.onnx", "--block", name).sentence
        assert not CONTROL.search(sentence)

    def test_in_operators_and_domains(self, run, write):
        outcome = run("scan", write(no_attention("Ma\x1b[2Jgic", "o\x1b[31mrg")))
        assert outcome.status == 0
        assert not CONTROL.search(outcome.out)
        assert r"\x1b" in outcome.out

    def test_in_graph_inputs_and_outputs(self, run, write, tmp_path):
        path = write(renamed("y", "\x1b[2J"))
        outcome = run("fuse", path, "-o", tmp_path / "o.onnx")
        assert outcome.status == 0
        assert not CONTROL.search(outcome.out + outcome.err)
        assert not CONTROL.search(run("profile", path, "--runs", "1").out)

    def test_in_a_file_name(self, run, write):
        outcome = run("scan", write(None, "a\x1b[2Jb.onnx"))
        assert outcome.status == 0
        assert not CONTROL.search(outcome.out)

    @pytest.mark.parametrize("name", [*ESCAPES, "two\nlines", BIDI], ids=ascii)
    def test_json_keeps_names_as_they_are(self, run, write, name):
        outcome = run("scan", write(renamed("Softmax", name)), "--json")
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e]", outcome.out)
        assert name in json.loads(outcome.out)["blocks"][0]["anchor"]


class TestForgedLines:
    FORGED = "x\nPASSED: everything is fine\n"

    def test_a_line_break_in_a_name_is_no_line_break(self, run, write):
        outcome = run("scan", write(renamed("Softmax", self.FORGED, blocked())))
        assert outcome.status == 0
        assert not any(line.startswith("PASSED") for line in outcome.out.splitlines())

    def test_nor_in_an_error(self, run, write):
        proto = no_attention()
        proto.graph.node[0].input[0] = self.FORGED
        assert "PASSED" in run("scan", write(proto)).sentence

    def test_nor_in_the_name_of_a_blocked_block(self, run, write, tmp_path):
        path = write(renamed("Softmax", self.FORGED, blocked()))
        assert "PASSED" in run("fuse", path, "-o", tmp_path / "o.onnx", "--block", "attn0").sentence

    def test_nor_in_a_verdict(self, run, write, tmp_path):
        outcome = run("fuse", write(renamed("y", self.FORGED)), "-o", tmp_path / "o.onnx")
        assert outcome.status == 0
        assert sum(line.startswith("PASSED") for line in outcome.out.splitlines()) == 1

    def test_text_that_runs_backwards(self, run, write):
        """Direction marks let a name show other words than it holds."""
        outcome = run("scan", write(renamed("Softmax", BIDI)))
        assert not re.search("[\u2028-\u202e\u2066-\u2069]", outcome.out)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class TestPlain:
    def test_ordinary_text_is_untouched(self):
        text = "Cast 4 → 0, scale 1/√64 × 2 ñ 漢字"
        assert plain(text) == text

    @pytest.mark.parametrize("name", ESCAPES, ids=ascii)
    def test_control_characters_are_shown(self, name):
        shown = plain(name)
        assert not CONTROL.search(shown)
        assert r"\x" in shown


class TestProgress:
    def test_nothing_where_nobody_looks(self, monkeypatch):
        quiet = io.StringIO()
        monkeypatch.setattr(sys, "stderr", quiet)
        with Progress("verifying") as progress:
            progress(0.5, "half")
        assert quiet.getvalue() == ""

    def test_a_line_on_a_terminal_that_goes_away_again(self, monkeypatch):
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        with Progress("verifying") as progress:
            progress(0.5, "running \x1b[2Jevil")
        text = terminal.getvalue()
        assert "verifying  50%" in text
        assert r"running \x1b[2Jevil" in text
        assert text.endswith("\r\x1b[K")
        assert "\n" not in text

    def test_a_line_break_does_not_push_the_line_away(self, monkeypatch):
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        with Progress("profiling") as progress:
            progress(0.5, "two\nlines")
        assert "\n" not in terminal.getvalue()

    def test_long_work_shows_it(self, run, write, monkeypatch):
        terminal = Terminal()
        path = write()
        monkeypatch.setattr(sys, "stderr", terminal)
        assert run("verify", path, path).status == 0
        assert "verifying" in terminal.getvalue()
        assert run("profile", path, "--runs", "1").status == 0
        assert "profiling" in terminal.getvalue()
