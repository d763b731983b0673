"""Trials: short trainings of derived networks, which tournaments and studies compare."""
