"""How far a map can be trusted: attention pooling beside CAM, Grad-CAM, rollout, and maps that see nothing.

Two kinds of pictures with known boxes, which no network was trained on:

  grid  four held-out photographs of different classes, two by two. The box is the cell of one class, and that class is
        asked for. One query for all classes and rollout know no class: they can find it by luck alone.
  coco  central squares of COCO's pictures with the boxes of all things. The networks do not know COCO's classes, so the
        class asked for is the one that the network says, and what is measured is whether a map lies on things at all.

Four measures on each: energy (share of a map's mass inside the boxes), pointing (its maximum inside, without
tolerance), and the areas under deletion (lower is better) and insertion (higher is better) for the probability of the
class that is asked for. Beside every network stand a Gaussian in the centre and a uniform map, whose energy and
pointing are the share of the area. Areas of different networks cannot be compared: their probabilities differ, and
the last column has what they are before anything is deleted. A second table has the first map of each network minus
every other one on the same pictures.
Insertion begins with a blur stronger than the authors' 11 pixels, which enlarged small photographs would survive.

--train makes four small networks on Tiny-ImageNet's 64 few-shot classes, alike but for their pool: one query, a query a
class, the average (where CAM holds), and a transformer. One seed each: intervals are those of the choice of pictures
(bootstrap, 95 %), not of the training. A network of one's own comes with --model NAME --weights FILE, on coco alone.

What was measured is in --out, one line a picture with both curves; a second call goes on where the first was broken
off. Twelve held-out photographs lie in --out as well; where the small network with a query a class looks in them:

  setwise show --model patchconvnet_s60_multi --weights OUT/query-a-class.pt --options embed_dim=96 depth=6 \\
      --classes OUT/classes.txt --image-size 96 OUT/photographs

Of CUB, whose boxes would be another test, no photographs with boxes were at hand.

  python benchmarks/trust.py --train --tiny DIR --coco DIR --out DIR      an hour or more on two cores
"""

import argparse
import json
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from measuring import processor
from torch import Tensor, nn
from trust_networks import NETWORKS, accuracy, train
from trust_scenes import Scene, coco, grids, read_photographs, write_samples

from setwise.data.dataset import IMAGENET_MEAN, IMAGENET_STD
from setwise.data.transforms import normalise
from setwise.errors import InvalidInput
from setwise.metrics import area, blurred, deletion, energy_inside, insertion, points_inside, to_pixels
from setwise.models import cam, create_trained, grad_cam, rollout
from setwise.nn import pool_maps
from setwise.run_folder import commit
from setwise.seeds import key

MEASURES = ("energy", "pointing", "deletion", "insertion")
RESAMPLES = 10_000
BLUR = {"taps": 61, "sigma": 15.0}
"""Pixels."""
SPREAD = 0.25
"""Deviation of the Gaussian, over the side."""

