#!/usr/bin/env bash
# Train KAT-Tiny on ImageNet-1k; recipes/published.sh says how.
RECIPE_SCRIPT=$0 exec bash "$(dirname "$0")/../recipes/published.sh" kat tiny scratch "$@"
