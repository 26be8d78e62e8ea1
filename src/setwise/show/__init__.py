"""Who attended to whom, in pictures: the patches of an image, images of a support set, samples of a batch.

A trained network and images go in; PNG files and one HTML page that needs nothing outside itself come out.
"""

from setwise.show.patches import Look, look_at
from setwise.show.patches_page import write_patches
from setwise.show.subject import Subject, of_checkpoint, of_run

__all__ = ["Look", "Subject", "look_at", "of_checkpoint", "of_run", "write_patches"]
