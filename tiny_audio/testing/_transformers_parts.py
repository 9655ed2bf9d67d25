"""Common checks of encoders and decoders, which both wrap a transformers model."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from tiny_audio.pretrained.config import TransformersPartConfig
from tiny_audio.pretrained.packing import VARLEN
from tiny_audio.testing._checks import (
    changed,
    expect,
    expect_equal,
    expect_equal_gradients,
    expect_gradients,
    lora_for,
    perturb,
    reload,
    weighted_sum,
)

ConfigT = TypeVar("ConfigT", bound=TransformersPartConfig)
Check = Callable[[ConfigT], None]


class TransformersPartChecks(ABC, Generic[ConfigT]):
    """Checks of a part. The argument of each check is the config of a small part."""

    output: ClassVar[str]
    """Name of the part's output, for messages."""

    @abstractmethod
    def build(self, config: ConfigT, seed: int = 0) -> Any:
        """Build the part. The same seed gives the same random weights."""

    @abstractmethod
    def rebuild(self, config: ConfigT, architecture: dict[str, Any]) -> Any:
        """Build the part from the ``architecture()`` of an earlier build."""

    @abstractmethod
    def run(self, part: Any) -> Tensor:
        """Return the outputs ``[K, ...]`` of a batch of padded rows, at positions that are not padding."""

    @abstractmethod
    def checks(self) -> tuple[Check[ConfigT], ...]:
        """Return all checks of the contract."""

    def lora(self, config: ConfigT) -> dict[str, Any]:
        """Return a ``lora`` section for the part."""
        return lora_for(self.build(config).named_modules())

    def check_save_load(self, config: ConfigT) -> None:
        """Check that a part rebuilt from ``architecture()`` and saved tensors has the same outputs, bit for bit."""
        for fields in ({}, {"freeze": True, "lora": self.lora(config)}):
            variant = changed(config, **fields)
            part = self.build(variant).eval()
            perturb(part)
            torch.manual_seed(1)
            rebuilt = self.rebuild(variant, json.loads(json.dumps(part.architecture()))).eval()
            reload(config, part, rebuilt)
            expect(part.dim == rebuilt.dim, config, "the part rebuilt from architecture() has a different dim")
            with torch.no_grad():
                same = torch.equal(self.run(part), self.run(rebuilt))
            expect(same, config, f"after saving and loading, the part has different {self.output}")

    def check_determinism(self, config: ConfigT) -> None:
        """Check that the outputs change in training mode with dropout, and in no other case."""
        outputs = []
        for dropout, training in ((0.0, False), (0.0, True), (0.5, False), (0.5, True)):
            part = self.build(changed(config, dropout=dropout)).train(training)
            torch.manual_seed(2)
            with torch.no_grad():
                outputs.append(self.run(part))
        plain, training_mode, evaluation_mode, dropped = outputs
        expect(torch.equal(plain, training_mode), config, f"dropout: 0, but training mode changes the {self.output}")
        expect(torch.equal(plain, evaluation_mode), config, f"dropout changes the {self.output} outside of training")
        expect(not torch.equal(plain, dropped), config, "dropout: 0.5 changes nothing in training mode")

    def check_linear_layers(self, config: ConfigT) -> None:
        """Check that ``linear_layers`` has the names of all linear layers except a decoder's head.

        Adapters on all these layers must get gradients.
        """
        if config.linear_layers is None:
            return
        part = self.build(changed(config, lora=None))
        linear = [path for path, module in part.named_modules() if isinstance(module, nn.Linear)]
        # The head cannot have an adapter, because it may share its weights with the embeddings.
        names = {path.rsplit(".", 1)[-1] for path in linear} - {"lm_head"}
        expect(
            set(config.linear_layers) == names,
            config,
            f"linear_layers are {sorted(config.linear_layers)}, but the part has {sorted(names)}",
        )
        adapters = {"rank": 2, "alpha": 4.0, "targets": sorted(names)}
        part = self.build(changed(config, freeze=True, lora=adapters)).train().double()
        perturb(part)
        expect_gradients(config, "lora on all linear layers", part, weighted_sum(self.run(part)))

    def check_attentions(self, config: ConfigT) -> None:
        """Check that all ``attentions`` have the same outputs. Flash Attention is skipped, because it needs a GPU."""
        with torch.no_grad():
            wanted = self.run(self.build(changed(config, attention="auto")).eval())
            for attention in set(config.attentions) - {"flash_attention_2"}:
                found = self.run(self.build(changed(config, attention=attention)).eval())
                expect_equal(config, f"attention: {attention}, compared with auto", found, wanted)

    def check_packed_gradients(self, config: ConfigT) -> None:
        """Check that ``varlen`` has the same gradients as padded rows, with and without gradient checkpointing."""
        for fields in self._trained_variants(config):
            _, wanted = self._calls_and_gradients(changed(config, **fields))
            for checkpointing in (False, True):
                settings = fields | {"gradient_checkpointing": checkpointing}
                _, found = self._calls_and_gradients(changed(config, **settings, attention=VARLEN))
                expect_equal_gradients(config, f"attention: varlen with {settings}", found, wanted)

    def check_checkpointing(self, config: ConfigT) -> None:
        """Check that ``gradient_checkpointing`` recomputes layers in the backward pass. Gradients must not change."""
        for fields in self._trained_variants(config):
            plain, wanted = self._calls_and_gradients(changed(config, **fields, gradient_checkpointing=False))
            recomputed, found = self._calls_and_gradients(changed(config, **fields, gradient_checkpointing=True))
            what = f"gradient_checkpointing with freeze: {str(fields['freeze']).lower()}"
            expect(recomputed > plain, config, f"{what} recomputes nothing in the backward pass")
            expect_equal_gradients(config, what, found, wanted)

    def _trained_variants(self, config: ConfigT) -> Iterator[dict[str, Any]]:
        yield {"freeze": False, "lora": None}
        yield {"freeze": True, "lora": self.lora(config)}

    def _calls_and_gradients(self, config: ConfigT) -> tuple[int, dict[str, Tensor]]:
        """Run a forward and a backward pass, and return the number of calls of linear layers and the fp64 gradients."""
        part = self.build(config).train().double()
        perturb(part)
        calls: list[nn.Module] = []
        for module in part.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(lambda module, *_: calls.append(module))
        weighted_sum(self.run(part)).backward()  # type: ignore[no-untyped-call]
        return len(calls), {name: tensor.grad for name, tensor in part.named_parameters() if tensor.grad is not None}
