#!/bin/bash

# Parameters
#SBATCH --array=0-2%2
#SBATCH --cpus-per-task=4
#SBATCH --job-name=tiny-seed0
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output=/shared/runs/tiny-seed0/slurm/%A_%a_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@150
#SBATCH --time=10

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /shared/runs/tiny-seed0/slurm/%A_%a_%t_log.out --cpus-per-task=4 --kill-on-bad-exit=1 python3 -u -m submitit.core._submit /shared/runs/tiny-seed0/slurm


# teardown
status=$?
runs=(/shared/runs/tiny-seed0 /shared/runs/tiny-seed1 /shared/runs/tiny-seed2)
python3 -m autoreid.slurm.resume --run "${runs[${SLURM_ARRAY_TASK_ID:-0}]}" --status "$status" --max-restarts 100
