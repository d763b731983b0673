"""Reports of runs: genotype graphs, TensorBoard, logs and the run folder."""
