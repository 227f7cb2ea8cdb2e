#!/usr/bin/env bash
# What every host of a slice runs: the nightly over all hosts; then host 0 merges what they wrote.
# HOSTS: how many there are. HOST: this one's number. REPORTS: a folder that all of them see.
# LOAD_TIMEOUT: seconds one load may take. WAIT: seconds host 0 waits for the others' sessions.
# Arguments are the nightly's; pytest's are given here.
# Exit: host 0 has the verdict of all; another host 0, once it has written its session.
set -euo pipefail

session() { printf '%s/host-%s/installed/session.json' "$REPORTS" "$1"; }

outcome=0
"${NIGHTLY:-ci/run_nightly.sh}" --stacks=installed --target=tpu --out="$REPORTS/host-$HOST" "$@" \
  -- --hosts="$HOSTS" --load-timeout="${LOAD_TIMEOUT:-5400}" || outcome=$?
if [ ! -f "$(session "$HOST")" ]; then
  exit "$outcome"
elif [ "$HOST" != 0 ]; then
  exit 0
fi

files=()
for ((number = 0; number < HOSTS; number++)); do files+=("$(session "$number")"); done
verdict=0
harness merge "${files[@]}" --wait "${WAIT:-1800}" --output "$REPORTS/session.json" || verdict=$?
if [ -f "$REPORTS/session.json" ]; then
  harness report "$REPORTS/session.json" --markdown "$REPORTS/summary.md" \
    --junit "$REPORTS/junit.xml" --html "$REPORTS/report.html"
fi
exit "$verdict"
