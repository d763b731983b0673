#!/bin/sh
# The whole pipeline on synthetic people: search, derive the found network, train it, a random network of about the same
# size and Auto-ReID's published one, and evaluate all three. Arguments are overrides for all four runs, such as
# training.epochs=1.
set -eu
python=${PYTHON:-python3}
# Waiting OpenMP threads sleep instead of spinning, which would waste most of the time on cores that are shared.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
run() { echo "+ python -m autoreid.$*" >&2; "$python" -m "autoreid.$@"; }

run train --config configs/quickstart.yaml "$@"
run derive runs/quickstart --config configs/quickstart_train.yaml --output derived/quickstart_found
run derive runs/quickstart --random 0 --config configs/quickstart_train.yaml --output derived/quickstart_random
run derive searched_genotypes/published/auto_reid.json --config configs/quickstart_train.yaml \
    --output derived/quickstart_auto_reid
run train --config derived/quickstart_found/config.yaml "$@"
run train --config derived/quickstart_random/config.yaml "$@"
run train --config derived/quickstart_auto_reid/config.yaml "$@"
run evaluate --checkpoint runs/quickstart_found --checkpoint runs/quickstart_random \
    --checkpoint runs/quickstart_auto_reid --data people=data/synthetic_people --output runs/quickstart_evaluation
