"""TinyAudioModel: encode, project, splice, decode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedConfig
from transformers.initialization import no_init_weights

from tiny_audio import ctc
from tiny_audio.config import UserError
from tiny_audio.ctc import CtcVocabulary
from tiny_audio.decoders import DECODERS, Decoder, DecoderConfig, DecoderContext
from tiny_audio.encoders import ENCODERS, Encoder, EncoderConfig, EncoderContext, FeatureTransform
from tiny_audio.frames import Frames, length_mask
from tiny_audio.model.decoding import GenerationConfig, Transcript
from tiny_audio.model.drafting import Drafted, TextDraft, decode_drafted
from tiny_audio.model.prompt import Prompt
from tiny_audio.model.saved import SavedModel
from tiny_audio.model.streamer import LiveIds
from tiny_audio.projectors import PROJECTORS, Projector, ProjectorConfig, ProjectorContext

LinearCrossEntropy = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""From hidden states ``[K, H]``, the head's weights ``[V, H]``, targets ``[K]`` and label smoothing to losses ``[K]``:
cross-entropy that needs no logits."""

OnText = Callable[[int, str], None]
"""Hears the number of a clip and its text up to now. The text that wins in the end may be another one: with beams, and
where the CTC head has a say."""


class TinyAudioConfig(PreTrainedConfig):  # type: ignore[misc]  # transformers is untyped here
    """All that rebuilds a model without its base checkpoints: the parts' configs, architectures and the prompt's ids.

    Args:
        encoder, projector, decoder: the parts' configs as plain mappings, each with its ``name``.
        encoder_architecture, decoder_architecture: see ``Encoder.architecture``.
        embedding_rms: of the decoder's token embeddings, measured when the model was assembled.
        ctc_characters: labels of the CTC head, None without one.
        prompt_prefix_ids, prompt_suffix_ids, end_token_id: see :class:`tiny_audio.model.prompt.Prompt`.
        generation: :class:`tiny_audio.model.decoding.GenerationConfig` as a mapping.
        base_weights: of an export that holds not all weights, where the others are, by part; see
            :mod:`tiny_audio.model.base_weights`.
    """

    model_type = "tiny_audio"

    def __init__(
        self,
        encoder: dict[str, Any] | None = None,
        projector: dict[str, Any] | None = None,
        decoder: dict[str, Any] | None = None,
        encoder_architecture: dict[str, Any] | None = None,
        decoder_architecture: dict[str, Any] | None = None,
        embedding_rms: float = 1.0,
        ctc_characters: Sequence[str] | None = None,
        prompt_prefix_ids: Sequence[int] = (),
        prompt_suffix_ids: Sequence[int] = (),
        end_token_id: int = 0,
        generation: dict[str, Any] | None = None,
        base_weights: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.encoder = encoder
        self.projector = projector
        self.decoder = decoder
        self.encoder_architecture = encoder_architecture
        self.decoder_architecture = decoder_architecture
        self.embedding_rms = embedding_rms
        self.ctc_characters = None if ctc_characters is None else list(ctc_characters)
        self.prompt_prefix_ids = list(prompt_prefix_ids)
        self.prompt_suffix_ids = list(prompt_suffix_ids)
        self.end_token_id = end_token_id
        self.generation = generation or {}
        self.base_weights = base_weights
        super().__init__(**kwargs)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> TinyAudioConfig:
        """This config; transformers would take the mapping under ``decoder`` for a config of its own."""
        return self


@dataclass(frozen=True)
class TargetScores:
    """Teacher-forced negative log-likelihoods, as sums, so that any grouping of rows can be averaged exactly."""

    decoder_loss: Tensor
    """``[B]``, nats over each row's tokens, its end token included."""
    ctc_loss: Tensor | None
    """``[B]``, nats over each row's labels."""


class TinyAudioModel(SavedModel):
    """An encoder, a projector and a decoder as one transformers model.

    B clips · S samples · N audio embeddings · L positions · H decoder channels · V token ids
    """

    config_class = TinyAudioConfig
    base_model_prefix = ""
    main_input_name = "waveforms"
    input_modalities = ("audio",)
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: TinyAudioConfig, parts: tuple[Encoder, Projector, Decoder] | None = None) -> None:
        super().__init__(config)
        self.encoder, self.projector, self.decoder = parts or self._rebuild(config)
        self.ctc_vocabulary = None
        self.ctc_head: nn.Linear | None = None
        if config.ctc_characters is not None:
            self.ctc_vocabulary = CtcVocabulary(tuple(config.ctc_characters))
            self.ctc_head = nn.Linear(self.encoder.dim, len(self.ctc_vocabulary))
        # Every part has initialized itself; transformers' generic initialization would undo it.
        with no_init_weights():
            self.post_init()
        # post_init asks direct children only, and the tied embeddings are a level below.
        self.all_tied_weights_keys = self.get_expanded_tied_weights_keys(all_submodels=True)

    @classmethod
    def assemble(
        cls,
        encoder: EncoderConfig,
        projector: ProjectorConfig,
        decoder: DecoderConfig,
        *,
        tokenizer: Any,
        prompt: Prompt,
        ctc_vocabulary: CtcVocabulary | None = None,
        generation: GenerationConfig | None = None,
    ) -> TinyAudioModel:
        """Build the parts from their configs, reading pretrained weights where those say so.

        Raises:
            UserError: a part cannot be built, see :mod:`tiny_audio.pretrained.building`, or does not support what
            ``generation`` requires.
        """
        built_encoder = ENCODERS.build(encoder, EncoderContext())
        built_decoder = DECODERS.build(decoder, DecoderContext(tokenizer))
        rms = built_decoder.embedding_rms()
        context = ProjectorContext(built_encoder.dim, built_decoder.dim, built_encoder.frame_rate, rms)
        config = TinyAudioConfig(
            encoder=encoder.model_dump(mode="json"),
            projector=projector.model_dump(mode="json"),
            decoder=decoder.model_dump(mode="json"),
            encoder_architecture=built_encoder.architecture(),
            decoder_architecture=built_decoder.architecture(),
            embedding_rms=rms,
            ctc_characters=ctc_vocabulary.characters if ctc_vocabulary else None,
            prompt_prefix_ids=prompt.prefix_ids,
            prompt_suffix_ids=prompt.suffix_ids,
            end_token_id=prompt.end_id,
            generation=(generation or GenerationConfig()).model_dump(mode="json"),
        )
        model = cls(config, (built_encoder, PROJECTORS.build(projector, context), built_decoder))
        model.drafts_from_ctc()  # refuses what cannot be done
        return model

    @staticmethod
    def _rebuild(config: TinyAudioConfig) -> tuple[Encoder, Projector, Decoder]:
        encoder = ENCODERS.build(ENCODERS.parse(config.encoder), EncoderContext(config.encoder_architecture))
        decoder = DECODERS.build(DECODERS.parse(config.decoder), DecoderContext(None, config.decoder_architecture))
        context = ProjectorContext(encoder.dim, decoder.dim, encoder.frame_rate, config.embedding_rms)
        return encoder, PROJECTORS.build(PROJECTORS.parse(config.projector), context), decoder

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: parts initialize themselves, and a loaded model must hold every key."""

    def encode(self, waveforms: Tensor, lengths: Tensor, transform: FeatureTransform | None = None) -> Frames:
        """Waveforms ``[B, S]``, float32 at 16 kHz, with ``lengths [B]`` in samples -> frames, CTC logits included."""
        frames: Frames = self.encoder(waveforms, lengths, transform)
        return frames if self.ctc_head is None else replace(frames, ctc_logits=self.ctc_head(frames.values))

    def splice(
        self, audio: Tensor, audio_lengths: Tensor, ids: Sequence[Tensor], *, padding_side: str
    ) -> tuple[Tensor, Tensor]:
        """Prompt prefix, each row's own length of audio embeddings, prompt suffix, text.

        Args:
            audio: ``[B, N, H]``.
            audio_lengths: ``[B]``.
            ids: B rows of token ids that follow the prompt; empty rows at inference.
            padding_side: ``right`` to train, ``left`` to generate.

        Returns:
            embeddings ``[B, L, H]`` and their bool mask ``[B, L]``.
        """
        prefix, suffix = (
            self.decoder.embed(torch.tensor(part, dtype=torch.long, device=audio.device)).to(audio.dtype)
            for part in (self.config.prompt_prefix_ids, self.config.prompt_suffix_ids)
        )
        rows = [
            torch.cat([prefix, row[: int(length)], suffix, self.decoder.embed(text).to(audio.dtype)])
            for row, length, text in zip(audio, audio_lengths, ids, strict=True)
        ]
        embeddings = pad_sequence(rows, batch_first=True, padding_side=padding_side)
        sizes = torch.tensor([len(row) for row in rows], device=audio.device)
        mask = length_mask(sizes, embeddings.shape[1])
        return embeddings, mask if padding_side == "right" else mask.flip(1)

    def _score_spliced(
        self,
        audio: Tensor,
        audio_lengths: Tensor,
        targets: Sequence[Tensor],
        label_smoothing: float = 0.0,
        linear_cross_entropy: LinearCrossEntropy | None = None,
    ) -> Tensor:
        """Negative log-likelihood ``[B]`` of B rows of token ids, each with its end token."""
        embeddings, mask = self.splice(audio, audio_lengths, [row[:-1] for row in targets], padding_side="right")
        sizes = torch.tensor([len(row) for row in targets], device=audio.device)
        # Positions that predict a target: from the last one before the text to the one before the end token.
        ends = mask.sum(1)
        positions = torch.arange(mask.shape[1], device=mask.device)
        keep = (positions >= (ends - sizes)[:, None]) & (positions < ends[:, None])
        labels = torch.cat(list(targets))
        if linear_cross_entropy is None:
            logits = self.decoder(embeddings, mask, keep)
            precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
            losses = F.cross_entropy(precise, labels, reduction="none", label_smoothing=label_smoothing)
        else:
            fused = linear_cross_entropy
            losses = self.decoder(
                embeddings, mask, keep, lambda hidden, weight: fused(hidden, weight, labels, label_smoothing)
            )
        rows = torch.arange(len(targets), device=audio.device).repeat_interleave(sizes)
        return torch.zeros(len(targets), dtype=losses.dtype, device=audio.device).index_add(0, rows, losses)

    def forward(
        self,
        waveforms: Tensor,
        waveform_lengths: Tensor,
        targets: Sequence[Tensor],
        ctc_targets: Sequence[Sequence[int]] | None = None,
        transform: FeatureTransform | None = None,
        label_smoothing: float = 0.0,
        linear_cross_entropy: LinearCrossEntropy | None = None,
    ) -> TargetScores:
        """Teacher-forced losses.

        Args:
            waveforms: ``[B, S]`` float32 at 16 kHz.
            waveform_lengths: ``[B]`` in samples.
            targets: B rows of token ids, each ending in the end token.
            ctc_targets: B rows of CTC labels; needed where the model has a CTC head.
            transform: SpecAugment or the like, between front end and layers.
            label_smoothing: share of each target's probability that is spread over the vocabulary.
            linear_cross_entropy: how to get from hidden states to losses; None goes by the logits.
        """
        assert self.ctc_head is None or ctc_targets is not None, "a model with a CTC head trains on CTC targets"
        frames = self.encode(waveforms, waveform_lengths, transform)
        return self.score_frames(frames, targets, ctc_targets, label_smoothing, linear_cross_entropy)

    def score_frames(
        self,
        frames: Frames,
        targets: Sequence[Tensor],
        ctc_targets: Sequence[Sequence[int]] | None = None,
        label_smoothing: float = 0.0,
        linear_cross_entropy: LinearCrossEntropy | None = None,
    ) -> TargetScores:
        """As :meth:`forward`, of frames as :meth:`encode` gives them; without ``ctc_targets`` there is no CTC loss."""
        ctc_loss = None
        if frames.ctc_logits is not None and ctc_targets is not None:
            ctc_loss = -ctc.log_likelihood(frames.ctc_logits, frames.lengths, ctc_targets)
        audio, audio_lengths = self.projector(frames)
        decoder_loss = self._score_spliced(audio, audio_lengths, targets, label_smoothing, linear_cross_entropy)
        return TargetScores(decoder_loss, ctc_loss)

    @torch.no_grad()
    def generate(self, waveforms: Tensor, waveform_lengths: Tensor | None = None, **settings: Any) -> Any:
        """Token ids of the transcripts, ``[B, new tokens]``, each row padded after its end token.

        By the decoder alone; :meth:`transcribe` also asks the CTC head, where ``generation.ctc_weight`` says so.

        Args:
            waveforms: ``[B, S]`` float32 at 16 kHz.
            waveform_lengths: ``[B]`` in samples; None where no row is padded.
            settings: as for transformers' ``generate``; they go before the model's own.
        """
        if waveform_lengths is None:
            waveform_lengths = torch.full((len(waveforms),), waveforms.shape[1], device=waveforms.device)
        audio, audio_lengths = self.projector(self.encode(waveforms, waveform_lengths))
        return self._generate_spliced(audio, audio_lengths, **settings)

    @property
    def generation(self) -> GenerationConfig:
        """How :meth:`transcribe` decodes, where nothing else is said."""
        return GenerationConfig(**self.config.generation)

    def drafts_from_ctc(self, settings: GenerationConfig | None = None) -> bool:
        """Whether :meth:`transcribe` verifies the CTC head's text, as ``generation.draft`` says.

        Raises:
            UserError: it is to, and there is no head, or the decoder cannot go back.
        """
        settings = settings or self.generation
        can_go_back = self.decoder.cache() is not None
        if settings.draft == "ctc" and self.ctc_head is None:
            raise UserError("generation.draft: ctc needs a CTC head, and this model has none; leave draft out")
        if settings.draft == "ctc" and not can_go_back:
            raise UserError(
                f"generation.draft: the decoder {self.config.decoder['name']!r} remembers what cannot be taken back, "
                "and so cannot verify a draft; leave draft out"
            )
        if settings.draft is None:
            in_half = torch.is_autocast_enabled(self.device.type) or any(
                tensor.dtype in (torch.bfloat16, torch.float16) for tensor in self.decoder.parameters()
            )
            return self.ctc_head is not None and settings.num_beams == 1 and can_go_back and not in_half
        return settings.draft == "ctc"

    def _prompts(self, audio: Tensor, audio_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """What the decoder reads before the text: embeddings ``[B, L, H]``, left-padded, and their mask."""
        nothing = torch.empty(0, dtype=torch.long, device=audio.device)
        return self.splice(audio, audio_lengths, [nothing] * len(audio), padding_side="left")

    def _generate_spliced(
        self, audio: Tensor, audio_lengths: Tensor, own: GenerationConfig | None = None, **settings: Any
    ) -> Any:
        embeddings, mask = self._prompts(audio, audio_lengths)
        own = own or self.generation
        defaults = {
            "max_new_tokens": own.max_new_tokens,
            "num_beams": own.num_beams,
            "do_sample": False,
            "eos_token_id": self.config.end_token_id,
            "pad_token_id": self.config.end_token_id,
        }
        return self.decoder.generate(embeddings, mask, **(defaults | settings))

    @torch.no_grad()
    def transcribe(self, waveforms: Tensor, waveform_lengths: Tensor, tokenizer: Any) -> list[Transcript]:
        """Texts of a batch, by the model's own generation settings: greedy, beam or joint with the CTC head."""
        return self.transcribe_frames(self.encode(waveforms, waveform_lengths), tokenizer)

    @torch.no_grad()
    def transcribe_frames(
        self,
        frames: Frames,
        tokenizer: Any,
        on_text: OnText | None = None,
        settings: GenerationConfig | None = None,
    ) -> list[Transcript]:
        """As :meth:`transcribe`, of frames as :meth:`encode` gives them.

        Args:
            frames: of B clips, with the CTC logits of a model that has a head.
            tokenizer: the decoder's.
            on_text: hears each text while it grows.
            settings: None takes the model's own.
        """
        audio, audio_lengths = self.projector(frames)
        tell = self._telling(on_text, tokenizer)
        settings = settings or self.generation
        num_candidates = settings.num_beams if settings.ctc_weight else 1
        ctc_texts = self.ctc_texts(frames)
        if self.drafts_from_ctc(settings):
            limit = settings.max_new_tokens
            guesses = [text or "" for text in ctc_texts]
            drafted = self.verify(audio, audio_lengths, guesses, tokenizer, tell, max_new_tokens=limit)
            sequences = [clip.ids for clip in drafted]
        else:
            live = {} if tell is None else {"stopping_criteria": [LiveIds(len(audio), tell)]}
            found = self._generate_spliced(audio, audio_lengths, settings, num_return_sequences=num_candidates, **live)
            sequences = found.tolist()
        rows = [self._until_end(row) for row in sequences]
        texts = [tokenizer.decode(row, skip_special_tokens=True).strip() for row, _ in rows]
        transcripts = []
        for clip, ctc_text in enumerate(ctc_texts):
            mine = range(clip * num_candidates, (clip + 1) * num_candidates)
            truncated = {texts[row] for row in mine} - {texts[row] for row in mine if rows[row][1]}
            candidates = {texts[row]: texts[row] in truncated for row in mine}
            best = texts[mine[0]]
            if settings.ctc_weight and frames.ctc_logits is not None:
                candidates.setdefault(ctc_text or "", False)
                one = slice(clip, clip + 1)
                clip_frames = Frames(frames.values[one], frames.lengths[one], frames.rate, frames.ctc_logits[one])
                best = self._best(list(candidates), clip_frames, (audio[one], audio_lengths[one]), tokenizer, settings)
            transcripts.append(Transcript(best, ctc_text, candidates[best]))
        return transcripts

    @torch.no_grad()
    def verify(
        self,
        audio: Tensor,
        audio_lengths: Tensor,
        texts: Sequence[str],
        tokenizer: Any,
        tell: Callable[[int, list[int]], None] | None = None,
        *,
        max_new_tokens: int | None = None,
    ) -> list[Drafted]:
        """Greedy ids of B clips, and the passes of the decoder that they took, with guesses of their texts.

        Args:
            audio: ``[B, N, H]``, as the projector gives it.
            audio_lengths: ``[B]``.
            texts: B guesses; a wrong one costs time and nothing else.
            tokenizer: the decoder's.
            tell: see :func:`tiny_audio.model.drafting.decode_drafted`.
            max_new_tokens: None takes the model's own.
        """
        cache = self.decoder.cache()
        assert cache is not None, "drafts_from_ctc says when there is none"
        end, limit = self.config.end_token_id, max_new_tokens or self.generation.max_new_tokens
        alphabet = self.ctc_vocabulary.characters if self.ctc_vocabulary else ()
        drafts = [TextDraft(text, tokenizer, end, alphabet) for text in texts]
        prompts = self._prompts(audio, audio_lengths)
        return decode_drafted(self.decoder, cache, *prompts, drafts, max_new_tokens=limit, end_id=end, tell=tell)

    def _best(
        self,
        texts: list[str],
        frames: Frames,
        audio: tuple[Tensor, Tensor],
        tokenizer: Any,
        settings: GenerationConfig,
    ) -> str:
        """The text that decoder and CTC head together find likeliest in one clip."""
        assert self.ctc_vocabulary is not None
        assert frames.ctc_logits is not None
        device, number = frames.values.device, len(texts)
        targets = [
            torch.tensor([*tokenizer.encode(text, add_special_tokens=False), self.config.end_token_id], device=device)
            for text in texts
        ]
        embeddings, lengths = audio
        by_decoder = -self._score_spliced(embeddings.expand(number, -1, -1), lengths.expand(number), targets)
        labels = [self.ctc_vocabulary.encode(text) for text in texts]
        by_ctc = ctc.log_likelihood(
            frames.ctc_logits.expand(number, -1, -1), frames.lengths.expand(number), [row or [] for row in labels]
        )
        for index, row in enumerate(labels):
            if row is None:  # a character that the head cannot spell
                by_ctc[index] = -torch.inf
        scores = (1 - settings.ctc_weight) * by_decoder + settings.ctc_weight * by_ctc
        return texts[int(scores.argmax())]

    def ctc_texts(self, frames: Frames) -> list[str | None]:
        """The CTC head's own greedy texts of B clips; None without a head."""
        if frames.ctc_logits is None or self.ctc_vocabulary is None:
            return [None] * len(frames.lengths)
        labels = ctc.greedy(frames.ctc_logits, frames.lengths)
        return [self.ctc_vocabulary.decode(row).strip() for row in labels]

    def _telling(self, on_text: OnText | None, tokenizer: Any) -> Callable[[int, list[int]], None] | None:
        """Ids to text, where somebody listens."""
        if on_text is None:
            return None

        def tell(clip: int, ids: list[int]) -> None:
            on_text(clip, tokenizer.decode(self._until_end(ids)[0], skip_special_tokens=True).strip())

        return tell

    def _until_end(self, ids: list[int]) -> tuple[list[int], bool]:
        """Ids before the end token, and whether there was one."""
        end = self.config.end_token_id
        return (ids[: ids.index(end)], True) if end in ids else (ids, False)


