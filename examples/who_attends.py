"""Who attends to whom: attention within a sample's own class and across classes, after training on digits.

`record_attention` reads the weights out, in training and in evaluation, without changing a result. The last column
divides the weight that goes to other samples of the own class by what the same number of samples would get if
attention were uniform: above 1, samples prefer their own class.

    python examples/who_attends.py
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from setwise.nn import BatchFormer, record_attention, streams

DIM, EPOCHS, BATCH = 64, 10, 100


def train(image: Tensor, target: Tensor) -> tuple[nn.Module, BatchFormer]:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, DIM), nn.ReLU())
    relation, head = BatchFormer(DIM), nn.Linear(DIM, 10)
    parameters = [*backbone.parameters(), *relation.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=2e-3)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(image)).split(BATCH):
            logits = head(relation(backbone(image[batch])))
            optimizer.zero_grad()
            F.cross_entropy(logits, streams.tile(target[batch], like=logits)).backward()
            optimizer.step()
    return backbone.eval(), relation.eval()


def main() -> None:
    digits = load_digits()
    image = torch.tensor(digits.images, dtype=torch.float32) / 16
    target = torch.tensor(digits.target)
    backbone, relation = train(image[:1500], target[:1500])
    image, target = image[1500:], target[1500:]
    with torch.no_grad(), record_attention(relation) as maps:
        relation(backbone(image))  # the output is the input: this is evaluation, and only the weights are wanted
    attention = maps[""][0].mean(0)  # [heads, B, B] -> [B, B], the mean over heads; rows sum to 1
    itself = torch.eye(len(target), dtype=torch.bool)
    same = (target[:, None] == target) & ~itself
    print(f"{'digit':>5} {'itself':>8} {'own class':>10} {'others':>8} {'own class / uniform':>20}")
    for label in range(10):
        rows = target == label
        own, other = (attention * same)[rows].sum(1).mean(), (attention * ~(same | itself))[rows].sum(1).mean()
        share = same[rows].float().mean()
        print(f"{label:>5} {attention.diag()[rows].mean():>8.3f} {own:>10.3f} {other:>8.3f} {own / share:>20.2f}")


if __name__ == "__main__":
    main()
