"""Slurm: what is asked of it, the submitit executor, requeueing, and watching jobs. Only this package imports submitit.

`jobs/` are its command lines. It runs the same commands that people type (`python -m autoreid.train ...`), one process
a task; nothing here knows what a search is.
"""
