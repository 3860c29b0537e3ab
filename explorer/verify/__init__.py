"""Prove that a fused model computes what the original does, against float64 truth."""

from explorer.verify.inputs import input_shapes, load_inputs, seeded_inputs
from explorer.verify.verdict import Comparison, Errors, Verdict
from explorer.verify.verify import verify, verify_models

__all__ = ["Comparison", "Errors", "Verdict", "input_shapes", "load_inputs", "seeded_inputs", "verify", "verify_models"]
