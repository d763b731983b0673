"""Networks of timm as backbones."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from autoreid.errors import ConfigError
from autoreid.layers.batch_norm import SharedBatchNorm
from autoreid.layers.heads import BNNeck
from autoreid.models.network import Network

#: What the names of timm's networks begin with, in `model.name`.
TIMM = "timm:"
#: Options that let a network of timm take images of any size; the first one that it has. The first is for windowed
#: transformers, older ones of which ignore the second. That one resizes the position embeddings of transformers in each
#: pass; the weights keep the size of the published ones.
_ANY_SIZE: tuple[dict[str, Any], ...] = ({"strict_img_size": False}, {"dynamic_img_size": True}, {})


class NormAct(SharedBatchNorm):
    """timm's batch norm followed by an activation, with statistics that can be shared over the ranks."""

    #: Set by `share_batch_statistics`.
    shares_statistics = False

    def __init__(self, norm: Any) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.load_state_dict(norm.state_dict())
        self.drop, self.act = norm.drop, norm.act

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        result: Tensor = self.act(self.drop(super().forward(input)))
        return result


class TimmNetwork(Network):
    """A network of timm without its classifier, followed by a BNNeck.

    The embedding is timm's own: what its `forward_head` returns before the classifier (`pre_logits`). Weights are those
    of timm's files, which are never downloaded.

    Args:
        name: as in `timm.list_models()`.
        num_identities: number of outputs of the classifier.
        drop_path: probability of dropping a residual branch in training, for networks that have this.

    Raises:
        ConfigError: timm is not installed, it has no such network, or the network has no option for `drop_path`.
    """

    def __init__(self, name: str, num_identities: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.backbone = _create(name, drop_path)
        self.neck = BNNeck(self.backbone.head_hidden_size, num_identities)

    def head(self) -> list[nn.Module]:
        """Return the neck."""
        return [self.neck]

    def renamed(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return timm's weights by their names in this network, which has no classifier of timm's."""
        parts = {name for name, _ in self.backbone.named_children()}
        parts |= {name for name, _ in self.backbone.named_parameters(recurse=False)}
        classifiers = self.backbone.pretrained_cfg.get("classifier") or ()
        unused = tuple(
            f"{name}." for name in ([classifiers] if isinstance(classifiers, str) else classifiers)
        )
        return {
            f"backbone.{key}" if key.split(".")[0] in parts and not key.startswith(unused) else key: value
            for key, value in weights.items()
        }

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) -> embedding (B, D); in training (embedding, logits (B, identities))."""
        embedding: Tensor = self.backbone(images)
        if self.training:
            return embedding, self.neck(embedding)
        ranked: Tensor = self.neck.norm(embedding)
        return ranked


def _create(name: str, drop_path: float) -> Any:
    """Build a network of timm for images of any size, without a classifier."""
    try:
        import timm
    except ImportError as error:
        raise ConfigError(f"network {TIMM}{name} requires timm: pip install 'autoreid[timm]'") from error
    if not timm.is_model(name):
        nearest = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0)
        raise ConfigError(f"timm has no network {name!r}; did you mean one of {', '.join(nearest)}?")
    options = {"drop_path_rate": drop_path} if drop_path else {}
    for any_size in _ANY_SIZE:
        try:
            network = timm.create_model(name, pretrained=False, num_classes=0, **any_size, **options)
        except TypeError as error:
            refusal = error
        else:
            _replace_norms(network)
            return network
    raise ConfigError(f"{TIMM}{name}: {refusal}")


def _replace_norms(network: nn.Module) -> None:
    """Replace timm's norms that include an activation, which would be lost if they were replaced as plain norms."""
    from timm.layers import BatchNormAct2d

    for name, module in [*network.named_modules()]:
        if isinstance(module, BatchNormAct2d):
            network.set_submodule(name, NormAct(module))
