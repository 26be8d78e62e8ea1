"""Few-shot learning's data: pools with disjoint classes, episodes drawn from them, and what loads both."""

from setwise.data.few_shot.class_graph import ClassGraph
from setwise.data.few_shot.episodes import Episode, EpisodeSampler
from setwise.data.few_shot.loader import EpisodeBatch, EpisodeLoader, make_episode_loader
from setwise.data.few_shot.pool import FewShotSet, FewShotSplits, Pool
from setwise.data.few_shot.simclr import SimCLRTransform, simclr_episode

__all__ = [
    "ClassGraph",
    "Episode",
    "EpisodeBatch",
    "EpisodeLoader",
    "EpisodeSampler",
    "FewShotSet",
    "FewShotSplits",
    "Pool",
    "SimCLRTransform",
    "make_episode_loader",
    "simclr_episode",
]
