"""Find problems of a machine or between the ranks of a job, and how to fix them."""
