#!/bin/bash
# Puts a registry and the digests of two images into every file of cluster/, in place of tags, which can be moved:
#   cluster/pin-images.sh registry.example/emotion-pipeline sha256:CPU... sha256:CUDA...
# `docker push` prints the digests. Run it again for others.
set -euo pipefail

if [ "$#" -ne 3 ] || ! [[ $2 =~ ^sha256:[0-9a-f]{64}$ && $3 =~ ^sha256:[0-9a-f]{64}$ ]]; then
  echo "pin-images.sh: error: give REPOSITORY CPU_DIGEST CUDA_DIGEST, each digest as sha256:..." >&2
  exit 2
fi
folder=$(dirname "$0")
for file in "$folder"/kuberay/*.yaml "$folder"/ray-up-aws.yaml; do
  sed -i -E \
    -e "s#(image: )\S*emotion-pipeline\S*-cuda(@sha256:[0-9a-f]{64})?\$#\\1$1:0.1.0-cuda@$3#" \
    -e "s#(image: )\S*emotion-pipeline\S*-cpu(@sha256:[0-9a-f]{64})?\$#\\1$1:0.1.0-cpu@$2#" "$file"
done
