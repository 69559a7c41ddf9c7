"""How the Triton kernels are launched: all settings, the same for every GPU. Nothing is tuned at a first call.

What a call launches follows from these by rule, from sizes, strides, dtypes and the number of multiprocessors
(``launch.py``, and ``norm_launch.py`` for those with LayerNorm). What is compiled depends on channels, groups, dtypes
and layout, not on the size of a batch or the length of a sequence; of images with channels first, on how their size
divides into tiles.
"""

# A program of the rational's kernels is one warp, so that none waits for another, and its tile has a vector for each of
# its threads.
LANES = 32
# Contiguous runs of a tile: the longer the better for memory, but no more than this part of the work may be idle.
RUNS = (32, 16, 8)
IDLE = 1 / 40
# Vectors of a thread that are taken together: tiles, or half as many where a tile has two channels for each thread.
VECTORS = 2
# Tiles that are on their way from memory while one is computed, and one more.
STAGES = 3
# Programs per multiprocessor, the same number for each of its four schedulers. All fit at once with their registers,
# and each takes many tiles, so that its coefficients and its sums stay there. Fewer of them read memory in longer runs.
FORWARD_PROGRAMS = 16
BACKWARD_PROGRAMS = 12
BACKWARD_PROGRAMS_WITH_PAIRS = 8

# Partial sums that a program of the last stage adds up at a time, and its warps; where there are fewer, fewer warps, as
# such programs are many. Its code comes from memory, as other data has long taken its place in the caches: a thread has
# few elements, so that there is little code. And a program of few warps finds room beside those of the backward kernel.
SUM_BLOCK = 1024
SUM_WARPS = 8
# The same where it is a sum per channel: programs of the kernel before, and channels.
SUM_PROGRAMS = 256
SUM_COLUMNS = 16

# A program of the kernels with LayerNorm takes whole rows. Channels of a row that a thread takes, at most, if a program
# of more warps can take the others.
ROW_CHANNELS_PER_THREAD = 16
MOST_ROW_WARPS = 8
# Tiles of a row, at most: a thread has coefficients and sums for each.
ROW_CHUNKS = 4
# Rows that a program takes at a time, so that a thread has as many channels of all of them together, at least.
ROW_ELEMENTS_PER_THREAD = 12
# Warps per multiprocessor, as many as find room with their registers.
ROW_FORWARD_WARPS = 16
ROW_BACKWARD_WARPS = 8

# Up to so many elements compilers fuse the forward pass into other kernels instead of launching ours; fewer where CUDA
# graphs leave out what launching takes the host.
FUSED_ELEMENTS = 2**20
FUSED_ELEMENTS_IN_GRAPHS = 2**19

# Up to so many elements of x the second half of a block is one call where there are no gradients, for the host's sake;
# of more, the host is not what limits, and by its pieces it needs less memory: a call holds on to its arguments.
ONE_CALL_ELEMENTS = 2**20
