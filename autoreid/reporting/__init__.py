"""What a run shows: genotype graphs, TensorBoard, logs and the run folder."""
