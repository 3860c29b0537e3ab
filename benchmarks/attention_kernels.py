"""How close each attention kernel of a GPU comes to the truth: blocks fused to each target, run by each kernel.

    python benchmarks/attention_kernels.py [--provider cuda] [--length 1024] [--only GLOB] [--json OUT.json]

Each block is written as an exporter writes it, in float16 and in bfloat16, fused to every target that claims it, and
run with CUDA's provider option `sdpa_kernel` forced to each kernel (and left at its default). Errors are the largest
distance from attention computed by numpy in float64 from the same 16-bit inputs, relative to the largest true value.
`kernel` is what ONNX Runtime says it ran, which is not always what was asked for: a kernel that cannot take a block
gives way. Rows whose query may see no key are left out of the error and must be finite where the original is.

Exit status: 1 if a fused block is further from the truth than twice the original plus a few roundings (the margin that
verification allows), or not finite where the original is.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from onnx import parser

from explorer.attention import recognise
from explorer.errors import ExplorerError
from explorer.fusion import OPERATORS, Plan, apply, choose
from explorer.model import load
from explorer.model.save import serialize
from explorer.profile import dispatch
from explorer.runtime.context import Context
from explorer.runtime.environment import environment
from explorer.runtime.sessions import Session, SessionSpec, choose_provider
from explorer.verify.verdict import Errors, allowed_error

KERNELS = {"default": 0, "flash": 1, "memory-efficient": 2, "cudnn": 8, "math": 16}
"""Bits of the CUDA provider option `sdpa_kernel`."""
DTYPES = {"float16": "10", "bfloat16": "16"}
"""Element types with their numbers in ONNX, as Cast wants them."""
BATCH = 2

Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """A block. Q [B, S, N·H] and K, V [B, T, G·H] are inputs; `scale` and the others say what is computed of them."""

    name: str
    heads: int
    head_size: int
    kv_heads: int
    scale: float
    mask: str = ""
    """ "", "causal", "padding" (additive [B, 1, 1, T], the smallest number of the type), "bias" ([1, N, S, T])."""
    softcap: float | None = None
    spread: float = 1.0
    """Standard deviation of Q and K: logits have that squared, times scale·√H."""

    @property
    def inputs(self) -> dict[str, str]:
        """Names and shapes of the inputs, in ONNX's text form."""
        sizes = {"q": self.heads, "k": self.kv_heads, "v": self.kv_heads}
        found = {name: f"2,s,{heads * self.head_size}" for name, heads in sizes.items()}
        if self.mask == "padding":
            found["mask"] = "2,1,1,s"
        if self.mask == "bias":
            found["mask"] = f"1,{self.heads},s,s"
        return found


CASES = (
    # F5-TTS: ×100 after a Cast to float32 undoes 0.1 in the weights of Q and of K
    Case("f5", 16, 64, 16, 100.0, spread=0.1),
    Case("sd3", 24, 64, 24, 64**-0.5, spread=3.0),
    Case("sd3 large logits", 24, 64, 24, 1.0, spread=2.0),
    Case("bert padding", 12, 64, 12, 0.125, "padding"),
    Case("t5 bias", 12, 64, 12, 1.0, "bias"),
    Case("gpt causal", 12, 64, 12, 0.125, "causal"),
    Case("gqa", 32, 128, 8, 128**-0.5),
    Case("gqa causal", 32, 128, 8, 128**-0.5, "causal"),
    Case("gqa causal softcap", 16, 128, 8, 1 / 16, "causal", softcap=50.0, spread=2.0),
)


