#!/bin/bash
# A batch script for a search or training, with one Slurm task for each GPU:
#   sbatch --nodes=2 --ntasks-per-node=8 scripts/sbatch_srun.sh configs/darts_triplet.yaml runs/darts_triplet
# jobs/submit_search.py does the same, and checks config and data before it submits the job.
#SBATCH --job-name=autoreid
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=6
#SBATCH --time=1-00:00:00
#SBATCH --signal=USR2@180
#SBATCH --requeue
#SBATCH --open-mode=append

# Since Slurm 22.05 srun does not inherit --cpus-per-task. If one task dies, the others must end as well.
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=1 python -m autoreid.train --config "$1"
# Requeue the job if its run can continue: it was stopped by the signal, or a task was lost.
python -m autoreid.slurm.resume --run "$2" --status $?
