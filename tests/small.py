"""The smallest configuration of the transformer that has more than one of everything."""

NARROW = dict(
    in_channels=8,
    num_layers=2,
    attention_head_dim=16,
    num_attention_heads=2,
    intermediate_size=40,
    adaln_dim=12,
    llm_features_dim=20,
    mrope_section=(4, 2, 2),
)
