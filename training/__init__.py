"""Training and evaluation: data, attacks, objectives, the trainer, robustness measurements."""
