"""What a trained model is for: replies to prompts."""
