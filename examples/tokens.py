"""BatchFormerV2 between two blocks of a vision transformer: at each token, the images of a batch learn from each other.

The transformer is timm's, built small from its configuration and without a download. The first insertion doubles the
batch, the second relates the second half only, and every block between sees both streams. In evaluation the model
answers as timm's own does, bit for bit.

    python examples/tokens.py
"""

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from setwise.nn import BatchFormerV2, streams

DIM, CLASSES = 48, 10


class RelatedViT(nn.Module):
    """A timm vision transformer with BatchFormerV2 after its second and after its third block."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = timm.create_model(
            "vit_tiny_patch16_224",
            pretrained=False,
            img_size=32,
            patch_size=8,
            embed_dim=DIM,
            depth=4,
            num_heads=4,
            num_classes=CLASSES,
        )
        # Attention dropout 0 keeps the fused kernels, which is what costs time at token level; the paper has 0.5.
        self.first = BatchFormerV2(DIM, attention_dropout=0.0)
        self.second = BatchFormerV2(DIM, attention_dropout=0.0)

    def forward(self, image: Tensor) -> Tensor:
        x = self.vit.norm_pre(self.vit.patch_drop(self.vit._pos_embed(self.vit.patch_embed(image))))  # [B, N, C]
        for number, block in enumerate(self.vit.blocks):
            x = block(x)
            if number == 1:
                x = self.first(x)  # [B, N, C] -> [2B, N, C]
            if number == 2:
                x = self.second(x, first=False)  # [2B, N, C]: plain rows pass, related ones are related again
        return self.vit.forward_head(self.vit.norm(x))  # [2B, K]


def main() -> None:
    torch.manual_seed(0)
    model = RelatedViT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    image, target = torch.randn(32, 3, 32, 32), torch.randint(CLASSES, (32,))
    for step in range(10):
        logits = model(image)
        losses = F.cross_entropy(logits, streams.tile(target, like=logits), reduction="none")
        plain, related = streams.split(losses, like=target)
        losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 3 == 0:
            print(f"step {step}  rows {len(logits)}  loss plain {plain.mean():.3f}  related {related.mean():.3f}")
    model.eval()
    with torch.no_grad():
        same = torch.equal(model(image), model.vit(image))
    print(f"in evaluation equal to timm's own model: {same}")


if __name__ == "__main__":
    main()
