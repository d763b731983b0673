#!/bin/bash
# A search by your own batch script, one task for each GPU:
#   sbatch --nodes=2 --ntasks-per-node=8 scripts/sbatch_srun.sh configs/darts_triplet.yaml runs/darts_triplet
# jobs/submit_search.py does the same, and checks everything before the job waits in the queue.
#SBATCH --job-name=autoreid
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=6
#SBATCH --time=1-00:00:00
#SBATCH --signal=USR2@180
#SBATCH --requeue
#SBATCH --open-mode=append

# Since Slurm 22.05 srun does not take over --cpus-per-task. One dead task must end all.
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=1 python -m autoreid.train --config "$1"
# Requeues the job if the run has more to do: it was told to stop, or a task was lost.
python -m autoreid.slurm.resume --run "$2" --status $?
