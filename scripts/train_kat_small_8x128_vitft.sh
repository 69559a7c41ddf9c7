#!/usr/bin/env bash
# Train KAT-Small on ImageNet-1k, from the weights of a ViT; recipes/published.sh says how.
RECIPE_SCRIPT=$0 exec bash "$(dirname "$0")/../recipes/published.sh" kat small vitft "$@"
