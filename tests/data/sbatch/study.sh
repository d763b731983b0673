# ---- search ----
#!/bin/bash

# Parameters
#SBATCH --array=0-1%2
#SBATCH --cpus-per-task=4
#SBATCH --gres=gpu:a100:4
#SBATCH --job-name=study-search
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output=/shared/study/runs/search0/slurm/%A_%a_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@180
#SBATCH --time=60

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /shared/study/runs/search0/slurm/%A_%a_%t_log.out --cpus-per-task=4 --kill-on-bad-exit=1 python3 -u -m submitit.core._submit /shared/study/runs/search0/slurm


# teardown
status=$?
runs=(/shared/study/runs/search0 /shared/study/runs/search1)
python3 -m autoreid.slurm.resume --run "${runs[${SLURM_ARRAY_TASK_ID:-0}]}" --status "$status" --max-restarts 100
# ---- train ----
#!/bin/bash

# Parameters
#SBATCH --array=0-1%2
#SBATCH --cpus-per-task=4
#SBATCH --gpus-per-node=1
#SBATCH --job-name=study-train
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/shared/study/runs/trainings0/slurm/%A_%a_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@180
#SBATCH --time=60

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /shared/study/runs/trainings0/slurm/%A_%a_%t_log.out --cpus-per-task=4 --kill-on-bad-exit=1 python3 -u -m submitit.core._submit /shared/study/runs/trainings0/slurm


# teardown
status=$?
runs=(/shared/study/runs/trainings0 /shared/study/runs/trainings1)
python3 -m autoreid.slurm.resume --run "${runs[${SLURM_ARRAY_TASK_ID:-0}]}" --status "$status" --max-restarts 100
# ---- table ----
#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=4
#SBATCH --job-name=study-table
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/shared/study/slurm/%j_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@180
#SBATCH --time=60

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /shared/study/slurm/%j_%t_log.out --cpus-per-task=4 --kill-on-bad-exit=1 python3 -u -m submitit.core._submit /shared/study/slurm


# teardown
exit $?
