"""What will not work on a machine or between the ranks of a job, and what mends it."""
