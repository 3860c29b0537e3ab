#!/usr/bin/env bash
# Original against fused, the 22-layer F5-style DiT (16 heads of 64, fp16, batch 2): built, fused, verified, profiled.
# Twice: F5-TTS's own network (AdaLN, interleaved RoPE), and a leaner one around the same attention (LayerNorm, RoPE by
# halves), because what fusing is worth depends on what else there is to compute. Each also as a CUDA graph.
#   bash benchmarks/f5_dit.sh OUT_FOLDER [SEQUENCE_LENGTH ...]        (defaults: 256 938 2048 4096)
# Needs a CUDA GPU for the numbers in the README; PYTHON chooses the interpreter.
# OUT_FOLDER/*_profile.json can be looked at with `onnx-explorer profile --load`.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$1
shift
lengths=("$@")
[ $# -gt 0 ] || lengths=(256 938 2048 4096)
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"
shapes=()
for s in "${lengths[@]}"; do shapes+=(--shape "x=2x${s}x100"); done
for norm in adaln layernorm; do
  flags=(--layers 22 --heads 16)
  [ "$norm" = adaln ] || flags+=(--no-adaln --rotary half)
  name=f5_dit_22x16x64_$norm
  "$python" sample_models/build.py f5_dit "${flags[@]}" --output "$work/$name.onnx"
  "$python" -m explorer fuse "$work/$name.onnx" -o "$work/${name}_fused.onnx" --json >"$out/${name}_fuse.json"
  "$python" -m explorer profile "$work/$name.onnx" "$work/${name}_fused.onnx" \
    "${shapes[@]}" --runs 20 --cuda-graph --save "$out/${name}_profile.json" --force --all >"$out/${name}_profile.txt"
done
