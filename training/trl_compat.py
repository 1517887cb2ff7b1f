"""TRL, imported without its remarks on the version of a vLLM that is not used here."""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
    from trl.models.utils import unwrap_model_for_generation
    from trl.trainer.dpo_trainer import DataCollatorForPreference

__all__ = [
    "DPOConfig",
    "DPOTrainer",
    "DataCollatorForPreference",
    "GRPOConfig",
    "GRPOTrainer",
    "SFTConfig",
    "SFTTrainer",
    "unwrap_model_for_generation",
]
