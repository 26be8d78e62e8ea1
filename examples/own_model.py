"""BatchFormer in a training loop of one's own: four lines, marked ``# <-``, and nothing else changes.

A small network learns scikit-learn's handwritten digits from a long-tailed training set, once plain and once with
BatchFormer, and the accuracy of both on the same balanced test set is printed. One seed decides nothing; whether a
difference is one is what `setwise compare` answers.

    python examples/own_model.py
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from setwise.nn import BatchFormer, streams

EPOCHS, BATCH, DIM = 30, 64, 64
TRAIN_PER_CLASS = (100, 65, 42, 27, 18, 11, 7, 5, 3, 2)  # imbalance 50


def load() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    digits = load_digits()
    image = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    target = torch.tensor(digits.target)
    places = [(target == label).nonzero().flatten() for label in range(10)]
    test = torch.cat([p[-50:] for p in places])
    train = torch.cat([p[:count] for p, count in zip(places, TRAIN_PER_CLASS, strict=True)])
    return image[train], target[train], image[test], target[test]


def accuracy_of(*, related: bool) -> float:
    torch.manual_seed(0)
    backbone = nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, DIM, 3, padding=1), nn.BatchNorm2d(DIM), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )
    head = nn.Linear(DIM, 10)
    relation = BatchFormer(DIM) if related else nn.Identity()  # <-
    model = nn.ModuleList([backbone, relation, head])  # <- its parameters are trained like all others
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    image, target, test_image, test_target = load()
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(image)).split(BATCH):
            logits = head(relation(backbone(image[batch])))  # <- [B, C] -> [2B, C]: plain rows, then related ones
            loss = F.cross_entropy(logits, streams.tile(target[batch], like=logits))  # <- the target, as often
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        return (head(backbone(test_image)).argmax(1) == test_target).float().mean().item()  # the relation is gone


if __name__ == "__main__":
    print(f"plain             {accuracy_of(related=False):.1%}")
    print(f"with BatchFormer  {accuracy_of(related=True):.1%}")
