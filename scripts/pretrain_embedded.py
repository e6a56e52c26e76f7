"""Pretrain the small CLIP that ships with the package.

    ATTNDRIFT_DATA=DATA python scripts/pretrain_embedded.py --work WORK --minutes 70
    python scripts/pretrain_embedded.py --work WORK --resume --minutes 70
    python scripts/pretrain_embedded.py --work WORK --export src/attndrift/models/embedded

WORK keeps the tokenizer, the log (`log.jsonl`) and the newest checkpoint; a run may be killed at any
moment and resumed. The learning rate follows the share of the budget that is used up: --minutes of
training time, or --steps, which also makes the run repeatable on one machine.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
import torch.multiprocessing
from pretraining import captions, network, pictures
from pretraining.export import export, read_checkpoint
from pretraining.optimiser import Trainer
from safetensors.torch import load_file, save_file


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for log, tokenizer, checkpoint")
    parser.add_argument("--data", type=Path, default=os.environ.get("ATTNDRIFT_DATA"), help="holds cifar100/")
    parser.add_argument("--minutes", type=float, default=70.0, help="budget of training time")
    parser.add_argument("--steps", type=int, default=None, help="budget in steps, instead of --minutes")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --work")
    parser.add_argument("--export", type=Path, default=None, help="write the model folder and stop")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2, help="workers of one thread, a share of each batch each")
    parser.add_argument("--batch", type=int, default=512, help="images a step")
    parser.add_argument("--object-share", type=float, default=0.4, help="share of `objects` in a batch")
    parser.add_argument("--objects", type=int, default=20_000, help="pictures of `objects` to draw")
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--optimiser", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--keep", type=int, default=24, help="patches of 49 seen in the first part")
    parser.add_argument("--unmasked", type=float, default=0.25, help="last share of the budget with all patches")
    parser.add_argument("--warmup", type=float, default=0.03)
    parser.add_argument("--smallest", type=float, default=0.35, help="least share of an image in a crop")
    parser.add_argument("--checkpoint-seconds", type=float, default=150)
    parser.add_argument("--evaluate-seconds", type=float, default=150)
    return parser.parse_args()


def _kept(args: argparse.Namespace, name: str, make: Callable[[], pictures.Pictures]) -> pictures.Pictures:
    """A source from WORK, made and stored there the first time."""
    pixels, text = args.work / f"{name}.safetensors", args.work / f"{name}.json"
    if not text.exists():
        made = make()
        save_file({"images": made.images, "labels": made.labels}, pixels)
        text.write_text(json.dumps({"names": made.names, "terms": made.terms}))
    stored, words = load_file(pixels), json.loads(text.read_text())
    return pictures.Pictures(stored["images"], stored["labels"], words["names"], words["terms"])


def sources(args: argparse.Namespace) -> tuple[list[pictures.Pictures], list[pictures.Pictures]]:
    """Training and held-out pictures of both sources."""
    cifar = _kept(args, "cifar100", lambda: pictures.read_cifar100(Path(args.data), "train"))
    drawn = _kept(
        args,
        f"objects-{args.objects}",
        lambda: pictures.draw_objects(args.objects, pictures.OBJECT_TRAIN_SEED),
    )
    watched = _kept(args, "objects-held-out", lambda: pictures.draw_objects(500, pictures.OBJECT_HELD_OUT_SEED))
    out = pictures.held_out(len(cifar))
    return (
        [cifar.part((~out).nonzero().flatten()), drawn],
        [cifar.part(out.nonzero().flatten()), watched],
    )


class Order:
    """Positions of a source, epoch after epoch in a new order; a function of the step alone."""

    def __init__(self, seed: int, count: int, each: int) -> None:
        self.seed, self.count, self.each, self._kept = seed, count, each, (-1, np.empty(0, dtype=np.int64))

    def at(self, step: int) -> torch.Tensor:
        """Positions of step ``step``."""
        places = np.arange(step * self.each, (step + 1) * self.each)
        return torch.from_numpy(np.asarray([self._permutation(p // self.count)[p % self.count] for p in places]))

    def _permutation(self, epoch: int) -> np.ndarray:
        if self._kept[0] != epoch:
            self._kept = (epoch, np.random.default_rng([self.seed, self.count, epoch]).permutation(self.count))
        return self._kept[1]


def contrast(
    images: torch.Tensor,
    texts: torch.Tensor,
    scale: torch.Tensor,
    image_class: torch.Tensor,
    text_class: torch.Tensor,
    own: torch.Tensor,
    fine: torch.Tensor,
) -> tuple[torch.Tensor, float]:
    """Symmetric contrastive loss in which every caption of an image's class is a positive or is left out.

    ``own`` (images,) is the position of an image's finer caption, -1 for none; ``fine`` (texts,) marks finer
    captions. A finer caption of the right class that is not the image's own may be a synonym of its own:
    it counts neither for nor against. Returns the loss and the share of images whose best class caption is right.
    """
    logits = scale * images @ texts.T
    same = image_class[:, None] == text_class[None]
    mine = torch.zeros_like(same)
    has = own >= 0
    mine[has.nonzero().flatten(), own[has]] = True
    unclear = same & fine[None] & ~mine
    logits = logits.masked_fill(unclear, -1e4)
    positive = (same & ~fine[None]).float() * torch.where(has, 0.7, 1.0)[:, None] + mine.float() * 0.3
    to_text = -(positive * logits.log_softmax(dim=1)).sum(dim=1).mean()
    back = (same & ~unclear).float()
    seen = back.sum(dim=0) > 0
    spread = back[:, seen] / back[:, seen].sum(dim=0)
    to_image = -(spread * logits[:, seen].log_softmax(dim=0)).sum(dim=0).mean()
    with torch.no_grad():
        best = logits.masked_fill(fine[None], -1e4).argmax(dim=1)
        right = float((text_class[best] == image_class).float().mean())
    return (to_text + to_image) / 2, right


@torch.no_grad()
def zero_shot(model: Any, tokenizer: Any, source: pictures.Pictures) -> float:
    """Accuracy with `a photo of a {class}.` on all images of a source."""
    texts = network.embed_texts(model, tokenizer, [f"a photo of a {name}." for name in source.names])
    right = 0
    for start in range(0, len(source), 500):
        pixels = pictures.plain(source.images[start : start + 500])
        best = (network.embed_images(model, pixels) @ texts.T).argmax(dim=1)
        right += int((best == source.labels[start : start + 500]).sum())
    return right / len(source)


def write_checkpoint(work: Path, trainer: Trainer, record: dict[str, Any]) -> None:
    """Weights, moments and running mean, written beside the old ones and then renamed over them."""
    partial = work / "checkpoint.partial"
    # The record travels inside the file: one rename replaces both.
    save_file(trainer.state(), partial, metadata={"record": json.dumps(record)})
    os.replace(partial, work / "checkpoint.safetensors")
    (work / "checkpoint.json").write_text(json.dumps(record, indent=2))


def _vocabulary(training: list[pictures.Pictures]) -> list[str]:
    return sorted({word for source in training for word in (*source.names, *source.terms)})


def batch_loss(
    args: argparse.Namespace,
    model: Any,
    tokenizer: Any,
    training: list[pictures.Pictures],
    where: list[torch.Tensor],
    seeds: list[int],
    keep: int | None,
) -> tuple[torch.Tensor, float]:
    """Loss and accuracy on the pictures at ``where`` (positions per source), against captions of every class."""
    rng = np.random.default_rng(seeds)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    names = [name for source in training for name in source.names]
    pixels, labels, terms, shift = [], [], [], 0
    for source, chosen in zip(training, where, strict=True):
        # A crop of a drawn scene must not lose what the caption names.
        smallest = args.smallest if shift == 0 else max(0.6, args.smallest)
        pixels.append(pictures.augment(source.images[chosen], generator, smallest=smallest))
        labels.append(source.labels[chosen] + shift)
        terms += [source.terms[i] for i in chosen.tolist()]
        shift += len(source.names)
    image_class = torch.cat(labels)
    finer: dict[tuple[int, str], int] = {}
    own = [
        -1 if term == names[label] else finer.setdefault((label, term), len(names) + len(finer))
        for label, term in zip(image_class.tolist(), terms, strict=True)
    ]
    texts = [captions.caption(rng, name) for name in [*names, *(term for _, term in finer)]]
    text_class = torch.tensor([*range(len(names)), *(label for label, _ in finer)])
    fine = torch.arange(len(texts)) >= len(names)
    embedded = network.embed_images(model, torch.cat(pixels), keep=keep, generator=generator)
    written = network.embed_texts(model, tokenizer, texts)
    scale = model.logit_scale.float().exp().clamp(max=100)
    return contrast(embedded, written, scale, image_class, text_class, torch.tensor(own), fine)


def rate_at(progress: float, args: argparse.Namespace) -> float:
    """Linear warm-up, then a cosine to 0 at the end of the budget."""
    if progress < args.warmup:
        return args.rate * (0.02 + 0.98 * progress / args.warmup)
    return args.rate * (0.5 + 0.5 * math.cos(math.pi * min(1.0, (progress - args.warmup) / (1 - args.warmup))))


def train(rank: int, args: argparse.Namespace) -> None:
    """The loop, in each of ``args.processes`` workers; worker 0 keeps time, log and checkpoint."""
    # One thread each and one exchange a step: on a busy machine, threads that meet in every operation stall.
    torch.set_num_threads(1)
    meeting = args.work / "meeting"
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting.resolve()}", rank=rank, world_size=args.processes
    )
    training, held = sources(args)
    tokenizer = captions.load_tokenizer(args.work / "tokenizer", _vocabulary(training))
    torch.manual_seed(args.seed)
    model = network.build(tokenizer, width=args.width, heads=4)
    start = torch.Generator().manual_seed(args.seed)
    network.initialise(model, pictures.plain(training[0].images[:2000]), start)
    fast = copy.deepcopy(model).bfloat16()
    trainer = Trainer(model, muon=args.optimiser == "muon", weight_decay=args.weight_decay, fast=fast)
    step, spent = 0, 0.0
    if args.resume:
        state, record = read_checkpoint(args.work)
        trainer.load(state, record["step"])
        step, spent = record["step"], record["seconds"]
    objects = round(args.batch * args.object_share)
    orders = [
        Order(args.seed, len(training[0]), args.batch - objects),
        Order(args.seed + 1, len(training[1]), objects),
    ]
    settings = {key: str(value) for key, value in vars(args).items()}
    budget = args.minutes * 60
    if rank == 0:
        print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    clock = time.perf_counter()
    saved = evaluated = spent
    progress = step / args.steps if args.steps else spent / budget
    history: list[tuple[float, float]] = []
    begun = step
    while progress < 1:
        where = [order.at(step)[rank :: args.processes] for order in orders]
        keep = args.keep if progress < 1 - args.unmasked else None
        loss, right = batch_loss(args, fast, tokenizer, training, where, [args.seed, step, rank], keep)
        loss.backward()
        now = spent + time.perf_counter() - clock
        told = now / budget if rank == 0 else 0.0
        shared = trainer.exchange([float(loss.detach()), right, told * args.processes])
        history.append((shared[0], shared[1]))
        rate = rate_at(progress, args)
        trainer.step(rate=rate, matrix_rate=rate)
        step += 1
        progress = step / args.steps if args.steps else shared[2]
        if rank > 0:
            continue
        if progress >= 1 or now - saved > args.checkpoint_seconds:
            write_checkpoint(args.work, trainer, {"step": step, "seconds": now, "settings": settings})
            saved = now
        if progress >= 1 or now - evaluated > args.evaluate_seconds:
            for p, mean in zip(model.parameters(), trainer.mean, strict=True):
                p.data.copy_(mean)
            scores = [zero_shot(model, tokenizer, source) for source in held]
            entry = {
                "step": step,
                "seconds": round(now, 1),
                "progress": round(progress, 4),
                "loss": round(float(np.mean([h[0] for h in history])), 4),
                "train_accuracy": round(float(np.mean([h[1] for h in history])), 4),
                "held_out_cifar100": scores[0],
                "held_out_objects": scores[1],
                "images_per_second": round(args.batch * (step - begun) / (now - spent), 1),
            }
            with (args.work / "log.jsonl").open("a") as log:
                log.write(json.dumps(entry) + "\n")
            print(entry, flush=True)
            history, evaluated = [], now
    torch.distributed.destroy_process_group()


def main() -> None:
    """Train, or export."""
    args = arguments()
    if args.export is not None:
        export(args.work, args.export)
        return
    args.work.mkdir(parents=True, exist_ok=True)
    (args.work / "meeting").unlink(missing_ok=True)
    # Made once here, found by the workers.
    training, _ = sources(args)
    captions.load_tokenizer(args.work / "tokenizer", _vocabulary(training))
    del training
    torch.multiprocessing.spawn(train, args=(args,), nprocs=args.processes)


if __name__ == "__main__":
    main()
