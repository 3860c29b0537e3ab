"""What the explorer recognises in a folder of graphs, beside what other tools fuse there; also an acceptance check.

    python benchmarks/scan_corpus.py FOLDER [--out FILE.json] [--only GLOB] [--timeout 120] [--scan-only]

FOLDER holds NAME.onnx and a manifest.json: a list of objects with `name`, `expected_attention` (softmax(QKᵀ)V instances
in the graph), `fusable` (how many of them an operator can express) and, where they are known, `num_heads`,
`kv_num_heads`, `head_size`, `v_head_size` and `mask`. Such a field is one value for all blocks, a list with one value
per block in any order (null: not known), or a list of the values that occur; a mask told in other words than the
explorer's is left out.

Columns, all from one run on one machine, each contestant in a process of its own:

    found, fusable   blocks that `explorer.open` lists; those that are fusable, or fused in the file already
    s                seconds to load and recognise; for the others, to load and rewrite; imports are never counted
    already          attention operators in the file
    ORT all          attention operators that a CPU session adds to its own optimised graph at ORT_ENABLE_ALL
    ORT py           those that onnxruntime.transformers.optimizer adds with the model type that adds most (of equals,
                     the fastest) of all types for PyTorch; told the number of heads and the hidden size, which it needs
                     (the manifest's, else the scan's, where all blocks have the same)
    onnxscript       those that onnxscript's optimize_for_ort adds

The others' operators are counted, not checked for correctness. A contestant that fails or runs out of time has a cell
that says so (the JSON has the words) and counts as 0 in the totals.

Below stand the explorer's mistakes, where it differs from the manifest. Exit status: 0 none, 1 some, 2 usage.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from importlib import metadata
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx

Result = dict[str, Any]

ATTENTION = {
    **dict.fromkeys(("", "ai.onnx"), frozenset({"Attention"})),
    "com.microsoft": frozenset(
        {
            *("Attention", "MultiHeadAttention", "GroupQueryAttention", "PackedAttention", "PackedMultiHeadAttention"),
            *("DecoderAttention", "DecoderMaskedSelfAttention", "DecoderMaskedMultiHeadAttention", "PagedAttention"),
            *("SparseAttention", "SparsePagedAttention", "DynamicSparseAttention", "LongformerAttention"),
            *("QAttention", "QOrderedAttention", "QOrderedLongformerAttention"),
        }
    ),
}
"""Operators that compute softmax(QKᵀ)V, by domain."""

FIELDS = ("num_heads", "kv_num_heads", "head_size", "v_head_size", "mask")
OTHERS = ("ort_all", "ort_python", "onnxscript")
MASK_KINDS = ("none", "additive", "boolean", "causal", "padding", "causal+padding")
PACKAGES = ("onnx-attention-explorer", "onnx", "onnx-ir", "onnxruntime-gpu", "onnxruntime", "onnxscript", "numpy")


# Counting


def count_nodes(model: onnx.ModelProto) -> tuple[int, int]:
    """Nodes, and attention operators among them, with those of subgraphs, and of a function at each of its calls."""
    functions = {(function.domain, function.name): function for function in model.functions}

    def count(nodes: Iterable[onnx.NodeProto]) -> tuple[int, int]:
        total = attention = 0
        for node in nodes:
            function = functions.get((node.domain, node.op_type))
            inner = [count(function.node)] if function else [(1, int(node.op_type in ATTENTION.get(node.domain, ())))]
            for graph in (graph for attribute in node.attribute for graph in (attribute.g, *attribute.graphs)):
                inner.append(count(graph.node))
            total += sum(nodes for nodes, _ in inner)
            attention += sum(found for _, found in inner)
        return total, attention

    return count(model.graph.node)


def mistakes_of(entry: Result, scan: Result) -> list[str]:
    """Where the result of `scan` differs from what the manifest says of the graph, a sentence each."""
    if "error" in scan:
        return [f"the scan failed: {scan['error']}"]
    pairs = (("found", "expected_attention"), ("fusable", "fusable"))
    mistakes = [f"{name} {scan[name]}, expected {entry[key]}" for name, key in pairs if scan[name] != entry[key]]
    for name in FIELDS:
        expected = entry.get(name)
        # what a blocked block leaves open is no contradiction: that it is blocked is told by the count
        found = [block[name] for block in scan["blocks"] if block[name] is not None or block["status"] != "blocked"]
        if found and expected is not None and not _agree(found, expected, entry["expected_attention"]):
            mistakes.append(f"{name} {found}, expected {expected}")
    return mistakes


def _agree(found: list[Any], expected: Any, blocks: int) -> bool:
    """Whether a field is as the manifest says, in one of the three ways that it may be written (see above)."""
    stated = expected if isinstance(expected, list) else [expected]
    if any(isinstance(value, str) and value not in MASK_KINDS for value in stated):
        return True
    if len(stated) == len(found) == blocks:
        return Counter(value for value in stated if value is not None) <= Counter(found)
    return set(found) == set(stated)


# Contestants: each function runs in a process of its own


def scan(path: str) -> Result:
    """The explorer's blocks of a file, through its public API."""
    import explorer

    open_workspace = explorer.open  # imports what it needs, before the clock starts
    start = time.perf_counter()
    workspace = open_workspace(path)
    seconds = round(time.perf_counter() - start, 3)
    blocks = []
    for block in workspace.blocks:
        fields = {name: getattr(block, name) for name in FIELDS if name != "mask"}
        blocks.append({"status": workspace.status(block.id), **fields, "mask": block.mask.kind})
    fusable = sum(block["status"] in ("fusable", "fused") for block in blocks)
    return {"found": len(blocks), "fusable": fusable, "seconds": seconds, "blocks": blocks}


