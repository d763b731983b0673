"""The measurements of scripts/gpu_check.sh. Each part is a module with a function `cases(check)`."""
