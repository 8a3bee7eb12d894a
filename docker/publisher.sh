#!/bin/sh
# Publishes to every terminal of the service list in turn, each time through the next node, and prints a line for each
# push. As a careful publisher: what fails is tried again through the next node, under the same key.
set -eu
REVEILLE_TOKEN=$(cat token)
export REVEILLE_TOKEN
run=$(date +%s)
number=0

publish() {
    for try in 0 1 2; do
        node=node-$(((number + try) % 3 + 1))
        if became=$(reveille publish --url "https://$node:8080" --ca ca.pem --to "$1" \
            --idempotency-key "$run-$number" --wait acked "push $number" 2>&1); then
            echo "push $number through $node to $1: $became"
            return
        fi
        echo "push $number through $node to $1 is not through:" $became
    done
}

while :; do
    for terminal in $(reveille terminals --ca ca.pem); do
        number=$((number + 1))
        publish "$terminal"
    done
    sleep 3
done
