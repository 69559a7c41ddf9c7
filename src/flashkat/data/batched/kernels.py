"""The Triton kernels that augment (histograms, tables, the step itself), resize, normalise, erase and mix batches.

Augmentation and resizing follow Pillow's arithmetic to the bit: float32 where Pillow's C code has it, float64 where it
has double. So launches turn off fused multiply-adds.

Images are uint8 (B, H, W, 3), contiguous. A step's row holds the operation and up to six numbers, see ``steps.py``.
"""

import triton
import triton.language as tl

from .steps import NUMBERS, Operation

__all__ = [
    "count_kernel",
    "erase_kernel",
    "mix_kernel",
    "mix_target_kernel",
    "normalise_kernel",
    "resize_kernel",
    "step_kernel",
    "table_kernel",
]

_ROW = tl.constexpr(1 + NUMBERS)
# Pillow's coefficients of resizing have so many bits after the point. These are 1 and 1/2 there.
_BITS = tl.constexpr(22)
_ONE, _HALF = tl.constexpr(2.0**22), tl.constexpr(2**21)
_INVERT = tl.constexpr(int(Operation.INVERT))
_POSTERIZE = tl.constexpr(int(Operation.POSTERIZE))
_SOLARIZE = tl.constexpr(int(Operation.SOLARIZE))
_SOLARIZE_ADD = tl.constexpr(int(Operation.SOLARIZE_ADD))
_BRIGHTNESS = tl.constexpr(int(Operation.BRIGHTNESS))
_CONTRAST = tl.constexpr(int(Operation.CONTRAST))
_AUTOCONTRAST = tl.constexpr(int(Operation.AUTOCONTRAST))
_EQUALIZE = tl.constexpr(int(Operation.EQUALIZE))
_COLOR = tl.constexpr(int(Operation.COLOR))
_SHARPNESS = tl.constexpr(int(Operation.SHARPNESS))
_BILINEAR = tl.constexpr(int(Operation.BILINEAR))


@triton.jit
def _grey(red, green, blue):
    """Return Pillow's conversion to grey, of int32 values."""
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


@triton.jit
def _blended(first, second, factor):
    """Return Pillow's ``Image.blend`` of int32 values: truncated, within [0, 255]."""
    value = first.to(tl.float32) + factor * (second - first).to(tl.float32)
    return tl.minimum(tl.maximum(value, 0.0), 255.0).to(tl.int32)


@triton.jit
def _add(places, counts):
    """Add counts to those in memory, without a transaction for each that is 0."""
    tl.atomic_add(places, counts, counts > 0)


@triton.jit
def count_kernel(images, steps, counts, pixels, BLOCK: tl.constexpr):
    """Count the values of images whose step needs it: (B, 3, 256) for each channel, or for grey in the first row."""
    image = tl.program_id(0).to(tl.int64)
    operation = tl.load(steps + image * _ROW).to(tl.int32)
    is_grey = operation == _CONTRAST
    if is_grey | (operation == _AUTOCONTRAST) | (operation == _EQUALIZE):
        offsets = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = offsets < pixels
        places = images + image * pixels * 3 + offsets * 3
        red = tl.load(places, inside, 0).to(tl.int32)
        green = tl.load(places + 1, inside, 0).to(tl.int32)
        blue = tl.load(places + 2, inside, 0).to(tl.int32)
        # Count within the block first: many pixels have the same value, and atomic additions to one place take turns.
        row = counts + image * 768 + tl.arange(0, 256)
        if is_grey:
            _add(row, tl.histogram(_grey(red, green, blue), 256, inside))
        else:
            _add(row, tl.histogram(red, 256, inside))
            _add(row + 256, tl.histogram(green, 256, inside))
            _add(row + 512, tl.histogram(blue, 256, inside))


