#!/usr/bin/env bash
# Makes .venv in this checkout: `setup.sh` with what training needs, `setup.sh test` with what the tests need as well.
# Called again it returns at once. PYTHON=<command or path> chooses the interpreter. `setup.sh [test] python=3.13` makes
# .venv-3.13 instead, beside the .venv of another Python.
set -euo pipefail

checkout=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
locks=$checkout/launch/locks
venv=$checkout/.venv
versions=(3.13 3.12 3.11 3.10)
stages=(runtime package)
for word; do
  case $word in
  test) stages+=(test) ;;
  python=3.1[0-3]) versions=("${word#*=}") venv=$checkout/.venv-${word#*=} ;;
  *)
    printf 'setup: usage: setup.sh [test] [python=3.10, 3.11, 3.12 or 3.13], not %s\n' "$word" >&2
    exit 1
    ;;
  esac
done
log=$venv/setup.log # also the mark that this environment is ours to delete

# Packages found there would pass for installed ones.
unset PYTHONPATH PYTHONHOME
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

scratch=() # folders that are gone when we are
trap 'rm -rf "${scratch[@]}"' EXIT

# Everything goes to stderr: stdout belongs to the command that runs after us.
say() { printf 'setup: %s\n' "$*" >&2; }
die() {
  printf 'setup: %s\n' "$@" >&2
  exit 1
}

# Caches, as resnet/home.py has them: a container's user may have no home, or one that cannot be written to.
caches=${XDG_CACHE_HOME:-${HOME:+$HOME/.cache}}
stand_in=''
if [[ -z $caches ]] || ! { mkdir -p "$caches" && [[ -w $caches ]]; } 2>/dev/null; then
  stand_in=${TMPDIR:-/tmp}/resnet-$EUID
  [[ -d $stand_in ]] || mkdir -m 700 "$stand_in"
  [[ -O $stand_in && ! -L $stand_in ]] || die "$stand_in is somebody else's; set HOME or TMPDIR to a folder of yours."
  caches=$stand_in
  export XDG_CACHE_HOME=$stand_in
fi
export HOME=${HOME:-$caches}

# --- which Python ------------------------------------------------------------------------------------------------------

