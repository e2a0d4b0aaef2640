"""A small random ImageReward under the published names, with the files that lie beside it."""

import json
from pathlib import Path

import torch
from plain_torch import linear_shapes, norm_shapes
from torch import Tensor

SIDE, PATCH, WIDTH, DEPTH = 32, 8, 128, 2
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz,", "red", "circle", "##let"]
MED_CONFIG = {
    "architectures": ["BertModel"],
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 48,
    "initializer_range": 0.02,
    "intermediate_size": 96,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 40,
    "model_type": "bert",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "vocab_size": len(WORDS) + 2,
    "encoder_width": 768,
    "add_cross_attention": True,
}
HEAD_LAYERS = {0: (48, 1024), 2: (1024, 128), 4: (128, 64), 6: (64, 16), 7: (16, 1)}


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of the published checkpoint but the buffer of positions, at this test's sizes."""
    vision, text, width = "blip.visual_encoder", "blip.text_encoder", MED_CONFIG["hidden_size"]
    shapes = {
        f"{vision}.cls_token": (1, 1, WIDTH),
        f"{vision}.pos_embed": (1, (SIDE // PATCH) ** 2 + 1, WIDTH),
        f"{vision}.patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        f"{vision}.patch_embed.proj.bias": (WIDTH,),
        **norm_shapes(f"{vision}.norm", WIDTH),
        f"{text}.embeddings.word_embeddings.weight": (MED_CONFIG["vocab_size"], width),
        f"{text}.embeddings.position_embeddings.weight": (MED_CONFIG["max_position_embeddings"], width),
        **norm_shapes(f"{text}.embeddings.LayerNorm", width),
        **linear_shapes("blip.vision_proj", WIDTH, 16),
        **linear_shapes("blip.text_proj", width, 16),
    }
    for index in range(DEPTH):
        block = f"{vision}.blocks.{index}"
        shapes |= norm_shapes(f"{block}.norm1", WIDTH) | norm_shapes(f"{block}.norm2", WIDTH)
        shapes |= linear_shapes(f"{block}.attn.qkv", WIDTH, 3 * WIDTH)
        shapes |= linear_shapes(f"{block}.attn.proj", WIDTH, WIDTH)
        shapes |= linear_shapes(f"{block}.mlp.fc1", WIDTH, 2 * WIDTH)
        shapes |= linear_shapes(f"{block}.mlp.fc2", 2 * WIDTH, WIDTH)
    for index in range(MED_CONFIG["num_hidden_layers"]):
        layer, inner = f"{text}.encoder.layer.{index}", MED_CONFIG["intermediate_size"]
        for name, source in (("attention", width), ("crossattention", WIDTH)):
            shapes |= linear_shapes(f"{layer}.{name}.self.query", width, width)
            shapes |= linear_shapes(f"{layer}.{name}.self.key", source, width)
            shapes |= linear_shapes(f"{layer}.{name}.self.value", source, width)
            shapes |= linear_shapes(f"{layer}.{name}.output.dense", width, width)
            shapes |= norm_shapes(f"{layer}.{name}.output.LayerNorm", width)
        shapes |= linear_shapes(f"{layer}.intermediate.dense", width, inner)
        shapes |= linear_shapes(f"{layer}.output.dense", inner, width)
        shapes |= norm_shapes(f"{layer}.output.LayerNorm", width)
    for index, (inputs, outputs) in HEAD_LAYERS.items():
        shapes |= linear_shapes(f"mlp.layers.{index}", inputs, outputs)
    return shapes


def write_image_reward(directory: Path, tensors: dict[str, Tensor]) -> Path:
    """The checkpoint as published, and the vocabulary of its tokenizer."""
    positions = {"blip.text_encoder.embeddings.position_ids": torch.arange(40)[None]}
    torch.save(tensors | positions, directory / "ImageReward.pt")
    (directory / "med_config.json").write_text(json.dumps(MED_CONFIG))
    (directory / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return directory
