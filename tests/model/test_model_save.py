"""What is written is the model, and all of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from external_models import external
from google.protobuf.message import EncodeError
from onnx import helper, numpy_helper

from explorer.errors import ExportError
from explorer.model import Model, load, save
from explorer.model.save import serialize

NEG = "g (float[N, 4] x) => (float[N, 4] y) { a = Neg (x) y = Abs (a) }"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "out"
    path.mkdir()
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestRoundTrip:
    @pytest.mark.parametrize("sample", ["f5_dit_fp16", "f5_dit_fp16_two_casts", "bert_fp32", "gpt_fp32"])
    def test_a_sample_is_the_same_model(self, samples, folder, sample):
        model = load(samples / f"{sample}.onnx")
        copy = load(save(model.ir, folder / "copy.onnx"))
        before, after = onnx.load(samples / f"{sample}.onnx"), onnx.load(folder / "copy.onnx")
        for field in ("node", "input", "output"):
            assert list(getattr(before.graph, field)) == list(getattr(after.graph, field))
        weights = [{t.name: numpy_helper.to_array(t) for t in proto.graph.initializer} for proto in (before, after)]
        assert weights[0].keys() == weights[1].keys()
        for name, array in weights[0].items():
            np.testing.assert_array_equal(array, weights[1][name])
            assert array.dtype == weights[1][name].dtype
        assert [copy.key(node) for node in copy.nodes] == [model.key(node) for node in model.nodes]
        assert serialize(copy.ir) == serialize(model.ir)

    def test_the_same_bytes_each_time(self, opened):
        model = opened(NEG)
        assert serialize(model.ir) == serialize(model.ir)

    def test_the_encoding_is_that_of_protobuf(self, samples):
        """The file is written in pieces, so that the weights are not in memory twice more."""
        model = load(samples / "gpt_fp32.onnx")
        assert onnx.load_from_string(serialize(model.ir)) == ir.to_proto(model.ir)

    def test_remarks_of_the_source_that_are_no_text(self, write):
        proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 17]> {NEG}')
        proto.graph.node[0].metadata_props.add(key="k", value="remark")
        model = load(write(proto.SerializeToString().replace(b"remark", b"rem\xf2rk")))
        with pytest.raises(ExportError, match="damaged"):
            serialize(model.ir)

    def test_returns_the_path(self, opened, folder):
        assert save(opened(NEG).ir, str(folder / "m.onnx")) == folder / "m.onnx"


class TestTwoGigabytes:
    """With a limit that a test can reach; `load` refuses such files (see there)."""

    @pytest.fixture
    def limit(self, monkeypatch) -> Callable[[int], None]:
        # the name `save` is the function
        return lambda size: monkeypatch.setattr(sys.modules["explorer.model.save"], "_MAX_PROTO_BYTES", size)

    @pytest.fixture(params=["initializer", "Constant"])
    def model(self, request, write) -> Model:
        weight = numpy_helper.from_array(np.arange(64, dtype=np.float32), "w")
        proto = onnx.parser.parse_model('<ir_version: 8, opset_import: ["": 17]> ' + NEG)
        if request.param == "initializer":
            proto.graph.initializer.append(weight)
        else:
            proto.graph.node.append(helper.make_node("Constant", [], ["w"], value=weight))
        return load(write(proto))

    def refuse(self, model: Model, folder: Path) -> str:
        with pytest.raises(ExportError) as caught:
            save(model.ir, folder / "m.onnx")
        assert names(folder) == []
        assert caught.value.__cause__ is None
        return str(caught.value)

    def test_weights_alone_are_too_much(self, model, folder, limit, monkeypatch):
        monkeypatch.setattr(ir, "to_proto", None)  # told before they are copied
        limit(255)
        text = self.refuse(model, folder)
        assert "at most 2 GB" in text
        assert "store the weights of the source as external data" in text

    def test_weights_and_graph_together_are(self, model, folder, limit):
        size = len(serialize(model.ir))
        limit(size - 1)
        assert "at most 2 GB" in self.refuse(model, folder)
        limit(size)
        assert save(model.ir, folder / "m.onnx").stat().st_size == size

    def test_protobuf_itself_refuses(self, model, folder, monkeypatch):
        def refuse(*_: object, **__: object) -> bytes:
            raise EncodeError("Failed to serialize proto")

        monkeypatch.setattr(onnx.GraphProto, "SerializeToString", refuse)
        assert "at most 2 GB" in self.refuse(model, folder)

    def test_external_weights_do_not_count(self, folder, limit):
        path = folder / "source.onnx"
        path.write_bytes(external("w.bin", dims=(1000, 4), length=None).SerializeToString())
        (folder / "w.bin").write_bytes(bytes(16_000))
        limit(1000)
        assert save(load(path).ir, folder / "m.onnx").stat().st_size < 1000
