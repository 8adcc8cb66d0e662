"""What a training loop does to the weights of a model beside its optimizer's step, as methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor, nn

from xtdist.model.muon import MuonMatrix, muon_parameters

if TYPE_CHECKING:
    from xtdist.model.outputs import Intermediates
    from xtdist.model.stack import StackOutput


class Upkeep(nn.Module):
    """Methods that layers and wrappers around them share."""

    def attn_qk_clip_(
        self,
        intermediates: Intermediates | StackOutput | Sequence[Float[Tensor, " h"]],
        tau: float = 100.0,
    ) -> None:
        """Shrink queries and keys whose largest score is above ``tau`` (2507.20534), in place.

        intermediates: of a forward pass that kept its attentions (return_intermediates and
        return_attn; of layers, return_hiddens), or each head's largest score, (h,) for each
        attention. More, and what it raises: ``xtdist.model.qk_clip``.
        """
        from xtdist.model.qk_clip import attn_qk_clip_  # it knows the layers, which are an Upkeep

        attn_qk_clip_(self, intermediates, tau=tau)

    def muon_parameters(self) -> list[MuonMatrix]:
        """The hidden matrices, for the Muon optimizer; described in ``xtdist.model.muon``."""
        return muon_parameters(self)