Maps = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""Network, image ``[1, 3, H, W]`` and class ``[1]`` -> map ``[h, w]``."""


def attention(network: nn.Module, image: Tensor, label: Tensor) -> Tensor:
    maps = pool_maps(network, image).maps[0]
    return maps[label[0]] if maps.dim() == 3 else maps


def centre(network: nn.Module, image: Tensor, label: Tensor) -> Tensor:
    y, x = (((torch.arange(size) + 0.5) / size - 0.5) / SPREAD for size in image.shape[-2:])
    return torch.exp(-0.5 * (y[:, None] ** 2 + x**2))


METHODS: dict[str, Maps] = {
    "attention": attention,
    "CAM": lambda network, image, label: cam(network, image, label)[0],
    "Grad-CAM": lambda network, image, label: grad_cam(network, image, label)[0],
    "rollout": lambda network, image, label: rollout(network, image)[0],
    "centre": centre,
    "uniform": lambda network, image, label: torch.ones(image.shape[-2:]),
}


def methods_of(network: nn.Module, image: Tensor) -> list[str]:
    """Those that the network has: the others refuse it."""
    fitting = []
    for name, method in METHODS.items():
        try:
            method(network, image, torch.tensor([0], device=image.device))
        except InvalidInput:
            continue
        fitting.append(name)
    return fitting


def measure(network: nn.Module, method: str, scene: Scene, image: Tensor, *, steps: int) -> dict[str, Any]:
    """All four measures of one map, the probability of the class asked for, and the curves."""
    with torch.no_grad():
        label = network(image).argmax(1) if scene.label is None else torch.tensor([scene.label], device=image.device)
    found = METHODS[method](network, image, label)
    map_ = to_pixels(found.float().to(image.device), tuple(scene.inside.shape))
    inside = scene.inside.to(image.device)

    def score(images: Tensor) -> Tensor:
        return network(images).softmax(1)[:, label[0]]

    deleted = deletion(score, image[0], map_, num_steps=steps)
    inserted = insertion(score, image[0], map_, num_steps=steps, baseline=blurred(image[0], **BLUR))
    return {
        "energy": energy_inside(map_.clamp(min=0), inside),
        "pointing": points_inside(map_, inside),
        "deletion": area(deleted),
        "insertion": area(inserted),
        "probability": float(deleted[0]),
        "deletion_curve": [round(float(value), 5) for value in deleted],
        "insertion_curve": [round(float(value), 5) for value in inserted],
    }


def measure_all(
    networks: dict[str, nn.Module], scenes: dict[str, list[Scene]], file: Path, *, steps: int
) -> Iterator[dict]:
    """Lines of results, old ones first; new ones are written as they come."""
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    if other := {line["steps"] for line in lines} - {steps}:
        raise SystemExit(f"{file} was measured with {other} steps, not {steps}: name another --out.")
    yield from lines
    done = {(line["network"], line["method"], line["scene"]) for line in lines}
    for name, network in networks.items():
        device = next(network.parameters()).device
        for kind, pictures in scenes.items():
            for scene in pictures:
                image = normalise(scene.image[None], mean=IMAGENET_MEAN, std=IMAGENET_STD).to(device)
                for method in methods_of(network, image):
                    if (name, method, scene.name) not in done:
                        values = measure(network, method, scene, image, steps=steps)
                        line = {"network": name, "kind": kind, "method": method, "scene": scene.name, "steps": steps}
                        line |= values
                        with file.open("a") as out:
                            out.write(json.dumps(line) + "\n")
                        yield line
            print(f"{name}, {kind}: {len(pictures)} pictures", flush=True)


def interval(values: np.ndarray) -> str:
    """Mean and 95 % interval of a bootstrap over pictures; pictures without a value are left out."""
    kept = values[~np.isnan(values)]
    if len(kept) < 2:
        return "none"
    rng = np.random.default_rng(key(0, "trust"))
    means = kept[rng.integers(0, len(kept), (RESAMPLES, len(kept)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    left = f" ({len(values) - len(kept)} without)" * (len(kept) < len(values))
    return f"{kept.mean():.3f} [{low:.3f}, {high:.3f}]{left}"


def table(lines: Sequence[dict]) -> list[str]:
    heads = ["pictures", "network", "map", "energy", "pointing", "deletion ↓", "insertion ↑", "probability"]
    rows = [f"| {' | '.join(heads)} |", f"|{len(heads) * '---|'}"]
    for kind, network, method in cells_of(lines):
        own = values_of(lines, kind, network, method)
        values = [interval(own[name]) for name in (*MEASURES, "probability")]
        rows.append(f"| {kind} ({len(own['energy'])}) | {network} | {method} | {' | '.join(values)} |")
    return rows


def differences(lines: Sequence[dict]) -> list[str]:
    """Each network's first map minus every other one on the same pictures."""
    rows = ["| pictures | network | difference | energy | pointing | deletion ↓ | insertion ↑ |", f"|{7 * '---|'}"]
    first: dict[tuple[str, str], str] = {}
    for kind, network, method in cells_of(lines):
        own = first.setdefault((kind, network), method)
        if method != own:
            one, other = (values_of(lines, kind, network, name) for name in (own, method))
            values = [interval(one[name] - other[name]) for name in MEASURES]
            rows.append(f"| {kind} | {network} | {own} - {method} | {' | '.join(values)} |")
    return rows


def cells_of(lines: Sequence[dict]) -> list[tuple[str, str, str]]:
    """Kind of picture, network and map, those of a kind together."""
    cells = list(dict.fromkeys((line["kind"], line["network"], line["method"]) for line in lines))
    return sorted(cells, key=lambda cell: (cell[0], cells.index(cell)))


