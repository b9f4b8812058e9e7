"""Take weights or whole channels out of a network.

A mask is a bool tensor of the shape of a weight, True where the weight stays. Masks make zeros,
and a dense kernel multiplies those like any number; `remove_channels` makes smaller layers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shipyard.errors import CompressionError

Masks = dict[str, Tensor]
LAYERS = (nn.Conv2d, nn.Linear)  # what is pruned; norms and biases are few numbers


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Layer name → weight of every convolution and linear layer, in the model's order."""
    return {n: m.weight.detach() for n, m in model.named_modules() if isinstance(m, LAYERS)}


# --- Masks ------------------------------------------------------------------------------------


def magnitude_mask(weight: Tensor, sparsity: float) -> Tensor:
    """False at the round(sparsity · n) of n weights with the smallest |w|, else True.

    Args:
        weight: any shape.
        sparsity: the share of zeros that comes out, 0 <= sparsity <= 1.

    Raises:
        CompressionError: ``sparsity`` lies outside, or a weight is NaN.
    """
    return global_masks({"the weight": weight}, sparsity)["the weight"]


def layer_masks(weights: Mapping[str, Tensor], sparsity: float | Mapping[str, float]) -> Masks:
    """`magnitude_mask` of each layer by itself; ``sparsity`` may name one for each layer."""
    share = sparsity if isinstance(sparsity, Mapping) else dict.fromkeys(weights, sparsity)
    return {n: global_masks({n: w}, share.get(n, 0.0))[n] for n, w in weights.items()}


def global_masks(scores: Mapping[str, Tensor], sparsity: float) -> Masks:
    """One ranking over all layers: the round(sparsity · n) smallest |scores| go, wherever.

    Args:
        scores: layer name → weights, or other scores of their shapes such as `taylor_scores`.
        sparsity: the share of all n weights that goes, 0 <= sparsity <= 1.

    Raises:
        CompressionError: ``sparsity`` lies outside, or a score of the named layer is NaN.
    """
    if not 0 <= sparsity <= 1:
        raise CompressionError(f"sparsity is {sparsity}; it is a share and lies between 0 and 1.")
    for name, values in scores.items():
        if values.isnan().any():
            raise CompressionError(
                f"{name}: {int(values.isnan().sum())} of {values.numel()} numbers are NaN, so they "
                "have no order. Mend the training that made them (a smaller learning rate)."
            )
    sizes = torch.cat([values.abs().flatten() for values in scores.values()])  # (n,)
    kept = torch.ones_like(sizes, dtype=torch.bool)
    kept[sizes.argsort(stable=True)[: round(sparsity * len(sizes))]] = False
    parts = kept.split([values.numel() for values in scores.values()])
    return {n: k.view_as(v) for (n, v), k in zip(scores.items(), parts, strict=True)}


def n_of_m_mask(weight: Tensor, n: int = 2, m: int = 4) -> Tensor:
    """True at the ``n`` largest |w| of every ``m`` neighbours along the inputs.

    Args:
        weight: (out, …), where the product of the other sizes is a multiple of ``m``. A
            convolution's inputs are ordered (height, width, channel), as its kernels on a GPU read.

    Source: A. Mishra et al., "Accelerating sparse deep neural networks", 2021.
    """
    rows = weight.movedim(1, -1).flatten(1)  # (out, inputs)
    if rows.shape[1] % m:
        raise CompressionError(f"{rows.shape[1]} inputs do not divide into groups of {m}.")
    groups = rows.abs().unflatten(1, (-1, m))  # (out, groups, m)
    kept = torch.zeros_like(groups, dtype=torch.bool)
    kept.scatter_(-1, groups.topk(n, dim=-1).indices, True)
    return kept.view_as(weight.movedim(1, -1)).movedim(-1, 1)


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """w ← w ⊙ mask for each named layer, in place.

    Raises:
        CompressionError: a layer is missing, of another kind or shape, or would lose all weights.
    """
    for layer, mask in _checked(model, masks).items():
        layer.weight.masked_fill_(~mask, 0.0)


def keep_masks(
    optimizer: torch.optim.Optimizer, model: nn.Module, masks: Mapping[str, Tensor]
) -> torch.utils.hooks.RemovableHandle:
    """Apply ``masks`` now and after every step of ``optimizer``, until ``.remove()`` is called.

    Without it a step brings pruned weights back: their gradient is not zero, nor is momentum.
    """
    apply_masks(model, masks)
    weights = [(layer.weight, ~mask) for layer, mask in _checked(model, masks).items()]

    @torch.no_grad()
    def clear(*_: object) -> None:
        for weight, gone in weights:
            weight.masked_fill_(gone, 0.0)

    return optimizer.register_step_post_hook(clear)


