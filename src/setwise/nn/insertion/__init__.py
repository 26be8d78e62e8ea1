"""Put a relation, or attention pooling, into an existing model and take it out again.

Read ``insert.py`` first. ``places.py`` finds classifiers and layers, ``measure.py`` finds out what passes there,
``hooks.py`` and ``checks.py`` are what hangs in the model afterwards, and ``pooling.py`` replaces a pool.
"""

from setwise.nn.insertion.insert import insert, remove
from setwise.nn.insertion.pooling import attention_pooling

__all__ = ["attention_pooling", "insert", "remove"]
