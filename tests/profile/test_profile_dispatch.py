from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from recorded_runs import FOLDER, NO_GRAPH, node_run, recorded, recording

from explorer.profile.attribution import trace_of
from explorer.profile.dispatch import Said, dispatches, parse, seen_kernel
from explorer.profile.fallbacks import conditions, fallback
from explorer.profile.ort_graph import OrtGraph, OrtNode
from explorer.profile.recording import GpuWork, Launch

PRINTED = (
    "\x1b[36mAttentionKernelOptions: FLASH_ATTENTION=1 EFFICIENT_ATTENTION=1 CUDNN_FLASH_ATTENTION=1 MATH=1\x1b[0m\n"
    "\x1b[32mOperator=MultiHeadAttention Node=attn_0 DataType=fp16 SdpaKernel=CUDNN_FLASH_ATTENTION\x1b[0m\n"
    "\x1b[32mOperator=Attention Node=/layers.1/a b DataType=bf16 SdpaKernel=FLASH_ATTENTION\x1b[0m\r\n"
    "2026-11-22 [W:onnxruntime:] something else\n"
    "\x1b[32mOperator=MultiHeadAttention DataType=fp32 SdpaKernel=MATH\x1b[0m\n"
    "\x1b[32mOperator=MultiHeadAttention Node=attn_0 DataType=fp16 SdpaKernel=CUDNN_FLASH_ATTENTION\x1b[0m\n"
)
SETTINGS = json.loads((FOLDER / "sdpa_kernel.json").read_text(encoding="utf-8"))
FLASH = "flash_fwd_kernel<Flash_fwd_kernel_traits>"
SOFTMAX = "SoftmaxKernelSmall<half>"
MHA, GQA, WEIGHTED = "MultiHeadAttention", "GroupQueryAttention", "com.microsoft.Attention"
CUDNN, EFFICIENT, UNKNOWN = "cuDNN flash", "memory-efficient", "of a condition that is not known here"


def test_each_nodes_kernel_is_read_once():
    assert parse(PRINTED) == (
        Said("MultiHeadAttention", "attn_0", "fp16", "CUDNN_FLASH_ATTENTION"),
        Said("Attention", "/layers.1/a b", "bf16", "FLASH_ATTENTION"),
        Said("MultiHeadAttention", "", "fp32", "MATH"),
    )


def test_other_output_has_no_kernels():
    assert parse("") == ()
    assert parse("Operator=X Node=y DataType=fp16\nSdpaKernel=MATH") == ()


@pytest.mark.parametrize("operator", ["MultiHeadAttention", "Attention"])
@pytest.mark.parametrize("setting", ["0", "1", "2", "8", "16"])
def test_what_the_h200_said_and_what_it_ran_are_the_same_for_each_setting(operator, setting):
    found = SETTINGS[operator][setting]
    (kernel,) = {said.kernel for said in parse("\n".join(found["log"]))}
    assert seen_kernel(found["kernels"]) == kernel


@pytest.mark.parametrize(
    ("operator", "setting", "kernel", "warning"),
    [
        ("MultiHeadAttention", "0", "CUDNN_FLASH_ATTENTION", ""),
        ("MultiHeadAttention", "1", "FLASH_ATTENTION", ""),
        (
            "MultiHeadAttention",
            "2",
            "EFFICIENT_ATTENTION",
            "The memory-efficient kernel ran, which is slower than flash, because sdpa_kernel=2 allows only "
            "memory-efficient.",
        ),
        ("MultiHeadAttention", "8", "CUDNN_FLASH_ATTENTION", ""),
        (
            "MultiHeadAttention",
            "16",
            "MATH",
            "MATH ran, which writes all scores to memory, because sdpa_kernel=16 allows only MATH. It rounds them to "
            "float16 before the softmax, which is then no longer one of float32 scores.",
        ),
        ("Attention", "0", "FLASH_ATTENTION", ""),
        ("Attention", "1", "FLASH_ATTENTION", ""),
        (
            "Attention",
            "2",
            "EFFICIENT_ATTENTION",
            "The memory-efficient kernel ran, which is slower than flash, because sdpa_kernel=2 allows only "
            "memory-efficient.",
        ),
        (
            "Attention",
            "8",
            "MATH",
            "MATH ran, which writes all scores to memory, because sdpa_kernel=8 allows only cuDNN flash, and in "
            "onnxruntime 1.31 Attention has no path to cuDNN.",
        ),
        (
            "Attention",
            "16",
            "MATH",
            "MATH ran, which writes all scores to memory, because sdpa_kernel=16 allows only MATH.",
        ),
    ],
)
def test_the_dispatch_of_the_h200_for_each_setting(operator, setting, kernel, warning):
    found = SETTINGS[operator][setting]
    name = "/transformer_blocks.1/attn/" + operator
    (one,) = dispatched(
        operator,
        ["float16[2,938,1024]"] * 3,
        found["kernels"],
        log="\n".join(found["log"]),
        name=name,
        setting=int(setting),
        attributes={"num_heads": 16} if operator == "MultiHeadAttention" else {"q_num_heads": 16, "kv_num_heads": 16},
    )
    assert (one.node, one.operator, one.dtype) == (name, operator, "fp16")
    assert (one.said, one.seen, one.kernel) == (kernel, kernel, kernel)
    assert one.warning == warning


