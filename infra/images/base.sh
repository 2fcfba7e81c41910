#!/usr/bin/env bash
# Make a base image out of Debian's packages, for a machine that can pull none: Debian and its Python, nothing else.
#
#   infra/images/base.sh [TAG]     by default wukong/base:bookworm; SUITE=trixie takes Debian 13 and its Python 3.13
#
# Needs root, debootstrap and a running Docker engine. The same package versions give the same image.
set -euo pipefail

suite=${SUITE:-bookworm}
tag=${1:-wukong/base:$suite}
mirror=${MIRROR:-http://deb.debian.org/debian}
# All files get this time: only what is in them may make two images differ.
epoch=${SOURCE_DATE_EPOCH:-0}

((EUID == 0)) || { echo "base.sh unpacks packages with their owners: run it as root" >&2; exit 1; }
command -v debootstrap >/dev/null || { echo "debootstrap is missing; on Debian: apt-get install debootstrap" >&2; exit 1; }
docker version --format '{{.Server.Version}}' >/dev/null || { echo "no Docker engine answers" >&2; exit 1; }

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
log=$root.log
if ! debootstrap --variant=minbase --include=python3,ca-certificates "$suite" "$root" "$mirror" >"$log" 2>&1; then
  tail -n 20 "$log" >&2
  exit 1
fi

# What belongs to this very installation, and what nobody reads in a container.
rm -rf "${root:?}"/{dev,tmp,var/cache,var/log,var/lib/apt/lists}/* \
  "$root"/etc/machine-id "$root"/etc/hostname "$root"/etc/resolv.conf \
  "$root"/usr/share/{doc,info,man,lintian,locale}/*
find "$root" -name __pycache__ -prune -exec rm -rf {} +
# Directories of caches must exist for apt and ldconfig to run later.
mkdir -p "$root"/var/cache/apt/archives/partial "$root"/var/cache/ldconfig

tar -C "$root" --sort=name --mtime="@$epoch" --clamp-mtime --numeric-owner --pax-option=delete=atime,delete=ctime -c . \
  | docker import --change 'CMD ["python3"]' --change 'ENV PATH=/usr/local/bin:/usr/bin:/bin' - "$tag" >/dev/null
rm -f "$log"
docker image inspect --format '{{index .RepoTags 0}} {{.Size}} bytes' "$tag"
