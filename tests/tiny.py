"""Models of timm and transformers with a few thousand weights, by configuration alone, and batches for them."""

import torch

LABELS = 4
"""Classes of every detector and classifier of transformers here."""

LETTERS = 40
"""Size of the vocabulary."""

SIDE = 64
"""Images of detectors, in pixels."""


def _of(kind):
    """A class of transformers by its name, imported when it is needed; or any class."""
    import transformers

    return getattr(transformers, kind) if isinstance(kind, str) else kind


def _lively(model):
    """Weights large enough that one sample can be seen in another; transformers starts with 0.02 and zeros."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.xavier_normal_(parameter)
    return model


NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def vit(**options):
    """timm: one class token and four patches of 12 channels, three blocks, five classes."""
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    options = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 3, "num_heads": 2, "num_classes": 5, **options}
    return VisionTransformer(**options)


def bert(kind="BertForSequenceClassification", **options):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
    options = {**NO_DROPOUT, **sizes, "max_position_embeddings": 32, "num_labels": LABELS, **options}
    return _lively(_of(kind)(_of("BertConfig")(vocab_size=LETTERS, **options)))


def gpt2(kind="GPT2ForSequenceClassification", **options):
    torch.manual_seed(0)
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    sizes = {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 32, "pad_token_id": 0, "eos_token_id": 1}
    return _lively(_of(kind)(_of("GPT2Config")(vocab_size=LETTERS, **dropout, **sizes, num_labels=LABELS, **options)))


def hf_vit(**options):
    """transformers' ViT: one class token and four patches of 16 channels."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
    options = {**NO_DROPOUT, **sizes, "image_size": 8, "patch_size": 4, "num_labels": LABELS, **options}
    return _lively(_of("ViTForImageClassification")(_of("ViTConfig")(**options)))


def _resnet(kind="ResNetConfig"):
    return _of(kind)(
        embedding_size=8,
        hidden_sizes=[8, 16, 16, 16],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )


def _detector(kind, config, **options):
    torch.manual_seed(0)
    sides = {"layers": 2, "attention_heads": 2, "ffn_dim": 16}
    sizes = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in sides.items()}
    dropout = dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), 0.0)
    sizes = {**sizes, **dropout, "d_model": 16, "num_queries": 5, "num_labels": LABELS, **options}
    return _lively(_of(kind)(_of(config)(**{"backbone_config": _resnet(), **sizes})))


def detr(**options):
    return _detector("DetrForObjectDetection", "DetrConfig", **options)


def conditional_detr(**options):
    return _detector("ConditionalDetrForObjectDetection", "ConditionalDetrConfig", **options)


def deformable_detr(**options):
    """Three levels, 32 channels (its normalisation has 32 groups)."""
    options = {"d_model": 32, "num_feature_levels": 3, "disable_custom_kernels": True, **options}
    return _detector("DeformableDetrForObjectDetection", "DeformableDetrConfig", **options)


def rt_detr(**options):
    """Without denoising queries, whose noise is random."""
    torch.manual_seed(0)
    sizes = {"encoder_in_channels": [16, 16, 16], "encoder_hidden_dim": 16, "decoder_in_channels": [16, 16, 16]}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    options = {
        "num_denoising": 0,
        "num_labels": LABELS,
        "d_model": 16,
        "num_queries": 5,
        "decoder_layers": 2,
        **options,
    }
    config = _of("RTDetrConfig")(backbone_config=_resnet("RTDetrResNetConfig"), **sizes, **heads, **options)
    return _lively(_of("RTDetrForObjectDetection")(config))


DETECTORS = {
    "DETR": detr,
    "Conditional DETR": conditional_detr,
    "Deformable DETR": deformable_detr,
    "RT-DETR": rt_detr,
}


def images(rows, side=8, seed=0):
    return torch.randn(rows, 3, side, side, generator=torch.Generator().manual_seed(seed))


def text(rows, length=6, *, padded=False, seed=0):
    """Token ids without the padding token 0, a mask, and labels; with ``padded`` sample i ends i tokens earlier."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, LETTERS, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    if padded:
        mask = (torch.arange(length) < length - torch.arange(rows)[:, None] % (length - 1)).long()
    labels = torch.randint(LABELS, (rows,), generator=generator)
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}


def scenes(rows, *, padded=False, seed=0):
    """Images with one or two boxes each; with ``padded`` every second image fills the upper left quarter."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(rows, SIDE, SIDE, dtype=torch.long)
    if padded:
        mask[1::2, SIDE // 2 :] = 0
        mask[1::2, :, SIDE // 2 :] = 0
    labels = [
        {
            "class_labels": torch.randint(LABELS, (1 + row % 2,), generator=generator),
            "boxes": torch.rand(1 + row % 2, 4, generator=generator) * 0.4 + 0.1,
        }
        for row in range(rows)
    ]
    return {"pixel_values": images(rows, SIDE, seed) * mask[:, None], "pixel_mask": mask, "labels": labels}
