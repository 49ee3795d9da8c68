"""The networks of a recipe, by the channels of their input and output."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from mnist_ddpm.ddpm import UNet
from mnist_ddpm.methods.adversarial import Critic
from mnist_ddpm.methods.fourier import FourierUNet
from mnist_ddpm.methods.just_transformer import JiT
from mnist_ddpm.methods.shortcuts import ShortcutUNet
from mnist_ddpm.methods.transformer import DiT
from mnist_ddpm.recipe import Recipe


def unet(recipe: Recipe, in_channels: int, out_channels: int) -> UNet:
    """The U-Net of a recipe, which takes labels where there are classes."""
    return unet_of(UNet, recipe, in_channels, out_channels, classes=recipe.classes)


def shortcut_unet(recipe: Recipe, in_channels: int, out_channels: int) -> UNet:
    """A U-Net that also takes the time to which a step goes, and labels where there are classes."""
    return unet_of(ShortcutUNet, recipe, in_channels, out_channels, classes=recipe.classes)


shortcut_unet.takes_next_time = True


def fourier_unet(recipe: Recipe, in_channels: int, out_channels: int) -> UNet:
    """A U-Net that also sees the last digits of a pixel, and takes no labels."""
    return unet_of(FourierUNet, recipe, in_channels, out_channels)


def unet_of(
    unet_class: type[UNet], recipe: Recipe, in_channels: int, out_channels: int, **options
) -> UNet:
    """A U-Net of that class, with the recipe's sizes, and further options."""
    network = unet_class(
        channels=in_channels,
        out_channels=out_channels,
        base_channels=recipe.base_channels,
        channel_mults=recipe.channel_mults,
        patch_size=recipe.patch_size,
        blocks=recipe.blocks_per_level,
        attention=recipe.attention,
        dropout=recipe.dropout,
        **options,
    )
    for layer in network.modules():
        if recipe.norm_groups and isinstance(layer, nn.GroupNorm):
            layer.num_groups = recipe.norm_groups
    return network


def jit(recipe: Recipe, in_channels: int, out_channels: int) -> JiT:
    """A transformer for large patches, with the sizes of dit."""
    return dit(recipe, in_channels, out_channels, JiT)


def dit(
    recipe: Recipe, in_channels: int, out_channels: int, transformer_class: type[DiT] = DiT
) -> DiT:
    """A transformer as wide as the U-Net's widest level, with as many blocks as the U-Net."""
    width = recipe.base_channels * max(recipe.channel_mults)
    depth = (2 * recipe.blocks_per_level + 1) * len(recipe.channel_mults)
    options = {"patch_size": recipe.patch_size, "dropout": recipe.dropout}
    options |= {"classes": recipe.classes, "out_channels": out_channels}
    return transformer_class(in_channels, width, depth, **options)


def make_critic(recipe: Recipe) -> Critic:
    """A critic of a recipe's images, whose weights depend on the seed and the sizes alone."""
    with seeded(recipe.seed):
        return Critic(*recipe.shape, recipe.classes)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, the processor's random numbers are those of a seed; afterwards the user's go on."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
