#!/usr/bin/env bash
# All tests of Antler, for people and for CI alike.
#
#   ./test.sh                    everything
#   ./test.sh STEP...            check | unit | sim | interop | fuzz
#   ./test.sh --mutations [RULE] switches each safety rule of tests/mutations.toml off and expects a test
#                                to notice; with a RULE, that one alone
#   ./test.sh --ci               everything, then the mutations with at most 10 s for each
#   --long                       (with any of these) more seeds, more cases, no limit for mutations
#
# Installs what is missing (Debian packages as root; rustfmt and clippy through rustup). SIM_SEED replays one
# seed; TMPDIR, CARGO_TARGET_DIR and ANTLER_BIN are honoured. Exit 0 only if everything ran and passed;
# the last line sums up cargo's own counts.
set -Eeuo pipefail
export LC_ALL=C
cd "$(dirname "${BASH_SOURCE[0]}")"

ALL_STEPS=(check unit sim interop fuzz)
MUTATION_LIMIT_S=10
FUZZ_CASES=2000
# Executions of each state machine of the initiator in the step `fuzz`.
FUZZ_RUNS=1000000
FUZZ_CASES_LONG=200000
# program:package
PROGRAMS=(tgtd:tgt istgt:istgt mfsmaster:moosefs-master mfschunkserver:moosefs-chunkserver
    mfsmount:moosefs-client mfscli:moosefs-cli mdadm:mdadm fio:fio iscsi-ls:libiscsi-bin
    mke2fs:e2fsprogs ip:iproute2 nsenter:util-linux fusermount3:fuse3 cc:build-essential
    promtool:prometheus curl:curl losetup:mount)

usage() {
    sed -n '2,15s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

steps=() mutations= rule= long= ci=
while [ $# -gt 0 ]; do
    case $1 in
        check | unit | sim | interop | fuzz) steps+=("$1") ;;
        all) steps=("${ALL_STEPS[@]}") ;;
        --long) long=1 ;;
        --ci) ci=1 ;;
        --mutations)
            mutations=1
            case ${2:-} in
                '' | -*) ;;
                *) rule=$2 && shift ;;
            esac
            ;;
        *) usage ;;
    esac
    shift
