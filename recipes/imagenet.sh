#!/usr/bin/env bash
# Our recipe on ImageNet-1k: the published one, which published.sh explains, with two changes and without wandb.
# --clip-grad 1 limits the gradients, and --model-ema-warmup lets the average of the weights follow early training.
#
# Usage: recipes/imagenet.sh kat|flash_kat tiny|small|base scratch|vitft [FLAGS]
RECIPE_SCRIPT=$0 RECIPE_FLAGS="--clip-grad 1 --model-ema-warmup" exec bash "$(dirname "$0")/published.sh" "$@"
