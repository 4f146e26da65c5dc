"""The contrastive objective of CLIP over the batch of all processes, and the same with bounded memory.

The loss is the symmetric InfoNCE of Radford et al. 2021, "Learning Transferable Visual Models From Natural Language
Supervision", but for one thing: a text is no negative of an image that it also describes.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather
from torch.nn import functional as F

Encode = Callable[[int], tuple[Tensor, Tensor]]  # number of a chunk -> unit image and text features


def masked_logits(image: Tensor, text: Tensor, scale: Tensor | float, same: Tensor | None = None) -> Tensor:
    """Scaled cosines ``(n, m)`` of ``n`` images and their texts, -inf where a text is no negative of an image.

    Args:
        image: unit features ``(n, dim)``.
        text: ``(m, dim)``, m >= n; texts beyond those of all images are wrong for every image.
        scale: factor of the cosines, > 0.
        same: ``(n, m)`` bool, further texts that are true of an image, and so are left out of its negatives.
    """
    return _logits(image, text, scale, same, torch.arange(len(image), device=image.device))


def symmetric_loss(logits: Tensor) -> Tensor:
    """Mean of image-to-text and text-to-image cross-entropy of ``masked_logits``."""
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits[:, : len(logits)].T, own)) / 2


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor | float, same: Tensor | None = None) -> Tensor:
    """The symmetric loss of features; see ``masked_logits`` for the arguments."""
    return symmetric_loss(masked_logits(image, text, scale, same))


def global_loss(image: Tensor, text: Tensor, scale: Tensor, groups: Tensor, local: bool = False) -> Tensor:
    """The loss over the batch of all processes, its gradient that of one process with the whole batch.

    With DDP, which averages gradients over processes: every process differentiates with respect to all features, and
    the gather hands each process the sum of what all of them found for its own.

    Args:
        image, text: this process's features ``(n, dim)``; all processes have as many.
        groups: ``(n, 2)`` numbers of the image and of the text of each pair; pairs that share either are no negatives.
        local: each process takes the loss of its own rows against all columns, not of the whole matrix, which needs
            ``1 / processes`` of the memory. The mean over processes, and the gradient, are the same.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return contrastive_loss(image, text, scale, same_pair(groups, groups))
    images, texts = torch.cat(all_gather(image)), torch.cat(all_gather(text))
    everyone = torch.cat(all_gather(groups))
    if not local:
        return contrastive_loss(images, texts, scale, same_pair(everyone, everyone))
    own = dist.get_rank() * len(image) + torch.arange(len(image), device=image.device)
    same, ways = same_pair(groups, everyone), ((image, texts), (text, images))
    losses = [F.cross_entropy(_logits(queries, keys, scale, same, own), own) for queries, keys in ways]
    return (losses[0] + losses[1]) / 2


def same_pair(rows: Tensor, columns: Tensor) -> Tensor:
    """``(n, m)`` whether pairs, numbered ``(n, 2)`` and ``(m, 2)``, share their image or their text."""
    return (rows[:, None] == columns[None]).any(-1)


def cached_backward(
    encode: Encode,
    chunks: int,
    loss_of: Callable[[Tensor, Tensor, Tensor], Tensor],
    log_scale: Tensor,
    backward: Callable[[Tensor], None],
    unsynced: Callable[[], AbstractContextManager] = nullcontext,
) -> Tensor:
    """Backpropagate the loss of a batch that is encoded a chunk at a time, and return it, detached.

    Gradients are those of the whole batch at once (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under
    Memory Limited Setup"): the features are found without a graph, then the loss's gradient at them, then each chunk is
    encoded again with a graph. Memory is that of one chunk; the cost is one more forward.

    Args:
        encode: unit features of one chunk; is called twice for each with the same random numbers.
        loss_of: loss of all image features, text features and the log of the scale.
        log_scale: the parameter; it is part of the last chunk's graph, so that wrappers see its gradient.
        backward: how to backpropagate.
        unsynced: the context for all chunks but the last, where no gradients are exchanged.
    """
    states, found = [], []
    with torch.no_grad():
        for number in range(chunks):
            states.append(_random_state(log_scale.device))
            found.append(encode(number))
    image, text = (torch.cat(parts).requires_grad_() for parts in zip(*found, strict=True))
    leaf = log_scale.detach().requires_grad_()
    with torch.enable_grad():
        loss = loss_of(image, text, leaf)
    gradients = torch.autograd.grad(loss, (image, text, leaf), allow_unused=True)
    at_image, at_text, at_scale = (torch.zeros(()) if found is None else found for found in gradients)
    after = _random_state(log_scale.device)
    sizes = [len(part) for part, _ in found], [len(part) for _, part in found]
    slices = zip(at_image.split(sizes[0]), at_text.split(sizes[1]), strict=True)
    for number, (image_gradient, text_gradient) in enumerate(slices):
        last = number == chunks - 1
        with nullcontext() if last else unsynced():
            _set_random_state(states[number], log_scale.device)
            some_image, some_text = encode(number)
            surrogate = (some_image * image_gradient).sum() + (some_text * text_gradient).sum()
            backward(surrogate + (log_scale * at_scale if last else 0))
    _set_random_state(after, log_scale.device)
    return loss.detach()


def _logits(queries: Tensor, keys: Tensor, scale: Tensor | float, same: Tensor | None, own: Tensor) -> Tensor:
    """Scaled cosines in float32, -inf for keys that share a pair with a query but are not its ``own``."""
    logits = scale * queries.float() @ keys.float().T
    if same is None:
        return logits
    others = same.clone()
    others[torch.arange(len(queries), device=queries.device), own] = False
    return logits.masked_fill(others, float("-inf"))


def _random_state(device: torch.device) -> Sequence[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_random_state(states: Sequence[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
