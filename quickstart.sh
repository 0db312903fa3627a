#!/usr/bin/env bash
# A whole Antler site on this machine, in network namespaces of its own: two storage nodes with two
# portals each, a MooseFS master, a chunk node running `antler serve` on a mirror of the two, and a
# mount. Then the faults that Antler is for: a path is cut, a storage node is killed and returns.
#
#   ./quickstart.sh [up|status|down]          (as root, on Debian or Ubuntu)
#
# QUICKSTART_DIR   where everything lives         (default: $HOME/.cache/antler-quickstart)
# QUICKSTART_PORT  first of 20 ports it may use   (default: 19500)
# ANTLER_BIN       a binary to use instead of building one
# TMPDIR and CARGO_TARGET_DIR are honoured. The host's own network is not touched.
set -Eeuo pipefail
export LC_ALL=C

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
DIR=$(realpath -m "${QUICKSTART_DIR:-${HOME:-/root}/.cache/antler-quickstart}")
PORT=${QUICKSTART_PORT:-19500}
COMMAND=${1:-up}

LOGS=$DIR/logs
MNT=$DIR/mnt
CONFIG=$DIR/antler.toml
MARKER=$DIR/.antler-quickstart        # only a directory with this file is ever removed
TARGET=iqn.2024-12.tp2.b3:data-chunk1
UNIT_SIZE=1022M
MASTER_IP=10.194.0.1
CHUNK_IP=10.194.0.11
ROUTER_IP=169.254.0.1                 # of every routing namespace, towards both of its neighbours
HTTP_PORT=$((PORT + 1))
NODES=(mfs cs sto1 sto2)
LINKS=(mfs-cs sto1n1 sto1n2 sto2n1 sto2n2)
DAEMONS=(sto1 sto2 mfsmaster antler mfsmount)
STEP="starting"
STEPS=10
step_number=0

# ---------------------------------------------------------------- words

say() { printf '%s\n' "$*"; }
note() { printf '      %s\n' "$*"; }
indent() { sed 's/^/      | /'; }

step() {
    step_number=$((step_number + 1))
    STEP=$1
    printf '\n[%d/%d] %s\n' "$step_number" "$STEPS" "$1"
}

