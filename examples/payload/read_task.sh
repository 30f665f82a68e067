#!/usr/bin/env bash
# Run a program once for each message that Lighterman hands over, with the message on its standard input:
#
#   read_task.sh program argument…
#
# Of a pack, the program is given each message's line of JSON, since Bash can neither read JSON nor hold a NUL in a variable.
# Without a program, it prints the id and the SHA-256 of what the program would be given.
set -euo pipefail

print_sum() {
  local sum
  sum=$(sha256sum)
  printf '%s %s\n' "$LIGHTERMAN_MESSAGE_ID" "${sum%% *}"
}

if (($# == 0)); then
  set -- print_sum
fi

if [[ -z ${KEDA_TASK_DATA_FILE+set} ]]; then
  if [[ ${KEDA_TASK_DATA_ENCODING-} == base64 ]]; then
    "$@" < <(printf %s "$KEDA_TASK_DATA" | base64 -d)
  else
    "$@" < <(printf %s "$KEDA_TASK_DATA")
  fi
  exit
fi

if [[ ${KEDA_TASK_DATA_FILE##*/} != tasks.jsonl ]]; then
  "$@" <"$KEDA_TASK_DATA_FILE"
  exit
fi

failed=()
while IFS= read -r line; do
  # Each line begins with the id, and an id has no quotation mark in it.
  id=${line#'{"id":"'}
  export LIGHTERMAN_MESSAGE_ID=${id%%'"'*}
  if ! "$@" < <(printf %s "$line"); then
    failed+=("$LIGHTERMAN_MESSAGE_ID")
  fi
done <"$KEDA_TASK_DATA_FILE"

if ((${#failed[@]} > 0)); then
  printf -v list '"%s", ' "${failed[@]}"
  report="{\"failed\": [${list%, }]}"
  if ((${#report} > 4096)); then
    exit 1 # all that there was counts as failed
  fi
  # As the last thing: with exit status 0, what is not named here is completed.
  printf %s "$report" >"${TERMINATION_LOG-/dev/termination-log}"
fi
