"""What the plain package is for: a training is watched, guarded and preserved, by a script that has no extra installed."""

import torch
from torch.nn.functional import cross_entropy

from attndrift import AttentionPreservation, Budget, DriftCallback, DriftMonitor, EntropyFloor, Guard, observe
from attndrift.data import load_dataset
from attndrift.drift import Alert, DriftWatch
from attndrift.extras import MissingExtraError
from attndrift.models import load_model, load_processor

torch.manual_seed(0)
model = load_model("config:tiny").train()
_, processor = load_processor("config:tiny")
tiles = load_dataset("tiles").train
pixels = processor([tiles[i] for i in range(32)], return_tensors="pt")["pixel_values"]
labels = torch.from_numpy(tiles.labels[:32])
head = torch.nn.Linear(model.config.projection_dim, 10)
optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=3e-3)

monitor = DriftMonitor(model, pixels[:8])
preserve, floor = AttentionPreservation(model, weight=1.0), EntropyFloor(model, weight=0.1, monitor=monitor)
budgets = [Budget("cka_mean", at_least=0.9), Budget("embedding_drift", at_most=0.2)]
guard = Guard(monitor, budgets, every=2, head=head)
with DriftWatch(monitor, every=2, guard=guard, alerts=[Alert("entropy_change_pct", below=-50)]) as watch:
    for step in range(1, 5):
        features = model.get_image_features(pixel_values=pixels[8:]).pooler_output
        loss = cross_entropy(head(features), labels[8:]) + preserve(model) + floor(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        watch.step(step)
assert watch.drift[-1][1].cka_mean >= 0.9, watch.drift[-1]
with observe(model) as seen:
    model.get_image_features(pixel_values=pixels[:2])
assert len(seen.layers) == len(model.vision_model.encoder.layers)
DriftCallback(monitor, every=2)
for needs_tables in (
    lambda: DriftWatch(monitor, folder="watched"),
    lambda: DriftCallback(monitor, folder="watched"),
    lambda: Guard(monitor, Budget("cka_mean", at_least=0.9), folder="watched"),
    lambda: load_dataset("digits"),
):
    said = ""
    try:
        needs_tables()
    except MissingExtraError as error:
        said = str(error)
    assert said.endswith('pip install "attndrift[study]"'), said
print("watched")