def test_the_recordings_of_the_h200_show_what_ran():
    for name, kernel in (("mha", "CUDNN_FLASH_ATTENTION"), ("attention", "FLASH_ATTENTION"), ("original", None)):
        trace = trace_of(recorded(name), NO_GRAPH, ())
        seen = [found.seen for found in dispatches(trace, "", NO_GRAPH, 0, "9.0")]
        assert seen == ([] if kernel is None else [kernel] * 2)


def dispatched(
    operator, tensors, kernels=(), *, log="", name="a", setting=0, capability="9.0", attributes=None, provider="cuda",
    method="cupti", domain="", places=None, host_us=90, gpu_us=0.001,
):  # fmt: skip
    """What is found of one node that ran `kernels`, each for `gpu_us`, and has inputs at `places` (or the first)."""
    places = range(len(tensors)) if places is None else places
    inputs = tuple(f"i{at}" if at in places else "" for at in range(max(places) + 1))
    graph = OrtGraph(
        (OrtNode(name, operator, domain, inputs, ("y",), tuple((attributes or {"num_heads": 2}).items())),),
        frozenset(),
        frozenset("y"),
    )
    base = recording(
        [(0, host_us + 9)], [node_run(name, 0, host_us, operator, provider, tuple(tensors), ())], method=method, log=log
    )
    numbered = list(enumerate(kernels, 1))
    run = replace(
        base,
        launches=tuple(Launch(at, 1000 * at, 1000 * at + 500) for at, _ in numbered),
        work=tuple(GpuWork("kernel", kernel, at, 7, at, at + round(1000 * gpu_us), 0) for at, kernel in numbered),
    )
    return dispatches(trace_of(run, graph, ()), log, graph, setting, capability)


def said(kernel, dtype="fp16", operator="MultiHeadAttention"):
    return f"Operator={operator} Node=a DataType={dtype} SdpaKernel={kernel}"


HALF = ["float16[1,64,128]"] * 3
MATH = "MATH ran, which writes all scores to memory"
LOST = " It rounds them to float16 before the softmax, which is then no longer one of float32 scores."


