"""Does a prediction depend on its batch-mates?

Read ``audit.py`` first. ``mates.py`` swaps the mates, ``calls.py`` runs a model without leaving a trace, ``mixing.py``
says what in a tensor follows whom.
"""

from setwise.nn.auditing.audit import Answer, Audit, Entry, audit

__all__ = ["Answer", "Audit", "Entry", "audit"]