done
if [ ${#steps[@]} -eq 0 ] && [ -z "$mutations" ]; then steps=("${ALL_STEPS[@]}"); fi
if [ -n "$ci" ]; then mutations=1; fi
if [ -n "$long" ]; then export SIM_LONG=1; fi

export PATH=$PATH:/usr/sbin:/sbin
WORK=$(mktemp -d "${TMPDIR:-/tmp}/antler-test.XXXXXX")
LOG=$WORK/cargo.log
: >"$LOG"
trap 'rm -rf "$WORK"' EXIT
failed=()

say() { printf '\n=== %s\n' "$*"; }

# try NAME COMMAND...: runs it, shows and keeps its output; a failure is noted and the rest still runs.
try() {
    local name=$1 status=0
    shift
    say "$name: $*"
    "$@" 2>&1 | tee -a "$LOG" || status=$?
    if [ "$status" != 0 ]; then
        failed+=("$name")
        printf 'FAILED: %s\n' "$name"
    fi
}

# ---------------------------------------------------------------- what is needed

install_packages() {
    local missing=() pair policy=/usr/sbin/policy-rc.d made= status=0
    for pair in "${PROGRAMS[@]}"; do
        command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
    done
    [ ${#missing[@]} -ne 0 ] || return 0
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        printf 'missing; install with: apt-get install -y %s\n' "${missing[*]}" >&2
        exit 1
    fi
    say "apt-get install ${missing[*]}"
    # Their services must not start: tests run daemons of their own.
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod +x $policy
        made=1
    fi
    {
        apt-get update -q &&
            DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
    } </dev/null >"$WORK/apt.log" 2>&1 || status=$?
    [ -z "$made" ] || rm -f $policy
    if [ "$status" != 0 ]; then
        tail -n 30 "$WORK/apt.log" >&2
        printf 'failed: apt-get install -y %s\n' "${missing[*]}" >&2
        exit 1
    fi
}

need_toolchain() {
    local home
    for home in "${HOME:-/root}" "/home/${SUDO_USER:-}"; do
        command -v cargo >/dev/null || PATH=$PATH:$home/.cargo/bin
    done
    command -v cargo >/dev/null || {
        echo 'cargo is missing; install a Rust toolchain: https://rustup.rs' >&2
        exit 1
    }
}

need_component() {
    cargo "$1" --version >/dev/null 2>&1 || rustup component add "$2" || {
        printf '%s is missing; install it with: rustup component add %s\n' "$2" "$2" >&2
        exit 1
    }
}

# ---------------------------------------------------------------- steps

# Every ignored test says why.
ignores_have_reasons() {
    local bare
    bare=$(git ls-files -co --exclude-standard '*.rs' |
        xargs -d '\n' grep -nE '#\[(cfg_attr\(.*, *)?ignore *\)?\]' /dev/null || true)
    [ -z "$bare" ] || {
        printf 'an #[ignore] without a reason string:\n%s\n' "$bare"
        return 1
    }
}

scripts_parse() {
    local script
    for script in quickstart.sh test.sh .ci/run; do bash -n "$script" || return 1; done
}

step_check() {
    need_component fmt rustfmt
    need_component clippy clippy
    try "fmt" cargo fmt --all --check
    try "scripts" scripts_parse
    try "ignores" ignores_have_reasons
    try "clippy" cargo clippy --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" try "doc" cargo doc --workspace --no-deps
}

step_unit() {
    try "unit" cargo test --no-fail-fast --workspace --exclude tests --exclude harness
    try "harness unit" cargo test --no-fail-fast -p harness --lib
}

step_sim() {
    if ! compgen -G 'tests/tests/sim_*.rs' >/dev/null; then
        say "sim: there is none"
        failed+=("sim")
        return
    fi
    try "sim" cargo test --release --no-fail-fast -p tests --lib --test 'sim_*'
}

step_interop() {
    if [ -z "${ANTLER_BIN:-}" ]; then
        try "antler" cargo build --release -p chunkserver --bin antler
    fi
    try "harness" cargo test --no-fail-fast -p harness --test stock -- --test-threads=1
    # One at a time: each runs a whole site.
    try "interop" cargo test --no-fail-fast -p tests --test 'interop_*' -- --test-threads=1
}

# The names of all property tests: `fn NAME` after `#[test]` inside `proptest! { ... }`.
property_tests() {
    git ls-files -co --exclude-standard '*.rs' | xargs -d '\n' awk '
        FNR == 1 { inside = 0 }
        /proptest! *\{/ { inside = 1; match($0, /^ */); close_line = substr($0, 1, RLENGTH) "}" }
        inside && $0 == close_line { inside = 0 }
        inside && /#\[test\]/ { expected = 1; next }
        inside && expected && /fn / { name = $0; sub(/^.*fn +/, "", name); sub(/[^A-Za-z0-9_].*/, "", name)
            print name; expected = 0 }
    ' | sort -u
}

# Every decoder and state machine again, with many more arbitrary inputs than the unit step gives them.
step_fuzz() {
    local cases=$FUZZ_CASES names
    [ -z "$long" ] || cases=$FUZZ_CASES_LONG
    mapfile -t names < <(property_tests)
    PROPTEST_CASES=$cases try "fuzz" \
        cargo test --no-fail-fast --workspace --exclude tests --exclude harness --lib -- "${names[@]}"
    FUZZ_RUNS=$FUZZ_RUNS try "fuzz initiator" \
        cargo test --no-fail-fast -p iscsi-initiator --test fuzz
}

# Prints `RULE<tab>COMMAND` for each [[mutation]] of the list.
list_mutations() {
    awk '
        function value(line) { sub(/^[^=]*= *"/, "", line); sub(/" *(#.*)?$/, "", line); return line }
        function flush() { if (rule != "") print rule "\t" test; rule = test = "" }
        /^\[\[mutation\]\]/ { flush() }
        /^rule *=/ { rule = value($0) }
        /^test *=/ { test = value($0) }
        END { flush() }
    ' tests/mutations.toml
}

# Each command passes as it is, and fails with its rule switched off. Equal commands are run once as they are.
step_mutations() {
    local name command passed=$WORK/passed log=$WORK/mutation.log status limit=() known=
    [ -n "$long" ] || limit=(timeout "$MUTATION_LIMIT_S")
    : >"$passed"
    while IFS=$'\t' read -r name command; do
        [ -z "$rule" ] || [ "$rule" = "$name" ] || continue
        known=1
        if ! grep -qxF "$command" "$passed"; then
            say "as it is: $command"
            if ! env -u ANTLER_MUTATION bash -c "$command" >"$log" 2>&1 </dev/null; then
                tail -n 40 "$log"
                printf 'NOT PASSING as it is: %s\n' "$name"
                failed+=("mutation $name")
                continue
            fi
            printf '%s\n' "$command" >>"$passed"
        fi
        status=0
        ANTLER_MUTATION=$name "${limit[@]}" bash -c "$command" >"$log" 2>&1 </dev/null || status=$?
        if grep -q '^test result: FAILED' "$log"; then
            printf 'caught: %s\n' "$name"
        else
            tail -n 20 "$log"
            printf 'NOT CAUGHT: %s (status %s; 124 = within %s s)\n' \
                "$name" "$status" "$MUTATION_LIMIT_S"
            failed+=("mutation $name")
        fi
    done < <(list_mutations)
    if [ -z "$known" ] && [ -n "$rule" ]; then
        printf 'no mutation %s in tests/mutations.toml\n' "$rule" >&2
        failed+=("mutations")
    fi
}

# ---------------------------------------------------------------- all of it

need_toolchain
install_packages
for step in "${steps[@]}"; do "step_$step"; done
if [ -n "$mutations" ]; then step_mutations; fi

if [ ${#failed[@]} -ne 0 ]; then
    printf '\nfailed: %s\n' "$(printf '%s, ' "${failed[@]}" | sed 's/, $//')"
fi
# `test result: ok. 12 passed; 0 failed; 1 ignored; ...`, one line for each test program.
awk -v broken="${#failed[@]}" '
    /^test result: / {
        for (i = 2; i <= NF; i++) {
            if ($i == "passed;") passed += $(i - 1)
            if ($i == "failed;") failed += $(i - 1)
            if ($i == "ignored;") ignored += $(i - 1)
        }
    }
    END {
        # A step that failed without a failing test (a lint, a build, a mutation) counts as one.
        if (broken > 0 && failed == 0) failed = broken
        printf "tests: %d passed, %d failed, %d ignored\n", passed, failed, ignored
        exit failed > 0
    }
' "$LOG"
