#!/usr/bin/env bash
# One step of the Buildkite nightly: ci/run_nightly.sh on the agent, or in an image of docker/, then
# the annotation. Ends with the run's own exit code, so that the retry rules see it.
# usage: ci/buildkite/step.sh [--image emulated|tpu] [options of ci/run_nightly.sh]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
readonly PROVISIONING=75
out=reports/nightly
image=
if [[ ${1:-} == --image ]]; then
  image=$2
  shift 2
fi
# An earlier build's files on this agent.
{ rm -rf "$out" && mkdir -p "$out"; } || exit "$PROVISIONING"

on_the_agent() {
  ci/run_nightly.sh --out "$out" "$@"
}

# The options upstream's run_in_docker.sh gives docker, and the hub's cache kept on the agent.
in_the_image() {
  local stack=${HARNESS_STACK:-0.32} models=${HARNESS_MODELS:-/mnt/disks/persist/models}
  local name="moe-load-harness:$image-$stack" ended=0
  docker/build.sh "$image" "$stack" || return "$PROVISIONING"
  docker run --privileged --net host --shm-size=16G --rm \
    -v "$PWD/$out:/reports" -v "$models:/models" -e HF_HOME=/models \
    -e HF_TOKEN -e HF_HUB_OFFLINE "$name" "$@" || ended=$?
  docker run --rm -v "$PWD/$out:/reports" --entrypoint chown "$name" \
    -R "$(id -u):$(id -g)" /reports || true # the container's root wrote them
  if [[ $ended == 125 ]]; then return "$PROVISIONING"; fi # docker itself failed, nothing ran
  return "$ended"
}

annotate() {
  local style=error
  if [[ $1 == 0 ]]; then style=success; elif [[ $1 == "$PROVISIONING" ]]; then style=warning; fi
  if [[ -s $out/summary.md ]] && command -v buildkite-agent >/dev/null; then
    buildkite-agent annotate --style "$style" --context "${BUILDKITE_JOB_ID:-nightly}" \
      <"$out/summary.md" || echo "the annotation could not be made" >&2
  fi
}

status=0
if [[ -n $image ]]; then
  in_the_image "$@" || status=$?
else
  on_the_agent "$@" || status=$?
fi
annotate "$status"
exit "$status"