@pytest.mark.parametrize(
    ("case", "warning"),
    [
        (
            {"tensors": [*HALF, "int32[1,64]"], "places": [0, 1, 2, 4]},
            f"{MATH}, because it has a 2-D key_padding_mask, which neither flash nor the memory-efficient kernel "
            f"takes; as attention_bias the mask can run faster.{LOST}",
        ),
        (
            {"tensors": ["float16[1,64,40]"] * 3},
            f"{MATH}, because its head size 20 is no multiple of 8.{LOST}",
        ),
        (
            {"tensors": ["float16[1,64,640]"] * 3, "setting": 9},
            f"{MATH}: not cuDNN flash or Flash, because its head size 320 is above 256; not memory-efficient, because "
            f"sdpa_kernel=9 allows only Flash and cuDNN flash.{LOST}",
        ),
        (
            {"tensors": ["float32[1,64,128]"] * 3, "dtype": "fp32"},
            f"{MATH}: not cuDNN flash or Flash, because it computes in float32, and they take float16 and bfloat16; "
            "not memory-efficient, because in float32 it needs 256 queries or keys (here 64 and 64).",
        ),
        (
            {"tensors": ["float16[1,64,128]"] * 3, "setting": 8, "capability": "8.0"},
            f"{MATH}: not cuDNN flash, because of a condition that is not known here; not Flash or memory-efficient, "
            f"because sdpa_kernel=8 allows only cuDNN flash.{LOST}",
        ),
        (
            {"tensors": [*HALF, "float16[1,2,64,64]"], "places": [0, 1, 2, 5], "capability": "7.5"},
            f"{MATH}: not cuDNN flash or Flash, because the device's compute capability 7.5 is below 8.0; not "
            f"memory-efficient, because of a condition that is not known here.{LOST}",
        ),
        (
            {
                "tensors": ["float16[1,60,128]"] * 3 + ["float16[1,2,60,60]"],
                "places": [0, 1, 2, 5],
                "capability": "8.6",
            },
            f"{MATH}: not cuDNN flash, because the device's compute capability 8.6 is below 9.0; not Flash, because it "
            "has an attention_bias; not memory-efficient, because its attention_bias is for 60 queries, no multiple of "
            f"8.{LOST}",
        ),
        (
            {"tensors": ["bfloat16[1,64,40]"] * 3, "dtype": "bf16"},
            f"{MATH}, because its head size 20 is no multiple of 8.{LOST.replace('float16', 'bfloat16', 1)}",
        ),
        (
            {
                "operator": "Attention",
                "tensors": ["float16[1,2,64,64]", "float16[1,2,77,64]", "float16[1,2,77,64]", "bool[64,77]"],
            },
            f"{MATH}: not Flash, because it has a mask; not memory-efficient, because its mask is for 77 keys, no "
            "multiple of 4.",
        ),
        (
            {
                "operator": "Attention",
                "tensors": ["float32[1,4,64,64]", "float32[1,2,512,64]", "float32[1,2,512,64]"],
                "dtype": "fp32",
            },
            f"{MATH}: not Flash, because it computes in float32, and they take float16 and bfloat16; not "
            "memory-efficient, because it shares key heads, which in float32 only MATH can.",
        ),
        (
            {"tensors": HALF, "places": [0, 1, 2, 3]},  # what came in is not what the graph says
            f"{MATH}, because of a condition that is not known here.{LOST}",
        ),
    ],
)
def test_math_is_explained(case, warning):
    case = {"operator": "MultiHeadAttention", "dtype": "fp16", **case}
    operator, dtype = case["operator"], case.pop("dtype")
    (one,) = dispatched(**case, kernels=[SOFTMAX], log=said("MATH", dtype, operator))
    assert one.kernel == "MATH"
    assert one.warning == warning


@pytest.mark.parametrize(
    ("case", "warning"),
    [
        ({"tensors": ["float32[1,512,128]"] * 3, "dtype": "fp32"}, ""),
        (
            {
                "operator": "Attention",
                "tensors": ["float16[1,2,64,64]"] * 3 + ["float16[64,64]"],
            },
            "The memory-efficient kernel ran, which is slower than flash, because it has a mask.",
        ),
        (
            {"operator": "Attention", "tensors": ["float16[1,2,64,64]"] * 2 + ["float16[1,2,64,32]"]},
            "The memory-efficient kernel ran, which is slower than flash, because its values have another head size "
            "(32) than its keys (64).",
        ),
    ],
)
def test_the_memory_efficient_kernel_is_a_fallback_of_flash_alone(case, warning):
    case = {"operator": "MultiHeadAttention", "dtype": "fp16", **case}
    dtype = case.pop("dtype")
    (one,) = dispatched(**case, log=said("EFFICIENT_ATTENTION", dtype, case["operator"]), method="launch-blocking")
    assert (one.seen, one.kernel, one.warning) == ("", "EFFICIENT_ATTENTION", warning)


def test_cudnn_that_prepares_itself_in_every_run_is_told():
    """As a block cut out of the F5-like DiT did on an H200: 40 ms on the host for 0.03 ms on the GPU."""
    kernel, log = ["cudnn_generated_fort_native_sdpa_sm90_flash_fprop"], said("CUDNN_FLASH_ATTENTION")
    (one,) = dispatched(MHA, HALF, kernel, log=log, host_us=41000)
    assert one.warning.startswith("It kept the host busy for 41 ms a run, probably because cuDNN was prepared for ")
    (one,) = dispatched(MHA, HALF, kernel, log=log, host_us=4000)
    assert one.warning == ""
    (one,) = dispatched(MHA, HALF, kernel, log=log, host_us=41000, gpu_us=4200)  # as with a full launch queue
    assert one.warning == ""
    (one,) = dispatched(MHA, HALF, [FLASH], log=said("FLASH_ATTENTION"), host_us=41000)
    assert one.warning == ""


def asked(operator, attributes, tensors, inputs, domain="", capability="9.0"):
    node = trace_of(
        recording([(0, 9)], [node_run("a", 0, 9, operator, "cuda", tuple(tensors), ())]), NO_GRAPH, ()
    ).nodes[0]
    in_graph = OrtNode("a", operator, domain, tuple(inputs.split(" ")), ("y",), tuple(attributes.items()))
    return conditions(node, in_graph, "fp16", 0, capability)


