#!/bin/sh
# The whole way on synthetic people: search, derive, train the found network beside a random one of its size and
# ResNet-50, and rank them. Arguments are overrides for all four runs, such as training.epochs=1.
set -eu
python=${PYTHON:-python3}
# Threads that wait sleep rather than spin: on two cores that something else uses too, spinning costs most of the time.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
run() { echo "+ python -m autoreid.$*" >&2; "$python" -m "autoreid.$@"; }

run train --config configs/quickstart.yaml "$@"
run derive runs/quickstart --config configs/quickstart_train.yaml --output derived/quickstart_found
run derive runs/quickstart --random 0 --config configs/quickstart_train.yaml --output derived/quickstart_random
run train --config derived/quickstart_found/config.yaml "$@"
run train --config derived/quickstart_random/config.yaml "$@"
run train --config configs/quickstart_train.yaml task_name=quickstart_resnet50 model.name=resnet50 model.options={} "$@"
run evaluate --checkpoint runs/quickstart_found --checkpoint runs/quickstart_random \
    --checkpoint runs/quickstart_resnet50 --data people=data/synthetic_people --output runs/quickstart_evaluation
