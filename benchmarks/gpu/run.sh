#!/usr/bin/env bash
# The first nine minutes on a GPU, in the order of what matters: is it right, does it train, how fast.
#
#   bash benchmarks/gpu/run.sh              on a machine with a card; needs no network
#   DRY=1 bash benchmarks/gpu/run.sh        a rehearsal on the CPU, about a minute; figures mean nothing
#
#   OUT=gpu-results   where the JSON of each part and run.log go
#   BUDGET=540        seconds for everything; a part without time is skipped and named
#   PARTS="check train step levers sample ways pages"  which parts
#   WHEELS=folder     wheels to install first, beside the Python that is there (pip --target)
#   PREFERENCES=data/demo/preferences/train  lists of a finished demo run; otherwise it makes its own
#   PYTHON=python3
set -u
cd "$(dirname "$0")/../.." || exit 2
OUT=${OUT:-gpu-results}; BUDGET=${BUDGET:-540}; PYTHON=${PYTHON:-python3}; DRY=${DRY:-}
PARTS=${PARTS:-check train step levers sample ways pages}
LEAST=20  # seconds: less is not worth starting a part for
mkdir -p "$OUT" || exit 2
OUT=$(cd "$OUT" && pwd); LOG=$OUT/run.log; : > "$LOG"
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 OMP_WAIT_POLICY=PASSIVE
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-${TMPDIR:-/tmp}/perpo-inductor}
export PYTHONPATH=$PWD/src${PYTHONPATH:+:$PYTHONPATH}

if [ -n "${WHEELS:-}" ]; then
  site=$(mktemp -d) && "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
    --target "$site" "$WHEELS"/*.whl || { echo "run.sh: the wheels in $WHEELS cannot be installed" >&2; exit 2; }
  export PYTHONPATH=$site:$PYTHONPATH
fi

failed=0
# part NAME SECONDS COMMAND...: run a part for at most SECONDS, and no longer than the budget lasts.
part() {
  local name=$1 most=$2 left=$((BUDGET - SECONDS)) code; shift 2
  case " $PARTS " in *" $name "*) ;; *) return ;; esac
  [ $left -lt $LEAST ] && { echo "== $name: skipped, $left s are left of $BUDGET" | tee -a "$LOG"; return; }
  [ $most -gt $left ] && most=$left
  echo "== $name: at $SECONDS s, for at most $most s" | tee -a "$LOG"
  timeout --signal TERM --kill-after 15 "$most" "$@" 2>&1 | tee -a "$LOG" | cut -c1-220
  code=${PIPESTATUS[0]}
  [ "$code" -eq 124 ] && echo "== $name: ended after $most s; the JSON has what was measured" | tee -a "$LOG"
  [ "$code" -ne 0 ] && { failed=1; echo "== $name: exit code $code" | tee -a "$LOG"; }
  # Without a card the other parts could only say the same.
  [ "$name" = check ] && [ "$code" -eq 2 ] && exit 2
  return 0
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null | tee -a "$LOG"
git rev-parse HEAD 2>/dev/null | sed 's/^/commit /' | tee -a "$LOG"
gpu=benchmarks/gpu
if [ -n "$DRY" ]; then check=(--cpu --check driver --check bfloat16 --check flex-float32); preset=dry; train=dry
  layers=(--preset dry --repeats 1)
else check=(); preset=h200; train=gpu; layers=(--preset cuda --dtype bfloat16); fi

part check 170 "$PYTHON" -m perpo_pipeline.cli doctor --gpu --json "$OUT/check.json" "${check[@]}"
part train 110 "$PYTHON" $gpu/train_run.py --preset $train --json "$OUT/train.json" \
  ${PREFERENCES:+--preferences "$PREFERENCES"}
ways=(--variant shared-prefix concatenated-same-settings --repeats 2)
part step 100 "$PYTHON" benchmarks/train_step.py --preset $preset --regime llava15-grounding "${ways[@]}" \
  --json "$OUT/step.json"
part levers 150 "$PYTHON" $gpu/levers.py --preset $preset --seconds 130 --json "$OUT/levers.json" \
  --profile "$OUT/profile.txt"
part sample 70 "$PYTHON" benchmarks/sample.py --preset $preset --case llava15-grounding --repeats 1 \
  --no-memory --json "$OUT/sample.json"
part ways 90 "$PYTHON" benchmarks/layer_ways.py "${layers[@]}" --json "$OUT/ways.json"
part pages 140 "$PYTHON" benchmarks/train_step.py --preset $preset --regime dense-ocr "${ways[@]}" --json "$OUT/pages.json"
echo "end at $SECONDS s; results in $OUT" | tee -a "$LOG"
exit $failed
