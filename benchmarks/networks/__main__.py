"""Whole networks: as exported, by ORT's python optimizer, fused to each target, with CUDA graphs, and by PyTorch.

    python -m benchmarks.networks [--network f5 …] [--lengths 938 2048 …] [--json OUT.json] [--quick]

Networks, float16: F5-TTS's diffusion transformer (22 layers, 16 heads of 64, batch 2; `f5` with AdaLN, `f5-lean` with
plain LayerNorms around the same attention), one like Stable Diffusion 3's (joint attention of image and text), an
encoder of BERT's base size with a padding mask, and a decoder with grouped queries that reads a prompt.

One torch module is exported to ONNX (TorchScript exporter) and is what PyTorch runs, eager and compiled. That all
contestants compute the same is shown first, at a short length, against the module in float64.

At each length PyTorch's variants are timed, then all of ONNX Runtime's by `explorer.profile`, then PyTorch's again: a
drift of the machine meets both. All of one side take turns; medians are of `--runs` runs (half as many above 4096),
PyTorch's in two halves. Ratios are to the original, which ONNX Runtime loads at ORT_ENABLE_ALL, and to torch.compile;
intervals are bootstrapped (95 %), paired between those that took turns. GPU busy and idle times, the unattributed
share, Casts (exported → as ORT runs it) and kernels are those of a traced run, times in milliseconds.

Of ORT's python optimizer every recipe that fits is tried on a twin of two narrow layers; the one that makes most
attention operators, of equals most of any, and is right is measured. All that was tried stands in the JSON.

Exit status: 1 if PyTorch or the original as exported is not close to the truth.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch

from benchmarks.networks.catalogue import NETWORKS
from benchmarks.networks.results import Row
from benchmarks.networks.suite import Suite
from explorer.fusion import OPERATORS, TARGETS
from explorer.runtime.client import Worker


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.networks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--lengths", type=int, nargs="+", help="instead of the networks' own")
    parser.add_argument("--targets", nargs="+", choices=(*TARGETS, "auto"), default=[*OPERATORS, "auto"])
    parser.add_argument("--graph-target", default="auto", help="the one that is also replayed as a CUDA graph")
    parser.add_argument("--compile", nargs="*", default=["default"], metavar="MODE", help="modes of torch.compile")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--provider", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--no-trace", action="store_true")
    parser.add_argument("--quick", action="store_true", help="two narrow layers of each network, one short length")
    parser.add_argument("--json", type=Path, metavar="OUT.json", help="written after each length")
    options = parser.parse_args()
    with Worker() as worker:
        facts = worker.call("explorer.runtime.environment:environment")
        device = options.provider
        if device == "auto":
            device = "cuda" if "CUDA" in facts["providers"] else "cpu"
        document: Row = {"command": command(sys.argv[1:]), "when": datetime.now(UTC).isoformat(timespec="seconds")}
        document |= {"environment": facts | torch_facts(), "networks": []}
        right = True
        for name in options.network:
            with ExitStack() as stack:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="networks-")))
                network = NETWORKS[name]
                suite = Suite(network, worker, device, folder, options, partial(write, options.json, document))
                print(f"\n{network.title}", flush=True)
                document["networks"].append({"name": name, "title": network.title, "sizes": dict(suite.sizes)})
                right &= suite.run(document["networks"][-1])
    return 0 if right else 1


def command(words: list[str]) -> str:
    """The command line, but for where the results go."""
    kept = [word for at, word in enumerate(words) if "--json" not in words[max(at - 1, 0) : at + 1]]
    return shlex.join(["python", "-m", "benchmarks.networks", *kept])


def torch_facts() -> dict[str, str]:
    """Versions of PyTorch and of the libraries that it brings."""
    facts = {"torch": torch.__version__, "torch_cuda": torch.version.cuda}
    if torch.cuda.is_available():
        facts["torch_cudnn"] = str(torch.backends.cudnn.version())
    return {name: value for name, value in facts.items() if value}


def write(path: Path | None, document: Row) -> None:
    """The results so far, if they are wanted."""
    if path is not None:
        path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
