"""The control plane of llmops: it decides what should run, and never trains, embeds or answers itself."""