# Says which step failed, shows the ends of the logs, and leaves everything as it is.
die() {
    trap - ERR
    [ ! -e "$DIR/probe.src" ] || touch "$DIR/probe.stop"
    printf '\nFAILED in step "%s": %s\n' "$STEP" "$1" >&2
    if [ -d "$LOGS" ]; then
        local log
        for log in "$LOGS"/*.log; do
            [ -s "$log" ] || continue
            printf '\n--- the end of %s\n' "$log" >&2
            tail -n 15 "$log" >&2
        done
        printf '\nEverything is left as it is, for a look: %s\n' "$DIR" >&2
        printf 'Remove it with: %s down\n' "$0" >&2
    fi
    exit 1
}
trap 'die "\"$BASH_COMMAND\" (line $LINENO) ended with status $?"' ERR

# wait_for SECONDS WHAT COMMAND...: runs COMMAND until it succeeds.
wait_for() {
    local limit=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$limit" ] || die "waited in vain for: $what"
        sleep 0.2
    done
}

now_ms() { local t=${EPOCHREALTIME/./}; printf '%s' "$((t / 1000))"; }

# ---------------------------------------------------------------- processes

netns() { printf 'aq%s-%s' "$PORT" "$1"; }

# in_ns NODE COMMAND...: runs there. nsenter, not `ip netns exec`: that one makes a mount namespace
# too and would hide our mount from you.
in_ns() {
    local node=$1
    shift
    nsenter --net="/run/netns/$(netns "$node")" -- "$@"
}

# spawn NAME NODE COMMAND...: a daemon with its log and pid file.
spawn() {
    local name=$1 node=$2
    shift 2
    setsid nsenter --net="/run/netns/$(netns "$node")" -- "$@" \
        >>"$LOGS/$name.log" 2>&1 </dev/null &
    echo $! >"$DIR/$name.pid"
    disown
}

# alive NAME: whether the daemon of that pid file runs. A zombie does not, and a process that got
# the same number later is not in one of our namespaces.
alive() {
    local pid node
    pid=$(cat "$DIR/$1.pid" 2>/dev/null) || return 1
    [ -n "$pid" ] || return 1
    ! grep -q '^State:.Z' "/proc/$pid/status" 2>/dev/null || return 1
    for node in "${NODES[@]}"; do
        [ ! "/proc/$pid/ns/net" -ef "/run/netns/$(netns "$node")" ] || return 0
    done
    return 1
}

gone() { ! alive "$1"; }

# stop NAME SIGNAL SECONDS: ends a daemon; after SECONDS by SIGKILL.
stop() {
    local limit=$((SECONDS + $3))
    if alive "$1"; then
        kill -s "$2" "$(cat "$DIR/$1.pid")" 2>/dev/null || true
        while alive "$1"; do
            [ "$SECONDS" -lt "$limit" ] || kill -s KILL "$(cat "$DIR/$1.pid")" 2>/dev/null || true
            sleep 0.1
        done
    fi
    rm -f "$DIR/$1.pid"
}

mounted() { grep -qF " $MNT " /proc/self/mountinfo 2>/dev/null; }

all_running() {
    local name
    for name in "${DAEMONS[@]}"; do alive "$name" || return 1; done
    mounted
}

antler() { in_ns cs "$ANTLER" "$@" -c "$CONFIG"; }

find_antler() {
    local target=${CARGO_TARGET_DIR:-$ROOT/target}
    case $target in /*) ;; *) target=$ROOT/$target ;; esac
    ANTLER=${ANTLER_BIN:-$target/release/antler}
}

# ---------------------------------------------------------------- steps of `up`

need_root() {
    [ "$(id -u)" = 0 ] || {
        say "quickstart makes network namespaces and a mount; run it as root: sudo $0 $COMMAND" >&2
        exit 1
    }
}

install_packages() {
    local missing=() pair
    for pair in tgtd:tgt mfsmaster:moosefs-master mfsmount:moosefs-client mfscli:moosefs-cli \
        mdadm:mdadm ip:iproute2 nsenter:util-linux jq:jq fusermount3:fuse3 cc:build-essential; do
        PATH=$PATH:/usr/sbin:/sbin command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
    done
    export PATH=$PATH:/usr/sbin:/sbin
    if [ ${#missing[@]} -eq 0 ]; then
        note "all there"
        return
    fi
    command -v apt-get >/dev/null ||
        die "apt-get is missing; this script is for Debian and Ubuntu and needs ${missing[*]}"
    note "apt-get install ${missing[*]}"
    # Packages must not start their services: the host's ports and /var/lib/mfs are not ours.
    local policy=/usr/sbin/policy-rc.d made_policy=
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
        made_policy=1
    fi
    local status=0
    {
        apt-get update &&
            DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"
    } >"$LOGS/apt.log" 2>&1 </dev/null || status=$?
    [ -z "$made_policy" ] || rm -f "$policy"
    [ "$status" = 0 ] || die "apt-get install -y ${missing[*]}"
}

build_antler() {
    find_antler
    if [ -n "${ANTLER_BIN:-}" ]; then
        note "using $ANTLER"
        return
    fi
    # sudo often drops the caller's PATH.
    local home
    for home in "${HOME:-/root}" "/home/${SUDO_USER:-}"; do
        command -v cargo >/dev/null || PATH=$PATH:$home/.cargo/bin
    done
    command -v cargo >/dev/null ||
        die "cargo is missing; install a Rust toolchain: https://rustup.rs"
    note "cargo build --release (some minutes the first time)"
    (cd "$ROOT" && cargo build --release -p chunkserver --bin antler) >"$LOGS/build.log" 2>&1 ||
        die "cargo build; see $LOGS/build.log"
    note "$("$ANTLER" --version)"
}

# address NODE LINK: the address of a node on a link; one per node and network.
address() {
    case $2 in
        mfs-cs) case $1 in mfs) echo $MASTER_IP ;; *) echo $CHUNK_IP ;; esac ;;
        sto?n?) case $1 in cs) echo "10.3.${2#sto?n}.101" ;; *) echo "10.3.${2#sto?n}.${1#sto}" ;; esac ;;
    esac
}

ends() {
    case $1 in
        mfs-cs) echo mfs cs ;;
        *) echo cs "${1%n?}" ;;
    esac
}

make_network() {
    local node link
    for node in "${NODES[@]}"; do
        ip netns add "$(netns "$node")"
        ip -n "$(netns "$node")" link set lo up
    done
    for link in "${LINKS[@]}"; do make_link "$link" $(ends "$link"); done
    note "namespaces: ip netns list | grep $(netns '')"
}

# make_link LINK A B: A and B, joined through a routing namespace of the link's own.
make_link() {
    local link=$1 router=r.$1 nodes=("$2" "$3") sides=(left right) i
    ip netns add "$(netns "$router")"
    in_ns "$router" sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward
        for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$f; done'
    for i in 0 1; do
        local node=${nodes[i]} side=${sides[i]} ns_node ns_router own
        ns_node=$(netns "$node") ns_router=$(netns "$router")
        own=$(address "$node" "$link")
        ip link add "$link" netns "$ns_node" type veth peer name "$side" netns "$ns_router"
        ip -n "$ns_router" addr add $ROUTER_IP/32 dev "$side"
        ip -n "$ns_router" link set "$side" up
        # The metric leaves room for a blackhole route, which then wins.
        ip -n "$ns_router" route add "$own/32" dev "$side" metric 100
        ip -n "$ns_node" addr add "$own/32" dev "$link"
        ip -n "$ns_node" link set "$link" up
        ip -n "$ns_node" route add "$(address "${nodes[1 - i]}" "$link")/32" \
            via $ROUTER_IP dev "$link" onlink src "$own"
    done
}

# cut LINK / restore LINK: packets vanish both ways, while carrier and neighbours stay good.
cut() {
    local node
    for node in $(ends "$1"); do
        ip -n "$(netns "r.$1")" route add blackhole "$(address "$node" "$1")/32"
    done
}

restore() {
    local node
    for node in $(ends "$1"); do
        ip -n "$(netns "r.$1")" route del blackhole "$(address "$node" "$1")/32"
    done
}

# tgtd's management socket is numbered for the whole machine, below 32768.
control_port() { echo $((1024 + (PORT + 2 + ${1#sto}) % 31000)); }

tgtadm_on() {
    local node=$1
    shift
    in_ns "$node" tgtadm -C "$(control_port "$node")" --lld iscsi "$@"
}

start_storage() {
    local node=$1 n=${1#sto} setting
    [ -e "$DIR/$node.img" ] || truncate -s $UNIT_SIZE "$DIR/$node.img"
    rm -f "/var/run/tgtd/socket.$(control_port "$node")"{,.lock}
    spawn "$node" "$node" tgtd -f -C "$(control_port "$node")" \
        --iscsi "portal=10.3.1.$n:$PORT,portal=10.3.2.$n:$PORT"
    wait_for 15 "tgtd on $node (see $LOGS/$node.log)" tgtadm_on "$node" --mode target --op show
    alive "$node" || die "tgtd on $node ended"
    tgtadm_on "$node" --mode target --op new --tid 1 -T $TARGET
    for setting in MaxRecvDataSegmentLength=262144 MaxXmitDataSegmentLength=262144 \
        MaxBurstLength=1048576 FirstBurstLength=262144 InitialR2T=No ImmediateData=Yes; do
        tgtadm_on "$node" --mode target --op update --tid 1 \
            --name "${setting%%=*}" --value "${setting##*=}"
    done
    tgtadm_on "$node" --mode logicalunit --op new --tid 1 --lun 1 -b "$DIR/$node.img"
    # Without these two, both nodes' units would carry the same identity.
    tgtadm_on "$node" --mode logicalunit --op update --tid 1 --lun 1 \
        --params "scsi_id=Antler-$node,scsi_sn=antler-$node"
    tgtadm_on "$node" --mode target --op bind --tid 1 -I ALL
}

start_master() {
    mkdir -p "$DIR/master"
    printf 'MFSM NEW' >"$DIR/master/metadata.mfs"
    printf '* / rw,alldirs,admin,maproot=0:0\n* . rw\n' >"$DIR/master/mfsexports.cfg"
    cat >"$DIR/master/mfsmaster.cfg" <<EOF
WORKING_USER = root
WORKING_GROUP = root
DATA_PATH = $DIR/master
EXPORTS_FILENAME = $DIR/master/mfsexports.cfg
REPLICATIONS_DELAY_INIT = 0
EOF
    spawn mfsmaster mfs mfsmaster -f -a -c "$DIR/master/mfsmaster.cfg" start
    wait_for 20 "mfsmaster (see $LOGS/mfsmaster.log)" \
        in_ns mfs bash -c "exec 3<>/dev/tcp/$MASTER_IP/9421"
}

write_config() {
    cat >"$CONFIG" <<EOF
# The typical site: one volume, mirrored over two storage nodes, each reached over two networks.
[chunkserver]
master_host = "$MASTER_IP"
csserv_listen_host = "$CHUNK_IP"
data_path = "$DIR/data"

[admin]
socket = "$DIR/admin.sock"
http = "127.0.0.1:$HTTP_PORT"

[iscsi]
initiator_name = "$TARGET:chunk1-initiator"

[[device]]
name = "sto1"
portals = ["10.3.1.1:$PORT", "10.3.2.1:$PORT"]
target = "$TARGET"
lun = 1

[[device]]
name = "sto2"
portals = ["10.3.1.2:$PORT", "10.3.2.2:$PORT"]
target = "$TARGET"
lun = 1

[[volume]]
name = "vol1"
mirror = ["sto1", "sto2"]
EOF
}

registered() { antler status --json | jq -e '.master.state == "registered"'; }

mount_it() {
    spawn mfsmount mfs mfsmount -f -H $MASTER_IP -o mfscachemode=NEVER "$MNT"
    wait_for 20 "the mount (see $LOGS/mfsmount.log)" mounted
}

remount() {
    umount "$MNT"
    wait_for 30 "mfsmount to end" gone mfsmount
    mount_it
}

# ---------------------------------------------------------------- data

# put NAME BYTES: random bytes into a file on the mount; its checksum goes to the list.
put() {
    local sum
    mkdir -p "$(dirname "$MNT/$1")"
    sum=$(head -c "$2" /dev/urandom | tee "$MNT/$1" | sha256sum)
    printf '%s  %s\n' "${sum%% *}" "$1" >>"$DIR/sums"
    bytes_written=$((bytes_written + $2))
}

# verify: compares every file with its checksum.
verify() {
    local wrong
    wrong=$( (cd "$MNT" && sha256sum -c --quiet "$DIR/sums" 2>&1) | grep -c ': FAILED') || true
    verify_errors=$((verify_errors + wrong))
    bytes_verified=$((bytes_verified + bytes_written))
    [ "$wrong" = 0 ] || die "$wrong files read back wrong"
}

# The probe writes a small file with fsync, reads it back and compares, over and over; what it waits
# longest is what an application would have waited.
probe() {
    local n=0 began took
    while [ ! -e "$DIR/probe.stop" ]; do
        n=$(((n + 1) % 16))
        began=$(now_ms)
        if ! dd if="$DIR/probe.src/$n" of="$MNT/probe/$n" bs=128k conv=fsync,notrunc 2>/dev/null ||
            ! cmp -s "$DIR/probe.src/$n" "$MNT/probe/$n"; then
            echo "$n" >>"$DIR/probe.errors"
        fi
        took=$(($(now_ms) - began))
        echo "$took" >>"$DIR/probe.times"
    done
}

probe_start() {
    local n
    rm -f "$DIR"/probe.{stop,times,errors}
    mkdir -p "$MNT/probe" "$DIR/probe.src"
    for n in {0..15}; do head -c 131072 /dev/urandom >"$DIR/probe.src/$n"; done
    trap - ERR
    probe &
    probe_pid=$!
    trap 'die "\"$BASH_COMMAND\" (line $LINENO) ended with status $?"' ERR
    sleep 2
}

# probe_stop: ends it and sets probe_longest_ms.
probe_stop() {
    sleep 1
    touch "$DIR/probe.stop"
    wait "$probe_pid"
    local rounds
    rounds=$(wc -l <"$DIR/probe.times")
    probe_longest_ms=$(sort -n "$DIR/probe.times" | tail -n 1)
    probe_bytes=$((probe_bytes + rounds * 131072))
    if [ -e "$DIR/probe.errors" ]; then
        verify_errors=$((verify_errors + $(wc -l <"$DIR/probe.errors")))
        die "an application would have seen $(wc -l <"$DIR/probe.errors") errors"
    fi
    note "$rounds writes, each fsynced and read back; the longest took $probe_longest_ms ms; no error"
}

active_portal() {
    antler paths --json | jq -r '[.devices[] | select(.name == "sto1") | .groups[]
        | select(.state == "active") | .paths[] | select(.state == "active") | .portal][0]'
}

some_path_failed() { antler paths --json | jq -e '[.devices[].groups[].paths[].state] | index("failed")'; }
all_paths_active() { antler paths --json | jq -e '[.devices[].groups[].paths[].state] | all(. == "active")'; }
array_is() { antler arrays --json | jq -e --arg s "$1" '.arrays | length > 0 and all(.state == $s)'; }
array_whole() {
    antler arrays --json | jq -e '.arrays[0] | .sync == null and (.legs | all(.state == "in-sync"))
        and (.state == "clean" or .state == "active")'
}

show_status() { antler status | indent; }

# ---------------------------------------------------------------- commands

up() {
    need_root
    if [ -e "$MARKER" ]; then
        if all_running; then
            say "Already running; the mount is $MNT. Stop it with: $0 down"
            exit 0
        fi
        if [ -e "$DIR/result.json" ]; then
            say "An earlier quickstart is in $DIR, but not all of it runs ($0 status)." >&2
            say "Remove it, with the files on its mount: $0 down" >&2
            exit 1
        fi
        say "Removing what an unfinished run left in $DIR."
        down >/dev/null
    elif [ -d "$DIR" ] && [ -n "$(ls -A "$DIR")" ]; then
        say "$DIR is not empty and not ours; choose another with QUICKSTART_DIR=..." >&2
        exit 1
    fi
    local started=$SECONDS
    bytes_written=0 bytes_verified=0 verify_errors=0 probe_bytes=0
    mkdir -p "$LOGS" "$MNT" "$DIR/data"
    echo "$PORT" >"$MARKER"
    say "A whole Antler site on this machine, in $DIR"

    step "Packages: tgt, MooseFS master and client, tools"
    install_packages

    step "Build antler"
    build_antler

    step "Network: two storage networks and one for MooseFS, in namespaces"
    make_network

    step "Two storage nodes (tgt), each with one unit of $UNIT_SIZE and two portals"
    start_storage sto1
    start_storage sto2
    write_config
    antler discover "10.3.1.1:$PORT" | indent
    antler discover "10.3.2.2:$PORT" | indent

    step "Volume vol1: a mirror of the two units, each reached over both networks"
    antler check >/dev/null
    antler device info sto1 | indent
    antler volume create vol1 2>&1 | indent
    antler volume list | indent

    step "MooseFS: master, antler serve as its chunkserver, mount"
    start_master
    spawn antler cs "$ANTLER" serve -c "$CONFIG"
    wait_for 30 "antler to register (see $LOGS/antler.log)" registered
    mount_it
    # The one chunkserver can hold one copy (the mirror is below it). With the usual goal of two the
    # master puts off every overwrite (EAGAIN) in its first ten seconds and while a server registers.
    in_ns mfs mfssetgoal -r 1 "$MNT" >/dev/null
    show_status

    step "Write files and read them back"
    : >"$DIR/sums"
    put "big" 104857600
    local n
    for n in {1..50}; do put "small/$n" $((n * n * 37)); done
    put "medium" 7777777
    sync -f "$MNT"
    remount
    verify
    note "$bytes_verified bytes written, and read back equal after a remount"
    show_status

    step "Cut the path in use, silently (packets vanish, carrier stays)"
    local portal network
    portal=$(active_portal)
    [ "$portal" != null ] || die "no active path to sto1: $(antler paths)"
    network=$(echo "$portal" | cut_field 3)
    note "the path in use to sto1 is $portal; cutting it while an application writes"
    probe_start
    cut "sto1n$network"
    wait_for 60 "the path to be seen as failed" some_path_failed
    probe_stop
    path_cut_stall_ms=$probe_longest_ms
    show_status
    restore "sto1n$network"
    wait_for 60 "the path to return" all_paths_active
    note "the path is back"

    step "Kill storage node sto2, write on, bring it back"
    probe_start
    stop sto2 KILL 5
    wait_for 60 "the array to be degraded" array_is degraded
    probe_stop
    node_kill_stall_ms=$probe_longest_ms
    put "while-degraded" 20971520
    sync -f "$MNT"
    show_status
    start_storage sto2
    wait_for 180 "the mirror to be whole again" array_whole
    rebuilt_bytes=$(antler arrays --json | jq '.arrays[0].last_sync.copied_bytes // 0')
    note "sto2 is back; $rebuilt_bytes bytes were copied to it"
    show_status

    step "Compare every byte once more, and look at the legs with mdadm"
    remount
    verify
    local leg
    for leg in sto1 sto2; do
        mdadm --examine "$DIR/$leg.img" | grep -E 'Raid Level|Array State|Events|Update Time' | indent
    done

    cat >"$DIR/result.json" <<EOF
{"bytes_written":$((bytes_written + probe_bytes)),"bytes_verified":$((bytes_verified + probe_bytes)),"verify_errors":$verify_errors,"path_cut_stall_ms":$path_cut_stall_ms,"node_kill_stall_ms":$node_kill_stall_ms,"rebuilt_bytes":$rebuilt_bytes,"elapsed_s":$((SECONDS - started))}
EOF
    trap - ERR
    say ""
    say "Everything held."
    say ""
    jq -r '["bytes written", .bytes_written], ["bytes read back and compared", .bytes_verified],
        ["wrong", .verify_errors], ["longest stall, path cut silently (ms)", .path_cut_stall_ms],
        ["longest stall, storage node killed (ms)", .node_kill_stall_ms],
        ["bytes copied to the node that came back", .rebuilt_bytes], ["seconds in all", .elapsed_s]
        | "  \(.[0] + " " * (44 - (.[0] | length)))\(.[1])"' "$DIR/result.json"
    say ""
    say "The file system is yours to try:   $MNT"
    say "MooseFS' own tools need its network: nsenter --net=/run/netns/$(netns mfs) mfsfileinfo $MNT/big"
    say "Its state:                         $0 status"
    say "The status page:                   nsenter --net=/run/netns/$(netns cs) curl -s http://127.0.0.1:$HTTP_PORT/"
    say "Stop and remove everything:        $0 down"
}

# cut_field N: the N-th dotted field of an address.
cut_field() { awk -F. -v n="$1" '{ print $n }'; }

status() {
    trap - ERR
    if [ ! -e "$MARKER" ]; then
        say "not running (no $DIR)"
        exit 1
    fi
    PORT=$(cat "$MARKER")
    local name bad=0
    for name in "${DAEMONS[@]}"; do
        if alive "$name"; then
            printf '%-10s running, pid %s\n' "$name" "$(cat "$DIR/$name.pid")"
        else
            printf '%-10s NOT running (%s)\n' "$name" "$LOGS/$name.log"
            bad=1
        fi
    done
    if mounted; then
        printf '%-10s %s\n' mount "$MNT"
    else
        printf '%-10s NOT mounted\n' mount
        bad=1
    fi
    if alive antler; then
        find_antler
        say ""
        antler status || bad=1
    fi
    exit $bad
}

down() {
    trap - ERR
    set +e
    [ ! -e "$MARKER" ] || PORT=$(cat "$MARKER")
    [ ! -e "$DIR/probe.src" ] || touch "$DIR/probe.stop"
    local pids
    pids=$(cat "$DIR"/*.pid 2>/dev/null)
    # Lazily, and the client killed: one that lost its servers would hold the mount for minutes.
    while mounted; do umount -l "$MNT" || break; done
    stop mfsmount TERM 2
    stop antler TERM 8
    stop mfsmaster KILL 5
    stop sto1 KILL 5
    stop sto2 KILL 5
    local name pid node deadline=$((SECONDS + 5))
    # Whatever is left in our namespaces, and these themselves; their veths go with them.
    for name in $(ip netns list 2>/dev/null | awk -v p="$(netns '')" 'index($1, p) == 1 { print $1 }'); do
        for pid in $(ip netns pids "$name" 2>/dev/null); do kill -s KILL "$pid" 2>/dev/null; done
        ip netns del "$name"
    done
    for node in sto1 sto2; do
        rm -f "/var/run/tgtd/socket.$(control_port "$node")"{,.lock}
    done
    rmdir --ignore-fail-on-non-empty /var/run/tgtd 2>/dev/null
    if [ -e "$MARKER" ]; then
        if mounted; then
            say "cannot unmount $MNT; $DIR is left" >&2
            return 1
        fi
        rm -rf --one-file-system "$DIR"
    fi
    # Ended is not yet gone: init collects them.
    for pid in $pids; do
        while [ -d "/proc/$pid" ] && [ "$SECONDS" -lt "$deadline" ]; do sleep 0.1; done
    done
    set -e
    say "Nothing of it is left: no process, mount, namespace or directory."
}

case $COMMAND in
    up) up ;;
    status) need_root && status ;;
    down) need_root && down ;;
    *)
        sed -n '2,13s/^# \{0,1\}//p' "$0" >&2
        exit 2
        ;;
esac