@pytest.mark.parametrize(
    ("operator", "changes", "kernel", "reason"),
    [
        (MHA, {"padding_mask": (2,)}, CUDNN, UNKNOWN),
        (MHA, {"padding_mask": (2,)}, EFFICIENT, "its key_padding_mask has shape [2], not [8] (lengths and starts)"),
        (MHA, {"padding_mask": (8,)}, CUDNN, "its key_padding_mask has shape [8], not [2] (lengths)"),
        (MHA, {"padding_mask": (8,)}, EFFICIENT, UNKNOWN),
        (WEIGHTED, {"padding_mask": (4,)}, CUDNN, "its mask_index has shape [4], not [2] (lengths)"),
        (WEIGHTED, {"padding_mask": (4,)}, "Flash", "it has a mask_index"),
        (MHA, {"bias": True, "queries": 60}, EFFICIENT, "its attention_bias is for 60 queries, no multiple of 8"),
        (
            MHA,
            {"bias": True, "queries": 8, "dtype": "fp32"},
            EFFICIENT,
            "its attention_bias is for 8 queries, no multiple of 16",
        ),
        (MHA, {"bias": True, "keys": 77}, EFFICIENT, UNKNOWN),
        ("Attention", {"bias": True, "keys": 77}, EFFICIENT, "its mask is for 77 keys, no multiple of 4"),
        ("Attention", {"bias": True, "queries": 61, "keys": 68}, EFFICIENT, UNKNOWN),
        (GQA, {"bias": True}, EFFICIENT, "it has an attention_bias, which only MATH takes"),
        (GQA, {"softcap": True}, CUDNN, "it caps its scores"),
        (GQA, {"local_window": True}, CUDNN, "it has a local window"),
        (GQA, {"sink": True}, CUDNN, "its softmax is smooth or has a sink"),
    ],
)
def test_each_operator_has_its_own_conditions(operator, changes, kernel, reason):
    """For a batch of 2 with 64 queries and keys; sdpa_kernel rules the other kernels out."""
    plain = asked(MHA, {"num_heads": 4}, ["f[2,64,32]"] * 3, "q k v")
    only = {CUDNN: 8, EFFICIENT: 2, "Flash": 1}[kernel]
    words = fallback("MATH", replace(plain, operator=operator, sdpa_kernel=only, **changes))
    assert re.search(rf"not {kernel}, because {re.escape(reason)}(;|\.)", words)


@pytest.mark.parametrize(
    ("operator", "attributes", "tensors", "inputs", "sizes"),
    [
        ("MultiHeadAttention", {"num_heads": 4}, ["f[2,9,32]", "f[2,7,32]", "f[2,7,64]"], "q k v", (8, 16, 9, 7)),
        ("MultiHeadAttention", {"num_heads": 4}, ["f[2,9,32]", "f[2,4,7,8]", "f[2,4,7,8]"], "q k v", (8, 8, 9, 7)),
        ("MultiHeadAttention", {"num_heads": 4}, ["f[2,9,4,3,8]"], "qkv", (8, 8, 9, 9)),
        ("MultiHeadAttention", {"num_heads": 4}, ["f[2,9,32]", "f[2,7,4,2,8]"], "q kv", (8, 8, 9, 7)),
        (
            "MultiHeadAttention",
            {"num_heads": 4},
            ["f[2,1,32]"] * 3 + ["f[2,4,30,8]"] * 2,
            "q k v    p pv",
            (8, 8, 1, 31),
        ),
        ("Attention", {}, ["f[2,4,9,8]", "f[2,2,7,8]", "f[2,2,7,16]"], "q k v", (8, 16, 9, 7)),
        (
            "Attention",
            {"q_num_heads": 4, "kv_num_heads": 2},
            ["f[2,9,32]", "f[2,7,16]", "f[2,7,16]"],
            "q k v",
            (8, 8, 9, 7),
        ),
        ("GroupQueryAttention", {"num_heads": 4, "kv_num_heads": 2}, ["f[2,9,64]"], "qkv", (8, 8, 9, 9)),
        ("Attention", {"num_heads": 4}, ["f[2,9,32]", "f[32,96]"], "x w", (None, None, 9, None)),
        ("PackedMultiHeadAttention", {"num_heads": 4}, ["f[18,32]"], "q", (None, None, None, None)),
    ],
)
def test_sizes_are_read_from_every_layout(operator, attributes, tensors, inputs, sizes):
    domain = "com.microsoft" if inputs == "x w" else ""
    found = asked(operator, attributes, tensors, inputs, domain)
    assert (found.head_size, found.value_head_size, found.queries, found.keys) == sizes


