"""Put a relation into an existing model and take it out again.

Read ``insert.py`` first. ``places.py`` finds classifiers and layers, ``measure.py`` finds out what passes there, and
``hooks.py`` and ``checks.py`` are what hangs in the model afterwards.
"""

from setwise.nn.insertion.insert import insert, remove

__all__ = ["insert", "remove"]
