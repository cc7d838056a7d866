"""What a trained head is worth: figures, pictures, the report and the model card."""
