"""A tiny world in simple English: word lists, true facts, stories and exercises.

The package makes two things from the same tables: a corpus of plain text, on which a small
model learns the language and the facts, and a set of tuning examples, which teach the model
to answer when it is asked. `README.md` in this folder explains how the two fit together.
"""
