"""What scripts/gpu_check.sh measures, one module a part. Each offers `cases(check)`."""