def ort_all(path: str) -> Result:
    """ORT's own optimisation of a session."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = "optimised.onnx"
    options.log_severity_level = 4
    start = time.perf_counter()
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    seconds = round(time.perf_counter() - start, 3)
    return {"operators": count_nodes(onnx.load("optimised.onnx", load_external_data=False))[1], "seconds": seconds}


def ort_model_types() -> Result:
    """The model types of ORT's python optimizer that are meant for graphs from PyTorch."""
    from onnxruntime.transformers.optimizer import MODEL_TYPES

    return {"model_types": [name for name, (_, producer, _) in MODEL_TYPES.items() if producer == "pytorch"]}


def ort_python(path: str, model_type: str, num_heads: int, hidden_size: int) -> Result:
    """ORT's python optimizer with one model type; 0 leaves it to detect the sizes.

    It imports torch, and reads there what GPU there is if it may use one: here an empty module serves.
    """
    from onnxruntime.transformers.optimizer import optimize_model

    sys.modules["torch"] = ModuleType("torch")
    sys.modules["torch"].__dict__["version"] = None
    start = time.perf_counter()
    optimised = optimize_model(path, model_type, num_heads, hidden_size)
    seconds = round(time.perf_counter() - start, 3)
    return {"operators": count_nodes(optimised.model)[1], "seconds": seconds}


def onnxscript(path: str) -> Result:
    """onnxscript's optimisation for ORT."""
    import onnx_ir as ir
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    start = time.perf_counter()
    model, _ = optimize_for_ort(ir.load(path))
    seconds = round(time.perf_counter() - start, 3)
    return {"operators": count_nodes(ir.to_proto(model))[1], "seconds": seconds}


# Processes

_CONTEXT = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")


def run(job: Callable[..., Result], *arguments: Any, timeout: float) -> Result:
    """What `job` returns in a process of its own, or {"error": what happened instead}."""
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(prefix="scan-corpus-") as scratch:
        process = _CONTEXT.Process(target=_child, args=(sender, scratch, job, arguments))
        process.start()
        sender.close()
        try:
            return receiver.recv() if receiver.poll(timeout) else {"error": f"timeout: no result in {timeout:g} s"}
        except EOFError:
            process.join()
            return {"error": f"crash: the process ended with status {process.exitcode}"}
        finally:
            process.kill()
            process.join()
            receiver.close()


