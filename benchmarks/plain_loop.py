"""Median latency of models by a plain loop, each alone: what `onnx-explorer profile` must agree with (agreement.py).

python benchmarks/plain_loop.py S MODEL [MODEL ...]        S: size of every dynamic dimension
"""

import sys
import time

import numpy as np
import onnxruntime as ort

WARMUP_S, RUNS = 1.0, 30


def median_ms(path: str, size: int) -> float:
    session = ort.InferenceSession(path, providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
    device = "cuda" if "CUDAExecutionProvider" in session.get_providers() else "cpu"
    rng = np.random.default_rng(0)
    binding, kept = session.io_binding(), []
    for node in session.get_inputs():
        shape = [dim if isinstance(dim, int) else size for dim in node.shape]
        dtype = {"tensor(float16)": np.float16, "tensor(float)": np.float32}[node.type]
        kept.append(ort.OrtValue.ortvalue_from_numpy(rng.standard_normal(shape).astype(dtype), device, 0))
        binding.bind_ortvalue_input(node.name, kept[-1])
    for node in session.get_outputs():
        binding.bind_output(node.name, device)

    def run_ms() -> float:
        start = time.perf_counter()
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return (time.perf_counter() - start) * 1e3

    start = time.perf_counter()
    while time.perf_counter() - start < WARMUP_S:
        run_ms()
    return float(np.median([run_ms() for _ in range(RUNS)]))


if __name__ == "__main__":
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    for model in sys.argv[2:]:
        print(f"{median_ms(model, int(sys.argv[1])):.3f} ms  {model}")
