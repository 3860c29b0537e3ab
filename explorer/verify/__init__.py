"""Prove that a fused model computes what the original does, against float64 truth."""

from explorer.verify.cases import Case, default_cases, given_case
from explorer.verify.fit import fitting_inputs
from explorer.verify.inputs import input_shapes, load_inputs, seeded_inputs
from explorer.verify.loading import Loading
from explorer.verify.verdict import CaseVerdict, Comparison, Errors, MaskedRows, Received, Verdict
from explorer.verify.verify import verify, verify_models

__all__ = [
    "Case",
    "CaseVerdict",
    "Comparison",
    "Errors",
    "Loading",
    "MaskedRows",
    "Received",
    "Verdict",
    "default_cases",
    "fitting_inputs",
    "given_case",
    "input_shapes",
    "load_inputs",
    "seeded_inputs",
    "verify",
    "verify_models",
]
