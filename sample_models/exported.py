"""Small graphs that real exporters write, from public packages with random weights, and the truth about them.

The other samples are written node by node under an exporter's names; these are what exporters make of published model
code: other spellings, and the noise around them. From the root of the repository, in an environment of its own
(python 3.11, CPU only; these versions wrote the committed files, another version may spell a model differently):

    pip install torch==2.13.0 transformers==5.23.0 diffusers==0.42.1 x-transformers==2.31.10 \\
        onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0
    python sample_models/exported.py [NAME ...]

writes `sample_models/exported/NAME.onnx` and `exported/manifest.json`. Nothing is downloaded: every configuration is in
this file. Weights and inputs are seeded, so a second run writes the same bytes. A graph is only written after ONNX
Runtime gave eager PyTorch's outputs for it, at the exported shapes and at others where axes are dynamic, and after its
Softmax and Attention nodes were counted. Graphs lose what is not the model, of which the dynamo exporter writes much:
doc strings, stack traces, other metadata, and the shapes of inner values. All names stay.

The names of the exporters, `ts` for TorchScript (dynamo=False) and `dyn` for torch.export (dynamo=True), are followed
by the opset; `+ort` is that graph as ONNX Runtime saves it after its extended optimisations.
"""

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from exporting import HEAD_SIZE, HEADS, HIDDEN, VOCABULARY, Axes, Case, Inputs, Sample, Truth, make
from torch import Tensor, nn

FOLDER = Path(__file__).parent / "exported"


# --- inputs ---------------------------------------------------------------------------------------------------------


def tokens(batch: int, length: int) -> Tensor:
    return torch.randint(3, VOCABULARY, (batch, length))


def padding(batch: int, length: int) -> Tensor:
    """One for a token, zero for padding: row i ends with 2i tokens of padding."""
    return (torch.arange(length)[None] < length - 2 * torch.arange(batch)[:, None]).long()


def text(batch: int, length: int) -> Inputs:
    return {"input_ids": tokens(batch, length), "attention_mask": padding(batch, length)}


TEXT_AXES: Axes = {"input_ids": {0: "batch", 1: "seq"}, "attention_mask": {0: "batch", 1: "seq"}}
IMAGE_AXES: Axes = {"pixel_values": {0: "batch"}}


def image(batch: int, channels: int = 3, size: int = 32) -> Inputs:
    return {"pixel_values": torch.randn(batch, channels, size, size)}


def encoder_call(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    return model(input_ids=input_ids, attention_mask=attention_mask)[0]


def decoder_call(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    return model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)[0]


def image_call(model: nn.Module, pixel_values: Tensor) -> Tensor:
    return model(pixel_values)[0]


# --- models of transformers -----------------------------------------------------------------------------------------

BERT_LIKE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": 1,
    "num_attention_heads": HEADS,
    "intermediate_size": HIDDEN,
    "max_position_embeddings": 16,
}


def text_model(
    kind: str, attention: str, call: Callable[..., Any] = decoder_call, **options: Any
) -> Callable[[], Case]:
    """`kind`Model of transformers on token ids and a padding mask."""

    def build() -> Case:
        return Case(transformer(kind, attention, **options), call, text(2, 9), text(3, 14), TEXT_AXES)

    return build


def image_model(kind: str, attention: str, dynamic: bool = True, **options: Any) -> Callable[[], Case]:
    def build() -> Case:
        others, axes = (image(3), IMAGE_AXES) if dynamic else (image(2), {})
        return Case(transformer(kind, attention, **options), image_call, image(2), others, axes)

    return build


def transformer(kind: str, attention: str, **options: Any) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{kind.removesuffix('Encoder')}Config")(**options)
    config._attn_implementation = attention
    return getattr(transformers, f"{kind}Model")(config)


