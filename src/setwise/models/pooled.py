"""What our small networks share: a map, its average, one linear classifier, and timm's way of exchanging it."""

from torch import Tensor, nn

from setwise.errors import InvalidInput

__all__ = ["PooledNetwork"]


class PooledNetwork(nn.Module):
    """A network whose last map is averaged and classified by one linear layer.

    A subclass has ``num_features`` and ``forward_features``, and calls :meth:`reset_classifier` when it is built.
    """

    num_features: int

    # Plain `Tensor` in these signatures: torch.jit.script, which timm's users call, resolves no jaxtyping annotation.
    def forward_features(self, x: Tensor) -> Tensor:
        """The last map: ``[B, in_chans, H, W]`` -> ``[B, num_features, h, w]``."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Class scores ``[B, num_classes]``, or pooled features ``[B, num_features]`` where there are no classes."""
        return self.forward_head(self.forward_features(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Average the last map and classify the average; with ``pre_logits`` the average alone. timm's interface."""
        x = x.mean((2, 3))
        return x if pre_logits else self.fc(x)

    def get_classifier(self) -> nn.Module:
        """The linear classifier; the identity where there are no classes. timm's interface."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new classifier in the old one's place. timm's interface.

        Args:
            num_classes: its classes; 0 for pooled features.
            global_pool: None or "avg"; there is no other pooling here.

        Raises:
            InvalidInput: for another pooling.
        """
        if global_pool not in (None, "avg"):
            raise InvalidInput(
                f"`global_pool` of {type(self).__name__} must be 'avg' or None, but it is {global_pool!r}."
            )
        self.num_classes = num_classes
        like = next(self.parameters())
        head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.fc = head.to(device=like.device, dtype=like.dtype).train(self.training)
