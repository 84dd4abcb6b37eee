"""Small samples in the form of the best-known evaluation tasks, about the tiny world.

`make_files` in `files.py` puts together what the other modules make: questions from the held-out facts
(`questions.py`), pairs of sentences (`pairs.py`), short texts with questions (`reading.py`), puzzles (`puzzles.py`),
and what was written by hand (`written.py`).
"""
