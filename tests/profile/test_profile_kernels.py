from __future__ import annotations

import ctypes

import pytest
from recorded_runs import recorded

from explorer.profile import kernels
from explorer.profile.kernels import LONGEST, demangler, shorten

MANGLED = "_ZN11onnxruntime4cuda17_UnaryElementWiseI6__halffNS0_7OP_CastIS2_fEELi256ELi4EEEvPKT_PT0_T1_l"
READABLE = (
    "void onnxruntime::cuda::_UnaryElementWise<__half, float, onnxruntime::cuda::OP_Cast<__half, float>, 256, 4>"
    "(__half const*, float*, onnxruntime::cuda::OP_Cast<__half, float>, long)"
)


def has_runtime():
    try:
        ctypes.CDLL("libstdc++.so.6")
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_runtime(), reason="needs the C++ runtime of GCC")
def test_the_compilers_names_are_read():
    readable = demangler()
    assert readable(MANGLED) == READABLE
    assert readable("nvjet_sm90_hsh_64x64_64x13_2x1_v_bz_NNT") == "nvjet_sm90_hsh_64x64_64x13_2x1_v_bz_NNT"
    assert readable("_Zwhat") == "_Zwhat"


def test_without_a_runtime_names_stay_as_they_are(monkeypatch):
    def absent(name):
        raise OSError(name)

    monkeypatch.setattr(kernels.ctypes, "CDLL", absent)
    assert demangler()(MANGLED) == MANGLED


@pytest.mark.parametrize(
    ("name", "short"),
    [
        (READABLE, "_UnaryElementWise<half, float, OP_Cast>"),
        (
            "void cutlass::Kernel2<cutlass_80_tensorop_f16_s16816gemm_f16_64x64_32x6_nn_align2>"
            "(cutlass_80_tensorop_f16_s16816gemm_f16_64x64_32x6_nn_align2::Params)",
            "cutlass_80_tensorop_f16_s16816gemm_f16_64x64_32x6_nn_align2",
        ),
        ("void onnxruntime::contrib::cuda::TransposeQKV<float2>(int, bool, float2*)", "TransposeQKV<float2>"),
        (
            "void onnxruntime::cuda::softmax_warp_forward<float, float, float, 8, false>(float*)",
            "softmax_warp_forward<float>",
        ),
        ("(anonymous namespace)::transposeNoOverlap(__half*, int)", "transposeNoOverlap"),
        ("void a::f<b::g<(c)1, d<int>>, __nv_bfloat16, 256u, (bool)1>(e<int>)", "f<g, bfloat16>"),
        ("nvjet_sm90_hsh_64x64_64x13_2x1_v_bz_NNT", "nvjet_sm90_hsh_64x64_64x13_2x1_v_bz_NNT"),
        ("", ""),
    ],
)
def test_names_for_people(name, short):
    assert shorten(name) == short


def test_long_names_are_cut():
    assert shorten("x" * 500) == "x" * (LONGEST - 1) + "…"


@pytest.mark.parametrize("name", ["original", "mha", "attention"])
def test_kernels_of_the_h200_get_short_names(name):
    for work in recorded(name).work:
        assert len(shorten(work.name)) <= LONGEST
        assert "::" not in shorten(work.name)
        assert "(" not in shorten(work.name)
