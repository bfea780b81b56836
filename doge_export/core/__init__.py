"""What every other wing knows: configurations, checkpoints, tokenizers, bundles, errors. Never torch."""
