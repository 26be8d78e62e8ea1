"""Recipe -> objects: the only place where names become data, networks, losses and optimizers.

No class behind this line sees a recipe; everything gets flat arguments.
"""

from setwise.build.checks import check_start, is_taught, too_late
from setwise.build.classification import WITHOUT_RELATION, build_data, build_loader, build_task
from setwise.build.few_shot import build_episode_data, build_episode_loader, build_few_shot, training_sources
from setwise.build.parts import Say

__all__ = [
    "WITHOUT_RELATION",
    "Say",
    "build_data",
    "build_episode_data",
    "build_episode_loader",
    "build_few_shot",
    "build_loader",
    "build_task",
    "check_start",
    "is_taught",
    "too_late",
    "training_sources",
]
