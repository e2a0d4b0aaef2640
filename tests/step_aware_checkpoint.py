"""A small step-aware preference checkpoint with random weights, under the published file and tensor names."""

from pathlib import Path

import torch
from plain_torch import linear_shapes, norm_shapes, random_tensors
from torch import Tensor
from transformers import CLIPConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from pipeline.demo.tokenizer import build_tokenizer
from pipeline.rewards.spo_step_aware import WEIGHTS

TOKENIZER = build_tokenizer()
SIDE, PATCH, WIDTH, TEXT_WIDTH, INNER, DEPTH, HEADS, EMBEDDING = 32, 8, 24, 16, 40, 2, 4, 12


def config() -> CLIPConfig:
    tower = {"intermediate_size": INNER, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "hidden_act": "gelu"}
    text = {"vocab_size": len(TOKENIZER), "max_position_embeddings": TOKENIZER.model_max_length}
    special = {name: getattr(TOKENIZER, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return CLIPConfig(
        text_config={**tower, **text, **special, "hidden_size": TEXT_WIDTH},
        vision_config={**tower, "hidden_size": WIDTH, "image_size": SIDE, "patch_size": PATCH},
        projection_dim=EMBEDDING,
    )


def tower_shapes(tower: str, width: int, modulated: bool) -> dict[str, tuple[int, ...]]:
    """The encoder layers of a CLIP tower, with adaptive norms where it is `modulated`."""
    shapes = {}
    for index in range(DEPTH):
        layer = f"{tower}.encoder.layers.{index}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= linear_shapes(f"{layer}.self_attn.{name}", width, width)
        shapes |= norm_shapes(f"{layer}.layer_norm1", width) | norm_shapes(f"{layer}.layer_norm2", width)
        shapes |= linear_shapes(f"{layer}.mlp.fc1", width, INNER) | linear_shapes(f"{layer}.mlp.fc2", INNER, width)
        if modulated:
            shapes |= linear_shapes(f"{layer}.adaLN_modulation.1", width, 6 * width)
    return shapes


def published_tensors() -> dict[str, Tensor]:
    """Every tensor of the published checkpoint but the buffers of positions, at this test's sizes."""
    text = config().text_config
    shapes = {
        "model.text_model.embeddings.token_embedding.weight": (text.vocab_size, TEXT_WIDTH),
        "model.text_model.embeddings.position_embedding.weight": (text.max_position_embeddings, TEXT_WIDTH),
        **tower_shapes("model.text_model", TEXT_WIDTH, modulated=False),
        **norm_shapes("model.text_model.final_layer_norm", TEXT_WIDTH),
        "model.vision_model.embeddings.class_embedding": (WIDTH,),
        "model.vision_model.embeddings.patch_embedding.weight": (WIDTH, 3, PATCH, PATCH),
        "model.vision_model.embeddings.position_embedding.weight": ((SIDE // PATCH) ** 2 + 1, WIDTH),
        **norm_shapes("model.vision_model.pre_layrnorm", WIDTH),
        **tower_shapes("model.vision_model", WIDTH, modulated=True),
        **norm_shapes("model.vision_model.post_layernorm", WIDTH),
        **linear_shapes("model.vision_model.adaLN_modulation.1", WIDTH, 2 * WIDTH),
        "model.visual_projection.weight": (EMBEDDING, WIDTH),
        "model.text_projection.weight": (EMBEDDING, TEXT_WIDTH),
        **linear_shapes("model.t_embedder.mlp.0", 256, WIDTH),
        **linear_shapes("model.t_embedder.mlp.2", WIDTH, WIDTH),
    }
    return random_tensors(shapes, seed=0) | {"model.logit_scale": torch.tensor(4.6052)}


def write_checkpoint(directory: Path, tensors: dict[str, Tensor]) -> Path:
    """The files a user puts together, the positions among the tensors as old versions of transformers saved them."""
    positions = {
        "model.text_model.embeddings.position_ids": torch.arange(77)[None],
        "model.vision_model.embeddings.position_ids": torch.arange(17)[None],
    }
    torch.save(tensors | positions, directory / WEIGHTS)
    config().save_pretrained(directory)
    TOKENIZER.save_pretrained(directory)
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIDE).save_pretrained(directory)
    return directory
