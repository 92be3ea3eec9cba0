#!/usr/bin/env bash
# TensorRT plans for an engine folder with trtexec, which comes with JetPack and TensorRT's tar and
# deb packages. Writes the same sidecars as `dvpd build`, so that the runtime accepts the plans.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: build_with_trtexec.sh ENGINE_DIR [options]

  --frames MIN,OPT,MAX  frames of one call, multiples of 4 (default: 32,256,1024, of live models
                         4,4,256; 125 a second)
  --batch MIN,OPT,MAX   recordings or streams in one call (default: 1,1,4, of live
                         models 1,1,64)
  --skip-inference      build only; else trtexec also runs each plan once and tells its time
  --force               build even if valid plans are there
  --dry-run             print the trtexec commands and stop
  --trtexec FILE        default: $TRTEXEC, the PATH, /usr/src/tensorrt/bin, /opt/tensorrt/bin

Needs trtexec and a Python with numpy ($PYTHON, default python3). Exits with 0 done, 1 failed, 2 wrong usage.
TEXT
}

fail() { printf 'error: %s\n' "$*" >&2; exit 1; }
wrong() { printf 'error: %s\n' "$*" >&2; usage >&2; exit 2; }
say() { printf '[%5d s] %s\n' "$SECONDS" "$*" >&2; }

dir='' trtexec=${TRTEXEC:-} skip='' force='' dry='' profile=()
while (($#)); do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --frames | --batch)
      (($# > 1)) || wrong "$1 needs MIN,OPT,MAX"
      profile+=("$1" "$2"); shift ;;
    --trtexec) (($# > 1)) || wrong "$1 needs a file"; trtexec=$2; shift ;;
    --skip-inference) skip=1 ;;
    --force) force=1 ;;
    --dry-run) dry=1 ;;
    -*) wrong "unknown option $1" ;;
    *) [[ -z $dir ]] || wrong "one engine folder at a time"; dir=$1 ;;
  esac
  shift
done
[[ -n $dir ]] || wrong "which engine folder?"
[[ -d $dir ]] || fail "$dir: no such folder; give one with manifest.json and the two graphs"

# The helper does what needs JSON, SHA-256 and the CUDA driver; it is the code that Python builders use.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
plans() {
  PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} "${PYTHON:-python3}" -m dvpd.runtime.tensorrt.trtexec_helper "$@"
}
"${PYTHON:-python3}" -c 'import sys, numpy; sys.exit(sys.version_info < (3, 10))' ||
  fail "${PYTHON:-python3} is no Python >= 3.10 with numpy: apt install python3-numpy, or set PYTHON"

if [[ -z $trtexec ]]; then
  for candidate in "$(command -v trtexec || true)" /usr/src/tensorrt/bin/trtexec \
    /opt/tensorrt/bin/trtexec /usr/local/tensorrt/bin/trtexec; do
    if [[ -n $candidate && -x $candidate ]]; then trtexec=$candidate; break; fi
  done
fi
[[ -n $trtexec ]] ||
  fail "no trtexec found: apt install libnvinfer-bin, or name it with --trtexec (pip wheels have none)"
[[ -x $trtexec ]] || fail "$trtexec: no such program"

# Every run starts with a line such as "... [TensorRT v101303] [b9] # trtexec --help".
banner=$("$trtexec" --help 2>&1 || true)
[[ $banner =~ \[TensorRT\ v([0-9]+)\] ]] ||
  fail "$trtexec does not say its version (expected [TensorRT vNNNNNN]); is it trtexec?"
number=${BASH_REMATCH[1]}
major=$((number / 10000)) minor=$((number / 100 % 100))
version=$major.$minor.$((number % 100))
typed=()
case $major in
  10)
    ((minor >= 3)) || fail "TensorRT $version is too old; 10.3 (JetPack 6.1) or newer is needed"
    typed=(--stronglyTyped) ;; # precision is in the graph; 11 has no other networks and no flag
  11) ;;
  *) fail "trtexec says version number $number; TensorRT 10.3 to 11.x are supported" ;;
esac

gpu=$(plans gpu) || exit 1
if [[ $major.$minor == 10.13 && ${gpu##* } == 8.7 ]]; then
  fail "TensorRT $version (JetPack 7.0/7.1) has no kernels for Orin: use JetPack 6.2 or 7.2"
fi
say "TensorRT $version ($trtexec), GPU $gpu, engine folder $dir"

# One builder at a time: the same lock as Python's, on the folder itself. trtexec inherits it, so a
# build whose script was killed still keeps others out until it ends.
exec 9<"$dir"
if ! flock -n 9; then
  say "another builder is at work on $dir; waiting"
  flock 9
fi

child='' plan='' log=''
clean() {
  [[ -z $child ]] || kill "$child" 2>/dev/null || true
  [[ -z $plan ]] || rm -f -- "$plan" "$log"
}
trap clean EXIT
trap 'exit 1' INT TERM HUP
rm -f -- "$dir"/.*.plan.tmp

for graph in predictive score; do
  options=("$dir" --graph "$graph" --trt-version "$version" ${profile[@]+"${profile[@]}"})
  if [[ -z $force && -z $dry ]]; then
    if valid=$(plans check "${options[@]}" 2>&1); then
      say "$graph: $valid is valid, kept"
      printf '%s\n' "$valid"
      continue
    fi
    say "$graph: to be built: ${valid#error: }"
  fi
  flags=$(plans flags "${options[@]}") || exit 1
  mapfile -t flags <<<"$flags"
  plan=$dir/.$graph.$$.plan.tmp log=$dir/.$graph.$$.log.plan.tmp
  command=("$trtexec" "--onnx=$dir/$graph.onnx" "--saveEngine=$plan" ${typed[@]+"${typed[@]}"}
    "${flags[@]}" ${skip:+--skipInference})
  if [[ -n $dry ]]; then
    printf '%q ' "${command[@]}"
    printf '\n'
    plan=''
    continue
  fi
  : 2>/dev/null >"$log" ||
    fail "$dir: plans go beside their graphs, but the folder cannot be written to: copy it to one of yours"
  begin=$SECONDS shown=$SECONDS
  say "$graph: building; minutes on a Jetson"
  "${command[@]}" >"$log" 2>&1 &
  child=$!
  while kill -0 "$child" 2>/dev/null; do
    sleep 0.2 9<&-
    if ((SECONDS - shown >= 10)); then
      shown=$SECONDS
      say "$graph: building for $((SECONDS - begin)) s: $(tail -n 1 "$log" | cut -c 1-100)"
    fi
  done
  status=0
  wait "$child" || status=$?
  child=''
  if ((status != 0)) || [[ ! -s $plan ]]; then
    grep -F '[E]' "$log" | tail -n 10 >&2 || tail -n 10 "$log" >&2
    fail "trtexec ended with status $status and built no plan for $graph; its last errors are above"
  fi
  grep -E 'GPU Compute Time: .*median' "$log" >&2 || true
  path=$(plans seal "${options[@]}" --plan "$plan" --seconds "$((SECONDS - begin))") || exit 1
  rm -f -- "$plan" "$log"
  plan=''
  say "$graph: $path in $((SECONDS - begin)) s"
  printf '%s\n' "$path"
done
