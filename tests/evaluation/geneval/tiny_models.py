"""Folders of tiny models with random weights, as `save_pretrained` writes them."""

from __future__ import annotations

import json
import pathlib

import torch
import transformers

TOWER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def save_mask2former(folder: pathlib.Path, labels: list[str]) -> None:
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
    size = {"shortest_edge": 64, "longest_edge": 96}
    preprocessor = transformers.Mask2FormerImageProcessorPil(size=size)
    _save(folder, transformers.Mask2FormerForUniversalSegmentation, config, preprocessor)


def save_rt_detr(folder: pathlib.Path, labels: list[str]) -> None:
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
    preprocessor = transformers.RTDetrImageProcessorPil(size={"height": 64, "width": 64})
    _save(folder, transformers.RTDetrForObjectDetection, config, preprocessor)


def save_clip(folder: pathlib.Path, words: list[str]) -> None:
    text = TOWER | _save_tokenizer(folder, words) | {"max_position_embeddings": 77}
    vision = TOWER | {"image_size": 32, "patch_size": 16}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    crops = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    _save(folder, transformers.CLIPModel, config, transformers.CLIPImageProcessorPil(**crops))


def save_owl(folder: pathlib.Path, words: list[str]) -> None:
    text, vision = TOWER | _save_tokenizer(folder, words), TOWER | {"image_size": 32, "patch_size": 16}
    config = transformers.Owlv2Config(text_config=text, vision_config=vision, projection_dim=16)
    preprocessor = transformers.Owlv2ImageProcessorPil(size={"height": 32, "width": 32})
    _save(folder, transformers.Owlv2ForObjectDetection, config, preprocessor)


def _save_tokenizer(folder: pathlib.Path, words: list[str]) -> dict[str, int]:
    """CLIP's tokenizer of single letters; returns what a config says of its tokens."""
    folder.mkdir(parents=True)
    known = ["<|startoftext|>", "<|endoftext|>", *words, *(f"{letter}</w>" for letter in words)]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(known)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    transformers.CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)
    return {"vocab_size": len(known), "eos_token_id": 1, "bos_token_id": 0}


def _save(folder: pathlib.Path, model: type, config: object, preprocessor: object) -> None:
    torch.manual_seed(0)
    model(config).save_pretrained(folder)
    preprocessor.save_pretrained(folder)
