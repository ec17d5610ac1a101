"""Folders, Hub ids and exported folders → `Classifier`, and back.

`hub.py` finds the folder, `weights.py` reads its tensors, `folder.py` has `load` and `save`, `exported.py` writes and
reads folders that run without the encoders.
"""
