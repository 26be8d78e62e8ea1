"""Few-shot learning's data: pools with disjoint classes, episodes drawn from them, and what loads both."""

from setwise.data.few_shot.class_folders import CLASS_FOLDERS, CUB
from setwise.data.few_shot.class_graph import ClassGraph
from setwise.data.few_shot.classification import classes_of_training, one_size
from setwise.data.few_shot.csv_lists import MINIIMAGENET, TINYIMAGENET_FEW_SHOT
from setwise.data.few_shot.episodes import Episode, EpisodeSampler
from setwise.data.few_shot.loader import EpisodeBatch, EpisodeLoader, make_episode_loader, read_squashed
from setwise.data.few_shot.meta_dataset import META_DATASET, find_sources, load_sources
from setwise.data.few_shot.omniglot import OMNIGLOT
from setwise.data.few_shot.pool import FewShotSet, FewShotSplits, Pool
from setwise.data.few_shot.simclr import SimCLRTransform, simclr_episode

__all__ = [
    "FEW_SHOT",
    "META_DATASET",
    "ClassGraph",
    "Episode",
    "EpisodeBatch",
    "EpisodeLoader",
    "EpisodeSampler",
    "FewShotSet",
    "FewShotSplits",
    "Pool",
    "SimCLRTransform",
    "classes_of_training",
    "find_sources",
    "load_sources",
    "make_episode_loader",
    "one_size",
    "read_squashed",
    "simclr_episode",
]

FEW_SHOT: dict[str, FewShotSet] = {
    few_shot.name: few_shot
    for few_shot in (OMNIGLOT, TINYIMAGENET_FEW_SHOT, MINIIMAGENET, CUB, CLASS_FOLDERS, META_DATASET)
}
"""Few-shot sets by name."""