def graph(case: Case, dtype: str, length: int) -> str:
    """The block in ONNX's text form, its softmax in float32."""
    inputs = ", ".join(f"{dtype}[{shape.replace('s', str(length))}] {name}" for name, shape in case.inputs.items())
    repeat = case.heads // case.kv_heads
    lines = [
        f"split = Constant<value_ints = [0, 0, {case.heads}, {case.head_size}]>()",
        f"kv_split = Constant<value_ints = [0, 0, {case.kv_heads}, {case.head_size}]>()",
        f"merged = Constant<value_ints = [0, 0, {case.heads * case.head_size}]>()",
        "q4 = Reshape(q, split)",
        "k4 = Reshape(k, kv_split)",
        "v4 = Reshape(v, kv_split)",
        "qt = Transpose<perm = [0, 2, 1, 3]>(q4)",
        "k0 = Transpose<perm = [0, 2, 1, 3]>(k4)",
        "v0 = Transpose<perm = [0, 2, 1, 3]>(v4)",
    ]
    if repeat > 1:
        lines += [
            "two = Constant<value_ints = [2]>()",
            f"more = Constant<value_ints = [2, {case.kv_heads}, {repeat}, {length}, {case.head_size}]>()",
            f"all = Constant<value_ints = [2, {case.heads}, {length}, {case.head_size}]>()",
        ]
        for name in "kv":
            lines += [
                f"{name}5 = Unsqueeze({name}0, two)",
                f"{name}6 = Expand({name}5, more)",
                f"{name}1 = Reshape({name}6, all)",
            ]
    else:
        lines += ["k1 = Identity(k0)", "v1 = Identity(v0)"]
    lines += [
        "kt = Transpose<perm = [0, 1, 3, 2]>(k1)",
        "x = MatMul(qt, kt)",
        "up = Cast<to = 1>(x)",
        f"scale = Constant<value_float = {case.scale!r}>()",
        "logits0 = Mul(up, scale)",
    ]
    last = "logits0"
    if case.softcap is not None:
        lines += [
            f"cap = Constant<value_float = {case.softcap!r}>()",
            f"ratio = Div({last}, cap)",
            "bounded = Tanh(ratio)",
            "capped = Mul(bounded, cap)",
        ]
        last = "capped"
    if case.mask == "causal":
        lines += [
            f"square = Constant<value_ints = [{length}, {length}]>()",
            "ones = ConstantOfShape<value = int64[1] {1}>(square)",
            "lower = Trilu<upper = 0>(ones)",
            "keep = Cast<to = 9>(lower)",
            "hide = Constant<value_float = -inf>()",
            f"masked = Where(keep, {last}, hide)",
        ]
        last = "masked"
    elif case.mask:
        lines += ["wide = Cast<to = 1>(mask)", f"masked = Add({last}, wide)"]
        last = "masked"
    lines += [
        f"p = Softmax<axis = -1>({last})",
        f"down = Cast<to = {DTYPES[dtype]}>(p)",
        "o = MatMul(down, v1)",
        "ot = Transpose<perm = [0, 2, 1, 3]>(o)",
        "y = Reshape(ot, merged)",
    ]
    body = "\n".join(lines)
    header = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>'
    result = f"{dtype}[2,{length},{case.heads * case.head_size}] y"
    return f"{header}\nblock ({inputs}) => ({result}) {{\n{body}\n}}"


