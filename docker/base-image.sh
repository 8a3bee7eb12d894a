#!/bin/sh
# Makes the base image where no registry can be reached: this host's distribution, minimal, from the mirrors that its
# apt uses. Prints the settings with which docker-compose takes it and a binary that was built on this host:
#
#     docker/base-image.sh > .env.new && mv .env.new .env
set -eu
name=${1:-reveille-base}
case $name in
    *[!a-z0-9._/:-]* | [!a-z0-9]*)
        echo "base-image.sh: $name is no name of an image: lower-case letters, digits and . _ - / :" >&2
        exit 1
        ;;
esac

for tool in docker mmdebstrap; do
    command -v "$tool" >/dev/null || { echo "base-image.sh: $tool is needed and not installed" >&2; exit 1; }
done

# The suite of this host, so that what was linked here runs there.
. /etc/os-release
sources=$(apt-get indextargets --format "\$(ORIGIN) deb \$(REPO_URI) \$(RELEASE) \$(COMPONENT)" \
    'Created-By: Packages' | sed -n "s/^$ID deb /deb /Ip" | sort -u)
if [ -z "$sources" ]; then
    echo "base-image.sh: apt knows no packages of $ID; run apt-get update first" >&2
    exit 1
fi

echo "base-image.sh: fetching packages of $ID $VERSION_CODENAME; this takes a minute" >&2
# A file and no pipe: sh would not see mmdebstrap fail.
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
echo "$sources" | mmdebstrap --quiet --variant=minbase "$VERSION_CODENAME" "$folder/base.tar" - >&2
docker import "$folder/base.tar" "$name" >&2

cat <<SETTINGS
REVEILLE_BUILDER=$name
REVEILLE_BASE=$name
REVEILLE_BINARY=target/release/reveille
SETTINGS
