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
    transformers.Mask2FormerImageProcessorPil(size=size).save_pretrained(folder)


def save_clip(folder: pathlib.Path, words: list[str]) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = _save_tokenizer(folder, words)
    text = {"vocab_size": tokens, "eos_token_id": 1, "bos_token_id": 0, "max_position_embeddings": 77}
    vision = {"image_size": 32, "patch_size": 16}
    config = transformers.CLIPConfig(text_config=size | text, vision_config=size | vision, projection_dim=8)
    transformers.CLIPModel(config).save_pretrained(folder)
    crops = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    transformers.CLIPImageProcessorPil(**crops).save_pretrained(folder)


def _save_tokenizer(folder: pathlib.Path, words: list[str]) -> int:
    """CLIP's tokenizer of single letters; returns how many tokens there are."""
    import transformers

    folder.mkdir(parents=True)
    known = ["<|startoftext|>", "<|endoftext|>", *words, *(f"{letter}</w>" for letter in words)]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(known)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    transformers.CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)
    return len(known)


def save_rt_detr(folder: pathlib.Path, labels: list[str]) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    widths = dict.fromkeys(("d_model", "encoder_hidden_dim", "encoder_ffn_dim", "decoder_ffn_dim"), 16)
    config = transformers.RTDetrConfig(
        backbone_config=backbone,
        encoder_in_channels=[8, 16, 16],
        decoder_in_channels=[16, 16, 16],
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        decoder_layers=2,
        num_queries=12,
        num_denoising=0,
        id2label=dict(enumerate(labels)),
        **widths,
    )
    transformers.RTDetrForObjectDetection(config).save_pretrained(folder)
    transformers.RTDetrImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)


def save_owl(folder: pathlib.Path, words: list[str]) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = _save_tokenizer(folder, words)
    config = transformers.Owlv2Config(
        text_config=size | {"vocab_size": tokens, "eos_token_id": 1, "bos_token_id": 0},
        vision_config=size | {"image_size": 32, "patch_size": 16},
        projection_dim=16,
    )
    transformers.Owlv2ForObjectDetection(config).save_pretrained(folder)
    transformers.Owlv2ImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
