"""The models that ``coverage.py`` puts relations into: one for every file of timm, every family of torchvision, and
tiny configurations of transformers.

The tables of timm were made from timm 1.0.31: of every module file the model with the fewest parameters, and the
smallest image from 64 pixels on with which it runs. Nothing is downloaded: all weights are random.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from coverage_check import Arguments, Case
from torch import nn

__all__ = ["CLASSES", "cases"]

CLASSES = 7
TOKENS = 8
"""Tokens of a sentence; the last one is the end of the sentence, which encoder-decoder classifiers look for."""
END, PADDING, VOCABULARY = 2, 1, 99

# fmt: off
RESIZED = {
    "gemma4_vit": ("gemma4_vit_167m", 96), "deepseek_vit": ("deepseek_vit_412m", 112),
    "beit": ("beit_base_patch16_224", 64), "byoanet": ("halonet_h1", 256), "byobnet": ("test_byobnet", 64),
    "cait": ("cait_xxs24_224", 64), "coat": ("coat_tiny", 64), "convit": ("convit_tiny", 64),
    "deit": ("deit_tiny_patch16_224", 64), "efficientformer": ("efficientformer_l1", 224),
    "efficientformer_v2": ("efficientformerv2_s0", 64), "efficientvit_msra": ("efficientvit_m0", 64),
    "eva": ("vit_tiny_patch16_dinov3_qkvb", 64), "gcvit": ("gcvit_xxtiny", 64), "hiera": ("hiera_tiny_224", 64),
    "levit": ("levit_128s", 64), "maxxvit": ("test_coatnet", 64), "mlp_mixer": ("gmlp_ti16_224", 64),
    "mobilevit": ("mobilevit_xxs", 64), "mvitv2": ("mvitv2_tiny", 64),
    "naflexvit": ("naflexvit_base_patch16_parfac_gap", 64), "nest": ("nest_tiny", 64), "pit": ("pit_ti_224", 64),
    "qwen3_vit": ("qwen3_vit_88m", 64), "repvit": ("repvit_m1", 64), "sequencer": ("sequencer2d_s", 64),
    "swiftformer": ("swiftformer_xs", 64), "swin_transformer": ("swin_tiny_patch4_window7_224", 64),
    "swin_transformer_v2": ("swinv2_tiny_window8_256", 64), "swin_transformer_v2_cr": ("swinv2_cr_tiny_224", 64),
    "tnt": ("tnt_s_legacy_patch16_224", 64), "twins": ("twins_svt_small", 64), "visformer": ("visformer_tiny", 64),
    "vision_transformer": ("test_vit", 64), "vision_transformer_hybrid": ("vit_tiny_r_s16_p8_224", 64),
    "vision_transformer_relpos": ("test_vit_relpos", 64), "vision_transformer_sam": ("samvit_base_patch16_224", 64),
    "vitamin": ("vitamin_small_224", 64), "volo": ("volo_d1_224", 64), "xcit": ("xcit_nano_12_p8_224", 64),
}
"""timm: file -> model, side of the image in pixels; the model is built for that size."""

FIXED = {
    "mobilenetv5": ("mobilenetv5_base", 64), "convmixer": ("convmixer_768_32", 64), "convnext": ("test_convnext", 64),
    "cpubone": ("cpubone_nano", 64), "crossvit": ("crossvit_tiny_240", 64), "csatv2": ("csatv2", 64),
    "cspnet": ("cs3darknet_focus_s", 64), "cspnext": ("cspnext_tiny", 64), "davit": ("davit_tiny", 64),
    "densenet": ("densenet121", 64), "dla": ("dla46x_c", 64), "dpn": ("dpn48b", 64),
    "edgenext": ("edgenext_xx_small", 64), "efficientnet": ("test_efficientnet", 64),
    "efficientvim": ("efficientvim_m1", 64), "efficientvit_mit": ("efficientvit_b0", 64),
    "fasternet": ("fasternet_t0", 64), "fastvit": ("fastvit_t8", 64), "focalnet": ("focalnet_tiny_srf", 64),
    "ghostnet": ("ghostnet_050", 64), "hardcorenas": ("hardcorenas_b", 64), "hgnet": ("hgnetv2_b0", 64),
    "hieradet_sam2": ("sam2_hiera_tiny", 64), "hrnet": ("hrnet_w18_small", 64), "iformer": ("iformer_t", 64),
    "inception_next": ("inception_next_atto", 64), "inception_resnet_v2": ("inception_resnet_v2", 96),
    "inception_v3": ("inception_v3", 96), "inception_v4": ("inception_v4", 96), "lcnetv2": ("lcnetv2_small", 64),
    "lowformer": ("lowformer_b0", 64), "mambaout": ("test_mambaout", 64), "metaformer": ("poolformerv2_s12", 64),
    "mobilenetv3": ("lcnet_035", 64), "nasnet": ("nasnetalarge", 64), "nextvit": ("nextvit_small", 64),
    "nfnet": ("test_nfnet", 64), "pnasnet": ("pnasnet5large", 64), "pvt_v2": ("pvt_v2_b0", 64),
    "rdnet": ("rdnet_tiny", 64), "regnet": ("regnetx_002", 64), "repghost": ("repghostnet_050", 64),
    "res2net": ("res2next50", 64), "resnest": ("resnest14d", 64), "resnet": ("test_resnet", 64),
    "resnetv2": ("resnetv2_18", 64), "rexnet": ("rexnet_100", 64), "selecsls": ("selecsls42", 64),
    "senet": ("legacy_seresnet18", 64), "shvit": ("shvit_s1", 64), "sknet": ("skresnet18", 64),
    "starnet": ("starnet_s050", 64), "tiny_vit": ("tiny_vit_5m_224", 64), "tresnet": ("tresnet_m", 64),
    "vgg": ("vgg11", 64), "vovnet": ("ese_vovnet19b_slim_dw", 64), "xception": ("legacy_xception", 64),
    "xception_aligned": ("xception41p", 64),
}
"""timm: file -> model, side of the image; the model takes images of any size."""

FURTHER = {"deit": ("deit_tiny_distilled_patch16_224", 64), "pit": ("pit_ti_distilled_224", 64)}
"""timm: models with a second classifier, where the smallest of the file has one; built for that size."""
OPTIONS: dict[str, dict[str, Any]] = {
    "beit_base_patch16_224": {"depth": 4}, "deepseek_vit_412m": {"depth": 3}, "gemma4_vit_167m": {"depth": 3},
    "naflexvit_base_patch16_parfac_gap": {"depth": 4}, "qwen3_vit_88m": {"depth": 4},
    "samvit_base_patch16_224": {"depth": 4},
}
"""timm: what makes the largest of the smallest models smaller."""
EXAMPLES = frozenset({"deepseek_vit_412m", "gemma4_vit_167m", "mobilenetv5_base", "sam2_hiera_tiny"})
"""timm: models of images so large that ``insert`` gets a smaller one as its ``example``, to save time."""

TOLD: dict[tuple[str, str], dict[str, Any]] = {
    ("timm", "nest_tiny"): {"channels_first": False},  # blocks of tokens [B, blocks, tokens, C] look like a map
    ("torchvision", "alexnet"): {"at": "features.5"},  # layers of torch alone: none of its lists is one of layers
    ("torchvision", "vgg11"): {"at": "features.10"},
    ("transformers", "PvtV2ForImageClassification"): {"at": "pvt_v2.encoder.layers.2.blocks.0"},  # a stage nests tuples
    ("transformers", "SqueezeBertForSequenceClassification"): {"at": "transformer.encoder.layers.1.output"},
    # ... whose layers are run by their forward(), past all hooks
}
"""Library and model -> what ``insert`` asks for in its error, and is told here."""

TORCHVISION = {
    "alexnet": ("alexnet", 64), "convnext": ("convnext_tiny", 64), "densenet": ("densenet121", 64),
    "efficientnet": ("efficientnet_b0", 64), "efficientnet v2": ("efficientnet_v2_s", 64),
    "googlenet": ("googlenet", 64), "inception_v3": ("inception_v3", 299), "maxvit": ("maxvit_t", 224),
    "mnasnet": ("mnasnet0_5", 64), "mobilenet_v2": ("mobilenet_v2", 64), "mobilenet_v3": ("mobilenet_v3_small", 64),
    "regnet": ("regnet_y_400mf", 64), "resnet": ("resnet18", 64), "shufflenet": ("shufflenet_v2_x0_5", 64),
    "squeezenet": ("squeezenet1_1", 64), "swin": ("swin_t", 64), "swin v2": ("swin_v2_t", 64), "vgg": ("vgg11", 64),
    "vit": ("vit_b_32", 224),
}
"""torchvision: family -> model, side of the image."""

TINY: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
    "num_key_value_heads": 2, "head_dim": 8, "d_model": 32, "n_layer": 3, "n_head": 4, "n_embd": 32,
    "max_position_embeddings": 64, "vocab_size": VOCABULARY, "bos_token_id": 0, "pad_token_id": PADDING,
    "eos_token_id": END, "image_size": 32, "patch_size": 8,
}
"""What every configuration of transformers gets that knows it by that name."""
TOWER = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
         "image_size": 32, "patch_size": 8}
STAGES = {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 2, 2, 1]}
WINDOWS = {"image_size": 64, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
THREE = {"encoder_layers": 3, "decoder_layers": 2}

IMAGES: dict[str, dict[str, Any]] = {
    "beit": {}, "bit": STAGES | {"num_groups": 4}, "clip": {"vision_config": TOWER},
    "convnext": STAGES | {"num_hidden_layers": 4, "image_size": 64},
    "convnextv2": STAGES | {"num_hidden_layers": 4, "image_size": 64},
    "cvt": {"embed_dim": [8, 16, 32], "num_heads": [1, 2, 4], "depth": [1, 2, 3]}, "data2vec-vision": {}, "deit": {},
    "dinov2": {}, "dinov2_with_registers": {}, "donut-swin": WINDOWS,
    "efficientnet": {"image_size": 64, "width_coefficient": 0.25, "depth_coefficient": 0.5, "hidden_dim": 320},
    "focalnet": {"patch_size": 4, "embed_dim": 16, "depths": [1, 2, 2], "image_size": 64},
    "hgnet_v2": {"image_size": 64},
    "hiera": {"embed_dim": 16, "image_size": [64, 64], "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8]}, "ijepa": {},
    "levit": {"image_size": 64, "patch_size": 16}, "metaclip_2": {"vision_config": TOWER},
    "mobilenet_v1": {"image_size": 64}, "mobilenet_v2": {"image_size": 64},
    "mobilevit": {"patch_size": 2, "image_size": 64}, "mobilevitv2": {"patch_size": 2, "image_size": 64},
    "poolformer": {"image_size": 64}, "pp_lcnet": {"image_size": 64},
    "pvt": {"image_size": 64, "depths": [1, 2, 1, 1]}, "pvt_v2": {"image_size": 64},
    "regnet": STAGES | {"groups_width": 8}, "resnet": STAGES, "segformer": {"image_size": 64},
    "siglip": {"vision_config": TOWER}, "siglip2": {"vision_config": TOWER}, "swiftformer": {"image_size": 64},
    "swin": WINDOWS, "swinv2": WINDOWS, "textnet": {"image_size": 64}, "vit": {}, "vit_msn": {},
}
"""transformers: image classifiers -> what their configuration gets besides. dinat needs natten."""

TEXTS: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 16}, "arcee": {}, "bart": THREE, "bert": {},
    "big_bird": {"attention_type": "original_full"}, "bigbird_pegasus": THREE, "biogpt": {}, "bloom": {},
    "camembert": {}, "canine": {}, "convbert": {}, "ctrl": {"dff": 48}, "data2vec-text": {}, "deberta": {},
    "deberta-v2": {}, "diffllama": {}, "distilbert": {"hidden_dim": 48}, "electra": {}, "ernie": {}, "esm": {},
    "eurobert": {}, "exaone4": {}, "falcon": {}, "flaubert": {}, "fnet": {}, "funnel": {"block_sizes": [1, 2, 1]},
    "gemma": {}, "gemma2": {}, "gemma3_text": {}, "glm": {}, "glm4": {}, "gpt2": {}, "gpt_bigcode": {},
    "gpt_neo": {"num_layers": 3, "attention_types": [[["global"], 3]]}, "gpt_neox": {},
    "gpt_oss": {"num_local_experts": 4}, "gptj": {"rotary_dim": 4}, "helium": {}, "ibert": {}, "layoutlm": {},
    "llama": {}, "longformer": {"attention_window": 4}, "markuplm": {}, "mbart": THREE, "megatron-bert": {},
    "ministral": {}, "mistral": {}, "mixtral": {}, "mobilebert": {"intra_bottleneck_size": 32}, "modernbert": {},
    "modernbert-decoder": {}, "mpnet": {}, "mpt": {}, "mra": {},
    "mt5": {"num_layers": 3, "d_kv": 8, "d_ff": 48, "num_heads": 4}, "nemotron": {}, "nomic_bert": {},
    "nystromformer": {}, "olmo": {}, "olmo2": {}, "openai-gpt": {}, "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "persimmon": {}, "phi": {}, "phi3": {}, "qwen2": {}, "qwen3": {}, "rembert": {}, "roberta": {},
    "roberta-prelayernorm": {}, "roformer": {}, "smollm3": {}, "squeezebert": {"embedding_size": 32}, "stablelm": {},
    "starcoder2": {}, "t5": {"num_layers": 3, "d_kv": 8, "d_ff": 48, "num_heads": 4, "decoder_start_token_id": 1},
    "tapas": {}, "xlm": {}, "xlm-roberta": {}, "xlm-roberta-xl": {}, "xlnet": {"d_inner": 48},
    "xmod": {"default_language": "en_XX"}, "yoso": {},
}
"""transformers: text classifiers -> what their configuration gets besides."""
# fmt: on


def cases() -> Iterator[Case]:
    """All models, in the order of the table."""
    for case in (*_timm(), *_torchvision(), *_transformers()):
        yield replace(case, options=TOLD.get((case.library, case.name), {}))


def _images(size: int, channels: int, samples: int) -> Arguments:
    generator = torch.Generator().manual_seed(samples)
    return (torch.randn(samples, channels, size, size, generator=generator),), {}


def _timm() -> Iterator[Case]:
    import timm

    listed = RESIZED | FIXED
    # Only timm's own files: whoever registers a model with timm (setwise.models does) adds a module to its list.
    files = sorted({name for name in timm.list_modules() if f"timm.models.{name}" in sys.modules})
    if missing := sorted(set(files) - set(listed)):
        raise SystemExit(f"timm {timm.__version__} has files without a model in coverage_models.py: {missing}")
    for file in files:
        for name, size in [listed[file], *([FURTHER[file]] if file in FURTHER else [])]:
            options = OPTIONS.get(name, {}) | ({"img_size": size} if file in RESIZED else {})
            build = partial(timm.create_model, name, num_classes=CLASSES, **options)
            channels = timm.get_pretrained_cfg(name).input_size[0]
            yield Case("timm", file, name, build, partial(_images, size, channels), example=name in EXAMPLES)


def _torchvision() -> Iterator[Case]:
    import torchvision

    for family, (name, size) in TORCHVISION.items():
        options: dict[str, Any] = {"weights": None, "num_classes": CLASSES}
        if name in ("googlenet", "inception_v3"):
            options["init_weights"] = False  # truncated normals from scipy: slow, and nothing here depends on them
        build = partial(getattr(torchvision.models, name), **options)
        yield Case("torchvision", family, name, build, partial(_images, size, 3))


def _transformers() -> Iterator[Case]:
    from transformers.models.auto import modeling_auto

    for kind, families, mapping in (
        ("image", IMAGES, modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES),
        ("text", TEXTS, modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES),
    ):
        for family, options in families.items():
            names = mapping[family]
            for name in (names,) if isinstance(names, str) else names:
                if kind == "text":
                    batch: Callable[[int], Arguments] = _sentences
                else:
                    batch = partial(_pictures, family, options.get("image_size", 32), "Teacher" not in name)
                build = partial(_configured, family, name, options)
                yield Case("transformers", family, name, build, batch, example=family == "siglip2")
    yield from detectors()


def _configured(family: str, name: str, options: dict[str, Any]) -> nn.Module:
    """A model of the class ``name`` with a tiny configuration."""
    import transformers

    default = transformers.AutoConfig.for_model(family)
    known = vars(default).keys() | type(default).attribute_map.keys()
    tiny = {key: value for key, value in TINY.items() if key in known and not _several(getattr(default, key, None))}
    config = transformers.AutoConfig.for_model(family, **tiny | {"num_labels": CLASSES} | options)
    if family == "t5":
        config.decoder_start_token_id = PADDING
    return getattr(transformers, name)(config)


def _several(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _pictures(family: str, size: int | list[int], labelled: bool, samples: int) -> Arguments:
    side = size if isinstance(size, int) else size[0]
    (image,), named = _images(side, 3, samples)
    if family == "siglip2":  # takes patches, with their number in both directions
        image = image.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
        named["pixel_attention_mask"] = torch.ones(samples, image.shape[1], dtype=torch.long)
        named["spatial_shapes"] = torch.full((samples, 2), side // 8)
    labels = {"labels": torch.arange(samples) % CLASSES} if labelled else {}
    return (), {"pixel_values": image} | named | labels


def _sentences(samples: int) -> Arguments:
    generator = torch.Generator().manual_seed(samples)
    tokens = torch.randint(3, VOCABULARY - 9, (samples, TOKENS), generator=generator)
    tokens[:, -1] = END
    labels = torch.arange(samples) % CLASSES
    return (), {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}


# ------------------------------------------------------------------------------------------------------- detectors
def _scenes(masks: bool, samples: int) -> Arguments:
    """Images with two objects each."""
    (image,), _ = _images(64, 3, samples)
    generator = torch.Generator().manual_seed(samples)
    objects = []
    for _ in range(samples):
        boxes = torch.rand(2, 4, generator=generator) * 0.3 + 0.3
        found = {"class_labels": torch.tensor([1, 2]), "boxes": boxes}
        objects.append(found | ({"masks": torch.ones(2, 64, 64)} if masks else {}))
    return (), {"pixel_values": image, "labels": objects}


def detectors() -> Iterator[Case]:
    """Detectors of transformers, for "batchformer-v2" in their encoders."""
    tiny = {
        "d_model": 32, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 8,
        "decoder_attention_heads": 8, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_queries": 6,
    }  # fmt: skip
    dab = {"hidden_size" if key == "d_model" else key: value for key, value in tiny.items()}
    levels = tiny | {"num_feature_levels": 3}
    real_time = {
        "encoder_hidden_dim": 32, "encoder_in_channels": [16, 16, 32], "encoder_layers": 2, "encoder_ffn_dim": 48,
        "encoder_attention_heads": 4, "d_model": 32, "num_queries": 6, "decoder_in_channels": [32, 32, 32],
        "decoder_ffn_dim": 48, "decoder_layers": 2, "decoder_attention_heads": 4, "num_denoising": 0,
    }  # fmt: skip
    fine = real_time | {"decoder_n_points": [2, 2, 2], "hidden_expansion": 0.5}
    yolos = TINY | {"image_size": [64, 64], "patch_size": 16, "num_detection_tokens": 6}
    two_stage = levels | {"two_stage": True, "with_box_refine": True, "two_stage_num_proposals": 6}
    for name, kind, options, backbone in (
        ("DetrForObjectDetection", "Detr", tiny, "ResNet"),
        ("DetrForSegmentation", "Detr", tiny, "ResNet"),
        ("TableTransformerForObjectDetection", "TableTransformer", tiny, "ResNet"),
        ("ConditionalDetrForObjectDetection", "ConditionalDetr", tiny, "ResNet"),
        ("DabDetrForObjectDetection", "DabDetr", dab, "ResNet"),
        ("DeformableDetrForObjectDetection", "DeformableDetr", levels, "ResNet"),
        ("DeformableDetrForObjectDetection, two stages", "DeformableDetr", two_stage, "ResNet"),
        ("RTDetrForObjectDetection", "RTDetr", real_time, "RTDetrResNet"),
        ("RTDetrV2ForObjectDetection", "RTDetrV2", real_time, "RTDetrResNet"),
        ("DFineForObjectDetection", "DFine", fine, "HGNetV2"),
        ("YolosForObjectDetection", "Yolos", {key: yolos[key] for key in (*TOWER, "num_detection_tokens")}, None),
    ):
        masks = name == "DetrForSegmentation"
        build = partial(_detector, name.partition(",")[0], kind, options, backbone)
        yield Case("transformers", kind, name, build, partial(_scenes, masks), ("batchformer-v2",))


def _detector(name: str, kind: str, options: dict[str, Any], backbone: str | None) -> nn.Module:
    import transformers

    stages = {**STAGES, "layer_type": "basic"}
    if backbone == "HGNetV2":
        stages |= {
            "stem_channels": [3, 8, 8], "stage_in_channels": [8, 8, 16, 16], "stage_mid_channels": [8] * 4,
            "stage_out_channels": [8, 16, 16, 32], "stage_num_blocks": [1] * 4, "stage_numb_of_layers": [1] * 4,
        }  # fmt: skip
        del stages["layer_type"]
    if backbone is not None:
        out = [f"stage{i}" for i in range(1 if name == "DetrForSegmentation" else 2, 5)]
        options = options | {"backbone_config": getattr(transformers, f"{backbone}Config")(**stages, out_features=out)}
    return getattr(transformers, name)(getattr(transformers, f"{kind}Config")(num_labels=CLASSES, **options))