def llama_cache() -> Case:
    """Tokens after a past: each layer's K and V are concatenated with its past, which the graph also returns."""
    layers, kv_heads = 1, 2
    model = transformer(
        "Llama", "sdpa", **BERT_LIKE | {"num_attention_heads": 4}, num_key_value_heads=kv_heads, head_dim=HEAD_SIZE
    )

    def inputs(batch: int, length: int, past: int) -> Inputs:
        names = [f"past_{part}_{layer}" for layer in range(layers) for part in ("key", "value")]
        pasts = {name: torch.randn(batch, kv_heads, past, HEAD_SIZE) for name in names}
        return {"input_ids": tokens(batch, length), **pasts}

    def call(model: nn.Module, input_ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer in range(layers):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        hidden = model(input_ids=input_ids, past_key_values=cache, use_cache=True)[0]
        return hidden, *(part for layer in cache.layers for part in (layer.keys, layer.values))

    example = inputs(2, 3, 5)
    axes = {name: {0: "batch", 2: "past"} for name in example}
    return Case(model, call, example, inputs(3, 1, 8), axes | {"input_ids": {0: "batch", 1: "seq"}})


def whisper_decoder() -> Case:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperDecoder

    config = WhisperConfig(
        vocab_size=VOCABULARY,
        d_model=HIDDEN,
        decoder_layers=1,
        decoder_attention_heads=HEADS,
        decoder_ffn_dim=HIDDEN,
        max_target_positions=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    config._attn_implementation = "sdpa"

    def call(model: nn.Module, input_ids: Tensor, attention_mask: Tensor, frames: Tensor) -> Tensor:
        return model(input_ids, attention_mask, encoder_hidden_states=frames, use_cache=False)[0]

    def inputs(batch: int, target: int, frames: int) -> Inputs:
        return {**text(batch, target), "encoder_hidden_states": torch.randn(batch, frames, HIDDEN)}

    axes = TEXT_AXES | {"encoder_hidden_states": {0: "batch", 1: "frames"}}
    return Case(WhisperDecoder(config), call, inputs(2, 5, 12), inputs(3, 9, 10), axes)


# --- models of diffusers --------------------------------------------------------------------------------------------


def sd3() -> Case:
    """Stable Diffusion 3: text and image tokens attend jointly, concatenated before and split after."""
    from diffusers import SD3Transformer2DModel

    model = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=HEAD_SIZE,
        num_attention_heads=HEADS,
        joint_attention_dim=HIDDEN,
        caption_projection_dim=HIDDEN,
        pooled_projection_dim=HIDDEN,
        pos_embed_max_size=8,
    )

    def call(model: nn.Module, latent: Tensor, prompt: Tensor, pooled: Tensor, timestep: Tensor) -> Tensor:
        return model(latent, prompt, pooled, timestep, return_dict=False)[0]

    def inputs(batch: int, length: int) -> Inputs:
        prompt, pooled = torch.randn(batch, length, HIDDEN), torch.randn(batch, HIDDEN)
        return {
            "latent": torch.randn(batch, 4, 8, 8),
            "prompt": prompt,
            "pooled": pooled,
            "timestep": torch.full((batch,), 5.0),
        }

    return Case(model, call, inputs(2, 7), inputs(2, 7))


def vae_attention() -> Case:
    """The mid block of Stable Diffusion's VAE: spatial attention of a single head, here without the convolutions."""
    from diffusers.models.attention_processor import Attention, AttnProcessor2_0

    model = Attention(
        HIDDEN,
        heads=1,
        dim_head=HIDDEN,
        norm_num_groups=8,
        bias=True,
        residual_connection=True,
        processor=AttnProcessor2_0(),
        _from_deprecated_attn_block=True,
    )
    axes = {"pixel_values": {0: "batch", 2: "height", 3: "width"}}
    return Case(model, lambda model, pixels: model(pixels), image(2, HIDDEN, 6), image(1, HIDDEN, 4), axes)


def unet_cross() -> Case:
    """A UNet's cross-attention with diffusers' own AttnProcessor: heads in the batch, Q Kᵀ by baddbmm."""
    from diffusers.models.attention_processor import Attention, AttnProcessor

    model = Attention(HIDDEN, cross_attention_dim=24, heads=HEADS, dim_head=HEAD_SIZE, processor=AttnProcessor())

    def inputs(batch: int, pixels: int, length: int) -> Inputs:
        return {"pixels": torch.randn(batch, pixels, HIDDEN), "prompt": torch.randn(batch, length, 24)}

    axes = {"pixels": {0: "batch", 1: "pixels"}, "prompt": {0: "batch", 1: "tokens"}}
    return Case(model, lambda model, pixels, prompt: model(pixels, prompt), inputs(2, 16, 7), inputs(3, 9, 5), axes)


# --- torch's own and x-transformers ---------------------------------------------------------------------------------


def torch_encoder() -> Case:
    """nn.TransformerEncoder as it is by default: sequence first, heads folded into the batch, [B*N, S, D]."""
    torch.backends.mha.set_fastpath_enabled(False)  # one opaque operator that no exporter knows
    layer = nn.TransformerEncoderLayer(HIDDEN, HEADS, HIDDEN)
    model = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def call(model: nn.Module, source: Tensor, hidden: Tensor) -> Tensor:
        return model(source, src_key_padding_mask=hidden)

    def inputs(batch: int, length: int) -> Inputs:
        return {"source": torch.randn(length, batch, HIDDEN), "hidden": padding(batch, length) == 0}

    axes = {"source": {1: "batch"}, "hidden": {0: "batch"}}  # this exporter writes the length into a Reshape
    return Case(model, call, inputs(2, 9), inputs(3, 9), axes)


def torch_attention_weights() -> Case:
    """nn.MultiheadAttention asked for its weights, the mean over heads, as a second output."""
    torch.backends.mha.set_fastpath_enabled(False)
    model = nn.MultiheadAttention(HIDDEN, HEADS, batch_first=True)
    axes = {"query": {0: "batch", 1: "seq"}, "memory": {0: "batch", 1: "keys"}}
    inputs, others = (
        {"query": torch.randn(b, s, HIDDEN), "memory": torch.randn(b, t, HIDDEN)} for b, s, t in ((2, 5, 7), (3, 6, 9))
    )
    return Case(model, lambda model, query, memory: model(query, memory, memory), inputs, others, axes)


def x_transformers() -> Case:
    """einops and einsum: two queries' heads share a head of K and V."""
    from x_transformers import Decoder

    model = Decoder(
        dim=HIDDEN,
        depth=1,
        heads=4,
        attn_dim_head=HEAD_SIZE,
        attn_kv_heads=2,
        ff_mult=1,
        verbose=False,
    )
    inputs, others = ({"x": torch.randn(b, s, HIDDEN)} for b, s in ((2, 7), (3, 10)))
    return Case(model, lambda model, x: model(x), inputs, others, {"x": {0: "batch", 1: "seq"}})


# --- the samples ----------------------------------------------------------------------------------------------------

BERT = Truth("BERT", 1, 1, mask="padding")
TWO_LAYERS = BERT_LIKE | {"num_hidden_layers": 2}
CAUSAL = "causal, padding"
GPT2 = {"vocab_size": VOCABULARY, "n_embd": HIDDEN, "n_layer": 1, "n_head": HEADS, "n_inner": HIDDEN, "n_positions": 16}
GEMMA2 = TWO_LAYERS | {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": HEAD_SIZE,
    "query_pre_attn_scalar": 24,
}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": HIDDEN,
    "d_kv": HEAD_SIZE,
    "d_ff": HIDDEN,
    "num_layers": 1,
    "num_heads": HEADS,
}
T5 |= {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 16}
SWIN = {"image_size": 32, "embed_dim": 16, "depths": [2], "num_heads": [1], "window_size": 4, "mlp_ratio": 2.0}
SEGFORMER = {"num_encoder_blocks": 1, "depths": [1], "sr_ratios": [2], "hidden_sizes": [HEAD_SIZE], "patch_sizes": [3]}
SEGFORMER |= {"strides": [4], "num_attention_heads": [1], "mlp_ratios": [1]}
VIT = {key: BERT_LIKE[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")}

SAMPLES = (
    Sample("bert_eager_ts17", "ts17", text_model("Bert", "eager", encoder_call, **BERT_LIKE), BERT),
    Sample("bert_sdpa_ts17", "ts17", text_model("Bert", "sdpa", encoder_call, **BERT_LIKE), BERT),
    Sample(
        "bert_sdpa_dyn23",
        "dyn23",
        text_model("Bert", "sdpa", encoder_call, **BERT_LIKE),
        Truth("BERT", 1, 1, mask="padding", notes="already the standard Attention operator of opset 23"),
    ),
    Sample(
        "vit_ts17_ort",
        "ts17+ort",
        image_model("ViT", "eager", image_size=32, patch_size=8, **VIT),
        Truth("ViT", 1, 1, notes="ORT has moved the scale into FusedMatMul, but not fused the attention"),
    ),
    Sample(
        "gpt2_dyn20",
        "dyn20",
        text_model("GPT2", "sdpa", **GPT2),
        Truth("GPT-2", 1, 1, mask=CAUSAL, notes="Q, K and V from one Gemm, split"),
    ),
    Sample(
        "llama_cache_ts17",
        "ts17",
        llama_cache,
        Truth(
            "LLaMA with a KV cache",
            1,
            1,
            num_heads=4,
            mask="causal, behind the past",
            notes="grouped-query: K and V of 2 heads are expanded to 4 after the past is concatenated; RoPE by halves",
        ),
    ),
    Sample(
        "gemma2_dyn18",
        "dyn18",
        text_model("Gemma2", "eager", **GEMMA2, sliding_window=5, attn_logit_softcapping=5.0),
        Truth(
            "Gemma 2",
            2,
            2,
            num_heads=4,
            scale="1/sqrt(24)",
            mask=CAUSAL + ", a sliding window of 5 in every other layer",
            softcap=5.0,
            notes="grouped-query; the softcap's Tanh is between scale and mask: Attention of opset 23 can express it",
        ),
    ),
    Sample(
        "t5_encoder_dyn20",
        "dyn20",
        text_model("T5Encoder", "eager", encoder_call, **T5),
        Truth("T5's encoder", 1, 1, scale="1", mask="padding, relative bias", notes="logits are not scaled"),
    ),
    Sample(
        "bloom_ts17",
        "ts17",
        text_model("Bloom", "eager", vocab_size=VOCABULARY, hidden_size=HIDDEN, n_layer=1, n_head=HEADS),
        Truth("BLOOM", 1, 1, mask=CAUSAL + ", ALiBi", notes="alibi.baddbmm(q, k), heads folded into the batch"),
    ),
    Sample(
        "swin_ts17",
        "ts17",
        image_model("Swin", "eager", dynamic=False, **SWIN),
        Truth(
            "Swin",
            2,
            2,
            num_heads=1,
            kv_num_heads=1,
            mask="relative position bias; the second block also masks shifted windows",
            notes="windows in the batch; the window mask is added in five dimensions, [B, windows, N, S, S]",
        ),
    ),
    Sample(
        "segformer_ts17",
        "ts17",
        image_model("Segformer", "eager", **SEGFORMER),
        Truth("SegFormer", 1, 1, 1, 1, notes="K, V from a map of half the size: Sq is 64, Sk 16"),
    ),
    Sample(
        "whisper_decoder_ts17",
        "ts17",
        whisper_decoder,
        Truth(
            "Whisper's decoder",
            2,
            2,
            mask="causal, padding (self), none (cross)",
            notes="self- and cross-attention in turn",
        ),
    ),
    Sample(
        "sd3_fp16_ts17",
        "ts17",
        sd3,
        Truth("Stable Diffusion 3", 1, 1, notes="text and image tokens attend jointly"),
        half=True,
    ),
    Sample(
        "vae_attention_ts14",
        "ts14",
        vae_attention,
        Truth(
            "the VAE of Stable Diffusion, mid block", 1, 1, 1, 1, HIDDEN, HIDDEN, notes="one head; pixels are tokens"
        ),
    ),
    Sample(
        "unet_cross_ts17",
        "ts17",
        unet_cross,
        Truth("UNet of Stable Diffusion, cross-attention", 1, 1, notes="baddbmm, heads folded into the batch"),
    ),
    Sample(
        "torch_encoder_ts17",
        "ts17",
        torch_encoder,
        Truth("torch.nn.TransformerEncoder", 1, 1, mask="padding", notes="sequence first; heads folded into the batch"),
    ),
    Sample(
        "torch_attention_weights_dyn20",
        "dyn20",
        torch_attention_weights,
        Truth("torch.nn.MultiheadAttention", 1, 0, notes="the probabilities' mean over heads is an output"),
    ),
    Sample(
        "x_transformers_dyn20",
        "dyn20",
        x_transformers,
        Truth("x-transformers' decoder", 1, 1, 4, 2, mask="causal", notes="Einsum for Q Kᵀ and P V; grouped-query"),
    ),
)


def main() -> None:
    warnings.filterwarnings("ignore")
    FOLDER.mkdir(exist_ok=True)
    manifest = FOLDER / "manifest.json"
    entries = {entry["name"]: entry for entry in json.loads(manifest.read_text())} if manifest.exists() else {}
    for sample in SAMPLES:
        if sys.argv[1:] and sample.name not in sys.argv[1:]:
            continue
        data, entries[sample.name] = make(sample)
        (FOLDER / f"{sample.name}.onnx").write_bytes(data)
        print(f"{sample.name}.onnx: {len(data):,} bytes")
    ordered = [entries[sample.name] for sample in SAMPLES if sample.name in entries]
    manifest.write_text(json.dumps(ordered, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
