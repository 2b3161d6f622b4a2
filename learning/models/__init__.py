"""The models: MDETR and GLIP, their configurations and checkpoints."""
