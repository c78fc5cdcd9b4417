"""Networks: vision towers, projector, language backbone, action expert and heads."""
