"""A trained run put to use: `load_run`, and what a run does with new examples.

run.py           the run: predict, evaluate, embeddings
saved.py         what a checkpoint says of a run, as a config and a program that only score
examples.py      what can be scored: a path, a table in memory, a source; raw rows where the run has a preparation
predictions.py   examples to predictions in the order of the data, one after the other or to a file
"""
