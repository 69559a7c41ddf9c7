"""Initialise a KAT: attention as KAT's code, the mimetic paper or MoCo start it, and the layers of its GR-KANs."""

import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from timm.layers import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ..nn.grkan import GRKAN
from ..nn.starts import variance_gain

# Trockman & Kolter, ICML 2023, section 4: strengths of the random part (alpha) and the identity (beta).
_QUERY_KEY = (0.7, 0.7)
_VALUE_PROJECTION = (0.4, -0.4)

_LINEAR_STD = 0.02

# Held while PyTorch's number of threads is changed, which is one number for the whole process.
_ONE_AT_A_TIME = threading.Lock()


def kan_mimetic_(model: VisionTransformer) -> None:
    """Initialise a model in place as the published KATs: mimetic attention, other linear layers from N(0, 0.02^2).

    W_proj W_v is R L, where L R is the paper's 0.4 Z - 0.4 I: KAT's code has these two factors the other way round.
    """
    _start_all(model)
    for attention in _attentions(model):
        mimetic_attention_(attention, is_swapped=True)


def paper_mimetic_(model: VisionTransformer) -> None:
    """Initialise as ``kan_mimetic_``, with W_proj W_v = 0.4 Z - 0.4 I as in Trockman & Kolter's paper."""
    _start_all(model)
    for attention in _attentions(model):
        mimetic_attention_(attention)


def kan_(model: VisionTransformer) -> None:
    """Initialise as ``kan`` in KAT's code: Glorot's uniform for queries, keys and values, others from N(0, 0.02^2)."""
    _start_all(model)
    for attention in _attentions(model):
        bound = math.sqrt(6 / (attention.qkv.weight.shape[0] // 3 + attention.qkv.weight.shape[1]))
        nn.init.uniform_(attention.qkv.weight, -bound, bound)


def variance_preserving_(model: VisionTransformer) -> None:
    """Initialise as ``kan_mimetic_``, with variance-preserving linear layers in the GR-KANs.

    Source: Yang & Wang, ICLR 2025, section 4.4.
    """
    kan_mimetic_(model)
    for module in model.modules():
        if isinstance(module, GRKAN):
            for rational, linear in ((module.act1, module.fc1), (module.act2, module.fc2)):
                gain = variance_gain(rational.start, rational.numerator.shape[1], rational.denominator.shape[1])
                nn.init.normal_(linear.weight, std=math.sqrt(gain / rational.channels))


def _attentions(model: VisionTransformer) -> list[Attention]:
    return [module for module in model.blocks.modules() if isinstance(module, Attention)]


def _start_all(model: VisionTransformer) -> None:
    if model.pos_embed is not None:
        nn.init.trunc_normal_(model.pos_embed, std=_LINEAR_STD)
    for token in (model.cls_token, model.reg_token):
        if token is not None:
            nn.init.normal_(token, std=1e-6)
    # Children first, as in timm, so that a module's own initialisation overrides that of its children.
    for module in reversed([module for module in model.modules() if module is not model]):
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=_LINEAR_STD)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif hasattr(module, "init_weights"):
            module.init_weights()
        elif hasattr(module, "reset_parameters"):
            module.reset_parameters()


@torch.no_grad()
def mimetic_attention_(attention: Attention, *, is_swapped: bool = False) -> None:
    """Initialise a timm attention layer in place so that its products resemble those of a trained one.

    Z is a (d, d) matrix of uniform noise with mean 0 and variance 1 / d. W_q^T W_k of each head is the best
    rank-d_head approximation of 0.7 Z + 0.7 I. W_proj W_v equals 0.4 Z - 0.4 I.

    Args:
        attention: the layer.
        is_swapped: exchange the factors L and R of 0.4 Z - 0.4 I, so that W_proj W_v = R L.

    Source: Trockman & Kolter, ICML 2023.
    """
    width, heads, head = attention.qkv.weight.shape[1], attention.num_heads, attention.head_dim
    query, key, value = attention.qkv.weight.view(3, -1, width)
    products = [_noisy_identity(width, *_QUERY_KEY, like=query) for _ in range(heads)]
    products.append(_noisy_identity(width, *_VALUE_PROJECTION, like=value))
    *of_heads, (left, right) = _all_factors(products, [head] * heads + [width])
    query.copy_(torch.cat([each.T for each, _ in of_heads]))
    key.copy_(torch.cat([each for _, each in of_heads]))
    first, second = (left, right) if is_swapped else (right, left)
    value.copy_(first)
    attention.proj.weight.copy_(second)


def _noisy_identity(size: int, alpha: float, beta: float, like: Tensor) -> Tensor:
    bound = math.sqrt(3 / size)
    noise = torch.empty(size, size, dtype=torch.float32, device=like.device).uniform_(-bound, bound)
    return alpha * noise + beta * torch.eye(size, dtype=torch.float32, device=like.device)


def _all_factors(matrices: Sequence[Tensor], ranks: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Return the factors of each matrix. On a CPU several threads work at once, each on a matrix of its own.

    Threads that share one matrix meet thousands of times. On a busy machine they mostly wait for each other. The
    factors would also depend on the number of threads.
    """
    if matrices[0].device.type != "cpu":
        return list(map(_factors, matrices, ranks))
    with _ONE_AT_A_TIME:
        # A new thread takes the process's number. This one may have taken the 1 below, in another thread's turn.
        with ThreadPoolExecutor(1) as fresh:
            threads = fresh.submit(torch.get_num_threads).result()
        torch.set_num_threads(1)  # holds for the linear algebra of all threads
        try:
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                return list(pool.map(_factors, matrices, ranks))
        finally:
            torch.set_num_threads(threads)


def _factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return L (d, rank) and R (rank, d) of equal norm, whose product best approximates a (d, d) matrix.

    The columns of L and the rows of R go from the largest singular value to the smallest.
    They come from the eigenvectors of the Gram matrix. That is several times faster than a singular value
    decomposition, and accurate enough, as the matrices here are well conditioned.
    """
    eigenvalues, vectors = torch.linalg.eigh(matrix.T @ matrix)
    right = vectors.flip(1)[:, :rank]
    singular = eigenvalues.flip(0)[:rank].clamp_min(torch.finfo(matrix.dtype).tiny).sqrt()
    return (matrix @ right) / singular.sqrt(), singular.sqrt()[:, None] * right.T
