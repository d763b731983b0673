#!/bin/bash

# Parameters
#SBATCH --account=lab
#SBATCH --comment=why
#SBATCH --constraint=a100
#SBATCH --cpus-per-task=6
#SBATCH --dependency=afterok:12
#SBATCH --exclude=n3
#SBATCH --gpus-per-node=8
#SBATCH --hint=nomultithread
#SBATCH --job-name=tiny
#SBATCH --mail-type=END,FAIL
#SBATCH --mail-user=me@lab.org
#SBATCH --mem=400G
#SBATCH --nodelist='n[1-2]'
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output=/shared/runs/tiny/slurm/%j_0_log.out
#SBATCH --partition=gpu
#SBATCH --qos=high
#SBATCH --requeue
#SBATCH --reservation=night
#SBATCH --signal=USR2@300
#SBATCH --time=2160

# setup
module load cuda/12
conda activate reid

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /shared/runs/tiny/slurm/%j_%t_log.out --cpus-per-task=6 --kill-on-bad-exit=1 python3 -u -m submitit.core._submit /shared/runs/tiny/slurm


# teardown
status=$?
runs=(/shared/runs/tiny)
python3 -m autoreid.slurm.resume --run "${runs[${SLURM_ARRAY_TASK_ID:-0}]}" --status "$status" --max-restarts 7
