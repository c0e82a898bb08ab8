"""Rewards that pretrained networks give, loaded through transformers where they are made."""
