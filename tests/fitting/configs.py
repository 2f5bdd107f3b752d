"""Configurations small enough to count by hand, and large enough that every term of a plan shows."""

TEXT = dict(
    vocab_size=500,
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=14,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
)
TRANSFORMER = dict(
    in_channels=128,
    num_layers=3,
    attention_head_dim=32,
    num_attention_heads=4,
    intermediate_size=352,
    adaln_dim=24,
    llm_features_dim=13 * 64,
    mrope_section=(6, 5, 5),
)
AUTOENCODER = dict(block_out_channels=(32, 32, 64, 64))
