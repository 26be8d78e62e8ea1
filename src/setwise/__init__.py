"""Attention over sets of samples, as modules that drop into any model.

``setwise.nn`` holds the modules, ``setwise.recipes`` the experiments, the command ``setwise`` runs them. This module
imports nothing heavy, so that ``setwise --help`` answers at once.
"""

__all__ = ["__version__"]
__version__ = "0.1.0"
