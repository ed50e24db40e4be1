"""What runs a stage: arguments, the module that owns the step, the trainer, the stages."""
