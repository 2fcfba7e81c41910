#!/usr/bin/env bash
# Install wheels into /opt/wukong while an image is built: install.sh LIST [COPY]. LIST is a requirements file with hashes.
# COPY is a folder that gets a copy of the files that this run has installed, for a separate layer.
# No index is used. Two runs with the same wheels give the same files with the same times.
set -euo pipefail

python=/opt/wukong/bin/python
new=(-newermt @0)

[[ -x $python ]] || python3 -m venv --without-pip /opt/wukong
# pip runs from its own wheel, because neither the base image nor the result contains pip.
PYTHONPATH=$(echo /wheelhouse/pip-*.whl) "$python" -m pip --isolated --quiet install --root-user-action ignore \
  --no-index --find-links /wheelhouse --require-hashes --no-deps --no-compile --no-cache-dir --requirement "$1"

packages=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
# Remove the tests of dependencies, and headers for a compiler, which the image does not have.
find "$packages" -type d \( -name tests -o -name test \) "${new[@]}" -prune -exec rm -rf {} +
rm -rf "$packages"/{torch/include,torch/share,pyarrow/include,pyarrow/src,numpy/_core/include}

# A container cannot write bytecode, so compile it now: independent of file times, and the same in each build.
# Skip one of torch's test files, which needs a newer Python.
find "$packages" -name '*.py' "${new[@]}" -not -name py312_intrinsics.py \
  | PYTHONHASHSEED=0 "$python" -m compileall -q -j 0 --invalidation-mode unchecked-hash -i -
if [[ -n ${2:-} ]]; then
  mkdir -p "$2"
  (cd /opt/wukong && find . "${new[@]}" -not -type d -print0 | tar -c --null --files-from -) | tar -C "$2" -x
fi
find /opt/wukong ${2:+"$2"} "${new[@]}" -exec touch --no-dereference --date=@0 {} +
