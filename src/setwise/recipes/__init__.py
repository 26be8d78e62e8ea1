"""Experiments as plain data; importing this imports no torch.

>>> from setwise.recipes import RECIPES
>>> RECIPES["digits-lt"].num_seeds
50
"""

from setwise.recipes.balanced import BALANCED
from setwise.recipes.baselines import BASELINES
from setwise.recipes.few_shot import FEW_SHOT
from setwise.recipes.long_tailed import LONG_TAILED
from setwise.recipes.paco import PACO
from setwise.recipes.patchconvnet import PATCHCONVNET
from setwise.recipes.ride import RIDE
from setwise.recipes.schema import Recipe

__all__ = ["RECIPES", "Recipe"]

FAMILIES = (LONG_TAILED, BALANCED, RIDE, PACO, BASELINES, FEW_SHOT, PATCHCONVNET)
RECIPES: dict[str, Recipe] = {recipe.name: recipe for family in FAMILIES for recipe in family}
"""Every recipe by name."""
