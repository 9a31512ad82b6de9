"""Which tokens a client's text holds, from one upload of its adapter."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from fedtune.adapters.layout import A, Tensors
from fedtune.audit.attacks import tokens_found
from fedtune.cohort.stacked import adapted_layers
from fedtune.runs.build import Federation

MOST_TOKENS = 2000


def token_presence(federation: Federation, upload: tuple[int, Tensors]) -> float | None:
    """AUC of telling the tokens of a client's examples from others by one upload.

    None where there are no tokens, or no A was trained.

    Args:
        upload: a client's id and what it changed.
    """
    client, change = upload
    data = federation.engine.setting.data
    rows = torch.from_numpy(federation.clients.training_rows(client))
    batch = data.gather(rows.to(federation.engine.setting.device))
    layer = next((name for name in change if name.endswith(A)), None)
    if layer is None or "input_ids" not in batch.inputs or not bool(change[layer].any()):
        return None
    present = torch.unique(batch.inputs["input_ids"])
    most = int(federation.adapted.model.get_input_embeddings().weight.shape[0])
    known = torch.arange(min(most, MOST_TOKENS), device=present.device)
    here = torch.isin(known, present).cpu().numpy()
    if here.all() or not here.any():
        return None
    made = _inputs(federation, layer.removesuffix(A), known, batch.inputs["input_ids"].shape[1])
    return float(roc_auc_score(here, tokens_found(change[layer], made)))


def _inputs(federation: Federation, layer: str, tokens: Tensor, length: int) -> list[Tensor]:
    """What the first adapted layer is given for a token at every position, (length, d_in) each."""
    model: nn.Module = federation.adapted.model
    base, _ = adapted_layers(model)[layer]
    seen: list[Tensor] = []
    hook = base.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))
    initial = {
        spec.name: federation.adapted.initial[spec.name].to(federation.engine.setting.device)
        for spec in federation.adapted.layout.specs
    }
    found = []
    try:
        with federation.engine.backend.holding(initial) as held, torch.no_grad():
            for token in np.asarray(tokens.cpu()):
                ids = torch.full((1, length), int(token), device=tokens.device)
                held(input_ids=ids, attention_mask=torch.ones_like(ids))
                found.append(seen.pop().reshape(length, -1))
                seen.clear()
    finally:
        hook.remove()
    return found
