"""What people do today to watch attention while they fine-tune CLIP: the reference that attndrift is timed against.

Eager attention, `output_attentions=True`, every layer's full map, metrics batch by batch with `.item()`, and for
attention preservation (APR) a second live model. Plain PyTorch and transformers, nothing of attndrift; see README.md.
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPModel

# ---------------------------------------------------------------------------- metrics of one layer's CLS attention


def attention_entropy(attn):
    """Mean entropy of attn (batch, heads, patches)."""
    return -(attn * torch.log(attn + 1e-10)).sum(dim=-1).mean()


def effective_receptive_field(attn, threshold=0.95):
    """Mean share of the patches that carry `threshold` of the attention."""
    sorted_attn, _ = attn.sort(dim=-1, descending=True)
    cumulative = sorted_attn.cumsum(dim=-1)
    needed = (cumulative < threshold).sum(dim=-1) + 1
    return (needed.float() / attn.shape[-1]).mean()


def gini_coefficient(attn):
    """Mean Gini coefficient."""
    sorted_attn, _ = attn.sort(dim=-1)
    n = attn.shape[-1]
    index = torch.arange(1, n + 1, device=attn.device, dtype=attn.dtype)
    gini = 2 * (index * sorted_attn).sum(dim=-1) / (n * sorted_attn.sum(dim=-1)) - (n + 1) / n
    return gini.mean()


def head_diversity(attn):
    """1 - mean cosine between the mean maps of different heads."""
    maps = F.normalize(attn.mean(dim=0), dim=-1)
    similarity = maps @ maps.T
    heads = similarity.shape[0]
    off_diagonal = similarity.sum() - similarity.diagonal().sum()
    return 1 - off_diagonal / (heads * (heads - 1))


METRICS = {
    "entropy": attention_entropy,
    "erf95": effective_receptive_field,
    "gini": gini_coefficient,
    "head_diversity": head_diversity,
}


def cls_attention(attentions):
    """Attention of the class token to the patches, renormalised, a tensor (batch, heads, patches) a layer."""
    rows = []
    for layer in attentions:
        row = layer[:, :, 0, 1:].float()
        rows.append(row / row.sum(dim=-1, keepdim=True))
    return rows


def attention_metrics(attentions):
    """{metric: [value of each layer]} of one batch."""
    values = {name: [] for name in METRICS}
    for attn in cls_attention(attentions):
        for name, metric in METRICS.items():
            values[name].append(metric(attn).item())
    return values


# ------------------------------------------------------------------------------------------------- forward pass


def eager_clip(config, state_dict):
    """A CLIP that can return its attention maps, with the given weights."""
    # A copy: `_from_config` writes "eager" into the config that it is given, and a model that shares it reads it there at
    # every forward pass.
    model = CLIPModel._from_config(copy.deepcopy(config), attn_implementation="eager")
    model.load_state_dict(state_dict)
    return model.eval()


@torch.no_grad()
def measure_attention(model, batches):
    """Mean metrics of each layer over batches of images."""
    collected = {name: [] for name in METRICS}
    for images in batches:
        outputs = model.vision_model(pixel_values=images, output_attentions=True)
        for name, values in attention_metrics(outputs.attentions).items():
            collected[name].append(values)
    return {name: torch.tensor(values).mean(dim=0).tolist() for name, values in collected.items()}


# ------------------------------------------------------------------------------------------------- training step


class ImageClassifier(nn.Module):
    """CLIP's image tower and projection with a linear classifier."""

    def __init__(self, clip, num_classes):
        super().__init__()
        self.clip = clip
        self.classifier = nn.Linear(clip.config.projection_dim, num_classes)

    def forward(self, images):
        outputs = self.clip.vision_model(pixel_values=images, output_attentions=True)
        features = self.clip.visual_projection(outputs.pooler_output)
        return self.classifier(features), outputs.attentions


def preservation_loss(attentions, pretrained_attentions):
    """KL(current || pretrained) of the CLS attention, mean over images, heads and layers."""
    loss = 0.0
    for current, pretrained in zip(cls_attention(attentions), cls_attention(pretrained_attentions)):
        loss = loss + (current * (torch.log(current + 1e-10) - torch.log(pretrained + 1e-10))).sum(dim=-1).mean()
    return loss / len(attentions)


def make_optimizer(model, lr=1e-5, weight_decay=0.01):
    """AdamW over what is trained."""
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=weight_decay)


def training_step(model, optimizer, images, labels, pretrained=None, apr_weight=0.1, bf16=False):
    """One step with the metrics of its attention; `pretrained` is a second, frozen CLIP, for APR."""
    model.train()
    optimizer.zero_grad()
    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=bf16):
        logits, attentions = model(images)
        loss = F.cross_entropy(logits, labels)
        if pretrained is not None:
            with torch.no_grad():
                teacher = pretrained.vision_model(pixel_values=images, output_attentions=True)
            loss = loss + apr_weight * preservation_loss(attentions, teacher.attentions)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        metrics = attention_metrics(attentions)
    metrics["loss"] = loss.item()
    metrics["accuracy"] = (logits.argmax(dim=-1) == labels).float().mean().item()
    return metrics
