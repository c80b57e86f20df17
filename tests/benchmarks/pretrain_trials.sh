#!/usr/bin/env bash
# Try several recipes for a few minutes each, then measure all of them: OUT=folder MINUTES=2 pretrain_trials.sh mix strokes ...
# Weights stay in /tmp/trials; OUT gets the logs and the measured rows.
set -uo pipefail
cd "$(dirname "$0")/../.."
export PYTHONPATH=. OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1
: "${OUT:?folder for the results}" "${MINUTES:=2}" "${SHARDS:=8}" "${EXTRA:=}"
weights=()
for recipe in "$@"; do
    # shellcheck disable=SC2086  # EXTRA holds several words
    python3 tests/benchmarks/pretrain_gpu.py --recipe "$recipe" --minutes "$MINUTES" \
        --out "/tmp/trials/$recipe" --state /tmp/trials/state.pt $EXTRA || continue
    weights+=("$recipe=/tmp/trials/$recipe")
done
cp /tmp/trials/pretrain_log.jsonl "$OUT/"
# many small trainings share the device: each is bound by launching, not by arithmetic
for shard in $(seq 0 $((SHARDS - 1))); do
    python3 tests/benchmarks/embedded_weights.py --weights "${weights[@]}" --shard "$shard/$SHARDS" \
        --out "/tmp/trials/rows_$shard.jsonl" ${MEASURE:---ways random_frozen frozen --seeds 3} >/dev/null 2>"/tmp/trials/err_$shard" &
done
wait
tail -qn 1 /tmp/trials/err_* | grep -v '^{' | head -3
cat /tmp/trials/rows_*.jsonl >"$OUT/rows.jsonl"
python3 tests/benchmarks/embedded_weights.py --table "$OUT/rows.jsonl"
