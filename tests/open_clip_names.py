"""A CLIPModel's weights under the names that open_clip gives them, as HPSv2 publishes its own."""

import torch
from torch import Tensor
from transformers import CLIPModel


def open_clip_tower(state: dict[str, Tensor], tower: str, prefix: str) -> dict[str, Tensor]:
    """The layers of `text_model` or `vision_model`, renamed one by one as open_clip names them."""
    layers = 1 + max(int(name.split(".")[3]) for name in state if name.startswith(f"{tower}.encoder.layers."))
    renamed = {}
    for index in range(layers):
        ours, theirs = f"{tower}.encoder.layers.{index}", f"{prefix}transformer.resblocks.{index}"
        for kind in ("weight", "bias"):
            attention = [state[f"{ours}.self_attn.{part}_proj.{kind}"] for part in ("q", "k", "v")]
            renamed[f"{theirs}.attn.in_proj_{kind}"] = torch.cat(attention)
            renamed[f"{theirs}.attn.out_proj.{kind}"] = state[f"{ours}.self_attn.out_proj.{kind}"]
            renamed[f"{theirs}.ln_1.{kind}"] = state[f"{ours}.layer_norm1.{kind}"]
            renamed[f"{theirs}.ln_2.{kind}"] = state[f"{ours}.layer_norm2.{kind}"]
            renamed[f"{theirs}.mlp.c_fc.{kind}"] = state[f"{ours}.mlp.fc1.{kind}"]
            renamed[f"{theirs}.mlp.c_proj.{kind}"] = state[f"{ours}.mlp.fc2.{kind}"]
    return renamed


def open_clip_state(model: CLIPModel) -> dict[str, Tensor]:
    """The state dict that open_clip would have written for the same network."""
    state = model.state_dict()
    return {
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        "text_projection": state["text_projection.weight"].T.contiguous(),
        "logit_scale": state["logit_scale"],
        "visual.class_embedding": state["vision_model.embeddings.class_embedding"],
        "visual.positional_embedding": state["vision_model.embeddings.position_embedding.weight"],
        "visual.proj": state["visual_projection.weight"].T.contiguous(),
        "visual.conv1.weight": state["vision_model.embeddings.patch_embedding.weight"],
        "visual.ln_pre.weight": state["vision_model.pre_layrnorm.weight"],
        "visual.ln_pre.bias": state["vision_model.pre_layrnorm.bias"],
        **open_clip_tower(state, "vision_model", "visual."),
        "visual.ln_post.weight": state["vision_model.post_layernorm.weight"],
        "visual.ln_post.bias": state["vision_model.post_layernorm.bias"],
        **open_clip_tower(state, "text_model", ""),
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "ln_final.weight": state["text_model.final_layer_norm.weight"],
        "ln_final.bias": state["text_model.final_layer_norm.bias"],
    }
