#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=4
#SBATCH --gpus-per-node=8
#SBATCH --job-name=tiny
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output=/shared/runs/tiny/slurm/%j_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@180

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /shared/runs/tiny/slurm/%j_%t_log.out --cpus-per-task=4 --kill-on-bad-exit=1 python3 -u -m submitit.core._submit /shared/runs/tiny/slurm


# teardown
status=$?
runs=(/shared/runs/tiny)
python3 -m autoreid.slurm.resume --run "${runs[${SLURM_ARRAY_TASK_ID:-0}]}" --status "$status" --max-restarts 100
