"""LoRA adapters by name: inject, isolate, save, load (over peft). Knows no losses and no loops.

The paper's LoRA: rank 32, scale 1. Which linears of a network it wraps is a base's to say.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from customttt.errors import DamagedError, StoreError, UsageError, is_full

Weights = dict[str, Tensor]
Loras = dict[str, Weights]
"""Several, by the names of their adapters: `appearance`, `motion`, and of further subjects `appearance2` and so on."""


def target_names(network: nn.Module, prefix: str, endings: tuple[str, ...]) -> list[str]:
    """Full names of the linears that begin and end so, with or without adapters."""
    linears = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | LoraLayer)]
    return [name for name in linears if name.startswith(prefix) and name.endswith(endings)]


def inject(
    network: nn.Module, adapter: str, targets: list[str], *, rank: int = 32, dropout: float = 0.0, seed: int = 0
) -> list[nn.Parameter]:
    """Add an adapter that changes nothing yet (B = 0), in float32 on any base; everything else is frozen.

    Returns its parameters.
    """
    wanted = set(targets)
    found = [(name, module) for name, module in network.named_modules() if name in wanted]
    # peft looks through all that it is given for each module that it wraps: it gets these alone, in the network's order
    shell = nn.ModuleDict({str(number): module for number, (_, module) in enumerate(found)})
    config = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=dropout, target_modules=[*shell])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, shell, adapter_name=adapter)
    for (name, _), module in zip(found, shell.values(), strict=True):
        _put(network, name, module)
    _known.clear()
    network.requires_grad_(False)
    device = getattr(network, "device", None)  # asked once: diffusers looks through all modules for it
    for _, layer in _layers(network):  # peft gives them the precision of the base, in which an update of 1e-5 is lost
        layer._active_adapter = [adapter]
        for matrices in (layer.lora_A, layer.lora_B):
            if adapter in matrices:
                matrices[adapter].to(device or layer.weight.device, torch.float32)
        if isinstance(layer, LoraLinear):
            layer.forward = partial(_forward, layer)
    return parameters(network, adapter)


def _put(network: nn.Module, name: str, module: nn.Module) -> None:
    """Let a module stand where another did."""
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)


def _forward(layer: Any, hidden: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
    """W x and B A x of the adapters that act, all in the precision of W x.

    peft's own computes in that of the matrices, float32, so that all that goes into a LoRA on a narrow base is widened,
    kept so for the backward pass, and narrowed again.
    """
    out: Tensor = layer.base_layer(hidden)
    for name in layer.active_adapters:
        if name not in layer.lora_A:
            continue
        inner = layer.lora_dropout[name](hidden.to(out.dtype)).flatten(0, -2)  # once, and not in each product
        for matrix in (layer.lora_A[name].weight, layer.lora_B[name].weight):
            inner = F.linear(inner, matrix.to(out.dtype))
        scale = layer.scaling[name]
        inner = (inner if scale == 1 else inner * scale).view_as(out)
        if (mask := getattr(layer, "masks", {}).get(name)) is not None:  # of one video, where there are several
            inner = (inner.unflatten(0, (-1, len(mask))) * mask.to(inner)).flatten(0, 1)
        out = out + inner
    return out


def parameters(network: nn.Module, adapter: str) -> list[nn.Parameter]:
    """The adapter's matrices, A before B, in the order of the network."""
    marks = f".lora_A.{adapter}.", f".lora_B.{adapter}."
    return [parameter for name, parameter in network.named_parameters() if any(mark in name for mark in marks)]


_known: WeakKeyDictionary[nn.Module, list[tuple[str, LoraLayer]]] = WeakKeyDictionary()
"""What `_layers` found in each network; of no use once adapters are put in or taken out."""


def _layers(network: nn.Module) -> list[tuple[str, LoraLayer]]:
    """Whatever has adapters, and its name: looked for once, for a step asks many times."""
    if network not in _known:
        _known[network] = [(name, one) for name, one in network.named_modules() if isinstance(one, LoraLayer)]
    return _known[network]


@contextmanager
def active(network: nn.Module, **scales: float) -> Iterator[None]:
    """Let exactly these adapters act, each at its scale; the state before is restored afterwards.

    `with active(network, appearance=1.0, motion=0.8): ...`; with none the base stands alone.
    """
    layers = [layer for _, layer in _layers(network)]
    before = [(layer.active_adapters, dict(layer.scaling)) for layer in layers]
    for layer in layers:
        layer._active_adapter = [adapter for adapter in scales if adapter in layer.lora_A]
        layer.scaling.update({adapter: scales[adapter] for adapter in layer._active_adapter})
    try:
        yield
    finally:
        for layer, (adapters, scaling) in zip(layers, before, strict=True):
            layer._active_adapter = adapters
            layer.scaling.update({name: scale for name, scale in scaling.items() if name in layer.lora_A})


