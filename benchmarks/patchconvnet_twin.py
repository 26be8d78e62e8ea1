"""PatchConvNet as one would write it down after the paper: the yardstick of patchconvnet.py.

Tokens ``[B, N, C]`` go from block to block and become a square map and tokens again in each; maps have their channels
first; the attention keeps its weights; every class has a linear layer of its own. Names of parameters are those of the
released checkpoints, so that ``checkpoint_filter_fn`` carries the weights over.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["TokenNetwork", "TokenPool"]

EPS = 1e-6


class Excite(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(dim, dim // 4, 1)
        self.conv_expand = nn.Conv2d(dim // 4, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.conv_expand(torch.relu(self.conv_reduce(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(weights)


class Mix(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        depthwise = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.qkv_pos = nn.Sequential(
            nn.Conv2d(dim, dim, 1), nn.GELU(), depthwise, nn.GELU(), Excite(dim), nn.Conv2d(dim, dim, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        side = round(tokens**0.5)
        maps = x.transpose(1, 2).reshape(batch, dim, side, side)
        return self.qkv_pos(maps).reshape(batch, dim, tokens).transpose(1, 2)


class Block(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma_1 = nn.Parameter(torch.ones(dim))
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = Mix(dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma_1 * self.attn(self.norm1(x))


class TokenAttention(nn.Module):
    def __init__(self, dim: int, tokens: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))
        self.tokens = tokens

    def forward(self, x: Tensor) -> Tensor:
        tokens, seen = x[:, : self.tokens], x if self.tokens == 1 else x[:, self.tokens :]
        query = self.q(tokens) * x.shape[-1] ** -0.5
        weights = (query @ self.k(seen).transpose(1, 2)).softmax(-1)
        return self.proj(weights @ self.v(seen))


class TokenBlock(nn.Module):
    def __init__(self, dim: int, tokens: int) -> None:
        super().__init__()
        self.gamma_1, self.gamma_2 = (nn.Parameter(torch.ones(dim)) for _ in range(2))
        self.norm1, self.norm2 = (nn.LayerNorm(dim, eps=EPS) for _ in range(2))
        self.attn = TokenAttention(dim, tokens)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, 3 * dim), "fc2": nn.Linear(3 * dim, dim)})

    def forward(self, tokens: Tensor, x: Tensor) -> Tensor:
        tokens = tokens + self.gamma_1 * self.attn(self.norm1(torch.cat([tokens, x], dim=1)))
        hidden = nn.functional.gelu(self.mlp["fc1"](self.norm2(tokens)))
        return tokens + self.gamma_2 * self.mlp["fc2"](hidden)


class TokenPool(nn.Module):
    """From patches ``[B, N, C]`` to class scores ``[B, K]``."""

    def __init__(self, dim: int, classes: int, *, per_class: bool) -> None:
        super().__init__()
        self.tokens = classes if per_class else 1
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, self.tokens, dim))
        self.blocks_token_only = nn.ModuleList([TokenBlock(dim, self.tokens)])
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.head: nn.Module = nn.Linear(dim, classes)
        if per_class:
            self.head = nn.ModuleList(nn.Linear(dim, 1) for _ in range(classes))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.cls_token.expand(len(x), -1, -1)
        for block in self.blocks_token_only:
            tokens = block(tokens, x)
        tokens = self.norm(torch.cat([tokens, x], dim=1))[:, : self.tokens]
        if isinstance(self.head, nn.ModuleList):
            return torch.cat([score(tokens[:, k]) for k, score in enumerate(self.head)], dim=1)
        return self.head(tokens[:, 0])


class TokenNetwork(TokenPool):
    """From images to class scores."""

    def __init__(self, dim: int = 384, depth: int = 60, classes: int = 1000, *, per_class: bool = False) -> None:
        super().__init__(dim, classes, per_class=per_class)
        layers: list[nn.Module] = []
        for narrow, wide in pairwise([3, dim // 8, dim // 4, dim // 2, dim]):
            layers += [nn.Sequential(nn.Conv2d(narrow, wide, 3, 2, 1, bias=False)), nn.GELU()]
        self.patch_embed = nn.ModuleDict({"proj": nn.Sequential(*layers[:-1])})
        self.blocks = nn.ModuleList(Block(dim) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)  # [B, C, H, W] -> [B, N, C]
        for block in self.blocks:
            x = block(x)
        return super().forward(x)
