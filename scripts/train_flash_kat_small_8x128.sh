#!/usr/bin/env bash
# Train FlashKAT-Small on ImageNet-1k; recipes/published.sh says how.
RECIPE_SCRIPT=$0 exec bash "$(dirname "$0")/../recipes/published.sh" flash_kat small scratch "$@"
