"""The training loop, the state of a run, the steps of the optimisers and the learning rate schedules."""
