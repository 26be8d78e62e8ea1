"""The training steps that ``insertion.py`` measures: forward and backward pass of a model or of a layer."""

from contextlib import nullcontext

import torch
from measuring import Step
from torch import Tensor, nn

from setwise.nn import insert, streams
from setwise.nn.attention import EncoderLayer, SetAttention

HEADS = 4


def make_vit(related: bool, size: tuple[int, int], device: torch.device) -> Step:
    import timm

    side, batch = size
    torch.manual_seed(0)
    model = timm.create_model("deit_tiny_patch16_224", img_size=side, num_classes=1000)
    if related:
        insert(model, "batchformer-v2", at=[8])
    model.to(device).train()
    image = torch.randn(batch, 3, side, side, device=device)
    target = torch.randint(1000, (batch,), device=device)

    def step() -> None:
        model.zero_grad()
        with half(device):
            logits = model(image)
            loss = nn.functional.cross_entropy(logits, streams.tile(target, like=logits) if related else target)
        loss.backward()

    return step


def make_detr(related: bool, size: tuple[int, int], device: torch.device, *, frozen: bool = False) -> Step:
    """DETR-R50; its backbone learns in all but the first stage, as published, or not at all."""
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    side, batch = size
    torch.manual_seed(0)
    resnet = ResNetConfig(out_features=["stage4"])  # its defaults are those of a ResNet-50
    model = DetrForObjectDetection(DetrConfig(backbone_config=resnet, use_pretrained_backbone=False, num_labels=91))
    for name, parameter in model.get_submodule("model.backbone").named_parameters():
        # transformers 5.23 looks for "stage.1", finds "stages.1", and so freezes all of its own ResNet
        if any(f"stages.{stage}." in name for stage in (1, 2, 3)):
            parameter.requires_grad_(not frozen)
    if related:
        insert(model, "batchformer-v2", at=[0])
    model.to(device).train()
    image = torch.randn(batch, 3, side, side, device=device)
    boxes = torch.rand(7, 4, device=device) * 0.3 + 0.2  # COCO has 7 objects an image
    labels = [{"class_labels": torch.randint(91, (7,), device=device), "boxes": boxes} for _ in range(batch)]

    def step() -> None:
        model.zero_grad()
        with half(device):
            loss = model(pixel_values=image, labels=labels).loss
        loss.backward()

    return step


def make_layers(part: str, shape: tuple[int, int, int], dropout: float, device: torch.device) -> dict[str, Step]:
    """Torch's and ours with the same weights, which compute the same without dropout."""
    dim = shape[-1]
    torch.manual_seed(0)
    x = torch.randn(shape, device=device)
    theirs: nn.Module
    ours: nn.Module
    if part == "attention":
        theirs = nn.MultiheadAttention(dim, HEADS, dropout=dropout)
        ours = SetAttention(dim, HEADS, dropout=dropout)
    else:
        theirs = nn.TransformerEncoderLayer(dim, HEADS, dim, dropout)
        ours = EncoderLayer(dim, HEADS, dropout=dropout, attention_dropout=dropout)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    layers = {"torch": theirs.to(device).train(), "ours": ours.to(device).train()}
    if dropout == 0:
        with torch.no_grad():
            torch.testing.assert_close(run(ours, x), run(theirs, x), rtol=1e-4, atol=1e-5)
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    return {name: layer_step(layer.to(kind), x.to(kind)) for name, layer in layers.items()}


def layer_step(layer: nn.Module, x: Tensor) -> Step:
    x = x.clone().requires_grad_()
    gradient = torch.randn_like(x)

    def step() -> None:
        layer.zero_grad()
        x.grad = None
        run(layer, x).backward(gradient)

    return step


def run(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x, x, x, need_weights=False)[0] if isinstance(layer, nn.MultiheadAttention) else layer(x)


def half(device: torch.device) -> torch.autocast | nullcontext:
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()
