#!/usr/bin/env bash
# Build a base image from Debian's packages, for a machine that cannot pull one. It contains only Debian and Python.
#
#   infra/images/base.sh [TAG] [PYTHON]     by default localhost/wukong/base:SUITE and the suite's own Python
#
# SUITE is a Debian suite, by default this machine's, or else trixie. If PYTHON (for instance .venv/bin/python) has another
# version than the suite's, its installation is copied to /usr/local, because the images use wheels for this version.
# It needs root, debootstrap and a running Docker engine. The same packages give the same image.
set -euo pipefail

# shellcheck source=/dev/null
. /etc/os-release
[[ ${ID:-} == debian ]] || VERSION_CODENAME=trixie
suite=${SUITE:-$VERSION_CODENAME}
tag=${1:-localhost/wukong/base:$suite}
python=${2:-}
mirror=${MIRROR:-http://deb.debian.org/debian}

((EUID == 0)) || { echo "base.sh unpacks packages with their owners: run it as root" >&2; exit 1; }
command -v debootstrap >/dev/null || { echo "debootstrap is missing; on Debian: apt-get install debootstrap" >&2; exit 1; }
docker version --format '{{.Server.Version}}' >/dev/null || { echo "no Docker engine answers" >&2; exit 1; }

root=$(mktemp -d)
log=$root.log
trap 'rm -rf "$root" "$log"' EXIT
if ! debootstrap --variant=minbase --include=python3,ca-certificates,libsqlite3-0 "$suite" "$root" "$mirror" >"$log" 2>&1; then
  tail -n 20 "$log" >&2
  exit 1
fi

version='import sys; print("%d.%d" % sys.version_info[:2])'
if [[ -n $python && $("$python" -c "$version") != $(chroot "$root" python3 -c "$version") ]]; then
  prefix=$("$python" -c 'import sys; print(sys.base_prefix)')
  name=python$("$python" -c "$version")
  tar -C "$prefix" -c --exclude=__pycache__ --exclude='*.a' --exclude="lib/$name/site-packages/*" \
    --exclude="lib/$name/"{test,idlelib,tkinter,turtledemo,ensurepip} "bin/$name" lib | tar -C "$root/usr/local" -x --no-same-owner
  ln -sf "$name" "$root/usr/local/bin/python3"
  chroot "$root" ldconfig
  chroot "$root" python3 -c 'import ctypes, lzma, sqlite3, ssl, zlib'
fi

# Remove files of this one installation, and files that are not needed in a container.
rm -rf "${root:?}"/{dev,tmp,var/cache,var/log,var/lib/apt/lists}/* \
  "$root"/etc/machine-id "$root"/etc/hostname "$root"/etc/resolv.conf \
  "$root"/usr/share/{doc,info,man,lintian,locale}/*
find "$root" -name __pycache__ -prune -exec rm -rf {} +
# apt and ldconfig need these folders later.
mkdir -p "$root"/var/cache/apt/archives/partial "$root"/var/cache/ldconfig

# All files get the same time, so that two images differ only if the content differs.
tar -C "$root" --sort=name --mtime=@0 --numeric-owner --pax-option=delete=atime,delete=ctime -c . \
  | docker import --change 'CMD ["python3"]' --change 'ENV PATH=/usr/local/bin:/usr/bin:/bin' - "$tag" >/dev/null
docker image inspect --format '{{index .RepoTags 0}} {{.Size}} bytes' "$tag"