def test_inputs_and_heads_are_told_by_the_graph():
    mask = asked("MultiHeadAttention", {"num_heads": 4}, ["f[2,9,32]"] * 3 + ["i[2,9]"], "q k v  m")
    assert (mask.batch, mask.padding_mask, mask.bias, mask.shared_heads) == (2, (2, 9), False, False)
    bias = asked("MultiHeadAttention", {"num_heads": 4}, ["f[2,9,32]"] * 3 + ["f[1,1,9,9]"], "q k v   b")
    assert (bias.padding_mask, bias.bias, bias.capability) == (None, True, 9.0)
    assert asked("Attention", {"q_num_heads": 4, "kv_num_heads": 2}, ["f[2,9,32]"], "q").shared_heads
    assert asked("Attention", {}, ["f[2,4,9,8]", "f[2,2,9,8]"], "q k").shared_heads
    assert not asked("Attention", {}, ["f[2,4,9,8]", "f[2,4,9,8]"], "q k").shared_heads
    heads = {"num_heads": 4, "kv_num_heads": 2}
    plain = asked(GQA, {**heads, "local_window_size": -1, "smooth_softmax": 0}, ["f[2,9,64]"], "q")
    assert (plain.local_window, plain.sink, plain.softcap, plain.bias) == (False, False, False, False)
    assert asked(GQA, {**heads, "local_window_size": 4}, ["f[2,9,64]"], "q").local_window
    assert asked(GQA, {**heads, "smooth_softmax": 1}, ["f[2,9,64]"], "q").sink
    assert asked(GQA, {**heads, "softcap": 0.5}, ["f[2,9,64]"], "q").softcap
    assert asked(GQA, heads, ["f[2,9,64]", "f[4]"], "q" + " " * 11 + "s").sink
    assert asked(GQA, heads, ["f[2,9,64]", "f[1,4,9,9]"], "q" + " " * 10 + "b").bias
    assert asked("Attention", {}, ["f[2,4,9,8]"], "q", capability="").capability is None


def test_a_disagreement_is_told_and_what_was_seen_outranks_what_was_said():
    (one,) = dispatched("MultiHeadAttention", HALF, [FLASH], log=said("CUDNN_FLASH_ATTENTION"))
    assert one.kernel == "FLASH_ATTENTION"
    assert (
        one.warning == "ONNX Runtime says CUDNN_FLASH_ATTENTION, but the kernels that ran are those of FLASH_ATTENTION."
    )
    (one,) = dispatched(
        "MultiHeadAttention", HALF, ["fmha_v2_flash_attention_fp16_S_64"], log=said("TRT_FLASH_ATTENTION")
    )
    assert one.warning == ""


def test_a_node_on_the_cpu_of_a_cuda_session_is_told():
    (one,) = dispatched("GroupQueryAttention", ["float32[1,8,16]"], provider="cpu")
    assert (one.dtype, one.kernel) == ("fp32", "")
    assert "ran on the CPU" in one.warning


def test_nodes_without_names_share_what_is_said_of_them_if_it_is_one_thing():
    line = "Operator=MultiHeadAttention DataType=fp16 SdpaKernel="
    (one,) = dispatched("MultiHeadAttention", HALF, log=line + "FLASH_ATTENTION")
    assert one.said == "FLASH_ATTENTION"
    (one,) = dispatched("MultiHeadAttention", HALF, log=line + "FLASH_ATTENTION\n" + line + "MATH")
    assert (one.said, one.warning) == ("", "")


def test_other_operators_that_say_their_kernel_are_told_too():
    log = said("MATH", operator="PackedMultiHeadAttention")
    (one,) = dispatched("PackedMultiHeadAttention", ["float16[9,128]"], log=log)
    assert one.warning == f"{MATH}, because of a condition that is not known here."
    (one,) = dispatched(
        "Attention", ["float16[1,9,128]"] * 2, log=said("MATH", operator="Attention"), domain="com.microsoft"
    )
    assert one.warning == f"{MATH}, because of a condition that is not known here."


def test_other_nodes_and_the_cpu_have_no_dispatch():
    assert dispatched("Softmax", HALF, [SOFTMAX]) == ()
    assert dispatched("MultiHeadAttention", HALF, provider="cpu", method="node-timer") == ()