def sparsity_of(model: nn.Module) -> float:
    """The share of zeros among the weights of convolutions and linear layers."""
    weights = weights_of(model).values()
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def cubic_sparsity(step: int, steps: int, final: float) -> float:
    """s_t = s (1 − (1 − t/n)³): much is pruned early, little at the end, where it hurts.

    Source: M. Zhu and S. Gupta, "To prune, or not to prune", 2017.
    """
    return final * (1 - (1 - step / steps) ** 3)


def taylor_scores(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss_fn: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> dict[str, Tensor]:
    """The mean over ``batches`` of g · w, where g is the gradient of the loss for the weight w.

    To first order, setting w to zero changes the loss by −g · w. So a score is a signed
    estimate: `global_masks` ranks single weights by its size, and `channel_scores` adds up a
    channel's before taking the size. The model is in eval mode meanwhile.

    Args:
        batches: (images, labels), on the device of ``model``.

    Source: P. Molchanov et al., "Importance estimation for neural network pruning", 2019.
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, LAYERS)}
    weights = [layer.weight for layer in layers.values()]
    scores = [torch.zeros_like(weight) for weight in weights]
    was_training, count = model.training, 0
    model.eval()
    for images, labels in batches:
        gradients = torch.autograd.grad(loss_fn(model(images), labels), weights)
        for score, weight, gradient in zip(scores, weights, gradients, strict=True):
            score += (gradient * weight).detach()
        count += 1
    model.train(was_training)
    return {name: score / count for name, score in zip(layers, scores, strict=True)}


# --- Channels ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChannelGroup:
    """Names of layers that share the same channels: what one loses, all must lose.

    Attributes:
        makers: layers whose outputs are the channels. Several where a shortcut adds them up.
        norms: batch norms with one scale for each of the channels.
        readers: layers whose inputs are the channels.
    """

    makers: tuple[str, ...]
    norms: tuple[str, ...]
    readers: tuple[str, ...]


def channel_scores(scores: Mapping[str, Tensor], group: ChannelGroup, signed: bool = False):
    """One score for each channel of ``group``: (channels,), added up over its makers.

    |w| summed over a filter for magnitudes; with ``signed``, |Σ g · w| for `taylor_scores`.
    """
    filters = [scores[name].flatten(1) for name in group.makers]  # (channels, inputs) each
    if signed:
        return sum(f.sum(dim=1) for f in filters).abs()
    return sum(f.abs().sum(dim=1) for f in filters)


def largest(scores: Tensor, count: int) -> Tensor:
    """The places of the ``count`` largest of ``scores``, in ascending order."""
    return scores.topk(count).indices.sort().values


def remove_channels(model: nn.Module, group: ChannelGroup, kept: Tensor) -> nn.Module:
    """A copy of ``model`` whose ``group`` has only the channels ``kept``, in smaller layers.

    Args:
        kept: (channels that stay,), whole numbers; they become channels 0, 1, 2, …

    Raises:
        CompressionError: ``kept`` is empty or out of range, or a layer is missing, of a kind that
            cannot be cut, or does not have as many channels as the others.
    """
    smaller = copy.deepcopy(model)
    width = layer_of(model, group.makers[0]).weight.shape[0]
    if not len(kept) or kept.min() < 0 or kept.max() >= width:
        raise CompressionError(
            f"{group.makers[0]} has channels 0 to {width - 1}; at least one must stay, and "
            f"{kept.tolist()} was asked for."
        )
    for names, cut, kinds in (
        (group.makers, _cut_outputs, LAYERS),
        (group.norms, _cut_norm, (nn.BatchNorm2d,)),
        (group.readers, _cut_inputs, LAYERS),
    ):
        for name in names:
            layer = layer_of(smaller, name, kinds)
            size = layer.weight.shape[1 if cut is _cut_inputs else 0]
            if size != width:
                raise CompressionError(
                    f"{name} has {size} channels where {group.makers[0]} makes {width}: they are "
                    "not in one group. A layer after a flatten has several inputs per channel."
                )
            smaller.set_submodule(name, cut(layer, kept.to(layer.weight.device)))
    return smaller


def rebuild(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A copy of ``model`` cut down to the shapes in ``state``, with its numbers loaded.

    So the file of a network that `remove_channels` made can be read where only the code of the
    whole network is known.

    Args:
        model: the whole network, with any weights.
        state: the state dict of a smaller one.

    Raises:
        CompressionError: ``state`` is of another network; the message names the first layer.
    """
    smaller = copy.deepcopy(model)
    wanted = model.state_dict()
    for name in {**wanted, **state}:
        if name not in wanted or name not in state:
            where = "the file" if name in wanted else "the model"
            raise CompressionError(f"The state dict is of another network: {where} has no {name}.")
        have, need = tuple(state[name].shape), tuple(wanted[name].shape)
        larger = any(a > b for a, b in zip(have, need, strict=False))
        if len(have) != len(need) or larger or have[2:] != need[2:]:  # [2:]: the kernel's sides
            raise CompressionError(
                f"The state dict is of another network: {name} has shape {have}, which cannot be "
                f"cut out of {need}."
            )
    for name in [n.removesuffix(".weight") for n, v in state.items() if v.shape != wanted[n].shape]:
        if not name.endswith((".bias", ".running_mean", ".running_var")):
            layer = layer_of(model, name, (*LAYERS, nn.BatchNorm2d))
            first, *rest = (torch.arange(size) for size in state[f"{name}.weight"].shape[:2])
            cut = _cut_outputs(layer, first) if rest else _cut_norm(layer, first)
            smaller.set_submodule(name, _cut_inputs(cut, *rest) if rest else cut)
    smaller.load_state_dict(state)
    return smaller


def _cut_outputs(layer: nn.Module, kept: Tensor) -> nn.Module:
    bias = None if layer.bias is None else layer.bias[kept]
    return _like(layer, layer.weight[kept], bias)


def _cut_inputs(layer: nn.Module, kept: Tensor) -> nn.Module:
    return _like(layer, layer.weight[:, kept], layer.bias)


def _like(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """A layer as ``layer``, of the sizes of ``weight``."""
    outputs, inputs = weight.shape[:2]
    options = {"bias": bias is not None, "device": weight.device, "dtype": weight.dtype}
    if isinstance(layer, nn.Conv2d):
        made = nn.Conv2d(
            inputs, outputs, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
            padding_mode=layer.padding_mode, **options,
        )  # fmt: skip
    else:
        made = nn.Linear(inputs, outputs, **options)
    return _filled(made, layer, {"weight": weight, "bias": bias})


def _cut_norm(norm: nn.BatchNorm2d, kept: Tensor) -> nn.BatchNorm2d:
    options = {"device": norm.weight.device, "dtype": norm.weight.dtype}
    made = nn.BatchNorm2d(len(kept), norm.eps, norm.momentum, **options)
    names = ("weight", "bias", "running_mean", "running_var")
    return _filled(made, norm, {name: getattr(norm, name)[kept] for name in names})


@torch.no_grad()
def _filled(made: nn.Module, old: nn.Module, values: Mapping[str, Tensor | None]) -> nn.Module:
    for name, value in values.items():
        if value is not None:
            getattr(made, name).copy_(value)
    return made.train(old.training)


def layer_of(model: nn.Module, name: str, kinds: tuple[type, ...] = LAYERS) -> nn.Module:
    """The layer ``name`` of ``model``, if it is of one of ``kinds`` and has one group.

    Raises:
        CompressionError: there is none of that name, or it is of another kind.
    """
    try:
        layer = model.get_submodule(name)
    except AttributeError:
        raise CompressionError(f"The model has no layer {name}; is it another network?") from None
    if not isinstance(layer, kinds) or getattr(layer, "groups", 1) != 1:
        known = " or ".join(kind.__name__ for kind in kinds)
        raise CompressionError(f"{name} is {layer}; expected {known}, with one group.")
    return layer


def _checked(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[nn.Module, Tensor]:
    """Layer → its mask on the device of the layer."""
    found = {}
    for name, mask in masks.items():
        layer = layer_of(model, name)
        if mask.shape != layer.weight.shape or mask.dtype != torch.bool:
            raise CompressionError(
                f"{name}: the mask is {mask.dtype} of shape {tuple(mask.shape)}; the weight wants "
                f"torch.bool of shape {tuple(layer.weight.shape)}. Is it of another network?"
            )
        if not mask.any():
            raise CompressionError(
                f"{name}: the mask removes all {mask.numel()} weights, and the layer would say "
                "the same for every input. Ask for less sparsity, or leave this layer out."
            )
        found[layer] = mask.to(layer.weight.device)
    return found
