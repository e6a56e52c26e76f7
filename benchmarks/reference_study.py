"""What people do today to run a study of fine-tuning CLIP: the reference that `benchmarks.study` is measured against.

Run after run in one process. Images are opened, resized and normalised by the image processor whenever they are
needed, every epoch again; attention is eager, with every layer's full map where it is looked at, metrics batch by batch
with `.item()`; attention preservation (APR) has a second live model. Plain PyTorch, transformers and peft, nothing of
attndrift; see README.md.

    python -m benchmarks.reference_study study.json results.json

`study.json` says what to run: `model` (a folder), `settings` (equal for all runs), `datasets` (lists of [file, label] by
split, class names, and the order and flips of every epoch), `transfer` (the same for zero-shot) and `runs`; `device`, if
it is not the CPU, and then training is in mixed precision (bfloat16), and `workers` of the data loaders, if there are any.
"""

import json
import math
import os
import sys
import time

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from PIL import Image, ImageOps
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter
from transformers import AutoTokenizer, CLIPModel, get_cosine_schedule_with_warmup
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from benchmarks.reference_capture import attention_metrics, cls_attention, preservation_loss

# ------------------------------------------------------------------------------------------------------------- data


class ImageFiles(Dataset):
    """Images opened and processed when they are asked for."""

    def __init__(self, files, processor, order=None, flips=None):
        self.files, self.processor = files, processor
        self.order = order if order is not None else list(range(len(files)))
        self.flips = flips if flips is not None else [False] * len(files)

    def __len__(self):
        return len(self.order)

    def __getitem__(self, index):
        position = self.order[index]
        path, label = self.files[position]
        image = Image.open(path).convert("RGB")
        if self.flips[position]:
            image = ImageOps.mirror(image)
        pixels = self.processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels, label


# ------------------------------------------------------------------------------------------------------------ model


class Classifier(nn.Module):
    """CLIP's image tower and projection with a linear classifier."""

    def __init__(self, clip, num_classes):
        super().__init__()
        self.clip = clip
        self.classifier = nn.Linear(clip.config.projection_dim, num_classes)

    def forward(self, images, **kwargs):
        outputs = self.clip.vision_model(pixel_values=images, **kwargs)
        features = self.clip.visual_projection(outputs.pooler_output)
        return self.classifier(features), features, outputs


def device_of(model):
    return next(model.parameters()).device


def load_clip(folder):
    return CLIPModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def build_model(folder, run, num_classes, seed):
    clip = load_clip(folder)
    clip.requires_grad_(False)
    if run["method"] == "full":
        clip.vision_model.requires_grad_(True)
        for layer in clip.vision_model.encoder.layers[: run["freeze_layers"]]:
            layer.requires_grad_(False)
    elif run["method"] == "lora":
        targets = "|".join(f"{name}_proj" for name in run["lora_targets"].split(","))
        config = LoraConfig(
            r=run["lora_rank"],
            lora_alpha=2 * run["lora_rank"],
            lora_dropout=0.05,
            target_modules=rf"vision_model\.encoder\.layers\.\d+\.self_attn\.({targets})",
        )
        torch.manual_seed(seed)
        clip = get_peft_model(clip, config).base_model.model
    clip.visual_projection.requires_grad_(True)
    torch.manual_seed(seed)
    return Classifier(clip, num_classes)


# ------------------------------------------------------------------------------------------------------ measurement


@torch.no_grad()
def probe_features(model, loader):
    """Attention metrics of each layer, CLS hidden states of each layer, and embeddings, of the probe images."""
    model.eval()
    metrics, hidden, embeddings = [], [], []
    for images, _ in loader:
        images = images.to(device_of(model))
        _, features, outputs = model(images, output_attentions=True, output_hidden_states=True)
        metrics.append(attention_metrics(outputs.attentions))
        hidden.append([states[:, 0] for states in outputs.hidden_states[1:]])
        embeddings.append(features)
    model.train()
    means = {name: torch.tensor([m[name] for m in metrics]).mean(dim=0) for name in metrics[0]}
    return means, [torch.cat(layer) for layer in zip(*hidden)], torch.cat(embeddings)


