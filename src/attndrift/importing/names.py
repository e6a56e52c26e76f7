"""Names that people, W&B, MLflow and TensorBoard give to the documented columns, and what a foreign column may be."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterator, Sequence

from attndrift.results.means import sd_column
from attndrift.results.measures import MEASURES
from attndrift.results.tables import TRANSFER_FIELDS, schema

_OTHERS = {
    "run_id": "run name run_name runname display_name mlflow_runname run_uuid uuid id run_hash trial trial_id",
    "study": "project sweep sweep_name experiment_name experiment_id group",
    "status": "state run_state run_status",
    "model": "arch architecture backbone model_name model_name_or_path pretrained_model base_model clip_model encoder",
    "dataset": "data task dataset_name data_set train_dataset target_dataset ds",
    "method": "adaptation ft_method tuning strategy peft_method finetuning finetune_type training_mode approach",
    "learning_rate": "lr rate base_lr max_lr peak_lr init_lr initial_lr learning_rate_init optimizer_lr optim_lr",
    "weight_decay": "wd l2 optimizer_weight_decay optim_weight_decay",
    "seed": "random_seed random_state manual_seed rng_seed",
    "n_seeds": "n num_seeds seeds n_runs num_runs count",
    "epochs": "num_epochs n_epochs max_epochs num_train_epochs epoch total_epochs",
    "batch_size": "bs batch train_batch_size per_device_train_batch_size batchsize",
    "lora_rank": "rank r lora_r peft_r",
    "lora_alpha": "alpha peft_lora_alpha",
    "lora_targets": "target_modules lora_target_modules targets",
    "train_loss": "loss training_loss loss_train train_loss_epoch train_loss_step",
    "train_accuracy": "train_acc training_accuracy acc_train train_acc1 train_top1",
    "val_accuracy": "val_acc validation_accuracy validation_acc valid_acc dev_acc eval_accuracy eval_acc val_acc1 val_top1 acc_val",
    "best_val_accuracy": "best_val_acc best_acc best_accuracy val_best max_val_accuracy val_accuracy val_acc validation_accuracy "
    "validation_acc valid_acc eval_accuracy eval_acc val_acc1 val_top1",
    "test_accuracy": "test_acc accuracy acc top1 acc1 test_top1 test_acc1 acc_test final_accuracy accuracy_test",
    "trainable_parameters": "trainable_params n_trainable num_trainable_params trainable",
    "total_parameters": "total_params num_params n_params parameters",
    "weight_drift": "weight_drift_rel relative_weight_change weight_change",
    "cka_mean": "cka linear_cka mean_cka",
    "entropy": "entropy_mean attention_entropy attn_entropy mean_entropy",
    "erf95": "erf95_mean",
    "gini": "gini_mean",
    "entropy_change_pct": "delta_entropy_pct",
    "erf95_change_pct": "delta_erf95_pct",
    "gini_change_pct": "delta_gini_pct",
    "step": "global_step trainer_global_step iteration iter iters steps it train_global_step",
}  # fmt: skip
_PREFIX = re.compile(r"^_?(?:params|metrics|tags|config|summary|data|hparams|hyperparameters|args|cfg|inputs?)[./_]")
"""What MLflow, W&B and others put before the name of a setting or metric."""
_SPREAD = re.compile(r"^(?P<measure>.+?)[_. ](?:std|stdev|std_dev|stddev|sd|sigma)$|^(?:std|sd)[_. ](?P<last>.+)$")


def _plain(name: str) -> str:
    lowered = _PREFIX.sub("", name.strip().lower().removesuffix(".value"))
    return re.sub(r"[\s./\-_()\[\]]+", "_", lowered).strip("_")


def meanings_of(name: str) -> list[str]:
    """The documented columns that a foreign name may stand for, likelier ones first.

    >>> meanings_of("params.lr"), meanings_of("val/accuracy"), meanings_of("mlflow.runName")
    (['learning_rate'], ['val_accuracy', 'best_val_accuracy'], ['run_id'])
    """
    plain = _plain(name)
    found = [plain] if plain != name else []
    found += [column for column, others in _OTHERS.items() if plain in others.split()]
    return list(dict.fromkeys(one for one in found if one in _known()))


def _known() -> set[str]:
    return {column.name for table in ("runs", "history") for column in schema(table)} | {"n_seeds"}


def with_measure(column: str) -> str:
    """``column`` with the retention measure that a short name leaves out.

    >>> with_measure("transfer_cifar100_pretrained"), with_measure("transfer_cifar100_knn_accuracy")
    ('transfer_cifar100_zero_shot_pretrained', 'transfer_cifar100_knn_accuracy')
    """
    stem, ends = re.sub(r"_sd$", "", column), "|".join(TRANSFER_FIELDS)
    match = re.fullmatch(rf"transfer_(?P<set>.+?)_(?P<end>{ends})", stem)
    if match is None or any(f"_{measure}_" in stem for measure in MEASURES.names()):
        return column
    return f"transfer_{match['set']}_zero_shot_{match['end']}{column[len(stem) :]}"


def suggestions(table: str, unknown: Sequence[str], missing: Sequence[str]) -> list[str]:
    """For the columns of ``table`` that no schema knows, the one of ``missing`` that each may be."""
    return [
        f"table {table}: is `{name}` the column `{near}`? (--rename {shlex.quote(f'{name}={near}')})"
        for name in unknown
        for near in [next(_near(table, name, [*missing, *(["n_seeds"] if table == "runs" else [])]), None)]
        if near
    ]


def _near(table: str, name: str, free: Sequence[str]) -> Iterator[str]:
    spread = _SPREAD.match(name.lower())
    if spread and table == "runs":
        measure = spread["measure"] or spread["last"]
        measured = [*meanings_of(measure), *(c.name for c in schema(table) if c.name == measure)]
        yield from (sd_column(one) for one in measured if one.endswith("_accuracy") or one.startswith("transfer_"))
        return
    yield from (one for one in meanings_of(name) if one in free)
    plain = re.sub(r"_mean$", "", _plain(name))
    zero_shot = re.fullmatch(
        r"(?:(?P<before>\w+?)_)?(?:zero_?shot|zs|transfer)(?:_(?P<after>\w+?))?(?:_acc(?:uracy)?)?", plain
    )
    if zero_shot and table == "runs":
        yield f"transfer_{zero_shot['before'] or zero_shot['after'] or 'SET'}_zero_shot_accuracy"
    yield from difflib.get_close_matches(plain, free, n=1, cutoff=0.75)
