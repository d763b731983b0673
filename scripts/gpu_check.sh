#!/usr/bin/env bash
# Measure the package on this machine's GPU. A part that fails does not stop the others. See --help.
set -u

# The parts with their time limits in seconds, the most important ones first.
parts=(product_tests:120 supernet:120 steps:200 determinism:90 ranks:90 memory:60 ranking:60
    precision:60 nets:90 compiled:300 ceilings:30 micros:30)
usage="usage: scripts/gpu_check.sh [--dry-run] [--budget SECONDS] [--output FOLDER] [PART[:SECONDS] ...]

  --dry-run         run every part on the CPU with tiny sizes, to test the script
  --budget SECONDS  end within this time, even if a part hangs (default: 900)
  --output FOLDER   new folder for the results (default: gpu_check/DATE-TIME)
  PART[:SECONDS]    run only these parts, with another time limit if SECONDS is given

Each part runs in a separate process, which is stopped at its time limit. The parts and their limits:
$(printf '  %s\n' "${parts[@]}")

FOLDER/summary.md is a table for benchmarks/README.md, FOLDER/results.jsonl has one line for each case, and
FOLDER/log.txt has the output of all parts. The environment variable PYTHON sets the interpreter (default: python3).
Exit status: 0 everything was measured; 1 a case failed, or a part was stopped or skipped; 2 nothing can be measured."

fail() {
    echo "gpu_check: $1" >&2
    exit 2
}

dry_run='' budget=900 output='' chosen=()
while [ $# -gt 0 ]; do
    case $1 in
        --dry-run) dry_run=--dry-run ;;
        --budget | --output)
            [ $# -gt 1 ] || fail "$1 needs a value"
            if [ "$1" = --budget ]; then budget=$2; else output=$2; fi
            shift
            ;;
        -h | --help) echo "$usage" && exit ;;
        -*) fail "unknown option $1; --help lists the options" ;;
        *) chosen+=("$1") ;;
    esac
    shift
done
[[ $budget =~ ^[1-9][0-9]*$ ]] || fail "--budget $budget: not a whole number of seconds"
limits=()
for name in "${chosen[@]}"; do
    [[ $name =~ ^[a-z_]+(:[1-9][0-9]*)?$ ]] || fail "$name: not of the form PART or PART:SECONDS"
    for known in "${parts[@]}"; do
        if [ "${known%:*}" = "${name%:*}" ]; then
            limits+=("$([[ $name = *:* ]] && echo "$name" || echo "$known")")
            continue 2
        fi
    done
    fail "unknown part ${name%:*}; available parts: ${parts[*]%:*}"
done
[ ${#chosen[@]} -gt 0 ] || limits=("${parts[@]}")

output=$(realpath -m "${output:-gpu_check/$(date +%Y%m%d-%H%M%S)}")
cd "$(dirname "$(realpath "$0")")/.." || exit 2
[ ! -e "$output/results.jsonl" ] || fail "--output $output: already contains results; choose another folder"
mkdir -p "$output" || fail "--output $output: cannot create the folder"
results=$output/results.jsonl log=$output/log.txt
scratch=$(mktemp -d) || fail "cannot create a temporary folder"
: > "$results"
: > "$log"

python=${PYTHON:-python3}
# New compiler caches for each check, so that the duration of a first step is that of a first run.
export TORCHINDUCTOR_CACHE_DIR=$scratch/inductor TRITON_CACHE_DIR=$scratch/triton PYTHONUNBUFFERED=1
[ -z "$dry_run" ] || export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=
grace=5 # seconds from SIGTERM to SIGKILL
reserve=$((grace + 3))
running=''
trap '[ -z "$running" ] || kill "$running" 2> /dev/null; rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM

seconds_left() { echo $((budget - SECONDS)); }

run() { # LIMIT PART: returns the exit status of the part; 124 or 137 if it was stopped
    timeout --kill-after "$grace" "$1" "$python" -m benchmarks.gpu "$2" --results "$results" \
        --scratch "$scratch" --seconds $(($1 > 2 ? $1 - 2 : 1)) $dry_run >> "$log" 2>&1 &
    running=$!
    wait "$running"
    local status=$?
    running=''
    return $status
}

measure() { # PART LIMIT
    local name=$1 limit=$2 left started=$SECONDS status stopped=false
    left=$(($(seconds_left) - reserve))
    # The time limits are for GPUs.
    if [ -n "$dry_run" ] && [ ${#chosen[@]} -eq 0 ]; then limit=$left; fi
    [ "$limit" -le "$left" ] || limit=$left
    if [ "$limit" -lt 1 ]; then
        printf '{"part": "%s", "case": "whole", "skipped": "no time left of %d s"}\n' "$name" "$budget" >> "$results"
        echo "$name: skipped, no time left"
        return
    fi
    echo "$name (up to $limit s) ..."
    run "$limit" "$name"
    status=$?
    case $status in 124 | 137) stopped=true ;; esac
    printf '{"part": "%s", "case": "whole", "seconds": %d, "status": %d, "timed_out": %s}\n' \
        "$name" $((SECONDS - started)) "$status" "$stopped" >> "$results"
    echo "$name: status $status after $((SECONDS - started)) s"
}

first=$(($(seconds_left) - reserve))
run $((first < 1 ? 1 : first < 90 ? first : 90)) versions || {
    grep '^gpu_check: ' "$log" >&2 || fail "$python -m benchmarks.gpu versions failed; $log has its output"
    exit 2
}
for part in "${limits[@]}"; do measure "${part%:*}" "${part#*:}"; done
"$python" -m benchmarks.gpu summary --results "$results" > "$output/summary.md"
status=$?
cat "$output/summary.md"
echo "$output: $SECONDS s in total"
exit $status