# Prints, say, "py311 /usr/bin/python3.11" if the interpreter runs and can make a venv. Found on PATH is not enough: a pyenv
# shim may fail when run, Debian's python3 may lack ensurepip, one compiled by hand may lack sqlite3 (which MLflow needs).
# The path is the base interpreter's: what is on PATH may be our own .venv, activated, which we may have to delete.
probe() {
  local answer
  answer=$("$1" -c 'import ctypes, ensurepip, sqlite3, ssl, sys, venv
print("py%d%d" % sys.version_info[:2], sys._base_executable)' 2>/dev/null) &&
    [[ $answer == py31[0-3]\ /* ]] && printf '%s\n' "$answer"
}

# Sets python, the base interpreter, and tag: of the finished .venv if there is one, else the best of this machine.
choose_python() {
  local version candidate found wanted=''
  if [[ -n ${PYTHON-} ]]; then
    wanted=$(probe "$PYTHON") ||
      die "PYTHON=$PYTHON is none of Python ${versions[*]} that runs and has venv, ensurepip, sqlite3 and ssl."
    [[ " ${versions[*]} " == *" 3.${wanted:3:2} "* ]] || die "PYTHON=$PYTHON is not Python ${versions[*]}."
  fi
  if found=$(probe "$venv/bin/python"); then
    tag=${found%% *} python=${found#* }
    if [[ -z $wanted || $wanted == "$tag "* ]] && finished runtime; then return; fi
  fi
  if [[ -n $wanted ]]; then
    tag=${wanted%% *} python=${wanted#* }
    return
  fi
  for version in "${versions[@]}"; do
    while read -r candidate; do
      if found=$(probe "$candidate") && [[ $found == "py${version/./} "* ]]; then
        tag=${found%% *} python=${found#* }
        return
      fi
    done < <(
      type -ap "python$version" python3 python || true
      printf '%s\n' "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python
    )
  done
  die "no usable Python found, of ${versions[*]}. Any one of these brings it:" \
    "  Debian, Ubuntu:  apt-get install python3 python3-venv" \
    "  conda:           conda create -n resnet python=${versions[0]} && conda activate resnet" \
    "  pyenv:           pyenv install ${versions[0]}" \
    "One that stands elsewhere: PYTHON=/path/to/python${versions[0]} bash launch/setup.sh"
}

# --- stages ------------------------------------------------------------------------------------------------------------

# What a stage was made from. Its stamp, .venv/setup.<stage>, holds this and is written last: without it, or with another
# one, the stage is made again. The path counts, because an environment does not survive being moved.
made_from() {
  case $1 in
  runtime) cat "$locks/build.txt" "$locks/$tag.txt" ;;
  package) cat "$checkout/setup.cfg" "$checkout/pyproject.toml" ;;
  test) cat "$locks/$tag-test.txt" "$locks/horovod.txt" && basename "$(kept_wheels)" ;;
  esac | { cat && printf '%s\n' "$venv" "$tag"; } | sha256sum
}
finished() { [[ -f $venv/setup.$1 && $(<"$venv/setup.$1") == "$(made_from "$1")" ]]; }
stamp() { made_from "$1" >"$venv/setup.$1"; }

# Runs a command with its output in the log; a failure shows the end of it. A compiler's errors stand further up.
quietly() {
  printf '\n$ %s\n' "$*" >>"$log"
  "$@" >>"$log" 2>&1 || {
    { grep -E ' error: |CMake Error' "$log" || true; } | tail -n 5 >&2
    tail -n 15 "$log" >&2
    die "failed; all output is in $log"
  }
}
pip() { quietly "$venv/bin/python" -m pip "$@"; }

make_runtime() {
  [[ ! -e $venv || -e $log ]] || die "$venv was not made by this script: move it away first."
  rm -rf "$venv" # half-made, or made from other locks: pip could not tell what is whole
  mkdir "$venv" && : >"$log"
  say "environment of $tag in $venv (from $python)"
  quietly "$python" -m venv "$venv"
  pip install --require-hashes -r "$locks/build.txt"
  say "pinned packages (2 GB on disk, some minutes)"
  pip install --require-hashes --no-deps --no-build-isolation -r "$locks/$tag.txt" # --no-deps: the lock is complete
  stamp runtime
}

make_package() {
  say "this checkout, editable"
  pip install --no-deps --no-build-isolation -e "$checkout"
  stamp package
}

make_test() {
  say "packages for the tests"
  # Reinstalled, in case an earlier call was killed in the middle of one.
  pip install --require-hashes --no-deps --force-reinstall -r "$locks/$tag-test.txt"
  local kept aside
  kept=$(kept_wheels)
  if whole "$kept"; then
    say "Horovod, compiled earlier (kept in $kept)"
    install_horovod "$kept"
  else
    [[ ! -e $kept ]] || say "$kept is not what was compiled, or has no record of its hash: it is made again"
    rm -rf "$kept"
    mkdir -p "${kept%/*}"
    aside=$(mktemp -d "$kept.XXXXXX")
    scratch+=("$aside")
    say "Horovod, compiled here with Gloo: 5 to 6 minutes of one core; $(nproc) share them"
    compile_horovod "$aside"
    record "$aside"
    install_horovod "$aside"
    # Moved into place only now, so that what is kept is whole and works. Another checkout may have been faster.
    mv -T "$aside" "$kept" 2>/dev/null || true
  fi
  stamp test
}

# --- Horovod -----------------------------------------------------------------------------------------------------------

# The folder that keeps the compiled wheel, for every checkout on this machine: all that the binary depends on is its name.
kept_wheels() {
  local tensorflow
  tensorflow=$(sed -n 's/^tensorflow-cpu==\([0-9.]*\).*/\1/p' "$locks/$tag.txt")
  printf '%s/resnet/wheels/%s-tf%s-%s-%s%s-%s%s\n' "$caches" \
    "$tag" "$tensorflow" "$(uname -s)" "$(uname -m)" "$(getconf GNU_LIBC_VERSION 2>/dev/null | tr ' ' - | sed 's/^/-/')" \
    gloo "$(type -P mpicxx >/dev/null && printf %s -mpi)"
}

# Writes the requirement of the wheel in a folder with its hash, which pip checks when it installs it.
record() {
  local hash
  hash=$(cd "$1" && sha256sum horovod-*.whl)
  printf './%s --hash=sha256:%s\n' "${hash#*  }" "${hash%% *}" >"$1/horovod.txt"
}

# Whether a kept folder is ours, and its wheel the one that was compiled.
whole() {
  [[ -O $1 && -O $1/horovod.txt ]] &&
    (cd "$1" && sed 's|^\./\(.*\) --hash=sha256:\(.*\)$|\2  \1|' horovod.txt | sha256sum --check --status)
}

# The requirement's path is relative to the folder, whose name may have a space.
install_horovod() {
  (cd "$1" && pip install --require-hashes --no-deps --force-reinstall -r horovod.txt)
  check_horovod
}

# Said before anything starts: nobody should learn after ten minutes that a compiler is missing.
require_compiler() {
  local tool missing=()
  for tool in cmake g++ make; do
    type -P "$tool" >/dev/null || missing+=("$tool")
  done
  ((${#missing[@]} == 0)) ||
    die "the tests need Horovod, compiled here, and this machine lacks: ${missing[*]}" \
      "  Debian, Ubuntu:  apt-get install ${missing[*]}" \
      "  conda:           conda install cmake cxx-compiler make"
}

compile_horovod() {
  local mpi=HOROVOD_WITHOUT_MPI plain
  if type -P mpicxx >/dev/null; then mpi=HOROVOD_WITH_MPI; fi
  # By another name, because its build breaks on a path with a space in it.
  plain=$(mktemp -d)
  scratch+=("$plain")
  ln -s "$venv" "$plain/venv"
  # Its bundled libraries predate CMake 4 and GCC 13, hence the last two settings. No cache: pip's own would hand out a
  # wheel compiled against another TensorFlow.
  quietly env HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1 HOROVOD_WITH_GLOO=1 "$mpi=1" \
    HOROVOD_CMAKE="$checkout/launch/horovod_cmake.sh" \
    PATH="$plain/venv/bin:$PATH" MAKEFLAGS="${MAKEFLAGS:--j$(nproc)}" \
    CMAKE_POLICY_VERSION_MINIMUM=3.5 CXXFLAGS="${CXXFLAGS-} -include cstdint" \
    "$plain/venv/bin/python" -m pip wheel --require-hashes --no-deps --no-build-isolation --no-cache-dir \
    --wheel-dir "$1" -r "$locks/horovod.txt"
}

check_horovod() {
  quietly env TF_CPP_MIN_LOG_LEVEL=3 "$venv/bin/python" -c \
    'import horovod.tensorflow as hvd; hvd.init(); assert hvd.gloo_built() and hvd.size() == 1'
}

# --- now do it ---------------------------------------------------------------------------------------------------------

unfinished() {
  local stage
  choose_python
  for stage in "${stages[@]}"; do finished "$stage" || return 0; done
  return 1
}

unfinished || exit 0
[[ -z $stand_in ]] || say "no home folder that can be written to: caches are in $stand_in"
if [[ ${stages[*]} == *test ]] && ! whole "$(kept_wheels)"; then require_compiler; fi

# One at a time. The lock is held by our children too: a pip that outlives a killed setup is waited for.
if type -P flock >/dev/null; then
  exec 9>"$venv.lock"
  flock -n 9 || {
    say "another setup is at work in this checkout: waiting for it"
    flock 9
  }
fi
choose_python
for stage in "${stages[@]}"; do
  finished "$stage" || "make_$stage"
done
say "ready"
