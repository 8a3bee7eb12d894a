#!/bin/sh
# What a run does to the containers of its own cluster that is more than one word of docker's: hook.sh WHAT CONTAINER …
# Whatever undoes something may be run again, and where there is nothing to undo.
set -eu
what=$1 container=$2

# nft in the network namespace of the container, which only root may enter. One that does not run has none: what was in
# it went with it.
inside() {
    pid=$(docker inspect --format '{{.State.Pid}}' "$container")
    if [ "$pid" = 0 ]; then return; fi
    # The number may be another machine's.
    if ! grep -q "$(docker inspect --format '{{.Id}}' "$container")" "/proc/$pid/cgroup"; then
        echo "hook.sh: process $pid is not of $container: is Docker's engine on another machine?" >&2
        exit 1
    fi
    nsenter --target "$pid" --net nft "$1"
}

# A table for each address from which something is wrong, made anew.
table() { echo "add table inet $1; delete table inet $1"; }
drop() {
    name=chaos-$(echo "$1" | tr . -)
    inside "$(table "$name"); add table inet $name;
        add chain inet $name in { type filter hook input priority 0; };
        add rule inet $name in ip saddr $1 $2 counter drop"
}

case $what in
# The freezer of cgroups of version 1 may fail where many processes are busy.
pause)
    for _ in 1 2 3 4 5; do
        if docker pause "$container"; then exit 0; fi
        sleep 0.2
    done
    exit 1
    ;;
resume)
    if [ "$(docker inspect --format '{{.State.Paused}}' "$container")" = true ]; then docker unpause "$container"; fi
    ;;
cut) drop "$3" "" ;;
# In thousandths: nft has no fractions.
loss) drop "$3" "numgen random mod 1000 < $(awk "BEGIN { printf \"%d\", $4 * 1000 }")" ;;
heal) inside "$(table "chaos-$(echo "$3" | tr . -)")" ;;
# The kernel wants a hundredth of a processor at least.
cpu) docker update --cpu-period 100000 \
    --cpu-quota "$(awk "BEGIN { quota = $3 * 100000; printf \"%d\", quota < 1000 ? 1000 : quota }")" "$container" ;;
release) docker update --cpu-quota -1 "$container" ;;
logs) docker logs "$container" 2>&1 ;;
*)
    echo "hook.sh: $what is nothing that it does" >&2
    exit 64
    ;;
esac
