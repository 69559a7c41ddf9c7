"""The settings of the launches, the same for every GPU. Nothing is tuned at a first call.

A launch follows by rule from these, and from sizes, strides, dtypes and the number of multiprocessors. The rules are in
``rational.py`` and ``norm.py``. Compiled code depends on channels, groups, dtypes and layout. It does not depend on
the batch size or the sequence length. For channels-first images it depends on how their size divides into tiles.
"""

# A program of the rational's kernels is one warp, so that no warp waits. Its tile has a vector for each thread.
LANES = 32
# Contiguous runs of a tile. Longer runs suit memory better, but no more than this part of the work may be idle.
RUNS = (32, 16, 8)
IDLE = 1 / 40
# Tiles that a thread takes together. Half as many where a tile has two channels for each thread.
VECTORS = 2
# Stages of the software pipeline: tiles in flight from memory, and the one that is computed.
STAGES = 3
# Programs per multiprocessor, equally many for each of its four schedulers. The registers of all fit at once. Each
# takes many tiles, so that coefficients and sums stay in registers. Fewer programs read memory in longer runs.
FORWARD_PROGRAMS = 16
BACKWARD_PROGRAMS = 12
BACKWARD_PROGRAMS_WITH_PAIRS = 8

# Partial sums that a program of the last stage adds up at a time, and its warps. Small blocks keep the code short: it
# is cold in the instruction cache when this kernel starts. Programs of few warps fit beside the backward kernel's.
SUM_BLOCK = 1024
SUM_WARPS = 8
# The same for a sum per channel: programs of the kernel before, and channels.
SUM_PROGRAMS = 256
SUM_COLUMNS = 16

# A program of the kernels with LayerNorm takes whole rows. With more channels per thread than this, it gets more warps.
ROW_CHANNELS_PER_THREAD = 16
MOST_ROW_WARPS = 8
# Most tiles of a row. A thread holds coefficients and sums for each tile.
ROW_CHUNKS = 4
# Least channels of a thread, over all rows that a program takes at a time.
ROW_ELEMENTS_PER_THREAD = 12
# Warps per multiprocessor: as many as fit with their registers.
ROW_FORWARD_WARPS = 16
ROW_BACKWARD_WARPS = 8

# Up to so many elements, compilers fuse the formula in place of our forward kernel. With more, kernels are faster in
# CUDA graphs.
FUSED_ELEMENTS = 2**19

# Up to so many elements of x, a block's second half is one call without gradients. Larger ones are not host-bound, and
# separate operators free memory earlier.
ONE_CALL_ELEMENTS = 2**20

# Up to so many elements, the last stage of the sums starts early in CUDA graphs alone. An early start takes the host
# longer than it saves the GPU, and the GPU waits for the host there.
SMALL_ELEMENTS = 2**20