def rounded(array: np.ndarray, dtype: str) -> np.ndarray:
    """`array` as the element type holds it, in float16 or, for bfloat16, in float32."""
    if dtype == "float16":
        return array.astype(np.float16)
    bits = array.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def feeds_of(case: Case, dtype: str, length: int) -> Feeds:
    """Seeded inputs. The padding hides the last quarter of the second batch entry."""
    rng = np.random.default_rng(0)
    feeds: Feeds = {}
    for name, text in case.inputs.items():
        shape = tuple(int(size) for size in text.replace("s", str(length)).split(","))
        if case.mask == "padding" and name == "mask":
            array = np.zeros(shape)
            array[1, ..., -(length // 4) :] = -65504.0 if dtype == "float16" else -3.3895313892515355e38
        else:
            array = rng.standard_normal(shape) * (case.spread if name in "qk" else 1.0)
        feeds[name] = rounded(array, dtype)
    return feeds


def truth(case: Case, feeds: Feeds, length: int) -> np.ndarray:
    """The block in float64, [B, S, N·H], one head at a time."""
    split = {
        name: feeds[name].astype(np.float64).reshape(BATCH, length, -1, case.head_size).transpose(0, 2, 1, 3)
        for name in "qkv"
    }
    result = np.empty((BATCH, length, case.heads, case.head_size))
    for b in range(BATCH):
        for n in range(case.heads):
            g = n * case.kv_heads // case.heads
            logits = case.scale * split["q"][b, n] @ split["k"][b, g].T
            if case.softcap is not None:
                logits = case.softcap * np.tanh(logits / case.softcap)
            if case.mask == "causal":
                logits = np.where(np.tri(length, dtype=bool), logits, -np.inf)
            elif case.mask:
                mask = np.broadcast_to(feeds["mask"].astype(np.float64), (BATCH, case.heads, length, length))
                logits = logits + mask[b, n]
            weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
            result[b, :, n] = weights / weights.sum(axis=-1, keepdims=True) @ split["v"][b, g]
    return result.reshape(BATCH, length, -1)


@contextmanager
def printed(log: Path) -> Iterator[None]:
    """Send what native code prints on standard output to a file."""
    sys.stdout.flush()
    before = os.dup(1)
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        try:
            yield
        finally:
            os.dup2(before, 1)
            os.close(before)


def run(model: Path, device: str, feeds: Feeds, kernel: int) -> tuple[np.ndarray, str]:
    """The block's output and the kernels that ONNX Runtime says it ran; "" if it says none."""
    log = model.with_suffix(".log")
    with printed(log):
        (output,) = Session(SessionSpec(str(model), device, sdpa_kernel=kernel)).run(feeds).values()
    kernels = dispatch.parse(log.read_text(errors="replace"))
    return output, ", ".join(dict.fromkeys(item.kernel for item in kernels))


def error(output: np.ndarray, true: np.ndarray) -> Errors:
    """Distance from the truth."""
    broken = int(np.count_nonzero(~np.isfinite(output)))
    distance = float(np.abs(output.astype(np.float64) - true).max())
    return Errors(distance, distance / float(np.abs(true).max()), broken)


def measure(case: Case, dtype: str, length: int, device: str, folder: Path) -> Iterator[dict[str, Any]]:
    """A row for the original, and one for each target and kernel."""
    source = folder / "original.onnx"
    source.write_bytes(parser.parse_model(graph(case, dtype, length)).SerializeToString())
    model = load(source)
    (block,) = recognise(model)
    feeds, kernels = feeds_of(case, dtype, length), KERNELS if device == "cuda" else {"default": 0}
    true = truth(case, feeds, length)
    output, _ = run(source, device, feeds, 0)
    original = error(output, true)
    base = {"case": case.name, "dtype": dtype}
    yield base | {"target": "original", "asked": "", "kernel": "", "error": original.relative, "passed": True}
    for target in OPERATORS:
        if not choose(model, block, target).target:
            continue
        fused = folder / f"{target}.onnx"
        fused.write_bytes(serialize(apply(model, [block], Plan(model.digest).with_fusion(block, target)).ir))
        for name, bits in kernels.items():
            row = base | {"target": target, "asked": name}
            try:
                output, ran = run(fused, device, feeds, bits)
            except ExplorerError as problem:
                yield row | {"kernel": "", "error": None, "passed": None, "words": str(problem)}
                continue
            found = error(output, true)
            close = found.relative <= allowed_error(original, dtype) and not found.nonfinite
            yield row | {"kernel": ran, "error": found.relative, "passed": close}


def _command(words: list[str]) -> str:
    """The command line, but for where the results go."""
    kept = [word for at, word in enumerate(words) if "--json" not in words[max(at - 1, 0) : at + 1]]
    return shlex.join(["python", *kept])


def main() -> int:
    """Run the benchmark."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--provider", choices=("auto", "cuda", "cpu"), default="auto")
    options.add_argument("--length", type=int, default=1024, help="positions of queries and keys")
    options.add_argument("--only", default="*", help="cases whose name matches this")
    options.add_argument("--json", type=Path, metavar="OUT.json")
    args = options.parse_args()
    os.environ[dispatch.DEBUG_VARIABLE] = "1"
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        context = Context(lambda *_: None, folder, folder / "log")
        (folder / "log").touch()
        device, why = choose_provider(context, args.provider)
        facts = environment(context)
        print(why)
        for case in CASES:
            for dtype in DTYPES if device == "cuda" else ("float16",):  # the CPU has no bfloat16 kernels
                if not fnmatchcase(case.name, args.only):
                    continue
                for row in measure(case, dtype, args.length, device, folder):
                    rows.append(row)
                    shown = "failed" if row["error"] is None else f"{row['error']:.1e}"
                    mark = {True: "", False: "  TOO FAR", None: f"  {row.get('words', '')}"}[row["passed"]]
                    print(
                        f"{row['case']:20} {row['dtype']:9} {row['target']:10} {row['asked']:17}"
                        f" {row['kernel']:24} {shown}{mark}",
                        flush=True,
                    )
    if args.json:
        document = {
            "command": _command(sys.argv),
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "environment": facts,
            "batch": BATCH,
            "length": args.length,
            "rows": rows,
        }
        args.json.write_text(json.dumps(document, indent=1) + "\n")
    return int(any(row["passed"] is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
