#!/usr/bin/env bash
# Train FlashKAT-Base on ImageNet-1k; recipes/imagenet.sh says how.
RECIPE_SCRIPT=$0 exec bash "$(dirname "$0")/../recipes/imagenet.sh" flash_kat base scratch "$@"
