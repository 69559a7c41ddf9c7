#!/usr/bin/env bash
# Train FlashKAT-Tiny on ImageNet-1k, from the weights of a ViT; recipes/published.sh says how.
RECIPE_SCRIPT=$0 exec bash "$(dirname "$0")/../recipes/published.sh" flash_kat tiny vitft "$@"