def acting(network: nn.Module) -> dict[str, float]:
    """The scales of the adapters that act here."""
    return {name: scale for _, layer in _layers(network) for name, scale in acting_in(layer) or ()}


def acting_in(module: nn.Module) -> tuple[tuple[str, float], ...] | None:
    """The adapters that act in one module, and their scales; None for one without adapters."""
    if not isinstance(module, LoraLayer):
        return None
    return tuple((name, module.scaling[name]) for name in module.active_adapters if name in module.lora_A)


@contextmanager
def merged(network: nn.Module, **scales: float) -> Iterator[None]:
    """As `active`, but W + scale B A are the weights while this lasts; afterwards they are what they were, to the bit.

    Nothing can be learned, and no scale or place changed, in between.
    """
    with active(network, **scales):
        layers: list[Any] = [layer for _, layer in _layers(network) if layer.active_adapters]
        weights = [layer.get_base_layer().weight.detach() for layer in layers]
        before = [weight.clone() for weight in weights]
        try:
            for number, (layer, weight) in enumerate(zip(layers, weights, strict=True)):
                added = (layer.get_delta_weight(name).detach() for name in layer.active_adapters)
                weight.copy_(_rounded(sum(added, weight.float()), weight.dtype, seed=number))
            with active(network):
                yield
        finally:
            for weight, own in zip(weights, before, strict=True):
                weight.copy_(own)


def _rounded(weight: Float[Tensor, "*n"], dtype: torch.dtype, seed: int) -> Float[Tensor, "*n"]:
    """A weight in float32 as it is in `dtype`, up or down by chance, but always the same (arXiv 1502.02551).

    To the nearest, a B A that is small beside W would be lost in bfloat16. Below 6e-5, where float16 has fewer bits,
    it is rounded so all the same.
    """
    step = round(torch.finfo(dtype).eps / torch.finfo(torch.float32).eps)
    if step <= 1:
        return weight
    generator = None if weight.is_meta else torch.Generator(weight.device).manual_seed(seed)
    chance = torch.randint(step, weight.shape, generator=generator, device=weight.device, dtype=torch.int32)
    return ((weight.view(torch.int32) + chance) & -step).view(torch.float32)


def is_narrow(network: nn.Module) -> bool:
    """Whether the linears under the adapters have 16 bits: a network may keep other weights in float32 beside them."""
    return any(layer.weight.dtype != torch.float32 for _, layer in _layers(network))


def is_masked(network: nn.Module) -> bool:
    """Whether what an adapter adds is multiplied by a mask now."""
    return any(hasattr(layer, "masks") for _, layer in _layers(network))


def alone(linear: nn.Module) -> nn.Module:
    """A linear without the wrap of adapters of which none acts now."""
    if isinstance(linear, LoraLayer) and not any(name in linear.lora_A for name in linear.active_adapters):
        linear = linear.get_base_layer()
    return linear


@contextmanager
def weaker(network: nn.Module, factor: float) -> Iterator[None]:
    """Let the adapters that act here act at `factor` of their scale."""
    scales = acting(network) if factor else {}
    with active(network, **{name: factor * scale for name, scale in scales.items()}):
        yield


@contextmanager
def masked(network: nn.Module, masks: Mapping[str, Mapping[str, Float[Tensor, "r n 1"]]]) -> Iterator[None]:
    """While this lasts, what adapters add is multiplied: masks by the name of a linear, then by that of an adapter.

    A mask is that of one video: its r rows of n tokens, as that linear sees them. Raises UsageError for a LoRA of
    another program that wraps a convolution.
    """
    layers: list[tuple[Any, Mapping[str, Tensor]]] = []
    for name, layer in _layers(network):
        if name in masks:
            if not isinstance(layer, LoraLinear):
                raise UsageError(f"A LoRA wraps {name}, which is a convolution and cannot be kept to a place.")
            layers.append((layer, masks[name]))
    try:
        for layer, some in layers:
            layer.masks = some
        yield
    finally:
        for layer, _ in layers:
            del layer.masks


@contextmanager
def unmasked(network: nn.Module) -> Iterator[None]:
    """While this lasts, what adapters add is added everywhere, whatever `masked` says around it."""
    layers = [(layer, layer.masks) for _, layer in _layers(network) if hasattr(layer, "masks")]
    try:
        for layer, _ in layers:
            layer.masks = {}
        yield
    finally:
        for layer, masks in layers:
            layer.masks = masks


def wrapped(network: nn.Module) -> list[str]:
    """Names of the linears that have adapters."""
    return [name for name, _ in _layers(network)]


