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
exec reveille "$@"
