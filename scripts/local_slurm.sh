#!/usr/bin/env bash
# A real Slurm cluster on this machine, for tests and for trying out jobs: a controller and two nodes, n1 and n2, each with
# 16 declared CPUs and 8 declared GPUs, and the partitions main and high, where high preempts main. Each node has its own
# network, processes, host name and /dev/shm; all nodes share the file system.
set -euo pipefail

usage='usage: local_slurm.sh start | stop | status | install
       local_slurm.sh kill-node NODE        simulate a power failure of a node
       local_slurm.sh start-node NODE       start a node again
       local_slurm.sh on NODE COMMAND...    run a command on a node, outside of any job
Must be run as root. AUTOREID_SLURM_LAB sets the folder of the cluster (default: a folder below TMPDIR).
Exit status: 0 done, 1 failed, 2 wrong command line, 3 not running, or not possible on this machine.'

lab=$(realpath -m "${AUTOREID_SLURM_LAB:-${TMPDIR:-/tmp}/autoreid-slurm-$(id -u)}")
script=$(realpath "$0")
nodes=(n1 n2)
patience=30 # seconds
export SLURM_CONF=$lab/etc/slurm.conf

fail() { # STATUS MESSAGE
    echo "local_slurm: $2" >&2
    exit "$1"
}

soon() { # COMMAND...: repeat the command until it succeeds; fails after $patience seconds
    local end=$((SECONDS + patience))
    until "$@"; do
        ((SECONDS < end)) || return 1
        sleep 0.1
    done
}

install_slurm() {
    local program missing='' output
    for program in slurmctld slurmd munged ip unshare nsenter; do
        hash "$program" 2> /dev/null || missing+="$program "
    done
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" != 0 ] || ! hash apt-get 2> /dev/null; then
        fail 3 "not installed: ${missing% }; install slurm-wlm, munge and iproute2, or run this as root with apt-get"
    fi
    output=$(export DEBIAN_FRONTEND=noninteractive
        exec 9< "$script" && flock 9 # apt-get does not wait for another one
        apt-get update -qq 2>&1 &&
            apt-get install -y -qq --no-install-recommends slurm-wlm munge iproute2 2>&1) ||
        fail 3 "apt-get could not install slurm-wlm, munge and iproute2: ${output##*$'\n'}"
}

process() { # NAME: print the pid in run/NAME.pid if that process is running and belongs to this cluster
    local pid
    pid=$(cat "$lab/run/$1.pid" 2> /dev/null) && grep -qsF "$lab" "/proc/$pid/cmdline" && echo "$pid"
}

gone() { ! process "$1" > /dev/null; }

end() { # NAME SIGNAL
    local pid
    pid=$(process "$1") || return 0
    kill "-$2" "$pid"
    soon gone "$1" || kill -KILL "$pid"
}

bridge() { # print the name of the cluster's bridge, whose alias is the folder
    ip -oneline link show type bridge | sed -n "s|^[0-9]*: \([^:]*\):.* alias $lab *$|\1|p"
}

add_bridge() { # use the first free number, so that several clusters can run at the same time
    local number refused
    for number in {0..9}; do
        if refused=$(ip link add "autoreid$number" type bridge 2>&1); then
            ip link set "autoreid$number" alias "$lab" up
            ip address add "10.77.$number.254/24" dev "autoreid$number"
            return
        fi
        [[ $refused = *exists* ]] || break
    done
    fail 3 "cannot create a network bridge: $refused"
}

make_folder() {
    local number
    mkdir -p "$lab"
    [ -e "$lab/.autoreid-slurm" ] || [ -z "$(ls -A "$lab")" ] || fail 1 "$lab: the folder contains other files; set AUTOREID_SLURM_LAB to another folder"
    [ -O "$lab" ] || fail 1 "$lab: the folder belongs to another user"
    touch "$lab/.autoreid-slurm"
    mkdir -p "$lab"/{etc,run,log,state,spool/n1,spool/n2,dev}
    chmod 755 "$lab" "$lab"/{etc,run}
    for number in {0..7}; do # Slurm needs a device file for each GPU; these are null devices
        mknod "$lab/dev/nvidia$number" c 1 3 2> /dev/null || fail 3 "not allowed to create devices on this machine"
    done
    (umask 077 && head -c 128 /dev/urandom > "$lab/etc/munge.key")
}

write_settings() { # NETWORK
    local file
    for file in "${script%.sh}"/*.conf; do
        sed "s|@LAB@|$lab|; s|@NETWORK@|$1|; s|@FIRST_JOB@|$(($(date +%s) % 50000000))|" "$file" \
            > "$lab/etc/${file##*/}"
    done
    (cat /etc/hosts && printf "$1.%s\n" '1 n1' '2 n2' '254 ctl') > "$lab/etc/hosts"
}

