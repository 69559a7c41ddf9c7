#!/usr/bin/env bash
# Train KAT-Base on ImageNet-1k, from the weights of a ViT; recipes/imagenet.sh says how.
RECIPE_SCRIPT=$0 exec bash "$(dirname "$0")/../recipes/imagenet.sh" kat base vitft "$@"
