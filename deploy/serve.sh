#!/bin/sh
# The images' entry point. Arguments are passed on, e.g. --tls-cert and --tls-key.
#
#   VIBEMATCH_REPOSITORY   the model repository to serve
#   VIBEMATCH_PROFILE      cpu, onnxruntime, onnxruntime_tensorrt or tensorrt
set -eu
exec "$(dirname "$0")/vibematch" serve --repository "${VIBEMATCH_REPOSITORY:?}" \
    --profile "${VIBEMATCH_PROFILE:?}" --host 0.0.0.0 --log - "$@"
