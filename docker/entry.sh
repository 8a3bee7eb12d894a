#!/bin/sh
# Runs `reveille` with the secrets of this container's volume, if it has any.
set -eu
if [ -e token ]; then
    REVEILLE_TOKEN=$(cat token)
    export REVEILLE_TOKEN
fi
if [ -e enrolment ]; then
    REVEILLE_ENROLMENT=$(cat enrolment)
    export REVEILLE_ENROLMENT
fi
if [ "${1:-}" = node ] && [ ! -e node.toml ]; then
    echo "entry.sh: there is no node.toml in $PWD: this node's volume is new, or was lost. What a lost one held must not" \
        "come back under its id; docs/containers.md says how another takes its place" >&2
    exit 78
fi
exec reveille "$@"
