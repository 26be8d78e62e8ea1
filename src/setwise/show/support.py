"""Whom a query attends to in the support set: chosen places of its map, and the weights over a class's images.

Letters: ``P`` places, ``n`` support images of the class, ``h w`` size of a map, ``H W`` of an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure

from setwise.build import build_episode_data, training_sources
from setwise.errors import InvalidInput
from setwise.nn import CrossTransformer, record_attention
from setwise.recipes import Recipe
from setwise.report.markup import document, element, image, section
from setwise.run_folder import RunFolder, write_whole
from setwise.seeds import generator
from setwise.show.files import DPI, new_folder, png
from setwise.show.patches import colour_of
from setwise.work import load_few_shot, loaders_of

__all__ = ["PAGE", "Attended", "attend", "support_figure", "write_support"]

PAGE = "support.html"
PLACES = 3
"""Paper: three places, drawn at random."""
SIDE = 2.4
"""Inches of a picture."""
LUMINANCE = (0.299, 0.587, 0.114)
"""Of red, green and blue: ITU-R BT.601."""
STRONGEST = 0.9
"""Opacity of the highest weight."""


@dataclass(frozen=True)
class Attended:
    """One query of an episode, and where it looked in the support images of one class."""

    query: Float[np.ndarray, "H W 3"]
    support: Float[np.ndarray, "n H W 3"]
    weights: Float[np.ndarray, "P n h w"]
    """Those of each place sum to 1 over the class's images and their locations, also over those not kept here."""
    highest: Float[np.ndarray, "P"]
    """The largest weight of each place, over all images of the class."""
    places: tuple[tuple[int, int], ...]
    """Row and column in the query's map."""
    grid: tuple[int, int]
    """Rows and columns of the query's map."""
    label: int
    """Class of the query in the episode, whose support images these are."""
    predicted: int
    name: str
    """Of that class."""


def attend(
    path: Path,
    recipe: Recipe,
    *,
    episode: int = 0,
    query: int = 0,
    places: Sequence[tuple[int, int]] = (),
    most: int = 3,
    seed: int = 0,
) -> Attended:
    """Run one query of a test episode, and keep its weights over its own class's support images.

    Args:
        path: folder of a run with a CrossTransformer.
        recipe: its recipe, with ``data.root`` as it lies here.
        episode: number of the test episode.
        query: number of the query in it.
        places: (row, column) in the query's map; none: three, drawn by the seed.
        most: support images kept, those that got most weight first. Paper: 3.
        seed: draws the places.

    Raises:
        InvalidInput: if the head has no attention, or there is no such episode, query or place.
    """
    task, model = load_few_shot(RunFolder(path), recipe)
    if not isinstance(task.head, CrossTransformer):
        raise InvalidInput(
            f"The head of {path} is {recipe.head.name}, which attends to nothing; train one with --head.name "
            "cross-transformer."
        )
    sets = build_episode_data(recipe)
    name = next(iter(training_sources(recipe, sets)))
    loader = loaders_of(recipe, {name: sets[name]}, "test", model)[name]
    for what, number, there in (("episode", episode, recipe.episodes.test),):
        if not 0 <= number < there:
            raise InvalidInput(f"`{what}` must be from 0 to {there - 1}, but it is {number}.")
    batch, classes = loader.episode(episode)
    if not 0 <= query < len(batch.query):
        raise InvalidInput(f"`query` must be from 0 to {len(batch.query) - 1} in this episode, but it is {query}.")
    asked = batch.query[query : query + 1]
    with torch.no_grad():
        grid = tuple(task.trunk(asked).shape[2:])
        chosen = tuple(places) or _draw(grid, generator(seed, "places", episode, query))
        with record_attention(task, positions=chosen) as found:
            logits = task(batch.support, batch.support_target, asked)
    label = int(batch.query_target[query])
    weights = found["head"][label]  # [P, n, h, w]; one query, classes in label order
    order = weights.sum((0, 2, 3)).argsort(descending=True)[:most]
    images = batch.support[batch.support_target == label][order]
    return Attended(
        query=_picture(asked, model.mean, model.std)[0],
        support=_picture(images, model.mean, model.std),
        weights=weights[:, order].numpy(),
        highest=weights.amax((1, 2, 3)).numpy(),
        places=chosen,
        grid=(grid[0], grid[1]),
        label=label,
        predicted=int(logits[0].argmax()),
        name=classes[label],
    )


