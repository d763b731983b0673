"""Submitting jobs to Slurm, requeueing them and watching them. Only this package imports submitit.

`jobs/` holds the command lines. A job runs the same commands that users type (`python -m autoreid.train ...`), one
process for each Slurm task. Nothing here depends on what a search is.
"""
