"""Folders of tiny models with random weights, as `save_pretrained` writes them."""

from __future__ import annotations

import json
import pathlib


def save_mask2former(folder: pathlib.Path, labels: list[str]) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    heads = {"num_heads": [1, 2, 2, 2], "depths": [1, 1, 1, 1]}
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = transformers.SwinConfig(
        image_size=64, embed_dim=8, window_size=4, out_features=stages, **heads
    )
    widths = dict.fromkeys(("hidden_dim", "feature_size", "mask_feature_size", "dim_feedforward"), 32)
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone,
        encoder_feedforward_dim=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=12,
        id2label=dict(enumerate(labels)),
        **widths,
    )
    transformers.Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    size = {"shortest_edge": 64, "longest_edge": 96}
    transformers.Mask2FormerImageProcessor(size=size).save_pretrained(folder)


def save_clip(folder: pathlib.Path, words: list[str]) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = ["<|startoftext|>", "<|endoftext|>", *(f"{letter}</w>" for letter in words), *words]
    tokens = list(dict.fromkeys(tokens))
    text = {"vocab_size": len(tokens), "eos_token_id": 1, "bos_token_id": 0, "max_position_embeddings": 77}
    vision = {"image_size": 32, "patch_size": 16}
    config = transformers.CLIPConfig(text_config=size | text, vision_config=size | vision, projection_dim=8)
    transformers.CLIPModel(config).save_pretrained(folder)
    crops = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    transformers.CLIPImageProcessor(**crops).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    transformers.CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)
