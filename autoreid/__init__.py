"""autoreid searches, trains and ranks networks for person re-identification on Slurm clusters."""
