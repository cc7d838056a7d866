"""Photos → pooled features of a frozen Qwen3-VL → a trained projection head."""
