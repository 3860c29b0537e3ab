"""ORT's own python optimizer, `onnxruntime.transformers.optimizer`, each attempt in a process of its own.

    python -m benchmarks.networks.optimizer SOURCE.onnx OUT.onnx --model-type mmdit --heads 16 --width 1024 [--level 0]

prints what it fused as JSON. Shapes are inferred first, since some of its fusions need them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx

from benchmarks.scan_corpus import without_paths

ATTENTION = ("Attention", "MultiHeadAttention", "GroupQueryAttention")
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Recipe:
    """How to call it.

    level  of ORT's own optimisations that run before it: 1 is its default for most model types
    given  "float16", or "float32" and then converted to float16, as its documentation describes
    """

    model_type: str
    level: int
    given: str

    def __str__(self) -> str:
        converted = ", float32 and converted" if self.given == "float32" else ""
        return f"{self.model_type}, opt_level {self.level}{converted}"


def recipes(model_types: Iterable[str]) -> list[Recipe]:
    """All that are tried for a network."""
    return [
        Recipe(model_type, level, given)
        for model_type in model_types
        for given in ("float16", "float32")
        for level in (1, 0)
    ]


def merit(fused: Mapping[str, int]) -> tuple[int, int]:
    """Attention operators, then all but those that the exporter writes itself: the larger, the better."""
    return sum(fused.get(name, 0) for name in ATTENTION), sum(fused.values()) - fused.get("LayerNormalization", 0)


def attempt(
    recipe: Recipe, source: Path, out: Path, sizes: Mapping[str, Any], *, gpu: bool, timeout_s: float
) -> dict[str, Any]:
    """{"fused": {operator: count}} and a file `out`, or {"error": what happened instead}."""
    command = [sys.executable, "-m", __spec__.name, str(source), str(out)]
    command += ["--model-type", recipe.model_type, "--level", str(recipe.level)]
    command += ["--heads", str(sizes["heads"]), "--width", str(sizes["heads"] * sizes["head_size"])]
    command += (["--gpu"] if gpu else []) + (["--convert"] if recipe.given == "float32" else [])
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    try:
        done = subprocess.run(
            command,
            cwd=out.parent,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no result in {timeout_s:g} s"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"])[-1]
        return {"error": without_paths(last)[:300]}
    return json.loads(done.stdout.splitlines()[-1])


def optimize(args: argparse.Namespace) -> dict[str, int]:
    """Run the optimizer on a file and write its result, the weights beside it; how many of each operator it made."""
    import onnxruntime

    if args.gpu:
        onnxruntime.preload_dlls()  # torch's libraries, if it is installed
    # The optimizer imports torch, which takes seconds, only to ask whether it is built for AMD
    sys.modules["torch"] = ModuleType("torch")
    sys.modules["torch"].__dict__["version"] = SimpleNamespace(hip=None)
    from onnxruntime.transformers.optimizer import optimize_model

    model = onnx.load(args.source)
    if model.ByteSize() < onnx.checker.MAXIMUM_PROTOBUF:
        model = onnx.shape_inference.infer_shapes(model)
    given = args.out.with_name(f"given_{args.out.name}")
    _save(model, given)
    optimized = optimize_model(
        str(given), args.model_type, args.heads, args.width, opt_level=args.level, use_gpu=args.gpu
    )
    for file in (given, _weights(given)):
        file.unlink(missing_ok=True)
    fused = {name: count for name, count in optimized.get_fused_operator_statistics().items() if count}
    if args.convert:
        optimized.convert_float_to_float16(keep_io_types=False)
    optimized.topological_sort()
    _save(optimized.model, args.out)
    return fused


def _save(model: onnx.ModelProto, path: Path) -> None:
    _weights(path).unlink(missing_ok=True)  # onnx would write behind what is there
    onnx.save(model, path, save_as_external_data=True, location=_weights(path).name)


def _weights(path: Path) -> Path:
    return path.with_name(f"{path.name}.data")


def main() -> None:
    """Optimize one file."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("source", type=Path)
    options.add_argument("out", type=Path)
    options.add_argument("--model-type", required=True)
    options.add_argument("--level", type=int, default=1)
    options.add_argument("--heads", type=int, default=0)
    options.add_argument("--width", type=int, default=0)
    options.add_argument("--gpu", action="store_true", help="ORT's own optimisations for CUDA")
    options.add_argument("--convert", action="store_true", help="the result to float16")
    print(json.dumps({"fused": optimize(options.parse_args())}))


if __name__ == "__main__":
    main()
