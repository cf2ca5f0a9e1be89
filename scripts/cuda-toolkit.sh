#!/bin/sh
# scripts/cuda-toolkit.sh DIR [check|build]: a CUDA 13.0 prefix from PyPI wheels, for building candle with feature
# `cuda`. check: compiler and headers only, enough for `cargo check`/`clippy` (about 105 MB to download) build: also the
# libraries that a link needs, NCCL among them (about 1 GB); the default Prints `export` lines on stdout and nothing
# else there: eval "$(./cuda-toolkit.sh DIR)" An nvcc that is already on PATH is used as it is. No root, no GPU, no
# driver needed.
set -eu
die() { echo "cuda-toolkit: $*" >&2; exit 1; }
case ${1:-} in '' | -*) die "usage: cuda-toolkit.sh DIR [check|build]" ;; esac
mode=${2:-build}
# The versions of cuda-toolkit 13.0.2. 13.0 and not newer: the PTX is compiled by the driver at run time,
# so a newer nvcc would ask for a newer driver; the CUDA 12 wheels hold ptxas but no nvcc.
wheels="nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88
 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85"
case $mode in
  check) ;;
  build) wheels="$wheels nvidia-cublas==13.1.0.3 nvidia-curand==10.4.0.35 nvidia-cuda-nvrtc==13.0.88
 nvidia-nccl-cu13==2.28.9" ;;
  *) die "unknown mode '$mode': check or build" ;;
esac
case $1 in *\'*) die "no quote in DIR, please: $1" ;; esac
mkdir -p "$1" || die "cannot make $1"
dir=$(cd "$1" && pwd -P)
home=$dir/nvidia/cu13
stubs=

found=$(command -v nvcc || :)
if [ -n "$found" ] && [ "$(readlink -f "$found")" != "$home/bin/nvcc" ]; then
  found=$(readlink -f "$found")
  home=${found%/bin/nvcc}
  [ "$home" != "$found" ] || die "nvcc on PATH is $found, not in a bin folder"
  echo "cuda-toolkit: using $found" >&2
elif [ "$(cat "$dir/.wheels" 2>/dev/null)" != "$wheels" ]; then
  rm -rf "$dir/nvidia" "$dir/.wheels" # pip --target does not merge into a folder that is there
  # shellcheck disable=SC2086
  python3 -m pip --disable-pip-version-check install --quiet --no-deps --only-binary=:all: \
    --root-user-action=ignore --upgrade --target "$dir" $wheels >&2 || die "pip could not install the wheels"
  ln -s lib "$home/lib64"
  [ ! -d "$dir/nvidia/nccl/lib" ] || ln -s "$dir"/nvidia/nccl/lib/libnccl.so.* "$home/lib/"
  # The wheels carry libNAME.so.N only; the linker looks for libNAME.so.
  for so in "$home"/lib/lib*.so.*; do
    name=${so##*/}
    case $name in *.alt.so.*) continue ;; esac
    ln -sf "$name" "$home/lib/${name%%.so.*}.so"
  done
  # libcuda comes with the driver and in no wheel: a stand-in to link with, whose every call says
  # CUDA_ERROR_STUB_LIBRARY (34), like the one in NVIDIA's own toolkit.
  mkdir -p "$home/lib/stubs"
  grep -oE '\<cu[A-Z][A-Za-z0-9_]*' "$home/include/cuda.h" | sort -u | sed 's/.*/int &(void) { return 34; }/' |
    ${CC:-cc} -w -shared -fPIC -Wl,-soname,libcuda.so.1 -o "$home/lib/stubs/libcuda.so.1" -x c - ||
    die "no stand-in for libcuda: is there a C compiler?"
  ln -sf libcuda.so.1 "$home/lib/stubs/libcuda.so"
  printf '%s' "$wheels" >"$dir/.wheels"
fi
"$home/bin/nvcc" --version >&2 || die "$home/bin/nvcc does not run"
[ -d "$home/lib64/stubs" ] && ! /sbin/ldconfig -p | grep -q 'libcuda\.so\.1' && stubs=:$home/lib64/stubs

echo "export CUDA_HOME='$home' NVCC='$home/bin/nvcc' CUDA_COMPUTE_CAP='${CUDA_COMPUTE_CAP:-90}'"
echo "export PATH='$home/bin':\"\$PATH\""
echo "export LD_LIBRARY_PATH='$home/lib64$stubs'\"\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}\""