def _child(sender: Any, scratch: str, job: Callable[..., Result], arguments: Sequence[Any]) -> None:
    tempfile.tempdir = scratch
    os.chdir(scratch)  # what contestants leave lying in the current folder goes with it
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    try:
        result = job(*arguments)
    except ModuleNotFoundError as error:
        result = {"error": f"not installed: {error.name}"}
    except Exception as error:  # noqa: BLE001 - however a contestant fails, that is its result
        lines = str(error).strip().splitlines() or [""]
        result = {"error": without_paths(f"{type(error).__name__}: {lines[0]}")[:300]}
    sender.send(result)


def without_paths(text: str) -> str:
    """`text` with paths of this machine cut to their last names; node names, which look alike, stay."""

    def cut(match: re.Match[str]) -> str:
        path = Path(match[0])
        return path.name if Path(*path.parts[:2]).exists() else match[0]

    return re.sub(r"(?<![\w./])(?:[A-Za-z]:)?(?:[/\\][^\s/\\:;,'\"()<>\[\]]+)+", cut, text)


def best(results: Sequence[Result]) -> Result:
    """The result with most operators, of equals the fastest; with the operators, or the error, of each model type."""
    done = [result for result in results if "error" not in result]
    winner = min(done, key=lambda result: (-result["operators"], result["seconds"])) if done else results[0]
    by_type = {result["model_type"]: result.get("operators", result.get("error")) for result in results}
    return {key: value for key, value in winner.items() if done or key == "error"} | {"by_type": by_type}


# One graph, all graphs


def model_sizes(entry: Result, blocks: Sequence[Result]) -> tuple[int, int]:
    """Number of heads and hidden size: the manifest's, else what all blocks agree on, else 0 and 0."""
    candidates = [entry] if isinstance(entry.get("num_heads"), int) else blocks
    sizes = {(block.get("num_heads"), block.get("head_size")) for block in candidates}
    heads, head_size = sizes.pop() if len(sizes) == 1 else (0, 0)
    return (heads, heads * head_size) if isinstance(heads, int) and isinstance(head_size, int) else (0, 0)


def measure(path: Path, entry: Result, model_types: Result | None, timeout: float) -> Result:
    """One row: the explorer and, unless `model_types` is None, the other contestants on one graph."""
    nodes, already = count_nodes(onnx.load(path, load_external_data=False))
    row: Result = {"name": entry["name"], "nodes": nodes, "already": already}
    row |= {"expected_attention": entry["expected_attention"], "expected_fusable": entry["fusable"]}
    scanned = run(scan, str(path), timeout=timeout)
    row["explorer"] = {key: value for key, value in scanned.items() if key != "blocks"}
    if model_types is not None:
        sizes = model_sizes(entry, scanned.get("blocks", ()))
        names = model_types.get("model_types", ())
        tries = [run(ort_python, str(path), name, *sizes, timeout=timeout) | {"model_type": name} for name in names]
        row["ort_all"] = run(ort_all, str(path), timeout=timeout)
        row["ort_python"] = best(tries) if tries else model_types
        row["onnxscript"] = run(onnxscript, str(path), timeout=timeout)
        for name in OTHERS:
            if "error" not in row[name]:
                row[name]["added"] = max(0, row[name]["operators"] - already)
    return row | {"mistakes": mistakes_of(entry, scanned)}


def total(rows: Sequence[Result]) -> Result:
    """Sums over all rows; a contestant's `failed` is the number of graphs without a result."""
    counts = ("nodes", "already", "expected_attention", "expected_fusable")
    sums: Result = {"name": f"all {len(rows)}"} | {key: sum(row[key] for row in rows) for key in counts}
    for name in ("explorer", *OTHERS):
        results = [row[name] for row in rows if name in row]
        if results:
            keys = ("found", "fusable", "seconds") if name == "explorer" else ("added", "seconds")
            sums[name] = {key: round(sum(result.get(key, 0) for result in results), 3) for key in keys}
            sums[name]["failed"] = sum("error" in result for result in results)
    return sums | {"mistakes": sum(len(row["mistakes"]) for row in rows)}