def values_of(lines: Sequence[dict], kind: str, network: str, method: str) -> dict[str, np.ndarray]:
    """The measures of one map on all its pictures, in the order of their names."""
    own = [line for line in lines if (line["kind"], line["network"], line["method"]) == (kind, network, method)]
    own.sort(key=lambda line: line["scene"])
    return {name: np.array([line[name] for line in own], dtype=float) for name in (*MEASURES, "probability")}


def where(device: str) -> str:
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else processor()


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of networks and results; a second call goes on")
    parser.add_argument("--coco", type=Path, help="COCO's folder: annotations/, val2017/, train2017/")
    parser.add_argument("--tiny", type=Path, help="folder of the Tiny-ImageNet few-shot split: images.zip, train.csv")
    parser.add_argument("--train", action="store_true", help="train the four small networks (needs --tiny)")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="of those trained here")
    parser.add_argument("--epochs", type=int, default=20, help="of the training (default 20)")
    parser.add_argument("--max-steps", type=int, help="steps of an epoch, for a try")
    parser.add_argument("--side", type=int, default=96, help="pixels of a training photograph (default 96)")
    parser.add_argument("--model", help="a network of one's own, by timm's name (needs --weights and --coco)")
    parser.add_argument("--weights", type=Path, help="its file of weights")
    parser.add_argument("--options", nargs="*", default=[], metavar="NAME=VALUE", help="its further arguments")
    parser.add_argument("--size", type=int, help="side of its pictures; by default twice --side")
    parser.add_argument("--pictures", type=int, default=60, help="of each kind (default 60)")
    parser.add_argument("--steps", type=int, default=16, help="of deletion and insertion (default 16; authors: 224)")
    parser.add_argument("--device", default="cpu", help="torch's name of the device (default cpu)")
    parser.add_argument("--threads", type=int, default=2, help="torch's threads (default 2)")
    arguments = parser.parse_args(argv)
    if not (arguments.train or arguments.model):
        parser.error("nothing to measure: --train, or --model NAME --weights FILE")
    if arguments.train and arguments.tiny is None:
        parser.error("--train needs --tiny")
    if arguments.model and not (arguments.weights and arguments.coco):
        parser.error("--model needs --weights and --coco")
    return arguments


def main(argv: list[str] | None = None) -> None:
    arguments = parse(argv)
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    size = arguments.size or 2 * arguments.side
    networks: dict[str, nn.Module] = {}
    scenes: dict[str, list[Scene]] = {}
    about = []
    if arguments.train:
        photographs = read_photographs(arguments.tiny)
        write_samples(photographs, arguments.out, side=arguments.side)
        for name in arguments.networks:
            told = {"epochs": arguments.epochs, "side": arguments.side, "max_steps": arguments.max_steps}
            networks[name], seconds = train(name, photographs, arguments.out, device=arguments.device, **told)
            hits = 100 * accuracy(networks[name], photographs, arguments.side)
            about.append(f"* {name}: {hits:.1f} % of {len(photographs.held_out)} held-out photographs, {seconds:.0f} s")
            print(about[-1], flush=True)
        if not arguments.model:
            scenes["grid"] = grids(photographs, count=arguments.pictures, side=arguments.side)
    if arguments.coco is not None:
        scenes["coco"] = coco(arguments.coco, count=arguments.pictures, side=size)
    if arguments.model:
        options = {name: yaml.safe_load(value) for name, value in (text.split("=", 1) for text in arguments.options)}
        own = create_trained(arguments.model, arguments.weights, image_size=size, options=options)
        networks[arguments.model] = own.to(arguments.device)
    lines = list(measure_all(networks, scenes, arguments.out / "trust.jsonl", steps=arguments.steps))
    about.append(
        f"* {where(arguments.device)}, {arguments.threads} threads, load {os.getloadavg()[0]:.1f}; python "
        f"{platform.python_version()}, torch {torch.__version__}; commit {commit()}, {date.today()}; "
        f"{arguments.epochs} epochs, {arguments.steps} steps of deletion and insertion"
    )
    told = "\n".join([*table(lines), "", *differences(lines), "", *about])
    (arguments.out / "trust.md").write_text(told + "\n")
    print(told)


if __name__ == "__main__":
    main()
