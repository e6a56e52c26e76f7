"""What the extra ``peft`` is for: a LoRA is trained, watched and guarded."""

import torch
from peft import LoraConfig, get_peft_model

from attndrift import Budget, DriftMonitor, Guard
from attndrift.drift import DriftWatch
from attndrift.methods import AdaptationSettings, adapt
from attndrift.models import load_model

torch.manual_seed(0)
pixels = torch.randn(8, 3, 28, 28)
config = LoraConfig(r=4, target_modules=r"vision_model\..*\.(q_proj|v_proj)")
model = get_peft_model(load_model("config:tiny"), config).train()
monitor = DriftMonitor(model, pixels)
guard = Guard(monitor, Budget("cka_mean", at_least=0.9), every=2)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
with DriftWatch(monitor, every=2, guard=guard) as watch:
    for step in range(1, 5):
        loss = model.base_model.model.get_image_features(pixel_values=pixels).pooler_output.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        watch.step(step)
assert watch.drift[-1][1].weight_drift > 0
adapted = adapt(load_model("config:tiny"), AdaptationSettings(method="lora"), 10, seed=0)
assert any(".lora_A" in name for name, value in adapted.named_parameters() if value.requires_grad)
print("adapted")
