#!/usr/bin/env bash
# Train FlashKAT-Tiny on ImageNet-1k; recipes/imagenet.sh says how.
RECIPE_SCRIPT=$0 exec bash "$(dirname "$0")/../recipes/imagenet.sh" flash_kat tiny scratch "$@"
