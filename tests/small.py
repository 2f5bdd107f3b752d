"""The smallest configuration of the transformer that has more than one of everything, and a random autoencoder."""

import torch
from diffusers import AutoencoderKLFlux2

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
LATENT_CHANNELS = 4


def autoencoder(sample_size: int) -> AutoencoderKLFlux2:
    """One of random weights and statistics; larger pictures than `sample_size` pixels can be tiled."""
    torch.manual_seed(2)
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        mid_block_add_attention=False,
        sample_size=sample_size,
    ).eval()
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.2, 4.0)
    return vae
