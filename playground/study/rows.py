"""The metrics of a result in the order of tables: name -> (title, digits, what it is)."""

from __future__ import annotations

from playground.study.tallies import METRICS

ALIGNMENT = {
    "stage1_caption_loss": ("caption loss after stage 1, nats a token", 3),
    "stage1_patch_cosine": ("patch cosine with its label", 3),
    "stage1_hit_label_at_1": ("right label nearest", 3),
    "stage1_hit_kind": ("right kind nearest", 3),
    "stage1_hit_colour": ("right colour nearest", 3),
    "stage1_hit_at_1": ("hit@1 among the vocabulary", 3),
    "stage1_hit_at_5": ("hit@5", 3),
    "stage1_mean_reciprocal_rank": ("mean reciprocal rank", 3),
    "stage1_patchdis_miou": ("PatchDis mIoU", 3),
    "stage1_omp_explained": ("matching pursuit, explained energy", 3),
    "stage1_omp_overlap": ("matching pursuit, label among the atoms", 3),
    "stage1_tacs": ("TACS", 3),
    "stage1_modality_distance": ("modality distance D", 3),
    "stage1_ima_mean": ("IMA, mean over layers", 3),
    "stage1_entropy_features": ("entropy before the projector, nats", 3),
    "stage1_entropy_patches": ("entropy after the projector, nats", 3),
    "stage1_entropy_features_centred": ("entropy before, centred", 3),
    "stage1_entropy_patches_centred": ("entropy after, centred", 3),
    "stage1_entropy_patches_image": ("entropy after, per image", 3),
    "stage1_entropy_patches_image_centred": ("entropy after, per image, centred", 3),
}
_METEOR = {"meteor": ("caption METEOR", 1)}
_TASKS = {metric.name: (metric.title, 1) for metric in METRICS}
TASKS = {"cider": _TASKS["cider"]} | _METEOR | {name: row for name, row in _TASKS.items() if name != "cider"}
AFTERWARDS = {
    "stage2_patch_cosine": ("patch cosine after stage 2", 3),
    "stage2_hit_label_at_1": ("right label nearest after stage 2", 3),
    "stage2_entropy_patches": ("entropy after the projector, after stage 2", 3),
}
COST = {"stage1_seconds": ("stage 1, seconds", 0), "stage2_seconds": ("stage 2, seconds", 0)}
ROWS = ALIGNMENT | TASKS | AFTERWARDS | COST