def linear_cka(x, y):
    x, y = x - x.mean(dim=0), y - y.mean(dim=0)
    return ((x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())).item()


def weight_drift(model, pretrained):
    before = dict(pretrained.vision_model.named_parameters())
    change = total = 0.0
    for module in model.clip.vision_model.modules():
        if hasattr(module, "lora_A"):
            delta = module.scaling["default"] * module.lora_B["default"].weight @ module.lora_A["default"].weight
            change += delta.pow(2).sum().item()
    for name, parameter in model.clip.vision_model.named_parameters():
        name = name.replace(".base_layer", "")
        if name in before:
            change += (parameter - before[name]).pow(2).sum().item()
            total += before[name].pow(2).sum().item()
    return math.sqrt(change / total)


@torch.no_grad()
def measure_drift(model, loader, baseline, pretrained):
    metrics, hidden, embeddings = probe_features(model, loader)
    base_metrics, base_hidden, base_embeddings = baseline
    row = {name: values.mean().item() for name, values in metrics.items()}
    row["entropy_change_pct"] = 100 * (row["entropy"] / base_metrics["entropy"].mean().item() - 1)
    row["cka_mean"] = sum(linear_cka(a, b) for a, b in zip(base_hidden, hidden)) / len(hidden)
    row["embedding_drift"] = 1 - F.cosine_similarity(base_embeddings, embeddings).mean().item()
    row["weight_drift"] = weight_drift(model, pretrained)
    return row


@torch.no_grad()
def accuracy(model, loader):
    model.eval()
    correct = total = 0
    for images, labels in loader:
        images, labels = images.to(device_of(model)), labels.to(device_of(model))
        logits, _, _ = model(images)
        correct += (logits.argmax(dim=-1) == labels).sum().item()
        total += len(labels)
    model.train()
    return correct / total


@torch.no_grad()
def zero_shot_accuracy(clip, loader, tokenizer, class_names, template):
    clip.eval()
    texts = [template.replace("{class}", name.replace("_", " ")) for name in class_names]
    tokens = tokenizer(texts, padding=True, return_tensors="pt").to(device_of(clip))
    outputs = clip.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
    text = F.normalize(clip.text_projection(outputs.pooler_output), dim=-1)
    correct = total = 0
    for images, labels in loader:
        images, labels = images.to(device_of(clip)), labels.to(device_of(clip))
        features = clip.visual_projection(clip.vision_model(pixel_values=images).pooler_output)
        correct += ((F.normalize(features, dim=-1) @ text.T).argmax(dim=-1) == labels).sum().item()
        total += len(labels)
    return correct / total


# --------------------------------------------------------------------------------------------------------- training


def regularization(run, attentions, images, pretrained, baseline):
    name, weight = run["loss"].split(":")
    if name == "attention_preservation":
        with torch.no_grad():
            teacher = pretrained.vision_model(pixel_values=images, output_attentions=True)
        return float(weight) * preservation_loss(attentions, teacher.attentions)
    loss = 0.0
    for attn, floor in zip(cls_attention(attentions), baseline[0]["entropy"]):
        entropy = -(attn * torch.log(attn + 1e-10)).sum(dim=-1)
        loss = loss + F.relu(0.7 * floor.item() - entropy).mean()
    return float(weight) * loss


