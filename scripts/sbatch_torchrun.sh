#!/bin/bash
# A batch script for a search or training, with one torchrun per node, which starts a process for each GPU:
#   sbatch --nodes=2 scripts/sbatch_torchrun.sh configs/darts_triplet.yaml runs/darts_triplet
#SBATCH --job-name=autoreid
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=48
#SBATCH --time=1-00:00:00
#SBATCH --signal=USR2@180
#SBATCH --requeue
#SBATCH --open-mode=append

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# A port of its own for each job, and each restart of it: other jobs may run on the same node.
port=$((20000 + (SLURM_JOB_ID * 31 + ${SLURM_RESTART_COUNT:-0} * 17) % 40000))
# Slurm sends the signal to all processes. The ranks handle it; it must not kill torchrun before they have saved.
srun --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=1 \
    bash -c 'trap "" USR2; exec torchrun "$@"' torchrun \
    --nnodes="$SLURM_NNODES" --nproc-per-node="${RANKS_PER_NODE:-$SLURM_GPUS_ON_NODE}" \
    --rdzv-backend=c10d --rdzv-endpoint="$first:$port" --rdzv-id="$SLURM_JOB_ID" \
    -m autoreid.train --config "$1"
# Requeue the job if its run can continue.
python -m autoreid.slurm.resume --run "$2" --status $?