start_controller() {
    munged --key-file="$lab/etc/munge.key" --socket="$lab/run/munge.socket" --pid-file="$lab/run/munged.pid" \
        --log-file="$lab/log/munged.log" --seed-file="$lab/state/munge.seed" 2> "$lab/log/munged.stderr" ||
        fail 1 "munged: $(tail -n 1 "$lab/log/munged.stderr")"
    setsid unshare --uts --mount "$script" boot-controller "$lab" < /dev/null &> "$lab/log/controller.log"
}

boot_controller() {
    hostname ctl
    mount --bind "$lab/etc/hosts" /etc/hosts
    exec slurmctld -f "$SLURM_CONF"
}

start_node() { # NODE
    process "$1" > /dev/null && fail 1 "$1 is already running"
    local bridge
    bridge=$(bridge)
    setsid unshare --net --pid --uts --mount-proc --fork --kill-child "$script" boot-node "$lab" "$1" \
        < /dev/null &> "$lab/log/$1.log" &
    echo $! > "$lab/run/$1.pid"
    soon has_own_network $! || fail 1 "$1 did not start: $(tail -n 1 "$lab/log/$1.log")"
    ip link add "$bridge-$1" type veth peer name eth0 netns $!
    ip link set "$bridge-$1" master "$bridge" up
}

has_own_network() { [ "$(readlink "/proc/$1/ns/net")" != "$(readlink /proc/self/ns/net)" ]; }

boot_node() { # NODE: the first process of the node
    hostname "$1"
    mount --bind "$lab/etc/hosts" /etc/hosts
    mount -t tmpfs tmpfs /dev/shm
    until ip link show eth0 &> /dev/null; do sleep 0.05; done
    ip link set lo up
    ip address add "$(sed -n "s/ $1$//p" "$lab/etc/hosts")/24" dev eth0
    ip link set eth0 up
    slurmd
    # The first process adopts orphaned processes; bash reaps them while it waits.
    while :; do sleep 60 & wait; done
}

first_process() { # NODE: print the pid of the node's first process, in the pid namespace of this script
    local pid
    pid=$(process "$1") || fail 1 "no node $1 is running"
    tr -d ' ' < "/proc/$pid/task/$pid/children"
}

on_node() { # NODE COMMAND...
    local pid
    pid=$(first_process "$1")
    shift
    nsenter --net --pid --uts --mount --target "$pid" "$@"
}

kill_node() { # NODE
    local pid
    pid=$(first_process "$1")
    ip link delete "$(bridge)-$1" # first, because a node that loses power does not close its connections
    kill -KILL "$pid"
    soon gone "$1"
}

all_idle() { [ "$(sinfo --noheader --Node --partition main --format %T 2> /dev/null)" = $'idle\nidle' ]; }

start() {
    local node
    install_slurm
    if process slurmctld > /dev/null; then
        echo "local_slurm: already running" >&2
    else
        unshare --net --pid --uts --mount-proc --fork true 2> /dev/null ||
            fail 3 "cannot create namespaces; a container must be privileged"
        stop
        trap stop EXIT
        make_folder
        add_bridge
        write_settings "$(ip -oneline -4 address show "$(bridge)" | sed 's/.*inet \([0-9.]*\)\.254.*/\1/')"
        start_controller
        for node in "${nodes[@]}"; do start_node "$node"; done
        soon all_idle || fail 1 "the nodes are not idle after $patience s: $(tail -qn 1 "$lab"/log/slurm*.log | tr '\n' ' ')"
        trap - EXIT
    fi
    echo "export SLURM_CONF=$SLURM_CONF"
}

no_jobs() { [ -z "$(squeue --noheader 2> /dev/null)" ]; }

stop() {
    local node
    if process slurmctld > /dev/null; then # otherwise a pending srun would wait for ever
        scancel --partition main && scancel --partition high && patience=10 soon no_jobs || true
    fi
    for node in "${nodes[@]}"; do
        if process "$node" > /dev/null; then kill_node "$node"; fi
    done
    end slurmctld TERM
    end munged TERM
    bridge | xargs --no-run-if-empty -n 1 ip link delete
    if [ -e "$lab/.autoreid-slurm" ]; then rm -rf "$lab"; fi
}

status() {
    process slurmctld > /dev/null || fail 3 "not running"
    sinfo --Node --long
}

case "${1-} $#" in
    "install 1" | "status 1") ;;
    *) [ "$(id -u)" = 0 ] || fail 3 "must be run as root, to create namespaces and a network bridge" ;;
esac
case "${1-} $#" in
    "install 1") install_slurm ;;
    "start 1") start ;;
    "stop 1") stop ;;
    "status 1") status ;;
    "kill-node 2") kill_node "$2" ;;
    "start-node 2") start_node "$2" ;;
    "boot-controller 2") boot_controller ;;
    "boot-node 3") boot_node "$3" ;;
    on\ [12]) fail 2 "$usage" ;;
    on\ *) on_node "${@:2}" ;;
    *) fail 2 "$usage" ;;
esac