def train(run, study, folder):
    settings, dataset = study["settings"], study["datasets"][run["dataset"]]
    device = torch.device(study.get("device", "cpu"))
    processor = CLIPImageProcessorPil.from_pretrained(study["model"])

    # On two cores workers would take the cores from the training, so images are read in this process there.
    def loader(files, batch_size, **kwargs):
        images = ImageFiles(files, processor, **kwargs)
        return DataLoader(images, batch_size=batch_size, num_workers=study.get("workers", 0))

    test_loader = loader(dataset["test"], settings["evaluation_batch_size"])
    probe_loader = loader(dataset["probe"], settings["evaluation_batch_size"])
    pretrained = load_clip(study["model"]).to(device).eval().requires_grad_(False)
    baseline = probe_features(Classifier(pretrained, 2).to(device), probe_loader)
    if run["method"] == "none":
        return {"entropy_change_pct": 0.0, "cka_mean": 1.0, "embedding_drift": 0.0, "weight_drift": 0.0}

    model = build_model(study["model"], run, len(dataset["class_names"]), settings["seed"]).to(device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=run["learning_rate"], weight_decay=run["weight_decay"])
    steps_per_epoch = math.ceil(len(dataset["train"]) / settings["batch_size"])
    total_steps = steps_per_epoch * settings["epochs"]
    scheduler = get_cosine_schedule_with_warmup(optimizer, math.ceil(settings["warmup"] * total_steps), total_steps)
    times = settings["evaluations_per_epoch"]
    evaluated = {max(1, round(steps_per_epoch * (i + 1) / times)) for i in range(times)} | {steps_per_epoch}
    writer = SummaryWriter(os.path.join(folder, "tensorboard"))
    history, best = [], None

    model.train()
    torch.manual_seed(settings["seed"])
    for epoch in range(settings["epochs"]):
        train_loader = loader(
            dataset["train"], settings["batch_size"], order=dataset["order"][epoch], flips=dataset["flips"][epoch]
        )
        for step, (images, labels) in enumerate(train_loader, start=1):
            images, labels = images.to(device), labels.to(device)
            optimizer.zero_grad()
            # Mixed precision where the device has it; without `device` in study.json, this is a CPU and float32.
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
                logits, _, outputs = model(images, output_attentions=run["loss"] is not None)
                loss = F.cross_entropy(logits, labels)
                if run["loss"] is not None:
                    loss = loss + regularization(run, outputs.attentions, images, pretrained, baseline)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, settings["clip_norm"])
            optimizer.step()
            scheduler.step()
            row = {"step": epoch * steps_per_epoch + step, "train_loss": loss.item()}
            row["train_accuracy"] = (logits.argmax(dim=-1) == labels).float().mean().item()
            if step in evaluated:
                row.update(measure_drift(model, probe_loader, baseline, pretrained))
                history.append(row)
                for name, value in row.items():
                    writer.add_scalar(name, value, row["step"])
        validation_accuracy = accuracy(model, test_loader)
        writer.add_scalar("val_accuracy", validation_accuracy, (epoch + 1) * steps_per_epoch)
        if best is None or validation_accuracy > best:
            best = validation_accuracy
            torch.save(model.state_dict(), os.path.join(folder, "best.pt"))
    torch.save(model.state_dict(), os.path.join(folder, "final.pt"))
    writer.close()

    result = measure_drift(model, probe_loader, baseline, pretrained)
    result["test_accuracy"] = best
    transfer = study["transfer"]
    tokenizer = AutoTokenizer.from_pretrained(study["model"])
    result["transfer_accuracy"] = zero_shot_accuracy(
        model.clip, loader(transfer["files"], settings["evaluation_batch_size"]), tokenizer,
        transfer["class_names"], transfer["template"],
    )  # fmt: skip
    with open(os.path.join(folder, "history.json"), "w") as file:
        json.dump(history, file)
    return result


def main():
    with open(sys.argv[1]) as file:
        study = json.load(file)
    if study.get("threads"):
        torch.set_num_threads(study["threads"])
    transfer, processor = study["transfer"], CLIPImageProcessorPil.from_pretrained(study["model"])
    loader = DataLoader(ImageFiles(transfer["files"], processor), batch_size=study["settings"]["evaluation_batch_size"])
    tokenizer = AutoTokenizer.from_pretrained(study["model"])
    results = {"pretrained": {"transfer_accuracy": zero_shot_accuracy(
        load_clip(study["model"]).to(study.get("device", "cpu")), loader, tokenizer, transfer["class_names"], transfer["template"]
    )}}  # fmt: skip
    for run in study["runs"]:
        folder = os.path.join(os.path.dirname(sys.argv[2]), "runs", run["run_id"])
        os.makedirs(folder, exist_ok=True)
        start = time.time()
        results[run["run_id"]] = train(run, study, folder)
        print(f"{run['run_id']}: {time.time() - start:.1f} s", flush=True)
    with open(sys.argv[2], "w") as file:
        json.dump(results, file)


if __name__ == "__main__":
    main()