@triton.jit
def table_kernel(steps, counts, tables, pixels):
    """Fill the tables (B, 3, 256) in uint8 of the operations from INVERT to EQUALIZE: a program for each channel."""
    image, channel = tl.program_id(0).to(tl.int64), tl.program_id(1)
    operation = tl.load(steps + image * _ROW).to(tl.int32)
    if (operation >= _INVERT) & (operation <= _EQUALIZE):
        number = tl.load(steps + image * _ROW + 1)
        value = tl.arange(0, 256)
        count = tl.load(counts + image * 768 + (0 if operation == _CONTRAST else channel) * 256 + value)
        table = value
        if operation == _INVERT:
            table = 255 - value
        elif operation == _POSTERIZE:
            bits = tl.minimum(number, 8.0).to(tl.int32)
            table = (value >> (8 - bits)) << (8 - bits)
        elif operation == _SOLARIZE:
            table = tl.where(value < number, value, 255 - value)
        elif operation == _SOLARIZE_ADD:
            table = tl.where(value < 128, tl.minimum(value + number.to(tl.int32), 255), value)
        elif operation == _BRIGHTNESS:
            table = _blended(tl.zeros_like(value), value, number.to(tl.float32))
        elif operation == _CONTRAST:
            total = tl.sum(count * value.to(tl.int64)).to(tl.float64)
            mean = (total / pixels + 0.5).to(tl.int32)
            table = _blended(tl.zeros_like(value) + mean, value, number.to(tl.float32))
        elif operation == _AUTOCONTRAST:
            low = tl.min(tl.where(count > 0, value, 255))
            high = tl.max(tl.where(count > 0, value, 0))
            if high > low:
                scale = 255.0 / (high - low).to(tl.float64)
                stretched = value.to(tl.float64) * scale + -low.to(tl.float64) * scale
                table = tl.minimum(tl.maximum(stretched, 0.0), 255.0).to(tl.int32)
        else:
            high = tl.max(tl.where(count > 0, value, 0))
            step = (pixels - tl.sum(tl.where(value == high, count, 0))) // 255
            if step > 0:
                before = step // 2 + tl.cumsum(count, 0) - count
                table = tl.minimum(before // step, 255)
        tl.store(tables + image * 768 + channel * 256 + value, table.to(tl.uint8))


@triton.jit
def _smooth(places, row: tl.constexpr, inside):
    """Return Pillow's filter SMOOTH of the pixels at ``places``, whose neighbours exist: 5 of 13 parts, and 1 each."""
    total = 4 * tl.load(places, inside, 0).to(tl.int32)
    for down in tl.static_range(-1, 2):
        for right in tl.static_range(-1, 2):
            total += tl.load(places + (down * row + right * 3), inside, 0).to(tl.int32)
    return (2 * total + 13) // 26


@triton.jit
def _cubic(first, second, third, fourth, distance):
    """Return Pillow's cubic interpolation between the second and third of four float64 values."""
    linear = third - first
    square = 2 * (first - second) + third - fourth
    cube = second - first + fourth - third
    return second + distance * (linear + distance * (square + distance * cube))


@triton.jit
def _cubic_row(places, first, second, third, fourth, distance, inside):
    return _cubic(
        tl.load(places + first, inside, 0).to(tl.float64),
        tl.load(places + second, inside, 0).to(tl.float64),
        tl.load(places + third, inside, 0).to(tl.float64),
        tl.load(places + fourth, inside, 0).to(tl.float64),
        distance,
    )


@triton.jit
def _within(value, low, high):
    return tl.minimum(tl.maximum(value, low), high)


@triton.jit
def step_kernel(
    images, steps, tables, out, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    RED: tl.constexpr, GREEN: tl.constexpr, BLUE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write each image's step to ``out``. RED, GREEN and BLUE fill what an affine map leaves empty."""
    image = tl.program_id(0).to(tl.int64)
    row = steps + image * _ROW
    operation = tl.load(row).to(tl.int32)
    offsets = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < HEIGHT * WIDTH
    source = images + image * (HEIGHT * WIDTH * 3)
    target = out + image * (HEIGHT * WIDTH * 3) + offsets * 3
    if operation <= _SHARPNESS:
        places = source + offsets * 3
        red = tl.load(places, inside, 0).to(tl.int32)
        green = tl.load(places + 1, inside, 0).to(tl.int32)
        blue = tl.load(places + 2, inside, 0).to(tl.int32)
        if (operation >= _INVERT) & (operation <= _EQUALIZE):
            table = tables + image * 768
            red = tl.load(table + red).to(tl.int32)
            green = tl.load(table + 256 + green).to(tl.int32)
            blue = tl.load(table + 512 + blue).to(tl.int32)
        elif operation == _COLOR:
            factor = tl.load(row + 1).to(tl.float32)
            grey = _grey(red, green, blue)
            red, green, blue = _blended(grey, red, factor), _blended(grey, green, factor), _blended(grey, blue, factor)
        elif operation == _SHARPNESS:
            factor = tl.load(row + 1).to(tl.float32)
            y, x = offsets // WIDTH, offsets % WIDTH
            # Pillow's filter leaves the border as it is.
            inner = inside & (y > 0) & (y < HEIGHT - 1) & (x > 0) & (x < WIDTH - 1)
            red = _blended(tl.where(inner, _smooth(places, WIDTH * 3, inner), red), red, factor)
            green = _blended(tl.where(inner, _smooth(places + 1, WIDTH * 3, inner), green), green, factor)
            blue = _blended(tl.where(inner, _smooth(places + 2, WIDTH * 3, inner), blue), blue, factor)
        tl.store(target, red.to(tl.uint8), inside)
        tl.store(target + 1, green.to(tl.uint8), inside)
        tl.store(target + 2, blue.to(tl.uint8), inside)
    else:
        x, y = (offsets % WIDTH).to(tl.float64) + 0.5, (offsets // WIDTH).to(tl.float64) + 0.5
        from_x = tl.load(row + 1) * x + tl.load(row + 2) * y + tl.load(row + 3)
        from_y = tl.load(row + 4) * x + tl.load(row + 5) * y + tl.load(row + 6)
        found = inside & (from_x >= 0) & (from_x < WIDTH) & (from_y >= 0) & (from_y < HEIGHT)
        from_x, from_y = from_x - 0.5, from_y - 0.5
        left, top = tl.floor(from_x), tl.floor(from_y)
        right_share, down_share = from_x - left, from_y - top
        column, line = left.to(tl.int32), top.to(tl.int32)
        x1 = _within(column, 0, WIDTH - 1) * 3
        x2 = _within(column + 1, 0, WIDTH - 1) * 3
        y1 = _within(line, 0, HEIGHT - 1) * (WIDTH * 3)
        y2 = _within(line + 1, 0, HEIGHT - 1) * (WIDTH * 3)
        for channel in tl.static_range(3):
            plane = source + channel
            if operation == _BILINEAR:
                a = tl.load(plane + y1 + x1, found, 0).to(tl.float64)
                b = tl.load(plane + y1 + x2, found, 0).to(tl.float64)
                c = tl.load(plane + y2 + x1, found, 0).to(tl.float64)
                d = tl.load(plane + y2 + x2, found, 0).to(tl.float64)
                upper, lower = a + (b - a) * right_share, c + (d - c) * right_share
                value = upper + (lower - upper) * down_share
            else:
                x0 = _within(column - 1, 0, WIDTH - 1) * 3
                x3 = _within(column + 2, 0, WIDTH - 1) * 3
                y0 = _within(line - 1, 0, HEIGHT - 1) * (WIDTH * 3)
                y3 = _within(line + 2, 0, HEIGHT - 1) * (WIDTH * 3)
                value = _cubic(
                    _cubic_row(plane + y0, x0, x1, x2, x3, right_share, found),
                    _cubic_row(plane + y1, x0, x1, x2, x3, right_share, found),
                    _cubic_row(plane + y2, x0, x1, x2, x3, right_share, found),
                    _cubic_row(plane + y3, x0, x1, x2, x3, right_share, found),
                    down_share,
                )
            fill = RED if channel == 0 else (GREEN if channel == 1 else BLUE)
            level = tl.where(found, _within(value, 0.0, 255.0).to(tl.int32), fill)
            tl.store(target + channel, level.to(tl.uint8), inside)


@triton.jit
def _resampling_weights(distance, is_bicubic):
    """Return Pillow's filter at a distance from the centre."""
    x = tl.abs(distance)
    near, far = (1.5 * x - 2.5) * x * x + 1, (((x - 5) * x + 8) * x - 4) * -0.5
    cubic = tl.where(x < 1, near, tl.where(x < 2, far, 0.0))
    return tl.where(is_bicubic, cubic, tl.maximum(1 - x, 0.0))


@triton.jit
def resize_kernel(
    images, numbers, out,
    LINES: tl.constexpr, PLACES: tl.constexpr, FIRST: tl.constexpr, KEPT: tl.constexpr, ALONG_X: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, CHOOSES_ORDER: tl.constexpr, ROWS_FIRST: tl.constexpr,
    TAPS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_LINES: tl.constexpr,
):  # fmt: skip
    """Resize lines of a part to HEIGHT or WIDTH pixels: its rows with ALONG_X, otherwise its columns.

    Images are (N, LINES, PLACES, 3) along rows, and (N, PLACES, LINES, 3) along columns. The first of two kernels reads
    images by number, the second reads what the first has written. Parts of the other order are left out.
    """
    side: tl.constexpr = WIDTH if ALONG_X else HEIGHT
    line_blocks: tl.constexpr = (LINES + BLOCK_LINES - 1) // BLOCK_LINES
    part = (tl.program_id(0) // line_blocks).to(tl.int64)
    row = numbers + part * 8
    fewer_rows, fewer_columns = tl.load(row + 3) - HEIGHT, tl.load(row + 4) - WIDTH
    # Pillow's condition.
    columns_first = (fewer_rows > 0) & (fewer_rows > 2 * fewer_columns)
    if not CHOOSES_ORDER:
        is_left_out = False
    elif ROWS_FIRST:
        is_left_out = columns_first
    else:
        is_left_out = columns_first == 0
    if not is_left_out:
        start = tl.load(row + (2 if ALONG_X else 1)).to(tl.float64)
        length = tl.load(row + (4 if ALONG_X else 3)).to(tl.float64)
        is_bicubic = tl.load(row + 5) > 0
        is_flipped = tl.load(row + (6 if ALONG_X else 7)) > 0
        image = tl.load(row) if ALONG_X == ROWS_FIRST else part

        wanted = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        places = tl.arange(0, TAPS)
        scale = length / side
        wide = tl.maximum(scale, 1.0)
        support = tl.where(is_bicubic, 2.0, 1.0) * wide
        centre = (wanted.to(tl.float64)[:, None] + 0.5) * scale
        # To int32, as C truncates.
        low = tl.maximum((centre - support + 0.5).to(tl.int32), 0).to(tl.float64)
        high = tl.minimum((centre + support + 0.5).to(tl.int32).to(tl.float64), length)
        at = places.to(tl.float64)[None, :] - start
        weights = _resampling_weights((at - centre + 0.5) * (1 / wide), is_bicubic)
        weights = tl.where((at >= low) & (at < high) & (places < PLACES)[None, :], weights, 0.0)
        sums = tl.where(wanted < side, tl.sum(weights, axis=1), 1.0)
        weights = weights / sums[:, None] * _ONE
        coefficients = (weights + tl.where(weights < 0, -0.5, 0.5)).to(tl.int32)

        target = tl.where(is_flipped, side - 1 - wanted, wanted) - FIRST
        is_kept = (wanted < side) & (target >= 0) & (target < KEPT)
        line = tl.program_id(0) % line_blocks * BLOCK_LINES + tl.arange(0, BLOCK_LINES)
        here, there = line[:, None], line < LINES
        if ALONG_X:
            sources = (image * LINES + here) * (PLACES * 3) + places[None, :] * 3
            results = (part * LINES + here) * (KEPT * 3) + target[None, :] * 3
        else:
            sources = (image * PLACES + places[None, :]) * (LINES * 3) + here * 3
            results = (part * KEPT + target[None, :]) * (LINES * 3) + here * 3
        for channel in tl.static_range(3):
            values = tl.load(images + sources + channel, there[:, None] & (places < PLACES)[None, :], 0).to(tl.int32)
            total = tl.sum(coefficients[None, :, :] * values[:, None, :], axis=2) + _HALF
            level = tl.minimum(tl.maximum(total >> _BITS, 0), 255)
            tl.store(out + results + channel, level.to(tl.uint8), there[:, None] & is_kept[None, :])


@triton.jit
def normalise_kernel(
    images, mean, std, out, pixels,
    CHANNELS: tl.constexpr, ACROSS: tl.constexpr, ALONG: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write (images - mean) / std to ``out`` (B, C, H, W), and round to its dtype after each of the two operations.

    In ``images``, channels are ACROSS apart and pixels ALONG.
    """
    image = tl.program_id(0).to(tl.int64) * (pixels * CHANNELS)
    offsets = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < pixels
    dtype: tl.constexpr = out.dtype.element_ty
    for channel in tl.static_range(CHANNELS):
        level = tl.load(images + image + channel * ACROSS + offsets * ALONG, inside, 0).to(tl.float32)
        centred = (level - tl.load(mean + channel).to(tl.float32)).to(dtype).to(tl.float32)
        value = tl.div_rn(centred, tl.load(std + channel).to(tl.float32))
        tl.store(out + image + channel * pixels + offsets, value.to(dtype), inside)


@triton.jit
def erase_kernel(
    images, boxes, filling,
    CHANNELS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, PER_PIXEL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Fill the boxes (M, 5) of images (N, C, H, W), with a value for each channel or each pixel of it."""
    number = tl.program_id(0).to(tl.int64)
    box = boxes + number * 5
    offsets = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row, column = offsets // WIDTH, offsets % WIDTH
    inside = (row >= tl.load(box + 1)) & (row < tl.load(box + 2))
    inside &= (column >= tl.load(box + 3)) & (column < tl.load(box + 4))
    image = images + tl.load(box) * (CHANNELS * HEIGHT * WIDTH)
    for channel in tl.static_range(CHANNELS):
        if PER_PIXEL:
            value = tl.load(filling + (number * CHANNELS + channel) * (HEIGHT * WIDTH) + offsets, inside, 0.0)
        else:
            value = tl.load(filling + number * CHANNELS + channel)
        tl.store(image + channel * (HEIGHT * WIDTH) + offsets, value, inside)


@triton.jit(do_not_specialize=["top", "bottom", "left", "right"])
def mix_kernel(
    images, out, share, top, bottom, left, right, count, values,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, ROW: tl.constexpr, COLUMN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Mix a pair of images within a box: number i from the batch's start, and number i from its end.

    An image has so many values. ROW and COLUMN are the strides of its rows and columns.
    """
    first = tl.program_id(0).to(tl.int64) * values
    second = (count - 1 - tl.program_id(0)).to(tl.int64) * values
    offsets = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < values
    row, column = offsets // ROW % HEIGHT, offsets // COLUMN % WIDTH
    mixed = (row >= top) & (row < bottom) & (column >= left) & (column < right)
    one = tl.load(images + first + offsets, inside).to(tl.float32)
    other = tl.load(images + second + offsets, inside).to(tl.float32)
    dtype: tl.constexpr = out.dtype.element_ty
    tl.store(out + first + offsets, tl.where(mixed, one * share + other * (1 - share), one).to(dtype), inside)
    tl.store(out + second + offsets, tl.where(mixed, other * share + one * (1 - share), other).to(dtype), inside)


@triton.jit
def mix_target_kernel(classes, out, share, rest, on, off, count, width, BLOCK: tl.constexpr):
    """Mix a row of targets (B, width) with its partner's. Both are ``on`` at the class and ``off`` elsewhere."""
    number = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    own = tl.where(columns == tl.load(classes + number), on, off)
    partner = tl.where(columns == tl.load(classes + count - 1 - number), on, off)
    tl.store(out + number * width + columns, own * share + partner * rest, columns < width)
