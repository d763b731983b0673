#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=4
#SBATCH --gres=gpu:a100:4
#SBATCH --job-name=tiny
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output=/shared/runs/tiny/slurm/%j_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@180

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /shared/runs/tiny/slurm/%j_%t_log.out --cpus-per-task=4 --kill-on-bad-exit=1 apptainer exec --nv reid.sif python3 -u -m submitit.core._submit /shared/runs/tiny/slurm


# teardown
status=$?
runs=(/shared/runs/tiny)
apptainer exec --nv reid.sif python3 -m autoreid.slurm.resume --run "${runs[${SLURM_ARRAY_TASK_ID:-0}]}" --status "$status" --max-restarts 100