def describe_parts(model: TinyAudioModel) -> list[dict[str, Any]]:
    """A row for each part: class, parameters, trainable ones, width and rate of what it puts out."""
    rows = []
    for part in ("encoder", "projector", "decoder", "ctc_head"):
        module = getattr(model, part)
        if module is None:
            continue
        parameters = list(module.parameters())  # tied tensors come once
        rows.append(
            {
                "part": part,
                "name": (getattr(model.config, part, None) or {}).get("name"),
                "class": type(module).__name__,
                "total": sum(tensor.numel() for tensor in parameters),
                "trainable": sum(tensor.numel() for tensor in parameters if tensor.requires_grad),
                "dim": {
                    "encoder": model.encoder.dim,
                    "projector": model.decoder.dim,
                    "decoder": model.decoder.dim,
                    "ctc_head": len(model.ctc_vocabulary or ()),
                }[part],
                "frame_rate_hz": _frame_rate(model, part),
            }
        )
    return rows


def _frame_rate(model: TinyAudioModel, part: str) -> float | None:
    if part == "decoder":
        return None
    if part == "projector":
        # Over a minute, so that what rounding adds to a clip does not count.
        frames = torch.tensor([round(60 * model.encoder.frame_rate)])
        return int(model.projector.max_embeddings(frames)) / 60
    return model.encoder.frame_rate