def _draw(grid: tuple[int, ...], draw: torch.Generator) -> tuple[tuple[int, int], ...]:
    number = torch.randperm(grid[0] * grid[1], generator=draw)[:PLACES]
    return tuple((place // grid[1], place % grid[1]) for place in number.tolist())


def _picture(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Normalised images as pixels in 0..1, channels last."""
    scale, shift = (torch.tensor(numbers)[:, None, None] for numbers in (std, mean))
    return (images * scale + shift).clamp(0, 1).permute(0, 2, 3, 1).numpy()


def support_figure(attended: Attended) -> Figure:
    """The query with its places in colour, and grey support images with each place's weights as opacity."""
    count = len(attended.support)
    figure = Figure(figsize=(SIDE * (1 + count), SIDE + 0.4), dpi=DPI, layout="constrained")
    axes = figure.subplots(1, 1 + count, squeeze=False)[0]
    right = attended.label == attended.predicted
    axes[0].imshow(_marked(attended))
    axes[0].set_title(
        f"query: {attended.name}" + ("" if right else ", scored as another class"), fontsize=8, parse_math=False
    )
    for number, (panel, picture) in enumerate(zip(axes[1:], attended.support, strict=True)):
        panel.imshow(_covered(picture, attended.weights[:, number] / attended.highest[:, None, None]))
        share = 100 * attended.weights[:, number].sum((1, 2))
        panel.set_title("weight " + ", ".join(f"{part:.0f}" for part in share) + " %", fontsize=8)
    for panel in axes:
        panel.set_axis_off()
    return figure


def _marked(attended: Attended) -> np.ndarray:
    """The query, a block of colour at every place."""
    picture, (rows, columns) = attended.query.copy(), attended.grid
    height, width = picture.shape[:2]
    for colour, (row, column) in zip(_colours(len(attended.places)), attended.places, strict=True):
        down = slice(row * height // rows, max(row * height // rows + 1, (row + 1) * height // rows))
        along = slice(column * width // columns, max(column * width // columns + 1, (column + 1) * width // columns))
        picture[down, along] = colour
    return picture


def _covered(picture: np.ndarray, weights: Float[np.ndarray, "P h w"]) -> np.ndarray:
    """A grey image under blocks of each place's colour."""
    height, width = picture.shape[:2]
    shown = (picture @ np.array(LUMINANCE))[..., None].repeat(3, axis=2)
    rows = np.arange(height) * weights.shape[1] // height
    columns = np.arange(width) * weights.shape[2] // width
    for colour, weight in zip(_colours(len(weights)), weights, strict=True):
        share = STRONGEST * weight[rows][:, columns, None]
        shown = (1 - share) * shown + share * colour
    return shown.clip(0, 1)


def _colours(number: int) -> list[np.ndarray]:
    return [np.array(colour_of(place)) for place in range(number)]


def write_support(looks: Sequence[Attended], folder: Path, *, title: str) -> Path:
    """Write ``NUMBER.png`` for every query, and ``support.html`` with all of them.

    Args:
        looks: at least one.
        folder: new or empty.
        title: of the page.

    Returns:
        The page.

    Raises:
        RunError: if the folder holds something, or cannot be written.
    """
    new_folder(folder)
    parts = []
    for number, look in enumerate(looks, 1):
        drawn = png(support_figure(look))
        write_whole(folder / f"{number}.png", drawn)
        alt = f"Where a query of class {look.name} looked in the support images of its class"
        parts.append(section(f"query {number}: {look.name}", image("image/png", drawn, alt=alt)))
    said = (
        "Each colour is a place of the query; the stronger it lies over a support image, the more weight it got there. "
        "The weights of a place sum to 1 over all support images of the class, so images can be compared; each colour "
        "is scaled to its highest weight. Above each image: the share of each place's weight that it got, in order."
    )
    about = element("p", said, class_="faint")
    write_whole(folder / PAGE, document(title, element("h1", title), about, *parts))
    return folder / PAGE