def line(row: Result, width: int) -> str:
    """A row of the table; of a contestant that failed, the first word of why."""
    result = row["explorer"]
    cells = [f"{row['nodes']:>7}", f"{row['expected_attention']:>9}"]
    if "error" in result:
        cells.append(f"{_why(result):>24}")
    else:
        cells.append(f"{result['found']:>6}{result['fusable']:>9}{result['seconds']:>9.2f}")
    cells.append(f"{row['already']:>9}")
    for name in (name for name in OTHERS if name in row):
        result = row[name]
        cells.append(f"{_why(result):>18}" if "error" in result else f"{result['added']:>9}{result['seconds']:>9.2f}")
        if name == "ort_python":
            cells.append(f" {result.get('model_type', '') if result.get('added') else '':<9}")
    return f"{row['name']:<{width}}" + "".join(cells)


def _why(result: Result) -> str:
    return str(result["error"]).partition(":")[0][:17]


def describe_machine() -> dict[str, Any]:
    """Processor, cores, system and Python."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else []
    cpu = names[0] if names else platform.processor()
    return {"cpu": cpu, "cores": os.cpu_count(), "system": f"{platform.system()} {platform.machine()}"}


def versions() -> dict[str, str]:
    """Of Python and of the packages that take part and are installed."""
    installed = {distribution.name: distribution.version for distribution in metadata.distributions()}
    return {"python": platform.python_version()} | {name: installed[name] for name in PACKAGES if name in installed}


def read_arguments() -> argparse.Namespace:
    """The command line, with `entries` of the manifest that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write everything there as well")
    parser.add_argument("--only", default="*", metavar="GLOB", help="names of the graphs (default: all)")
    parser.add_argument(
        "--timeout", type=float, default=120, metavar="S", help="seconds for each process (default 120)"
    )
    parser.add_argument("--scan-only", action="store_true", help="only the explorer, as an acceptance check")
    args = parser.parse_args()
    if not (args.folder / "manifest.json").is_file():
        parser.error("expected a folder with a manifest.json")
    if args.out and not args.out.parent.is_dir():
        parser.error("expected --out in a folder that exists")
    entries = json.loads((args.folder / "manifest.json").read_text("utf-8"))
    args.entries = [entry for entry in entries if fnmatchcase(entry["name"], args.only)]
    missing = [entry["name"] for entry in args.entries if not (args.folder / f"{entry['name']}.onnx").is_file()]
    if missing or not args.entries:
        parser.error(f"expected graphs of these names: {', '.join(missing) or args.only}")
    return args


def main() -> int:
    """Measure, print, write; the exit status."""
    args = read_arguments()
    arguments = shlex.join(without_paths(argument) for argument in sys.argv[1:])
    document: Result = {"schema": 1, "date": datetime.now(UTC).isoformat(timespec="seconds")}
    document["command"] = f"python benchmarks/scan_corpus.py {arguments}"
    document |= {"machine": describe_machine(), "versions": versions(), "timeout_s": args.timeout}
    preloaded = ["__main__", "explorer.workspace", *([] if args.scan_only else ["onnxruntime.transformers.optimizer"])]
    _CONTEXT.set_forkserver_preload(preloaded)
    model_types = None if args.scan_only else run(ort_model_types, timeout=args.timeout)
    width = max(len(entry["name"]) for entry in args.entries) + 1
    heads = f"{'graph':<{width}}{'nodes':>7}{'expected':>9}{'found':>6}{'fusable':>9}{'s':>9}{'already':>9}"
    others = f"{'ORT all':>9}{'s':>9}{'ORT py':>9}{'s':>9} {'type':<9}{'onnxscript':>10}{'s':>8}"
    print(heads if args.scan_only else heads + others)
    rows = []
    for entry in args.entries:
        path = (args.folder / f"{entry['name']}.onnx").resolve()
        rows.append(measure(path, entry, model_types, args.timeout))
        print(line(rows[-1], width), flush=True)
    document |= {"total": total(rows), "graphs": rows}
    print(line(document["total"], width))
    for name in OTHERS:
        if failed := document["total"].get(name, {}).get("failed"):
            print(f"{name}: no result for {failed} graphs")
    for row in rows:
        for mistake in row["mistakes"]:
            print(f"{row['name']}: {mistake}")
    print(f"{document['total']['mistakes']} mistakes of the explorer")
    if args.out:
        args.out.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 1 if document["total"]["mistakes"] else 0


if __name__ == "__main__":
    sys.exit(main())
