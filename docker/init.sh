#!/bin/sh
# Founds the cluster of docker-compose.yml: its CA, a certificate and a configuration for each node, the enrolment token
# for terminals, the access token for the publisher. Each goes to the volume of the one that needs it; the keys of the
# CA and of enrolment stay in a volume that only this container sees. Once: what is there is kept.
set -eu
umask 077
cd /init

if [ -e authority/founded ]; then
    echo "the cluster is founded already"
    exit 0
fi
for node in node-1 node-2 node-3; do
    if [ -e "$node/data" ]; then
        echo "$node holds data of a cluster whose authority is gone; docker-compose down --volumes forgets it" >&2
        exit 1
    fi
done
# What an attempt that was cut short has left.
rm -rf authority/* node-*/* terminal-*/* publisher/*

hex() { od -An -v -tx1 -N"$1" /dev/urandom | tr -d ' \n'; }
cluster=$(hex 8)
token=$(hex 24)

reveille certs ca --out authority
enrolment_key=$(reveille certs enrolment-key --out authority)
for id in 1 2 3; do
    # REVEILLE_NAMES: by what else nodes are reached, as `name,address`.
    reveille certs node --ca authority --id $id --cluster "$cluster" --days 365 --out "node-$id" \
        --names "push,node-$id,localhost${REVEILLE_NAMES:+,$REVEILLE_NAMES}"
    cp authority/ca.pem "node-$id/"
    cat >"node-$id/node.toml" <<NODE
node = $id
data = "data"

[cluster]
id = "$cluster"
groups = 3
nodes = { 1 = "node-1:7100", 2 = "node-2:7100", 3 = "node-3:7100" }

[cluster.tenant]
name = "compose"
admin_token_sha256 = "$(printf %s "$token" | sha256sum | cut -d ' ' -f 1)"
$enrolment_key

[tls]
ca = "ca.pem"
certificate = "node-$id.pem"
key = "node-$id.key"

[peer]
listen = "0.0.0.0:7100"
advertise = "node-$id:7100"

[session]
listen = "0.0.0.0:8443"
advertise = "node-$id:8443"

[http]
listen = "0.0.0.0:8080"
advertise = "https://node-$id:8080"

[admin]
listen = "127.0.0.1:9100"

[storage]
segment_bytes = 16777216
NODE
done

enrolment=$(reveille certs enrolment-token --key authority/enrolment.key --valid 365d)
for terminal in terminal-1 terminal-2; do
    cp authority/ca.pem "$terminal/"
    echo "$enrolment" >"$terminal/enrolment"
done
cp authority/ca.pem publisher/
echo "$token" >publisher/token

# Last: its being there says that the rest is.
sync
touch authority/founded
echo "founded cluster $cluster"
