# shellcheck shell=sh
# Sourced by deploy/demo and deploy/test. Needs $root, the project's directory; sets $python, the interpreter of
# $root/.venv with the project and the pinned packages of one requirements file in it.

# Another environment's variables must not reach into ours.
unset PYTHONPATH PYTHONHOME PYTHONSAFEPATH VIRTUAL_ENV

# Print the first Python that is new enough: the real program, not a shim and not the link of another environment.
find_python() {
  for name in "${TEAMTURN_PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11 python; do
    [ -n "$name" ] || continue
    "$name" -I -c 'import sys; sys.exit(1) if sys.version_info < (3, 11) else print(sys._base_executable)' \
      2>/dev/null && return
  done
  echo "Python 3.11 or newer is needed, and none was found on PATH." >&2
  echo "On Debian or Ubuntu: sudo apt-get install python3 python3-venv. Elsewhere, name one: TEAMTURN_PYTHON=/path/to/python3" >&2
  return 1
}

# shellcheck disable=SC2154  # $root
# bootstrap FILE: a second run only compares a stamp, and takes a few hundredths of a second.
bootstrap() {
  python=$root/.venv/bin/python
  "$python" -I "$root/deploy/bootstrap.py" --check "$1" 2>/dev/null && return
  base_python=$(find_python) || exit 2
  "$base_python" -I "$root/deploy/bootstrap.py" "$1" || exit $?
}