@contextmanager
def trainable(parameters: Iterable[nn.Parameter], wanted: bool = True) -> Iterator[None]:
    """Let gradients reach these parameters, and only while the context lasts; or, if not `wanted`, only outside."""
    listed = list(parameters)
    try:
        for parameter in listed:
            parameter.requires_grad_(wanted)
        yield
    finally:
        for parameter in listed:
            parameter.requires_grad_(not wanted)


def remove(network: nn.Module, *adapters: str) -> None:
    """Take adapters out again; where none is left, the plain linear comes back."""
    for name, layer in _layers(network):
        for adapter in adapters:
            if adapter in layer.lora_A:
                layer.delete_adapter(adapter)
        if not layer.lora_A:
            _put(network, name, layer.get_base_layer())
    _known.clear()


def state(network: nn.Module, adapter: str) -> Weights:
    """The adapter's weights in float32 on the CPU, keyed `<module>.lora_A.weight` and `<module>.lora_B.weight`."""
    weights = {}
    for name, layer in _layers(network):
        if adapter in layer.lora_A:
            weights[f"{name}.lora_A.weight"] = layer.lora_A[adapter].weight.detach().float().cpu().clone()
            weights[f"{name}.lora_B.weight"] = layer.lora_B[adapter].weight.detach().float().cpu().clone()
    return weights


def restore(
    network: nn.Module, adapter: str, weights: Mapping[str, Tensor], dropout: float = 0.0
) -> list[nn.Parameter]:
    """Add an adapter and fill it with saved weights. Raises DamagedError where names or shapes do not fit the base."""
    targets = sorted({key.rsplit(".lora_", 1)[0] for key in weights})
    known = dict(network.named_modules())
    if unknown := [target for target in targets if target not in known]:
        raise DamagedError(f"The LoRA was made for another model: this one has no {unknown[0]!r}.")
    rank = len(weights[f"{targets[0]}.lora_A.weight"])
    added = inject(network, adapter, targets, rank=rank, dropout=dropout)
    with torch.no_grad():
        for target in targets:
            layer: Any = network.get_submodule(target)
            _copy(layer.lora_A[adapter].weight, weights, f"{target}.lora_A.weight")
            _copy(layer.lora_B[adapter].weight, weights, f"{target}.lora_B.weight")
    return added


def _copy(parameter: Tensor, weights: Mapping[str, Tensor], key: str) -> None:
    saved = weights.get(key)
    if saved is None or saved.shape != parameter.shape or not saved.isfinite().all():
        held = "nothing" if saved is None else f"{tuple(saved.shape)}"
        raise DamagedError(f"The LoRA does not fit: {key} holds {held}, expected finite {tuple(parameter.shape)}.")
    parameter.copy_(saved)


def save(weights: Mapping[str, Tensor], path: Path, **metadata: object) -> None:
    """Write weights as safetensors; what is no text in metadata becomes JSON. Raises StoreError (disk full).

    With one entry of metadata the same weights are the same bytes; safetensors writes several in a random order.
    """
    write(
        weights, path, {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    )


def write(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write tensors as safetensors. Raises StoreError (disk full)."""
    try:
        save_file(dict(tensors), path, dict(metadata))
    except (SafetensorError, OSError) as error:
        way_out = "make room" if is_full(error) else "write elsewhere"
        raise StoreError(f"'{path}' cannot be written ({error}); {way_out}.") from error


def load(path: Path) -> Weights:
    """Read what `save` wrote. Raises DamagedError for a file that is not readable as safetensors."""
    try:
        return parse(path.read_bytes())
    except (DamagedError, OSError) as error:
        raise DamagedError(
            f"{path.name} cannot be read as LoRA weights ({error}); learn or import the concept again."
        ) from error


def parse(content: bytes) -> Weights:
    """The tensors of what a safetensors file holds, by name. Raises DamagedError, with the reason alone."""
    try:
        return dict(sorted(parse_safetensors(content).items()))
    except (SafetensorError, KeyError, ValueError, AssertionError) as error:
        raise DamagedError(str(error)) from error


def join(loras: Mapping[str, Weights]) -> Weights:
    """Several LoRAs as one file holds them: keys begin with `appearance:`, `motion:` and so on."""
    return {f"{slot}:{key}": weight for slot, weights in loras.items() for key, weight in weights.items()}


def split(weights: Mapping[str, Tensor]) -> Loras:
    """Those that `join` put together; what was in none is left out."""
    loras: Loras = {}
    for name, weight in weights.items():
        slot, colon, key = name.partition(":")
        if colon:
            loras.setdefault(slot, {})[key] = weight
    return loras
